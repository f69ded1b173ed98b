//! Starts `hpvmreserve` and lets it go: it outlives whoever starts it and ends with the guest.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};

use crate::{Settings, descriptor};

/// What it listens at, how it sees the guest's end, and where it says what it did.
#[derive(Debug)]
pub struct Places {
    pub socket: UnixListener,
    /// [`descriptor::LIFELINE`]
    pub lifeline: OwnedFd,
    /// The guest's log, opened for appending.
    pub log: File,
}

/// Why `hpvmreserve` was not started.
#[derive(Debug, thiserror::Error)]
#[error("{program}, which keeps the guest's reservation helper, cannot be started")]
pub struct StartError {
    program: String,
    source: io::Error,
}

/// Starts it. The child is the caller's to wait for, if the caller lives so long.
pub fn start(program: &Path, settings: &Settings, places: Places) -> Result<Child, StartError> {
    let Places { socket, lifeline, log } = places;
    let mappings = vec![
        FdMapping { parent_fd: socket.into(), child_fd: descriptor::SOCKET },
        FdMapping { parent_fd: lifeline, child_fd: descriptor::LIFELINE },
    ];
    let fail = |source| StartError { program: program.display().to_string(), source };
    Command::new(program)
        .args(settings.arguments())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .fd_mappings(mappings)
        .map_err(|error| fail(io::Error::other(error)))?
        .spawn()
        .map_err(fail)
}
