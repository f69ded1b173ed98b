//! Opening the registry: what is there, whether it is ours, and how to read it where nothing can be written.

use std::cell::Cell;
use std::fmt::Write;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hpvm_model::FileIdentity;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::{FallocateFlags, fallocate};

use crate::change::Change;
use crate::error::{self, RegistryError};
use crate::schema::{self, APPLICATION_ID, VERSION, named_beside, sync_folder_of};

/// The longest a command waits for others to finish their change. One takes some milliseconds.
pub(crate) const BUSY_BOUND: Duration = Duration::from_secs(10);
/// How often it looks whether they have. SQLite's own pause grows to 100 ms, which lets late comers starve early ones.
const BUSY_STEP: Duration = Duration::from_millis(1);
/// How long somebody waits who may give up in between.
const BUSY_MOMENT: Duration = Duration::from_millis(100);

/// Pages the log may grow to before they move to the file. The first command when no other runs reads the log once, so a
/// long one would cost every command (256 pages: half a millisecond and more); moving them costs three syncs, and a
/// change writes about ten.
const LOG_PAGES_MAX: i64 = 64;
/// The same when only a note was written, such as a refusal, which waits for no disk: on a busy one each sync may take
/// seconds. So many are the pages of about 170 refusals, and reading them takes a millisecond.
const NOTED_PAGES_MAX: i64 = 512;
/// The log keeps the room it once took, so that syncing it need not extend it; after a large change it gives some back.
const LOG_BYTES_KEPT: i64 = 4 << 20;
/// Room that a new log takes at once: where none is left on the file system, what takes things away, and so makes room, can be
/// written all the same. Twice what the log is let grow to, since it may be anywhere within that by then.
const LOG_BYTES_RESERVED: u64 = 512 << 10;

/// What the registry is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading and changing; the file is made when there is none.
    ReadWrite,
    /// Reading, also from a read-only file system. A missing file reads as a VM Host without guests.
    ReadOnly,
}

/// What a commit was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// Synced anyway.
    Change,
    /// On the disk with the next change.
    Note,
}

/// An open registry.
#[derive(Debug)]
pub struct Registry {
    pub(crate) connection: Connection,
    pub(crate) path: PathBuf,
    /// The file that was opened; `None` when there was none to read.
    identity: Option<FileIdentity>,
    /// Of the tables as they are seen: those of an older file stay as they are until the first change.
    pub(crate) version: Cell<i64>,
}

/// What tells one state of an open registry from those that other commands make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(i64);

impl Registry {
    pub fn open(path: &Path, access: Access) -> Result<Registry, RegistryError> {
        let path = &target_of(path);
        match (look(path)?, access) {
            (None, Access::ReadOnly) => Registry::without_file(path),
            (None, Access::ReadWrite) => {
                make_folder_of(path)?;
                schema::create(path)?;
                Registry::open_existing(path)
            }
            (Some(_), Access::ReadWrite) => Registry::open_existing(path),
            (identity, Access::ReadOnly) => {
                let (connection, version) = open_readable(path)?;
                Ok(Registry::of(connection, path, identity, version))
            }
        }
    }

    /// Whether there was a file to open. Without one nothing is there and nothing can be changed.
    #[must_use]
    pub fn has_file(&self) -> bool {
        self.identity.is_some()
    }

