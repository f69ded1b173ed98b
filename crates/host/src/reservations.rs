//! Disks that several guests may have at once: which block devices are whole SCSI disks, and whether such a disk keeps
//! reservations at all. Asked when a disk is marked as shared; guests reserve for themselves, through QEMU.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;

use crate::block::DeviceNumber;

/// Whether a block device is a disk of the kernel's SCSI driver, and no part of one (Linux, drivers/scsi/sd.c).
#[must_use]
pub fn is_scsi_disk(sysfs: &Path, number: DeviceNumber) -> bool {
    sysfs.join("dev/block").join(number.to_string()).join("device/scsi_disk").is_dir()
}

/// What a disk says to the question who has registered with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    Reservations,
    /// It refuses the command.
    None,
}

/// `PERSISTENT RESERVE IN`, service action `READ KEYS` (SPC-4, 6.15.2), with room for the header of the answer.
const READ_KEYS: [u8; 10] = [0x5e, 0x00, 0, 0, 0, 0, 0, 0, HEADER_BYTES as u8, 0];
const HEADER_BYTES: usize = 8;
/// A disk tells each initiator what happened since it asked last, one thing a command: a reset, another's reservation, a new size.
const ATTENTIONS_MAX: usize = 4;
/// A disk that is there answers within milliseconds.
const BOUND_MS: u32 = 5_000;

/// Asks the disk at a path whether it keeps persistent reservations, which changes nothing on it. Only root may ask.
pub fn asked(path: &Path) -> io::Result<Keeps> {
    let disk = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    for _ in 0..=ATTENTIONS_MAX {
        if let Some(keeps) = ask(&disk)? {
            return Ok(keeps);
        }
    }
    Err(io::Error::other("it has other things to tell than an answer; try again"))
}

