//! What a path leads to, links followed: a block device by its number, a file by its inode, a character device by its kind.
//!
//! Called through [`Places::lead`] with every path an administrator, the kernel's mount table or a loop device names. Names
//! are never guessed at: /dev/sda, /dev/mapper/x and /dev/disk/by-id/y are the same when they lead to the same number.

use std::io;
use std::path::Path;

use hpvm_model::FileIdentity;
use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, statx};

use super::device::DeviceNumber;
use super::places::Places;
use super::sysfs;
use crate::identity;

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lead {
    Block(DeviceNumber),
    Character(Character),
    File(FileLead),
    /// A folder, a socket or a pipe.
    Other,
}

impl Lead {
    /// What can be compared with other stores. A character device that is another door to a disk counts as that disk.
    #[must_use]
    pub fn store(&self) -> Option<Store> {
        match self {
            Self::Block(number) => Some(Store::Device(*number)),
            Self::Character(character) => character.block.map(Store::Device),
            Self::File(file) => Some(Store::File(file.identity)),
            Self::Other => None,
        }
    }
}

/// A character device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Character {
    pub number: DeviceNumber,
    /// The kernel's class of it: `scsi_generic`, `scsi_tape`, `tty`.
    pub subsystem: Option<String>,
    /// The disk it gives raw access to, as /dev/sg0 does.
    pub block: Option<DeviceNumber>,
    /// What a SCSI device says it is (SPC-4, 6.6.2, peripheral device type), of its generic node.
    pub peripheral: Option<u8>,
}

impl Character {
    /// Whether it is the generic node of a SCSI device, which takes commands for it.
    #[must_use]
    pub fn is_generic(&self) -> bool {
        self.number.major == SCSI_GENERIC_MAJOR
    }
}

/// Linux, Documentation/admin-guide/devices.txt, 21 char.
const SCSI_GENERIC_MAJOR: u32 = 21;

/// A regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLead {
    pub identity: FileIdentity,
    /// Number of the mount it was found through. On btrfs the identity's device is not the file system's.
    pub mount: Option<u64>,
}

/// Something that holds data: a block device or a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Store {
    Device(DeviceNumber),
    File(FileIdentity),
}

impl Store {
    #[must_use]
    pub fn identity(self) -> FileIdentity {
        match self {
            Self::Device(number) => identity::of_device(number),
            Self::File(identity) => identity,
        }
    }
}

/// Asks the kernel. What it knows already is good enough: a network file system that does not answer is not waited for.
pub(super) fn live(places: &Places, path: &Path) -> io::Result<Lead> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let status = statx(CWD, path, AtFlags::STATX_DONT_SYNC, wanted)?;
    let number = DeviceNumber { major: status.stx_rdev_major, minor: status.stx_rdev_minor };
    Ok(match FileType::from_raw_mode(u32::from(status.stx_mode)) {
        FileType::BlockDevice => Lead::Block(number),
        FileType::CharacterDevice => Lead::Character(sysfs::character(&places.sysfs, number)),
        FileType::RegularFile => Lead::File(file(&status)),
        _ => Lead::Other,
    })
}

fn file(status: &Statx) -> FileLead {
    let told = StatxFlags::from_bits_retain(status.stx_mask).contains(StatxFlags::MNT_ID);
    FileLead { identity: identity::of_status(status), mount: told.then_some(status.stx_mnt_id) }
}