    /// Begins a change. Waits for the change of another command to end, then keeps others waiting: be quick. Where the registry
    /// was opened for reading, nobody is kept waiting, and the first that is written ends it.
    pub fn change(&mut self) -> Result<Change<'_>, RegistryError> {
        self.begin().and_then(|change| self.of_this_file(change))
    }

    /// The same for who may give up: `refuse` is asked several times a second while others are waited for, and once the turn
    /// has come. Who gave up waits for nobody any more, not even to note that.
    pub fn change_unless<E: From<RegistryError>>(
        &mut self,
        refuse: impl Fn() -> Result<(), E>,
    ) -> Result<Change<'_>, E> {
        let deadline = Instant::now() + BUSY_BOUND;
        self.hurry()?;
        loop {
            match self.take_turn() {
                Err(RegistryError::Busy { .. }) if Instant::now() < deadline => refuse()?,
                taken => break taken?,
            }
        }
        self.wait_by(keep_waiting)?;
        let change = self.of_this_file(Change::begun(self)?)?;
        refuse()?;
        Ok(change)
    }

    /// A change of what all versions have alike: an older file stays of its version.
    pub(crate) fn change_as_it_is(&mut self) -> Result<Change<'_>, RegistryError> {
        self.take_turn()?;
        self.of_this_file(Change::as_it_is(self))
    }

    /// Whether there is nothing in its log, where the latest changes are. After the first change of a new registry that is so
    /// only where the log was lost, or where others than we have moved all of it to the file.
    #[must_use]
    pub fn has_empty_log(&self) -> bool {
        log_length(&self.path) == 0
    }

    /// The state that is seen now: another one once somebody else has committed something (SQLite, PRAGMA data_version).
    pub fn state(&self) -> Result<State, RegistryError> {
        self.connection
            .pragma_query_value(None, "data_version", |row| row.get(0))
            .map(State)
            .map_err(self.failed("read"))
    }

    /// From here on nobody is waited for longer than a moment: for a note that is not worth more.
    pub fn hurry(&mut self) -> Result<(), RegistryError> {
        self.wait_by(wait_a_moment)
    }

    fn wait_by(&mut self, handler: fn(i32) -> bool) -> Result<(), RegistryError> {
        let failed = self.failed("begin a change");
        self.connection.busy_handler(Some(handler)).map_err(failed)
    }

    fn of_this_file<'a>(&self, change: Change<'a>) -> Result<Change<'a>, RegistryError> {
        // Who waited while `hpvm doctor` put a rebuilt file in place now holds the old one.
        match look(&self.path) {
            Ok(identity) if identity == self.identity => Ok(change),
            _ => Err(RegistryError::Replaced { path: self.path.clone() }),
        }
    }

    /// For a file that this process alone knows, or is about to replace.
    pub(crate) fn begin(&self) -> Result<Change<'_>, RegistryError> {
        self.take_turn()?;
        Change::begun(self)
    }

    /// Who has it open for reading alone gets one state of it, for a change that is tried only: what he writes is refused. Of one
    /// without a file nobody else has anything open.
    fn take_turn(&self) -> Result<(), RegistryError> {
        let is_read_only = self.connection.is_readonly("main").map_err(self.failed("read"))?;
        let begin = match is_read_only || !self.has_file() {
            true => "BEGIN",
            false => "BEGIN IMMEDIATE",
        };
        self.connection.execute_batch(begin).map_err(self.failed("begin a change"))
    }

    pub(crate) fn open_existing(path: &Path) -> Result<Registry, RegistryError> {
        // The name first: when the file is replaced in between, a change finds that out.
        let identity = look(path)?;
        let (connection, version) = open_writable(path)?;
        Ok(Registry::of(connection, path, identity, version))
    }

    /// Tables in an empty file at `path`; errors speak of `target`, which it is to become.
    pub(crate) fn of_fresh_file(path: &Path, target: &Path) -> Result<Registry, RegistryError> {
        let connection =
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | no_mutex())
                .and_then(|connection| {
                    schema::make_tables(&connection)?;
                    Ok(connection)
                })
                .map_err(RegistryError::sql("create the tables", target))?;
        Ok(Registry::of(connection, target, None, VERSION))
    }

    /// Keeps the log short, after a commit. Nothing depends on it: the log is as good as the file, and what fails now is
    /// tried again after the next commit.
    pub(crate) fn tidy_log(&self, written: Written) {
        let pages_max = match written {
            Written::Change => LOG_PAGES_MAX,
            Written::Note => NOTED_PAGES_MAX,
        };
        if self.log_pages("NOOP").is_some_and(|(pages, _)| pages >= pages_max) {
            self.empty_log();
        }
    }

    /// Moves what the log holds to the file and begins the log anew.
    pub(crate) fn empty_log(&self) {
        let is_all_moved = self.log_pages("PASSIVE").is_some_and(|(pages, moved)| pages == moved);
        if is_all_moved {
            // That all was moved is known only while somebody has the registry open, and commands come one by one: to
            // the next one the log would look full. The next write begins it anew, so there has to be one now. Nothing
            // is lost if a power cut takes that one.
            let _ = self.connection.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT);
            let _ = self.connection.pragma_update(None, "synchronous", "normal");
            let _ = self.connection.pragma_update(None, "user_version", self.version.get());
            let _ = self.connection.pragma_update(None, "synchronous", "full");
        }
    }

    /// Pages in the log, and how many of them are in the file too.
    fn log_pages(&self, mode: &str) -> Option<(i64, i64)> {
        let sql = format!("PRAGMA wal_checkpoint({mode})");
        self.connection.query_row(&sql, [], |row| Ok((row.get(1)?, row.get(2)?))).ok()
    }

    pub(crate) fn close(self) -> Result<(), RegistryError> {
        let failed = self.failed("close");
        self.connection.close().map_err(|(_, error)| failed(error))
    }

    pub(crate) fn failed(
        &self,
        action: &'static str,
    ) -> impl FnOnce(rusqlite::Error) -> RegistryError + use<> {
        RegistryError::sql(action, &self.path)
    }

    fn without_file(path: &Path) -> Result<Registry, RegistryError> {
        let empty = Registry::in_memory(path)?;
        let query_only = empty.connection.pragma_update(None, "query_only", true);
        query_only.map_err(empty.failed("read"))?;
        Ok(empty)
    }

    /// An empty one that is never at the path of which its errors speak.
    pub(crate) fn in_memory(path: &Path) -> Result<Registry, RegistryError> {
        let connection = Connection::open_in_memory().and_then(|connection| {
            schema::make_tables(&connection)?;
            Ok(connection)
        });
        let connection = connection.map_err(RegistryError::sql("read", path))?;
        Ok(Registry::of(connection, path, None, VERSION))
    }

    fn of(
        connection: Connection,
        path: &Path,
        identity: Option<FileIdentity>,
        version: i64,
    ) -> Registry {
        Registry { connection, path: path.to_owned(), identity, version: Cell::new(version) }
    }
}

