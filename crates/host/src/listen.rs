//! Listening Unix sockets at a path, with owner and mode right from the first moment.
//!
//! The starter of a guest makes them and hands them on, so that a worker may come and go without a client noticing.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fchmod, fstat, open};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen as start_listening,
    socket_with,
};

use crate::removal;
use crate::users::Ids;

/// A Unix socket address holds 108 bytes, one of which ends the path.
pub const PATH_BYTES_MAX: usize = 107;
const BACKLOG: i32 = 64;

/// Why a socket cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "the socket path {} has {length} bytes and may have {PATH_BYTES_MAX}; use a shorter HPVM_ROOT or XDG_RUNTIME_DIR",
        path.display()
    )]
    TooLong { path: PathBuf, length: usize },
    #[error("the old socket {} cannot be removed", path.display())]
    Stale { path: PathBuf, source: io::Error },
    #[error("the socket {} cannot be made", path.display())]
    Make { path: PathBuf, source: io::Error },
}

/// Listens at a path, taking the place of a socket left there. `owner`: who it shall belong to, if not to us.
pub fn listen(path: &Path, mode: u32, owner: Option<Ids>) -> Result<UnixListener, ListenError> {
    let length = path.as_os_str().as_bytes().len();
    if length > PATH_BYTES_MAX {
        return Err(ListenError::TooLong { path: path.to_owned(), length });
    }
    removal::file(path).map_err(|source| ListenError::Stale { path: path.to_owned(), source })?;
    make(path, mode, owner).map_err(|source| ListenError::Make { path: path.to_owned(), source })
}

/// Makes the folder of such sockets, with its mode whatever the umask, or takes the one that is there.
pub fn folder(path: &Path, mode: u32, owner: Option<Ids>) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
        _ => hand_over(&hold(path, OFlags::DIRECTORY)?, mode, owner),
    }
}

fn make(path: &Path, mode: u32, owner: Option<Ids>) -> io::Result<UnixListener> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // The file of a socket gets the mode the socket has when it is bound: nobody else's until its owner is set.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    let held = hold(path, OFlags::empty())?;
    if FileType::from_raw_mode(fstat(&held)?.st_mode) != FileType::Socket {
        return Err(ErrorKind::AlreadyExists.into());
    }
    hand_over(&held, mode, owner)?;
    start_listening(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// The folder around may be another user's, who must not be able to lead us to a file of his choice: what is there is taken hold
/// of first, and what is done is done to that.
fn hold(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

fn hand_over(held: &OwnedFd, mode: u32, owner: Option<Ids>) -> io::Result<()> {
    let named = format!("/proc/self/fd/{}", held.as_raw_fd());
    if let Some(Ids { uid, gid }) = owner {
        chown(&named, Some(uid), Some(gid))?;
    }
    fs::set_permissions(&named, fs::Permissions::from_mode(mode))
}
