//! Storage devices, their guest addresses, and the resource statements that describe them.
//!
//! A statement is `device:adapter:[bus,device,target]:storage:location`. The same text serves three purposes
//! ([`StatementForm`]): adding needs a backing store and may leave the address out, modifying names the device by its
//! address, deleting names it by address or by backing store.

mod address;
mod statement;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use address::{AddressError, PciSlot, StorageAddress};
pub use statement::{Statement, StatementError, StatementForm};

/// What the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    Disk,
    Dvd,
}

impl DeviceKind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            DeviceKind::Disk => "disk",
            DeviceKind::Dvd => "dvd",
        }
    }

    /// The smallest medium this device can show, which is one of its blocks.
    #[must_use]
    pub fn block_bytes(self) -> u64 {
        match self {
            DeviceKind::Disk => 512,
            DeviceKind::Dvd => 2048,
        }
    }
}

/// The adapter a device sits on: `scsi` is emulated (VIO), `avio_stor` is paravirtual (AVIO).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterKind {
    Scsi,
    AvioStor,
}

impl AdapterKind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            AdapterKind::Scsi => "scsi",
            AdapterKind::AvioStor => "avio_stor",
        }
    }

    /// The highest target an adapter of this kind offers.
    #[must_use]
    pub fn target_max(self) -> u8 {
        match self {
            AdapterKind::Scsi => 7,
            AdapterKind::AvioStor => 127,
        }
    }
}

/// Where the content comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "storage", content = "path")]
pub enum Backing {
    /// A file; an ISO image for a dvd.
    File(String),
    /// Nothing: an empty drive for a dvd, a place holder for a disk. The path is kept as given and need not exist.
    Null(String),
}

impl Backing {
    #[must_use]
    pub fn storage(&self) -> &'static str {
        match self {
            Backing::File(_) => "file",
            Backing::Null(_) => "null",
        }
    }

    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Backing::File(path) | Backing::Null(path) => path,
        }
    }

    /// The path of a file that must exist, if there is one.
    #[must_use]
    pub fn file(&self) -> Option<&str> {
        match self {
            Backing::File(path) => Some(path),
            Backing::Null(_) => None,
        }
    }
}

/// A disk's own short identity: 60 random bits, stable for its life. The guest sees it as serial number and WWN; it tells
/// nothing of the host's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskId(u64);

impl DiskId {
    const BITS: u64 = (1 << 60) - 1;

    #[must_use]
    pub fn from_random(random: u64) -> DiskId {
        DiskId(random & Self::BITS)
    }

    /// A locally assigned NAA name (SPC-4, 7.8.6.6: NAA 3h), as SCSI adapters want it.
    #[must_use]
    pub fn wwn(self) -> u64 {
        0x3 << 60 | self.0
    }
}

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:015x}", self.0)
    }
}

impl FromStr for DiskId {
    type Err = String;
    fn from_str(text: &str) -> Result<DiskId, String> {
        match u64::from_str_radix(text, 16) {
            Ok(id) if id <= Self::BITS && text.len() == 15 => Ok(DiskId(id)),
            _ => Err(format!("'{text}' is no disk identity of 15 hex digits")),
        }
    }
}

impl TryFrom<String> for DiskId {
    type Error = String;
    fn try_from(text: String) -> Result<DiskId, String> {
        text.parse()
    }
}

impl From<DiskId> for String {
    fn from(id: DiskId) -> String {
        id.to_string()
    }
}

/// A file as the kernel knows it, whatever its paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileIdentity {
    pub device: u64,
    pub inode: u64,
}

/// A storage device of a guest, complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageDevice {
    pub kind: DeviceKind,
    pub adapter: AdapterKind,
    pub address: StorageAddress,
    pub backing: Backing,
    pub id: DiskId,
}

impl fmt::Display for StorageDevice {
    /// As `hpvmstatus -d` prints it, ready for `-a`, `-m` and `-d`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StorageDevice { kind, adapter, address, backing, .. } = self;
        let (kind, adapter) = (kind.as_str(), adapter.as_str());
        write!(f, "{kind}:{adapter}:{address}:{}:{}", backing.storage(), backing.path())
    }
}