/// Where a link of the administrator's leads, whether there is a file or not: what SQLite keeps beside the file is beside that.
pub(crate) fn target_of(path: &Path) -> PathBuf {
    let Ok(next) = fs::read_link(path) else { return path.to_owned() };
    let next = || path.parent().unwrap_or(Path::new(".")).join(next);
    fs::canonicalize(path).unwrap_or_else(|_| next())
}

/// What is at the path, if it can be a registry at all. SQLite would take an empty file for an empty database.
fn look(path: &Path) -> Result<Option<FileIdentity>, RegistryError> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(RegistryError::damaged(path, "it is a folder")),
        Ok(found) if !found.is_file() => Err(RegistryError::damaged(path, "it is no plain file")),
        Ok(found) if found.len() == 0 => Err(RegistryError::damaged(path, "it is empty")),
        Ok(found) => match endless_log(path) {
            Some(log) => Err(RegistryError::NoLog(log)),
            None => Ok(Some(FileIdentity { device: found.dev(), inode: found.ino() })),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if log_length(path) == 0 {
                Ok(None)
            } else {
                Err(RegistryError::damaged(path, "it is gone and only its log is left"))
            }
        }
        Err(error) => Err(RegistryError::file("look at the registry", path)(error)),
    }
}

/// SQLite opens what is beside the file, whatever it is, and who opens a pipe waits until somebody else does.
fn endless_log(path: &Path) -> Option<PathBuf> {
    let beside = ["-wal", "-shm"].map(|suffix| named_beside(path, suffix));
    let is_endless =
        |log: &PathBuf| fs::metadata(log).is_ok_and(|found| !found.is_file() && !found.is_dir());
    beside.into_iter().find(is_endless)
}

fn log_length(path: &Path) -> u64 {
    fs::metadata(named_beside(path, "-wal")).map_or(0, |log| log.len())
}

fn make_folder_of(path: &Path) -> Result<(), RegistryError> {
    match path.parent() {
        Some(folder) => fs::create_dir_all(folder)
            .map_err(RegistryError::file("make the folder of the registry", path)),
        None => Ok(()),
    }
}

fn open_writable(path: &Path) -> Result<(Connection, i64), RegistryError> {
    let failed = || RegistryError::sql("open", path);
    let mut connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | no_mutex())
            .map_err(|e| failed()(e))?;
    let version = verify(&mut connection, path)?;
    // SQLite opens for reading alone, in silence, what it may not write.
    if connection.is_readonly("main").map_err(|e| failed()(e))? {
        return Err(error::not_writable(path.to_owned()));
    }
    // The copy that an upgrade keeps has a journal; whoever goes back to it works with a log again, as all that is said below does.
    connection.pragma_update(None, "journal_mode", "wal").map_err(|e| failed()(e))?;
    // SQLite is built not to sync the log's name with the first commit of each connection. Whoever finds the log empty, new or
    // not, syncs the name before he writes; so the name of one that is not empty is safe. Nobody empties it: writers leave it as it
    // is when they close, and what `empty_log` moved stays in it. While we have the file open nobody takes it away.
    if log_length(path) == 0 {
        reserve_log(path);
        sync_folder_of(path)?;
    }
    prepare_for_changes(&connection).map_err(|e| failed()(e))?;
    Ok((connection, version))
}

/// What cannot be had now is missed only when there is no room later.
fn reserve_log(path: &Path) {
    let log = File::options().write(true).open(named_beside(path, "-wal"));
    // Its length stays: a log is empty until something is in it.
    let reserve = |log| fallocate(log, FallocateFlags::KEEP_SIZE, 0, LOG_BYTES_RESERVED);
    let _ = log.map(reserve);
}

/// That each commit is synced is what SQLite does unless it is told otherwise (PRAGMA synchronous, FULL). That it moves a log of
/// 1,000 pages of its own accord does no harm: with the bounds above that takes an uncommonly large change.
fn prepare_for_changes(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, true)?;
    // Commands are short: taking the log away at each one's end would triple the syncs of a change.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(())
}

