//! Locks of the kernel on files: a dead holder holds nothing.
//!
//! [`ByteLock`] says that a process lives (keeper and worker hold one each while they run). [`Busy`] lets one command at a
//! time change a guest, and tells the others who, since when, doing what. Both are OFD locks: they belong to an open
//! description, so they neither vanish when some other descriptor of the file is closed nor survive the last copy of theirs.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::event::{Timespec, poll};

use crate::durable;
use crate::identity;
use crate::process::{self, Unending};
use crate::signals::{self, Interruption};

/// The byte of `run/NUMBER/lock` that the keeper holds.
pub const KEEPER_BYTE: u64 = 0;
/// The byte of `run/NUMBER/lock` that the worker holds.
pub const WORKER_BYTE: u64 = 1;
/// The byte of a guest's `nvram` that its QEMU holds, by the description it got it with. QEMU's own locks lie from 100 on.
pub const ENGINE_BYTE: u64 = 0;

/// A held byte of a file. Released when dropped; a copy of the descriptor in another process keeps it.
#[derive(Debug)]
pub struct ByteLock {
    file: File,
}

impl ByteLock {
    /// Locks one byte through an open description of its own, opened for writing. `None`: another has it.
    pub fn try_acquire(file: File, byte: u64) -> io::Result<Option<ByteLock>> {
        Ok(try_hold(&file, byte)?.then_some(ByteLock { file }))
    }

    /// Locks one byte of a file, which is made when it is missing, waiting for its holder at most `bound`. `None`: another has
    /// it still, or a signal asked us to end.
    pub fn acquire(path: &Path, byte: u64, bound: Duration) -> io::Result<Option<ByteLock>> {
        let deadline = Instant::now() + bound;
        loop {
            if let Some(lock) = ByteLock::try_acquire(open_or_make(path)?, byte)? {
                return Ok(Some(lock));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || signals::interrupted().is_some() {
                return Ok(None);
            }
            pause_for(left.min(Duration::from_millis(10)));
        }
    }

    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Who may read a file may lock it, and so would keep commands from working: these are their owner's alone. One that an earlier
/// version made was everybody's. What a link leads to is somebody else's, and neither written to nor given another mode.
fn open_or_make(path: &Path) -> io::Result<File> {
    const OWNERS_ALONE: u32 = 0o600;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(OWNERS_ALONE);
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(durable::no_regular_file());
    }
    if metadata.mode() & 0o777 != OWNERS_ALONE {
        file.set_permissions(Permissions::from_mode(OWNERS_ALONE))?;
    }
    Ok(file)
}

/// Locks one byte through an open description, for as long as anybody has a descriptor of it. False: another has the byte.
pub(crate) fn try_hold(file: &File, byte: u64) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&lock_on(byte, libc::F_WRLCK)?)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether anybody holds a byte, other than through this very description. A descriptor for reading is enough.
pub fn is_held(file: &File, byte: u64) -> io::Result<bool> {
    let mut answer = lock_on(byte, libc::F_WRLCK)?;
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut answer))?;
    Ok(i32::from(answer.l_type) != libc::F_UNLCK)
}

/// Holds a byte beside others who do so, as long as the description is open. A descriptor for reading is enough.
pub(crate) fn share(file: &File, byte: u64) -> io::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock_on(byte, libc::F_RDLCK)?))?;
    Ok(())
}

/// Lets go of a byte that is held through this description.
pub(crate) fn release(file: &File, byte: u64) -> io::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock_on(byte, libc::F_UNLCK)?))?;
    Ok(())
}

fn lock_on(byte: u64, kind: i32) -> io::Result<libc::flock> {
    Ok(libc::flock {
        l_type: i16::try_from(kind).map_err(|_| ErrorKind::InvalidInput)?,
        l_whence: i16::try_from(libc::SEEK_SET).map_err(|_| ErrorKind::InvalidInput)?,
        l_start: i64::try_from(byte).map_err(|_| ErrorKind::InvalidInput)?,
        l_len: 1,
        l_pid: 0,
    })
}

/// Who changes a guest, as its `busy` file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub pid: u32,
    pub command: String,
    pub since: Timestamp,
    pub step: String,
}

impl Owner {
    fn to_text(&self) -> String {
        let line = |text: &str| text.replace(['\n', '\r', '\0'], " ");
        format!(
            "pid {}\ncommand {}\nsince {}\nstep {}\nend\n",
            self.pid,
            line(&self.command),
            self.since,
            line(&self.step)
        )
    }

    fn from_text(text: &str) -> Option<Owner> {
        let (known, _) = text.split_once("\nend\n")?;
        let field =
            |name: &str| known.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Some(Owner {
            pid: field("pid")?.parse().ok()?,
            command: field("command")?.to_owned(),
            since: field("since")?.parse().ok()?,
            step: field("step")?.to_owned(),
        })
    }
}

/// Why a guest cannot be changed now.
#[derive(Debug, thiserror::Error)]
pub enum BusyError {
    #[error("the lock file {} cannot be opened", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error(
        "{} is on a read-only file system; nothing can be changed until it is mounted writable", path.display()
    )]
    ReadOnly { path: PathBuf },
    #[error("the lock file {} cannot be locked", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error("the lock file {} cannot be written", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "{} (process {}) is changing it since {}, now at step '{}'; {}",
        owner.command, owner.pid, local(owner.since), owner.step, end_of(owner, unending.as_ref())
    )]
    Held { owner: Owner, unending: Option<Unending> },
    #[error(
        "another command, which has not said its name in {}, is changing it; try again", path.display()
    )]
    HeldByUnknown { path: PathBuf },
    #[error("it was removed in the meantime")]
    Gone { path: PathBuf },
    #[error("the wait for another command was interrupted")]
    Interrupted(Interruption),
}