/// `None`: it has to be asked again.
fn ask(disk: &File) -> io::Result<Option<Keeps>> {
    let (mut command, mut answer, mut sense) = (READ_KEYS, [0_u8; HEADER_BYTES], [0_u8; 32]);
    let mut request = Request {
        interface: i32::from(b'S'),
        direction: FROM_DEVICE,
        command_length: command.len() as u8,
        sense_length_max: sense.len() as u8,
        answer_length: answer.len() as u32,
        answer: answer.as_mut_ptr(),
        command: command.as_mut_ptr(),
        sense: sense.as_mut_ptr(),
        timeout_ms: BOUND_MS,
        ..Request::default()
    };
    // SAFETY: the request is as the kernel lays it out, and the three buffers it points at live until the call is over and
    // have the lengths that it says.
    #[allow(unsafe_code)]
    let done = unsafe { libc::ioctl(disk.as_raw_fd(), SG_IO, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    let told = sense.get(..usize::from(request.sense_length)).unwrap_or(&sense);
    meaning(request.status, request.host_status, told)
}

/// What a status and the sense data with it say; `None`: that something happened to the disk before, and nothing of the command.
fn meaning(status: u8, host_status: u16, sense: &[u8]) -> io::Result<Option<Keeps>> {
    let failed = |why: String| Err(io::Error::other(why));
    match (status, host_status, sense_key(sense)) {
        (GOOD | RESERVATION_CONFLICT, 0, _) => Ok(Some(Keeps::Reservations)),
        (CHECK_CONDITION, 0, Some(ILLEGAL_REQUEST)) => Ok(Some(Keeps::None)),
        (CHECK_CONDITION, 0, Some(UNIT_ATTENTION)) => Ok(None),
        (CHECK_CONDITION, 0, Some(key)) => failed(format!("it failed with sense key {key:02x}h")),
        (status, host, _) => {
            failed(format!("it does not answer (status {status:02x}h, host status {host})"))
        }
    }
}

/// The key of sense data in fixed or in descriptor format (SPC-4, 4.5); `None` of what is neither.
fn sense_key(sense: &[u8]) -> Option<u8> {
    let key = match sense.first()? & 0x7f {
        0x70 | 0x71 => sense.get(2)?,
        0x72 | 0x73 => sense.get(1)?,
        _ => return None,
    };
    Some(key & 0x0f)
}

/// `SG_IO` (Linux, include/scsi/sg.h).
const SG_IO: libc::Ioctl = 0x2285;
const FROM_DEVICE: i32 = -3;
/// Status codes (SAM-5, 5.3.1).
const GOOD: u8 = 0x00;
const CHECK_CONDITION: u8 = 0x02;
const RESERVATION_CONFLICT: u8 = 0x18;
/// Sense keys (SPC-4, 4.5.6).
const ILLEGAL_REQUEST: u8 = 0x5;
const UNIT_ATTENTION: u8 = 0x6;

/// `struct sg_io_hdr` (Linux, include/scsi/sg.h), whose order counts.
#[repr(C)]
struct Request {
    interface: i32,
    direction: i32,
    command_length: u8,
    sense_length_max: u8,
    pieces: u16,
    answer_length: u32,
    answer: *mut u8,
    command: *mut u8,
    sense: *mut u8,
    timeout_ms: u32,
    flags: u32,
    own_number: i32,
    own_pointer: *mut u8,
    status: u8,
    masked_status: u8,
    message_status: u8,
    sense_length: u8,
    host_status: u16,
    driver_status: u16,
    residual: i32,
    duration_ms: u32,
    info: u32,
}

impl Default for Request {
    fn default() -> Request {
        let nothing = std::ptr::null_mut();
        Request {
            interface: 0,
            direction: 0,
            command_length: 0,
            sense_length_max: 0,
            pieces: 0,
            answer_length: 0,
            answer: nothing,
            command: nothing,
            sense: nothing,
            timeout_ms: 0,
            flags: 0,
            own_number: 0,
            own_pointer: nothing,
            status: 0,
            masked_status: 0,
            message_status: 0,
            sense_length: 0,
            host_status: 0,
            driver_status: 0,
            residual: 0,
            duration_ms: 0,
            info: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_disk_is_an_error_or_keeps_nothing() {
        for path in ["/dev/null", "/nowhere"] {
            assert!(asked(Path::new(path)).is_err(), "{path}");
        }
        let number = DeviceNumber { major: 1, minor: 3 };
        assert!(!is_scsi_disk(Path::new("/sys"), number));
    }

    /// A disk that was reset a moment ago, or has a fault, refuses nothing.
    #[test]
    fn only_a_refused_command_means_that_there_are_no_reservations() {
        let fixed = |key| [0x70, 0, key, 0, 0, 0, 0, 10];
        let told = |sense: &[u8]| meaning(CHECK_CONDITION, 0, sense).map_err(|e| e.to_string());
        assert_eq!(told(&fixed(ILLEGAL_REQUEST)), Ok(Some(Keeps::None)));
        assert_eq!(told(&[0xf2, ILLEGAL_REQUEST, 0x20, 0]), Ok(Some(Keeps::None)));
        assert_eq!(told(&fixed(UNIT_ATTENTION)), Ok(None));
        assert!(told(&fixed(0x4)).unwrap_err().contains("sense key 04h"));
        for torn in [&[][..], &[0x70], &[0x70, 0], &[0x72], &[0, 0, ILLEGAL_REQUEST]] {
            assert!(told(torn).unwrap_err().contains("does not answer"), "{torn:?}");
        }
        assert_eq!(meaning(RESERVATION_CONFLICT, 0, &[]).unwrap(), Some(Keeps::Reservations));
        assert!(meaning(GOOD, 1, &[]).is_err(), "the adapter did not reach it");
    }

    /// The kernel reads the request by places, so a field that moved would be another one.
    #[test]
    fn the_request_is_laid_out_as_the_kernel_has_it() {
        assert_eq!(size_of::<Request>(), 88);
        assert_eq!(std::mem::offset_of!(Request, answer), 16);
        assert_eq!(std::mem::offset_of!(Request, timeout_ms), 40);
        assert_eq!(std::mem::offset_of!(Request, status), 64);
        assert_eq!(std::mem::offset_of!(Request, host_status), 68);
    }
}