/// The ways to read, best first: as any reader; without touching the shared index (a full disk, or rights to read alone);
/// as a file that nobody changes (a read-only file system without log).
fn open_readable(path: &Path) -> Result<(Connection, i64), RegistryError> {
    let first = match open_for_reading(path, "") {
        Err(error) if is_about_writing(&error) => error,
        result => return result,
    };
    match open_for_reading(path, "?readonly_shm=1") {
        Err(error) if is_about_writing(&error) => {}
        result => return result,
    }
    if log_length(path) == 0 {
        return open_for_reading(path, "?immutable=1");
    }
    match first {
        RegistryError::ReadOnlyFileSystem { path } => Err(RegistryError::LogUnreadable { path }),
        other => Err(other),
    }
}

fn is_about_writing(error: &RegistryError) -> bool {
    match error {
        RegistryError::ReadOnlyFileSystem { .. }
        | RegistryError::Permission { .. }
        | RegistryError::Full { .. } => true,
        RegistryError::Sql { source, .. } => matches!(
            source.sqlite_error_code(),
            Some(ErrorCode::SystemIoFailure | ErrorCode::ReadOnly | ErrorCode::CannotOpen)
        ),
        _ => false,
    }
}

pub(crate) fn open_for_reading(
    path: &Path,
    query: &str,
) -> Result<(Connection, i64), RegistryError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | no_mutex();
    let mut connection = Connection::open_with_flags(uri(path) + query, flags)
        .map_err(RegistryError::sql("open", path))?;
    let version = verify(&mut connection, path)?;
    Ok((connection, version))
}

fn no_mutex() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_NO_MUTEX
}

/// A path as SQLite wants it where options follow: what could end it early is written as hex.
fn uri(path: &Path) -> String {
    let mut uri = String::from("file:");
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' => uri.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => uri.push(char::from(byte)),
            byte => {
                // Writing to a String cannot fail.
                let _ = write!(uri, "%{byte:02x}");
            }
        }
    }
    uri
}

/// The first look into the file: sets the bound of waiting, then asks whose it is and which version.
fn verify(connection: &mut Connection, path: &Path) -> Result<i64, RegistryError> {
    let failed = || RegistryError::sql("open", path);
    connection.busy_handler(Some(keep_waiting)).map_err(|e| failed()(e))?;
    // Otherwise SQLite prepares a statement anew each time a value is bound that might make a partial index fit.
    let by_text_alone = DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG;
    connection.set_db_config(by_text_alone, true).map_err(|e| failed()(e))?;
    let ask =
        |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let application = ask("application_id").map_err(|e| failed()(e))?;
    if application != APPLICATION_ID {
        return Err(RegistryError::damaged(path, "it is another program's database"));
    }
    match ask("user_version").map_err(|e| failed()(e))? {
        found @ 1..=VERSION => Ok(found),
        found if found > VERSION => {
            Err(RegistryError::Newer { path: path.to_owned(), found, known: VERSION })
        }
        found => {
            Err(RegistryError::damaged(path, format!("it has version {found}, which never was")))
        }
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "SQLite's locks cannot be waited for, only tried again; the tries are bounded"
)]
fn wait_within(bound: Duration, times: i32) -> bool {
    thread_local! {
        static SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
    }
    // The first look that was in vain begins it. Looks are not counted: on a busy machine each takes several times its step.
    if times == 0 {
        SINCE.set(Some(Instant::now()));
    }
    if SINCE.get().is_none_or(|since| since.elapsed() >= bound) {
        return false;
    }
    std::thread::sleep(BUSY_STEP);
    true
}

fn keep_waiting(times: i32) -> bool {
    wait_within(BUSY_BOUND, times)
}

fn wait_a_moment(times: i32) -> bool {
    wait_within(BUSY_MOMENT, times)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two steps of time are over after two looks, whichever of them each says it is.
    #[test]
    fn time_bounds_a_wait_and_not_the_number_of_looks() {
        assert!(wait_within(2 * BUSY_STEP, 0));
        let _ = wait_within(2 * BUSY_STEP, 1);
        assert!(!wait_within(2 * BUSY_STEP, 1));
        assert!(wait_within(2 * BUSY_STEP, 0), "another wait");
    }

    /// However SQLite was built.
    #[test]
    fn commits_are_synced_and_references_hold() {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::open(&folder.path().join("hpvm.db"), Access::ReadWrite).unwrap();
        let value = |pragma| {
            registry
                .connection
                .pragma_query_value(None, pragma, |row| row.get::<_, i64>(0))
                .unwrap()
        };
        const FULL: i64 = 2;
        assert_eq!((value("synchronous"), value("foreign_keys")), (FULL, 1));
    }
}