/// When it can be tried again.
fn end_of(Owner { pid, .. }: &Owner, unending: Option<&Unending>) -> String {
    let Some(answer) = unending else { return "try again when it has ended".into() };
    format!(
        "process {pid} was killed and the kernel cannot end it before {answer}: bring that back, or have it given up, as `umount -f` does with a file system whose server is lost, and try again"
    )
}

fn local(time: Timestamp) -> String {
    time.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// The right to change one guest, held until dropped.
#[derive(Debug)]
pub struct Busy {
    lock: ByteLock,
    path: PathBuf,
    owner: Owner,
}

/// Who waits for another command for so long says so.
const TOLD_AFTER: Duration = Duration::from_millis(1_500);

type Tell = Box<dyn Fn(&str) + Send + Sync>;

/// How this process tells of its waits.
static TELL: OnceLock<Tell> = OnceLock::new();

/// From here on whoever waits long for a lock tells for whom; the first call counts.
pub fn tell_of_waits(tell: impl Fn(&str) + Send + Sync + 'static) {
    let _ = TELL.set(Box::new(tell));
}

fn tell_of_wait(path: &Path) {
    if let Some(tell) = TELL.get()
        && let Ok(Some(owner)) = owner(path)
    {
        let Owner { command, pid, step, .. } = &owner;
        let end = unending(&owner)
            .map(|answer| format!("; it was killed, and cannot end before {answer}"))
            .unwrap_or_default();
        tell(&format!("waits for {command} (process {pid}), now at step '{step}'{end}"));
    }
}

fn unending(owner: &Owner) -> Option<Unending> {
    process::unending(i32::try_from(owner.pid).ok()?)
}

impl Busy {
    /// Takes the lock, waiting for its holder at most `bound`. `command` is what the holder is called to others.
    pub fn acquire(path: &Path, command: &str, bound: Duration) -> Result<Busy, BusyError> {
        let began = Instant::now();
        let deadline = began + bound;
        let (mut pause, mut is_told) = (Duration::from_millis(1), false);
        loop {
            if let Some(lock) = try_lock(path)? {
                return Busy::take(lock, path, command);
            }
            if began.elapsed() >= TOLD_AFTER && !std::mem::replace(&mut is_told, true) {
                tell_of_wait(path);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(held_by(path));
            }
            if let Some(interruption) = signals::interrupted() {
                return Err(BusyError::Interrupted(interruption));
            }
            pause_for(pause.min(left));
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    fn take(lock: ByteLock, path: &Path, command: &str) -> Result<Busy, BusyError> {
        let owner = Owner {
            pid: std::process::id(),
            command: command.to_owned(),
            since: Timestamp::now(),
            step: "beginning".to_owned(),
        };
        let busy = Busy { lock, path: path.to_owned(), owner };
        match busy.publish() {
            // The lock holds without it, and what is done now may be what makes room.
            Err(BusyError::Write { source, .. }) if has_no_room(&source) => {
                // The name of an earlier holder would mislead.
                let _ = busy.lock.file().set_len(0);
            }
            published => published?,
        }
        Ok(busy)
    }

    /// Tells others what is being done now.
    pub fn step(&mut self, step: &str) -> Result<(), BusyError> {
        step.clone_into(&mut self.owner.step);
        self.publish()
    }

    fn publish(&self) -> Result<(), BusyError> {
        let text = self.owner.to_text();
        self.lock
            .file()
            .write_all_at(text.as_bytes(), 0)
            .map_err(|source| BusyError::Write { path: self.path.clone(), source })
    }
}

fn has_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// Who holds a `busy` file now; `None` when nobody does.
pub fn owner(path: &Path) -> io::Result<Option<Owner>> {
    let mut file = match durable::open_regular(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !is_held(&file, 0)? {
        return Ok(None);
    }
    let mut text = String::new();
    Read::by_ref(&mut file).take(64 << 10).read_to_string(&mut text)?;
    Ok(Owner::from_text(&text))
}

fn try_lock(path: &Path) -> Result<Option<ByteLock>, BusyError> {
    let file = open_or_make(path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => BusyError::Gone { path: path.to_owned() },
        ErrorKind::ReadOnlyFilesystem => BusyError::ReadOnly { path: path.to_owned() },
        _ => BusyError::Open { path: path.to_owned(), source },
    })?;
    let failed = |source| BusyError::Lock { path: path.to_owned(), source };
    let Some(lock) = ByteLock::try_acquire(file, 0).map_err(failed)? else {
        return Ok(None);
    };
    // The holder before us may have removed the guest: then we hold a file that nobody finds any more.
    let ours = lock.file().metadata().map_err(failed)?;
    match std::fs::metadata(path) {
        Ok(there) if identity::of(&there) == identity::of(&ours) => Ok(Some(lock)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(BusyError::Gone { path: path.to_owned() })
        }
        Err(error) => Err(failed(error)),
    }
}

/// Locks have no wait with a bound, so a waiter looks again and again.
pub fn pause_for(time: Duration) {
    let timeout = Timespec::try_from(time).unwrap_or_default();
    // Being woken early by a signal only means to look earlier.
    let _ = poll(&mut [], Some(&timeout));
}

fn held_by(path: &Path) -> BusyError {
    match owner(path) {
        Ok(Some(owner)) => {
            let unending = unending(&owner);
            BusyError::Held { owner, unending }
        }
        _ => BusyError::HeldByUnknown { path: path.to_owned() },
    }
}
