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

use crate::Bytes;

pub use address::{AddressError, PciSlot, StorageAddress};
pub use statement::{Statement, StatementError, StatementForm};

/// What the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    Disk,
    Dvd,
    /// A tape drive of the VM Host, passed through.
    Tape,
    /// A media changer of the VM Host, passed through.
    Changer,
    /// A writer of optical media of the VM Host, passed through.
    Burner,
}

impl DeviceKind {
    pub const ALL: [DeviceKind; 5] = [
        DeviceKind::Disk,
        DeviceKind::Dvd,
        DeviceKind::Tape,
        DeviceKind::Changer,
        DeviceKind::Burner,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            DeviceKind::Disk => "disk",
            DeviceKind::Dvd => "dvd",
            DeviceKind::Tape => "tape",
            DeviceKind::Changer => "changer",
            DeviceKind::Burner => "burner",
        }
    }

    /// The smallest medium this device can show, which is one of its blocks.
    #[must_use]
    pub fn block_bytes(self) -> u64 {
        match self {
            DeviceKind::Dvd | DeviceKind::Burner => 2048,
            DeviceKind::Disk | DeviceKind::Tape | DeviceKind::Changer => 512,
        }
    }

    /// Whether the guest's commands go to a device of the VM Host unchanged.
    #[must_use]
    pub fn is_attached(self) -> bool {
        self.stores() == [StorageType::Attach]
    }

    /// The storage types that can back this device.
    #[must_use]
    pub fn stores(self) -> &'static [StorageType] {
        use StorageType::{Attach, Disk, File, Lv, Null, Qcow2};
        match self {
            DeviceKind::Disk => &[Disk, Lv, File, Qcow2, Null],
            DeviceKind::Dvd => &[Disk, File, Null],
            DeviceKind::Tape | DeviceKind::Changer | DeviceKind::Burner => &[Attach],
        }
    }
}

impl FromStr for DeviceKind {
    type Err = String;
    fn from_str(text: &str) -> Result<DeviceKind, String> {
        let known = DeviceKind::ALL.into_iter().find(|kind| kind.as_str() == text);
        known.ok_or_else(|| format!("'{text}' is no virtual device"))
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
            // Target 15 is the adapter itself.
            AdapterKind::Scsi => 14,
            AdapterKind::AvioStor => 127,
        }
    }
}

impl FromStr for AdapterKind {
    type Err = String;
    fn from_str(text: &str) -> Result<AdapterKind, String> {
        match text {
            "scsi" => Ok(AdapterKind::Scsi),
            "avio_stor" | "aviostor" => Ok(AdapterKind::AvioStor),
            _ => Err(format!("'{text}' is no storage adapter")),
        }
    }
}

/// What kind of thing on the VM Host the content comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageType {
    /// A whole disk, a partition, or any other block device.
    Disk,
    /// A logical volume (LVM).
    Lv,
    /// A file that holds the blocks as they are; an ISO image for a dvd.
    File,
    /// An image file in QEMU's qcow2 format. Only who writes a statement says so: content that a guest could have written
    /// is never asked.
    Qcow2,
    /// Nothing: an empty drive for a dvd, a place holder for a disk. The path is kept as given and need not exist; of a dvd
    /// it may be a folder of images to choose from.
    Null,
    /// A SCSI device of the VM Host that takes the guest's commands unchanged.
    Attach,
}

impl StorageType {
    pub const ALL: [StorageType; 6] = [
        StorageType::Disk,
        StorageType::Lv,
        StorageType::File,
        StorageType::Qcow2,
        StorageType::Null,
        StorageType::Attach,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            StorageType::Disk => "disk",
            StorageType::Lv => "lv",
            StorageType::File => "file",
            StorageType::Qcow2 => "qcow2",
            StorageType::Null => "null",
            StorageType::Attach => "attach",
        }
    }
}

impl FromStr for StorageType {
    type Err = String;
    fn from_str(text: &str) -> Result<StorageType, String> {
        let known = StorageType::ALL.into_iter().find(|storage| storage.as_str() == text);
        known.ok_or_else(|| format!("'{text}' is no storage type"))
    }
}

