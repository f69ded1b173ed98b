//! Starts `hpvmnat` and lets it go: it belongs to no terminal and outlives whoever starts it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};

use crate::{Settings, descriptor};

/// What a `hpvmnat` listens at and writes to. The starter keeps copies of the listeners when it wants to start a successor at
/// the same places.
#[derive(Debug)]
pub struct Places {
    /// For the switch: [`descriptor::WIRE`].
    pub wire: UnixListener,
    /// For [`crate::control`]: [`descriptor::CONTROL`].
    pub control: UnixListener,
    /// Its standard error: a line when it ends by itself or loses the switch.
    pub log: File,
}

/// Why `hpvmnat` was not started.
#[derive(Debug, thiserror::Error)]
#[error("{program} cannot be started")]
pub struct StartError {
    program: String,
    source: io::Error,
}

/// Starts it. The child is the caller's to wait for, if the caller lives so long.
pub fn start(program: &Path, settings: &Settings, places: Places) -> Result<Child, StartError> {
    let Places { wire, control, log } = places;
    let mapping = |parent_fd: OwnedFd, child_fd| FdMapping { parent_fd, child_fd };
    let mappings =
        vec![mapping(wire.into(), descriptor::WIRE), mapping(control.into(), descriptor::CONTROL)];
    let fail = |source| StartError { program: program.display().to_string(), source };
    Command::new(program)
        .args(settings.arguments())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        // Nothing that a terminal says to the starter ends it.
        .process_group(0)
        .fd_mappings(mappings)
        .map_err(|error| fail(io::Error::other(error)))?
        .spawn()
        .map_err(fail)
}
