//! Drives of optical media of the VM Host: whether there is a medium in one, asked when a guest is to have the drive and when
//! it is shown, which moves no tray; and a tray that a guest locked.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;

/// What is in a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disc {
    Present,
    Absent,
}

/// `CDROM_DRIVE_STATUS`, of the drive's own slot (Linux, include/uapi/linux/cdrom.h).
const DRIVE_STATUS: libc::Ioctl = 0x5326;
const CURRENT_SLOT: libc::c_int = libc::c_int::MAX;
/// The answers that mean that nothing can be read: no disc, an open tray.
const NO_DISC: libc::c_int = 1;
const TRAY_OPEN: libc::c_int = 2;

/// `CDROM_LOCKDOOR` (Linux, include/uapi/linux/cdrom.h): 0 lets the tray be opened.
const LOCK_DOOR: libc::Ioctl = 0x5329;

/// Lets the tray of a drive be opened again, which a guest that is gone may have locked.
pub fn free(path: &Path) -> io::Result<()> {
    let drive = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let unlocked: libc::c_int = 0;
    // SAFETY: the request takes a number and writes nothing; the descriptor is open for the call.
    #[allow(unsafe_code)]
    let answer = unsafe { libc::ioctl(drive.as_raw_fd(), LOCK_DOOR, unlocked) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the drive at a path has a medium. One that cannot tell, or is not ready yet, may well have one.
pub fn disc(path: &Path) -> io::Result<Disc> {
    // Opened otherwise a drive would shut its tray.
    let drive = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    // SAFETY: the request takes a number and writes nothing; the descriptor is open for the call.
    #[allow(unsafe_code)]
    let answer = unsafe { libc::ioctl(drive.as_raw_fd(), DRIVE_STATUS, CURRENT_SLOT) };
    match answer {
        NO_DISC | TRAY_OPEN => Ok(Disc::Absent),
        error if error < 0 => Err(io::Error::last_os_error()),
        _ => Ok(Disc::Present),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_drive_is_an_error() {
        for path in ["/dev/null", "/nowhere"] {
            assert!(disc(Path::new(path)).is_err(), "{path}");
            assert!(free(Path::new(path)).is_err(), "{path}");
        }
    }
}
