//! What can stand between a command and the registry, each with what to do next. SQLite's codes become these in one place.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use hpvm_model::{GuestName, GuestNumber, GuestUuid, MacAddress, SwitchName, SwitchNumber};
use rusqlite::ErrorCode;
use rustix::fs::{Access, StatVfsMountFlags, access, statvfs};
use rustix::io::Errno;

use crate::open::{BUSY_BOUND, target_of};
use crate::schema::named_beside;

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error(
        "the registry {} is damaged: {detail}; `hpvm doctor --rebuild` makes it again from the guests' folders and keeps the damaged file",
        path.display()
    )]
    Damaged { path: PathBuf, detail: String },
    #[error(
        "the registry {} has version {found}, and this hpvm knows version {known}; use the newer hpvm that wrote it",
        path.display()
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error(
        "the registry {} is on a read-only file system; nothing can be changed until it is mounted writable",
        path.display()
    )]
    ReadOnlyFileSystem { path: PathBuf },
    #[error(
        "the registry {} has changes in its log that cannot be read from a read-only file system; mount it writable once",
        path.display()
    )]
    LogUnreadable { path: PathBuf },
    #[error(
        "no room for the registry {}; free some space on its file system and try again",
        path.display()
    )]
    Full { path: PathBuf },
    #[error(
        "other commands kept the registry {} busy for {} s; try again",
        path.display(), BUSY_BOUND.as_secs()
    )]
    Busy { path: PathBuf },
    #[error("no permission for the registry {}; run this as its owner or as root", path.display())]
    Permission { path: PathBuf },
    #[error(
        "{file} is immutable or may only grow, so the registry cannot be changed; `chattr -i -a {file}` takes that away",
        file = .0.display()
    )]
    Immutable(PathBuf),
    #[error(
        "{} is no file, and the registry has its log there; move what is there to another place, and see what `hpvm doctor` says",
        .0.display()
    )]
    NoLog(PathBuf),
    #[error("the registry {} was rebuilt by another command just now; try again", path.display())]
    Replaced { path: PathBuf },
    #[error("cannot {action} {}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot {action} in the registry {}", path.display())]
    Sql { action: &'static str, path: PathBuf, source: Box<rusqlite::Error> },

    #[error("a guest called '{name}' exists already (number {number}); choose another name")]
    NameTaken { name: GuestName, number: GuestNumber },
    #[error(
        "number {number} or UUID {uuid} belongs to another guest, existing or kept after removal"
    )]
    IdentityTaken { number: GuestNumber, uuid: GuestUuid },
    #[error(
        "MAC address {mac} belongs to a NIC of guest '{guest}'; give another, or none to have one made"
    )]
    MacTaken { mac: MacAddress, guest: GuestName },
    #[error(
        "a virtual switch called '{name}' exists already (number {number}); choose another name"
    )]
    SwitchNameTaken { name: SwitchName, number: SwitchNumber },
    #[error("there is no virtual switch number {0}")]
    NoSwitch(SwitchNumber),
    #[error("all guest numbers are taken; `hpvmremove --purge` frees those of removed guests")]
    NoNumber,
    #[error("there is no guest number {0}")]
    NoGuest(GuestNumber),
    #[error("no removed guest has number {0}")]
    NotRemoved(GuestNumber),
    #[error("there is no operation number {0}")]
    NoOperation(i64),
}

impl RegistryError {
    /// For who follows the advice at this moment.
    pub(crate) fn without_advice(&self) -> String {
        match self {
            RegistryError::Damaged { path, detail } => {
                format!("the registry {} is damaged: {detail}", path.display())
            }
            other => other.to_string(),
        }
    }

    pub(crate) fn damaged(path: &Path, detail: impl Into<String>) -> RegistryError {
        RegistryError::Damaged { path: path.to_owned(), detail: detail.into() }
    }

