//! Starts the keeper that follows a dead one, with what that one kept. The new keeper starts the next process of the switch,
//! after which this one ends.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use hpvm_host::launch::{Launch, LaunchError};
use hpvm_host::supervision;

use crate::folder::Folder;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SuccessorError {
    #[error("the switch's lock file cannot be opened and locked")]
    Lock(#[source] io::Error),
    #[error("a socket that was kept cannot be handed on")]
    Kept(#[source] io::Error),
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

pub(crate) fn start<'a>(
    keeper: &Path,
    launch: &OwnedFd,
    folder: &Folder,
    kept: impl Iterator<Item = (u32, &'a OwnedFd)>,
) -> Result<(), SuccessorError> {
    let mut successor = Launch::successor_alone(launch.as_fd())?;
    let lock = folder.lock_file().map_err(SuccessorError::Lock)?;
    let _ = supervision::hold_for_next_keeper(&lock).map_err(SuccessorError::Lock)?;
    successor.lock(lock);
    for (tag, fd) in kept {
        successor.kept_fd(fd.try_clone().map_err(SuccessorError::Kept)?, tag);
    }
    successor.spawn(keeper)?;
    Ok(())
}
