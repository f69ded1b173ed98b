//! The switch's run folder: what the switch is to be, and what it is. Both files are replaced whole, so that no reader, and
//! no successor of ours, sees half of one.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use hpvm_host::lock::{ByteLock, WORKER_BYTE, pause_for};
use hpvm_host::names::switch_folder;
use rustix::fs::{Mode, OFlags, openat, renameat};

/// The process before us may still be on its way out.
const LOCK_BOUND: Duration = Duration::from_secs(3);
const FILE_BYTES_MAX: u64 = 4 << 20;

#[derive(Debug)]
pub(crate) struct Folder(OwnedFd);

impl Folder {
    pub(crate) fn new(folder: OwnedFd) -> Folder {
        Folder(folder)
    }

    pub(crate) fn read(&self, name: &str) -> io::Result<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut text = String::new();
        let file = File::from(openat(&self.0, name, flags, Mode::empty())?);
        file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text)
    }

    pub(crate) fn replace(&self, name: &str, text: &str) -> io::Result<()> {
        let fresh = format!(".{name}.new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = openat(&self.0, fresh.as_str(), flags, Mode::from_raw_mode(0o644))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?;
        File::from(file).write_all(text.as_bytes())?;
        Ok(renameat(&self.0, fresh.as_str(), &self.0, name)?)
    }

    /// Takes our own byte of the lock file; `None` when another process of this switch lives.
    pub(crate) fn lock(&self) -> io::Result<Option<ByteLock>> {
        let deadline = Instant::now() + LOCK_BOUND;
        loop {
            let lock = ByteLock::try_acquire(self.lock_file()?, WORKER_BYTE)?;
            if lock.is_some() || Instant::now() >= deadline {
                return Ok(lock);
            }
            pause_for(Duration::from_millis(5));
        }
    }

    /// A description of its own, so that a lock lives exactly as long as its holder.
    pub(crate) fn lock_file(&self) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        Ok(openat(&self.0, switch_folder::LOCK, flags, Mode::empty())?.into())
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
