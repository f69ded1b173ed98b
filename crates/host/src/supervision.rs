//! The file by whose locks two processes say that they live: a keeper, and what it keeps, which is the worker of a guest or the
//! process of a virtual switch. Called by who starts them and by who looks; it knows neither guests nor switches.
//!
//! Who may read a file may lock it, and a lock for reading already stands in the way of those two. So nobody may but they and
//! those who are to see that they live.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::durable;
use crate::lock::{KEEPER_BYTE, WORKER_BYTE, is_held, pause_for, try_hold};
use crate::users::Ids;

const MODE: u32 = 0o640;
/// A hundred times what the kernel takes to end a keeper that it has killed.
const DYING_BOUND: Duration = Duration::from_millis(200);

/// Who of the two lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Supervision {
    Full,
    /// The other one was killed, and the keeper is replacing it.
    KeeperAlone,
    /// The keeper was killed, and the other one is replacing it.
    WorkerAlone,
    /// Both are gone. Of a guest: the next command takes it over.
    None,
    /// Whoever asks may not look.
    Unseen,
}

impl Supervision {
    /// As the locks of an opened file tell.
    #[must_use]
    pub fn by(lock: &File) -> Supervision {
        let held = |byte| is_held(lock, byte).unwrap_or(false);
        match (held(KEEPER_BYTE), held(WORKER_BYTE)) {
            (true, true) => Supervision::Full,
            (true, false) => Supervision::KeeperAlone,
            (false, true) => Supervision::WorkerAlone,
            (false, false) => Supervision::None,
        }
    }

    /// The same of a file that may not be there.
    pub fn at(path: &Path) -> io::Result<Supervision> {
        match durable::open_regular(path) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(Supervision::Unseen),
            lock => lock.map(|lock| Supervision::by(&lock)),
        }
    }
}

/// Locks the keeper's byte for the next keeper, which gets this very description: nobody may find that both are gone, and start
/// others, until it has come. A keeper that has just died holds it for a moment. False: one does not let go, and the next keeper
/// waits for it.
pub fn hold_for_next_keeper(lock: &File) -> io::Result<bool> {
    let deadline = Instant::now() + DYING_BOUND;
    loop {
        let is_held = try_hold(lock, KEEPER_BYTE)?;
        if is_held || Instant::now() >= deadline {
            return Ok(is_held);
        }
        pause_for(Duration::from_millis(1));
    }
}

/// Opens the file for who is about to start the two, and makes it theirs: its user opens it once more, since each holder needs a
/// description of its own, and its group may look. The folder belongs to that user, and nothing that he put there leads elsewhere.
pub fn open(path: &Path, ids: Option<Ids>) -> io::Result<File> {
    let no_link = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(MODE).custom_flags(no_link);
    let file = options.open(path)?;
    file.set_permissions(Permissions::from_mode(MODE))?;
    if let Some(Ids { uid, gid }) = ids {
        fchown(&file, Some(uid), Some(gid))?;
    }
    Ok(file)
}
