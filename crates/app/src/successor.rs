//! Starts the keeper that follows a dead one. QEMU runs on meanwhile; the new keeper takes it over as it is and starts the
//! next worker, after which this one ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use hpvm_host::launch::{Launch, LaunchError};
use hpvm_host::lock::{ByteLock, WORKER_BYTE};
use hpvm_host::names::run_folder;
use hpvm_host::process::PidFd;
use hpvm_host::supervision;
use rustix::fs::{Mode, OFlags, openat};

/// The worker before us may still be on its way out.
const LOCK_BOUND: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub(crate) enum SuccessorError {
    #[error("the guest's lock file cannot be opened and locked")]
    Lock(#[source] io::Error),
    #[error("QEMU's process cannot be held")]
    Qemu(#[source] io::Error),
    #[error("a store that was kept cannot be handed on")]
    Kept(#[source] io::Error),
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// Starts `keeper` for the QEMU that runs, with what the dead one `kept`.
pub(crate) fn start<'a>(
    keeper: &Path,
    launch: &OwnedFd,
    run_folder: impl AsFd,
    (pid, qemu): (i32, &PidFd),
    kept: impl Iterator<Item = (u32, &'a File)>,
) -> Result<(), SuccessorError> {
    let held = qemu.as_fd().try_clone_to_owned().map_err(SuccessorError::Qemu)?;
    let mut successor = Launch::successor(launch.as_fd(), pid, held.into())?;
    let lock = lock_file(run_folder).map_err(SuccessorError::Lock)?;
    let _ = supervision::hold_for_next_keeper(&lock).map_err(SuccessorError::Lock)?;
    successor.lock(lock);
    for (tag, fd) in kept {
        successor.kept_fd(fd.try_clone().map_err(SuccessorError::Kept)?, tag);
    }
    successor.spawn(keeper)?;
    Ok(())
}

/// Takes the worker's own byte of the lock file; `None` when another worker lives. Waits for one that is just ending.
pub(crate) async fn take_worker_lock(run_folder: impl AsFd) -> io::Result<Option<ByteLock>> {
    let deadline = Instant::now() + LOCK_BOUND;
    loop {
        let lock = ByteLock::try_acquire(lock_file(&run_folder)?, WORKER_BYTE)?;
        if lock.is_some() || Instant::now() >= deadline {
            return Ok(lock);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A description of its own, so that the lock lives exactly as long as its holder.
fn lock_file(folder: impl AsFd) -> io::Result<File> {
    Ok(openat(folder, run_folder::LOCK, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?.into())
}
