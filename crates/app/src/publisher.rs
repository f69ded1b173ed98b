//! Publishes the status snapshot: a new file renamed into place when something changes, and the heartbeat written into
//! it at each beat. Readers take both without asking us. What somebody else did to the file is noticed at the next beat,
//! and the snapshot is to be published again.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use hpvm_app::snapshot::{FILE_BYTES_MAX, HEAD, Snapshot};
use hpvm_host::names::run_folder;
use hpvm_host::process::boottime_ms;
use rustix::fs::{AtFlags, Mode, OFlags, Stat, fstat, openat, renameat, statat};

const NAME: &str = run_folder::STATUS;
const FRESH: &str = ".status.new";

#[derive(Debug)]
pub(crate) struct Publisher {
    folder: OwnedFd,
    current: Option<Published>,
    /// The last snapshot has not reached its place: no room in /run.
    unpublished: bool,
}

/// The file that we published, and how we left it.
#[derive(Debug)]
struct Published {
    file: File,
    left: Mark,
}

/// What changes with everything that is done to a file: which file it is, its length, and when its content, name or mode
/// changed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    device: u64,
    inode: u64,
    length: i64,
    changed_at: (i64, u64),
}

impl From<Stat> for Mark {
    fn from(stat: Stat) -> Mark {
        Mark {
            device: stat.st_dev,
            inode: stat.st_ino,
            length: stat.st_size,
            changed_at: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

impl Publisher {
    pub(crate) fn new(folder: OwnedFd) -> Publisher {
        Publisher { folder, current: None, unpublished: false }
    }

    /// What the worker before us published last.
    pub(crate) fn previous(&self) -> Option<Snapshot> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mut text = String::new();
        let file = File::from(openat(&self.folder, NAME, flags, Mode::empty()).ok()?);
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
        Snapshot::from_file(&text).map(|(_, snapshot)| snapshot)
    }

    pub(crate) fn publish(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.unpublished = true;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let fresh = openat(&self.folder, FRESH, flags, Mode::from_raw_mode(0o644))?;
        rustix::fs::fchmod(&fresh, Mode::from_raw_mode(0o644))?;
        let fresh = File::from(fresh);
        fresh.write_all_at(snapshot.to_file(boottime_ms()).as_bytes(), 0)?;
        renameat(&self.folder, FRESH, &self.folder, NAME)?;
        // After the renaming, which counts as a change.
        let left = fstat(&fresh)?.into();
        self.current = Some(Published { file: fresh, left });
        self.unpublished = false;
        Ok(())
    }

    /// Whether the snapshot has to be published again: the last attempt failed, or the file is not as we left it.
    pub(crate) fn is_behind(&self) -> bool {
        self.unpublished || !self.is_as_left()
    }

    /// Whether the last attempt failed, which is told once and tried again each beat.
    pub(crate) fn has_failed(&self) -> bool {
        self.unpublished
    }

    /// Two looks a second are all this costs. A change within the clock tick of our own beat, and of the same length, is
    /// seen when the next one follows it.
    fn is_as_left(&self) -> bool {
        let Some(current) = &self.current else { return true };
        statat(&self.folder, NAME, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|there| Mark::from(there) == current.left)
    }

    /// Writing in place needs no room, so the heart beats on a full /run too.
    pub(crate) fn beat(&mut self) {
        if let Some(Published { file, left }) = &mut self.current {
            let _ =
                file.write_all_at(format!("{:020}", boottime_ms()).as_bytes(), HEAD.len() as u64);
            if let Ok(now) = fstat(&*file) {
                *left = now.into();
            }
        }
    }

    pub(crate) fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}
