//! One block device: what it is called, what kind it is, how large, and by what it is known again.
//!
//! Made by `sysfs`, read by everybody. It reads nothing itself.

use std::fmt;
use std::str::FromStr;

use hpvm_model::entry::SERIAL;

use super::lead::Store;
use super::names;

/// Major and minor number of a device, as `/sys/dev/block` spells them: `8:1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

impl DeviceNumber {
    /// From the form of `st_rdev` and `st_dev`.
    #[must_use]
    pub fn from_raw(raw: u64) -> Self {
        Self { major: rustix::fs::major(raw), minor: rustix::fs::minor(raw) }
    }

    #[must_use]
    pub fn to_raw(self) -> u64 {
        rustix::fs::makedev(self.major, self.minor)
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DeviceNumber {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (major, minor) = text.split_once(':').unwrap_or((text, ""));
        Ok(Self { major: major.parse()?, minor: minor.parse()? })
    }
}

/// A block device at the moment it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub number: DeviceNumber,
    /// The kernel's name as sysfs writes it, `!` where the name has a `/`.
    pub name: String,
    pub kind: Kind,
    pub size_bytes: u64,
    pub access: Access,
    pub medium: Medium,
    /// The smallest unit it can be addressed by (`queue/logical_block_size`).
    pub block_bytes: u32,
    /// By what it is known again after a restart of the host; `None` when it has nothing of the sort.
    pub identifier: Option<Identifier>,
    pub partitions: Vec<DeviceNumber>,
    /// What it is made of, where it is no partition and no loop device.
    pub slaves: Vec<DeviceNumber>,
    /// What is made of it.
    pub holders: Vec<DeviceNumber>,
}

impl Device {
    /// The kernel's own name with its slashes: `cciss/c0d0`. Below /dev it is the device's path.
    #[must_use]
    pub fn kernel_name(&self) -> String {
        self.name.replace('!', "/")
    }

    /// What people call it: its device-mapper name where it has one, else the kernel's.
    #[must_use]
    pub fn label(&self) -> String {
        match &self.kind {
            Kind::Mapped { name, .. } if !name.is_empty() => name.clone(),
            _ => self.kernel_name(),
        }
    }

    pub(super) fn is_multipath(&self) -> bool {
        matches!(self.kind, Kind::Mapped { mapping: Mapping::Multipath, .. })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A disk, or whatever else stands on hardware or a driver of its own: nbd, drbd, bcache.
    Disk,
    /// The partition of this number on that disk.
    Partition { of: DeviceNumber, number: u32 },
    /// A device-mapper volume.
    Mapped { name: String, mapping: Mapping },
    /// A RAID set of the md driver.
    Raid,
    /// A loop device; `None` when it is not attached, or nobody can reach what it is attached to.
    Loop { backing: Option<Store> },
    /// A CD or DVD drive.
    Optical,
    /// Memory, compressed or not: zram, ram.
    Memory,
}

/// What a device-mapper volume is, told by its uuid's prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// `LVM-`: a logical volume, or a hidden part of one.
    Volume { group: String, volume: String },
    /// `CRYPT-`
    Encrypted,
    /// `mpath-`
    Multipath,
    /// `partN-`: partition N of another volume, made by kpartx.
    Partition { number: u32 },
    /// Any other, or without a uuid.
    Other,
}

impl Mapping {
    pub(super) fn of(name: &str, uuid: &str) -> Self {
        if uuid.starts_with("LVM-") {
            let (group, volume) = names::group_and_volume(name);
            Self::Volume { group, volume }
        } else if uuid.starts_with("CRYPT-") {
            Self::Encrypted
        } else if uuid.starts_with("mpath-") {
            Self::Multipath
        } else if let Some(number) = partition_number(uuid) {
            Self::Partition { number }
        } else {
            Self::Other
        }
    }
}

fn partition_number(uuid: &str) -> Option<u32> {
    uuid.strip_prefix("part")?.split_once('-')?.0.parse().ok()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    Fixed,
    Removable,
}

/// By what a device is known again. Its text is unique among kinds and fit to be kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identifier {
    /// World-wide name of a disk: `naa.…`, `eui.…`, `t10.…`.
    Wwid(String),
    /// A serial number. The parts of one NVMe drive share theirs.
    Serial(String),
    /// The uuid device-mapper was given.
    Mapped(String),
    /// The uuid of an md set.
    Raid(String),
    /// The file that a loop device is attached to, and the byte of it at which the device begins. Who attaches another file
    /// under the same name made another device; who attaches the same again, longer, made the same one.
    Attached { path: String, offset: u64 },
    /// Partition `number` of what has that identifier.
    Partition { of: Box<Identifier>, number: u32 },
}

impl Identifier {
    /// Whether no other device has it.
    #[must_use]
    pub fn is_unique(&self) -> bool {
        match self {
            Self::Serial(_) => false,
            Self::Partition { of, .. } => of.is_unique(),
            Self::Wwid(_) | Self::Mapped(_) | Self::Raid(_) | Self::Attached { .. } => true,
        }
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wwid(text) => write!(out, "wwid:{text}"),
            Self::Serial(text) => write!(out, "{SERIAL}{text}"),
            Self::Mapped(text) => write!(out, "dm:{text}"),
            Self::Raid(text) => write!(out, "md:{text}"),
            Self::Attached { path, offset: 0 } => write!(out, "loop:{path}"),
            Self::Attached { path, offset } => write!(out, "loop:{path}+{offset}"),
            Self::Partition { of, number } => write!(out, "{of}-part{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_they_are_printed() {
        let number: DeviceNumber = "254:12".parse().expect("a number");
        assert_eq!(number.to_string(), "254:12");
        for wrong in ["", "8", "8:", ":1", "8:1:2", "-8:1", "99999999999:1"] {
            assert!(wrong.parse::<DeviceNumber>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_uuid_tells_what_a_volume_is() {
        let volume = Mapping::Volume { group: "vg0".into(), volume: "root".into() };
        for (uuid, mapping) in [
            ("LVM-abc", volume),
            ("CRYPT-LUKS2-abc-x", Mapping::Encrypted),
            ("mpath-3600", Mapping::Multipath),
            ("part12-mpath-3600", Mapping::Partition { number: 12 }),
            ("party-mpath", Mapping::Other),
            ("", Mapping::Other),
        ] {
            assert_eq!(Mapping::of("vg0-root", uuid), mapping, "{uuid:?}");
        }
    }
}
