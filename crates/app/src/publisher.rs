//! Publishes the status snapshot: a new file renamed into place when something changes, and the heartbeat written into
//! it once a second. Readers take both without asking us.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use hpvm_app::snapshot::{HEAD, Snapshot};
use hpvm_host::names::run_folder;
use hpvm_host::process::boottime_ms;
use rustix::fs::{Mode, OFlags, openat, renameat};

const NAME: &str = run_folder::STATUS;
const FRESH: &str = ".status.new";

#[derive(Debug)]
pub(crate) struct Publisher {
    folder: OwnedFd,
    current: Option<File>,
    /// The last snapshot has not reached its place: no room in /run.
    unpublished: bool,
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
        file.take(1 << 20).read_to_string(&mut text).ok()?;
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
        self.current = Some(fresh);
        self.unpublished = false;
        Ok(())
    }

    /// Whether the snapshot has to be published again, since the last attempt failed.
    pub(crate) fn is_behind(&self) -> bool {
        self.unpublished
    }

    /// Writing in place needs no room, so the heart beats on a full /run too.
    pub(crate) fn beat(&self) {
        if let Some(current) = &self.current {
            let _ = current
                .write_all_at(format!("{:020}", boottime_ms()).as_bytes(), HEAD.len() as u64);
        }
    }

    pub(crate) fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}