/// Where the content comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Backing {
    pub storage: StorageType,
    pub path: String,
}

impl Backing {
    #[must_use]
    pub fn new(storage: StorageType, path: impl Into<String>) -> Backing {
        Backing { storage, path: path.into() }
    }

    /// The path of the backing store, which must exist, if there is one.
    #[must_use]
    pub fn store(&self) -> Option<&str> {
        (self.storage != StorageType::Null).then_some(self.path.as_str())
    }

    /// Whether a block device of the VM Host is named.
    #[must_use]
    pub fn is_device(&self) -> bool {
        matches!(self.storage, StorageType::Disk | StorageType::Lv)
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

/// A file as the kernel knows it, whatever its paths. A device node is known by the number of its device, which all nodes of
/// that device share: `device` is then 0, which no file system has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FileIdentity {
    pub device: u64,
    pub inode: u64,
}

impl FileIdentity {
    /// Of the node of a device with this number (`st_rdev`).
    #[must_use]
    pub fn of_device(number: u64) -> FileIdentity {
        FileIdentity { device: 0, inode: number }
    }
}

/// Whether an image's header names a file on which the image is built. What that is, only the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    Nothing,
    Named,
}

/// What a guest has a file for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreRole {
    /// It backs a device, and is written if the device is.
    #[default]
    Store,
    /// It lies under the backing store of a linked clone, and must stay as it is.
    Layer,
}

/// A storage device of a guest, complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageDevice {
    pub kind: DeviceKind,
    pub adapter: AdapterKind,
    pub address: StorageAddress,
    pub backing: Backing,
    /// What lies under the backing store of a linked clone, the uppermost first: each is only read, and holds what the one
    /// above it has not. Kept here and never asked of an image, which could name anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Backing>,
    pub id: DiskId,
}

impl StorageDevice {
    /// Whether running guests can have the same store at once without spoiling it: they only read it.
    #[must_use]
    pub fn is_shared_freely(&self) -> bool {
        is_shared_freely(self.kind, self.backing.storage)
    }

    /// Whether the guest's firmware hangs on it with a store of this size: its driver of `scsi` adapters waits for ever on a
    /// medium without a block. QEMU rounds the end of a store up to a sector.
    #[must_use]
    pub fn hangs_firmware(&self, size: Bytes) -> bool {
        let shown = size.0.next_multiple_of(DeviceKind::Disk.block_bytes());
        self.adapter == AdapterKind::Scsi && shown < self.kind.block_bytes()
    }

    /// A null disk holds an address and is nothing in the machine; a null dvd is an empty drive.
    #[must_use]
    pub fn is_place_holder(&self) -> bool {
        (self.kind, self.backing.storage) == (DeviceKind::Disk, StorageType::Null)
    }

    /// All that it names on the VM Host: its backing first, then what lies under that.
    pub fn backings(&self) -> impl Iterator<Item = &Backing> {
        std::iter::once(&self.backing).chain(&self.layers)
    }

    /// The paths of all that must be there for this device, its backing store first.
    pub fn stores(&self) -> impl Iterator<Item = &str> {
        self.backings().filter_map(Backing::store)
    }
}

/// The same of a device of which not all is at hand: images of dvds, and the folders they are chosen from. A drive of the VM
/// Host is one guest's, which may open its tray.
#[must_use]
pub fn is_shared_freely(kind: DeviceKind, storage: StorageType) -> bool {
    kind == DeviceKind::Dvd && matches!(storage, StorageType::File | StorageType::Null)
}

impl fmt::Display for StorageDevice {
    /// As `hpvmstatus -d` prints it, ready for `-a`, `-m` and `-d`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StorageDevice { kind, adapter, address, backing, .. } = self;
        let (kind, adapter) = (kind.as_str(), adapter.as_str());
        write!(f, "{kind}:{adapter}:{address}:{}:{}", backing.storage.as_str(), backing.path)
    }
}