    /// What a system call on one of the registry's files met.
    pub(crate) fn file(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> RegistryError + use<> {
        let path = path.to_owned();
        move |source| match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => RegistryError::Full { path },
            ErrorKind::PermissionDenied => RegistryError::Permission { path },
            ErrorKind::ReadOnlyFilesystem => RegistryError::ReadOnlyFileSystem { path },
            _ => RegistryError::File { action, path, source },
        }
    }

    /// What SQLite met.
    pub(crate) fn sql(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(rusqlite::Error) -> RegistryError + use<> {
        let path = path.to_owned();
        move |source| match source {
            rusqlite::Error::FromSqlConversionFailure(_, _, why) => {
                RegistryError::Damaged { path, detail: why.to_string() }
            }
            rusqlite::Error::InvalidColumnType(_, column, kind) => RegistryError::Damaged {
                path,
                detail: format!("column {column} holds a value of type {kind}"),
            },
            source => match source.sqlite_error_code() {
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                    RegistryError::Busy { path }
                }
                Some(ErrorCode::DiskFull) => RegistryError::Full { path },
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                    RegistryError::Damaged { path, detail: sqlite_text(&source) }
                }
                Some(ErrorCode::PermissionDenied) => RegistryError::Permission { path },
                Some(ErrorCode::ReadOnly) => not_writable(path),
                Some(ErrorCode::CannotOpen) => cannot_open(action, path, source),
                Some(ErrorCode::SystemIoFailure) if is_full(&path) => RegistryError::Full { path },
                _ => RegistryError::Sql { action, path, source: Box::new(source) },
            },
        }
    }
}

fn sqlite_text(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(_, Some(text)) => text.clone(),
        other => other.to_string(),
    }
}

/// Writing was refused: by the mount, or by the file's rights.
pub(crate) fn not_writable(path: PathBuf) -> RegistryError {
    match is_mounted_read_only(&path) {
        true => RegistryError::ReadOnlyFileSystem { path },
        false => not_permitted(path),
    }
}

/// SQLite says only that it could not; the kernel says why.
fn cannot_open(action: &'static str, path: PathBuf, source: rusqlite::Error) -> RegistryError {
    match std::fs::File::open(&path) {
        Err(error) => RegistryError::file("open the registry", &path)(error),
        Ok(_) if is_mounted_read_only(&path) => RegistryError::ReadOnlyFileSystem { path },
        Ok(_) if is_full(&path) => RegistryError::Full { path },
        // The file itself can be read: what SQLite could not open is a log beside it.
        Ok(_) if source.sqlite_error_code() == Some(ErrorCode::CannotOpen) => not_permitted(path),
        Ok(_) => RegistryError::Sql { action, path, source: Box::new(source) },
    }
}

/// Rights are the usual reason, and not the only one.
fn not_permitted(path: PathBuf) -> RegistryError {
    let beside = ["-wal", "-shm"].map(|suffix| named_beside(&path, suffix));
    if let Some(log) = beside.iter().find(|log| log.exists() && !log.is_file()) {
        return RegistryError::NoLog(log.clone());
    }
    // Whose rights do not suffice gets EACCES (access(2), ioctl_iflags(2)).
    let is_immutable = |file: &PathBuf| access(file, Access::WRITE_OK) == Err(Errno::PERM);
    match std::iter::once(&path).chain(&beside).find(|file| is_immutable(file)) {
        Some(file) => RegistryError::Immutable(file.clone()),
        None => RegistryError::Permission { path },
    }
}

/// Whether nothing can be written where a registry lies, or would lie.
#[must_use]
pub fn is_mounted_read_only(path: &Path) -> bool {
    folder_facts(&target_of(path))
        .is_some_and(|facts| facts.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn is_full(path: &Path) -> bool {
    folder_facts(path).is_some_and(|facts| facts.f_bavail == 0)
}

fn folder_facts(path: &Path) -> Option<rustix::fs::StatVfs> {
    statvfs(path.parent()?).ok()
}
