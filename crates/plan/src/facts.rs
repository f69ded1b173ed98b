//! What is known about the host when a decision is made. Collected by the command, never looked up here.

pub mod network;

use std::collections::{BTreeMap, BTreeSet};

use hpvm_model::entry::escaped;
use hpvm_model::limits::LimitsTable;
use hpvm_model::{
    Accelerator, AvioService, Backing, Bytes, Choice, DeviceKind, GuestName, GuestNumber,
    StorageAddress, StorageDevice, StorageType, StoreIdentity, StoreRole, quoted,
};
pub use hpvm_model::{Below, FileIdentity};
use serde::{Deserialize, Serialize};

use crate::record::{Access, Attached, AttachedLayer, Cache, Sharing};

/// What a path led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileFact {
    Regular {
        identity: FileIdentity,
        size: Bytes,
        writable: Writable,
        /// How the file system lets it be opened.
        cache: Cache,
        ending: Ending,
        content: Content,
    },
    Block(BlockFact),
    /// The generic node of a SCSI device (`/dev/sg*`).
    Generic {
        identity: FileIdentity,
        peripheral: Peripheral,
    },
    Folder(Listing),
    /// Another device node, a socket or a pipe: the word that names it.
    Special(&'static str),
    Missing,
    /// It exists and cannot be looked at: the system's reason.
    Unreadable(Lack),
}

impl FileFact {
    #[must_use]
    pub fn identity(&self) -> Option<FileIdentity> {
        match self {
            FileFact::Regular { identity, .. }
            | FileFact::Generic { identity, .. }
            | FileFact::Block(BlockFact { identity, .. }) => Some(*identity),
            _ => None,
        }
    }
}

/// Whether workers of guests, who are users of their own where root starts them, can see what a folder holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    Open,
    Closed,
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockFact {
    pub identity: FileIdentity,
    pub size: Bytes,
    pub writable: Writable,
    pub kind: BlockKind,
    pub reservations: Reservations,
}

/// Whether a guest's persistent reservations (SPC-4, 5.13) keep others from a block device, as far as can be told without
/// asking it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reservations {
    /// It is a whole SCSI disk, which is asked when it is marked as shared.
    Hold,
    /// It is a disk reached by several paths, and what a guest asks for would go to one of them.
    HoldOnOnePath,
    /// It is a part of a disk, or takes no SCSI commands.
    Never,
}

/// As far as storage types tell block devices apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// A logical volume of LVM.
    Volume,
    /// A drive of optical media with one in it.
    Optical,
    /// A drive of optical media with nothing in it.
    EmptyDrive,
    Other,
}

/// What a SCSI device says it is (SPC-4, 6.6.2, peripheral device type).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peripheral {
    Tape,
    Changer,
    Optical,
    Other(u8),
}

impl Peripheral {
    #[must_use]
    pub fn of_type(number: u8) -> Peripheral {
        match number {
            0x01 => Peripheral::Tape,
            0x05 => Peripheral::Optical,
            0x08 => Peripheral::Changer,
            other => Peripheral::Other(other),
        }
    }
}

/// The largest blocks in which file systems read past the memory of the host: a size in whole ones fits all of them.
pub const FILE_BLOCK_BYTES: u64 = 4096;

/// Where a file ends, in blocks in which it is read past the memory of the host. QEMU writes to none that ends within one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    WithBlock,
    WithinBlock,
}

/// What a file's head says it is. Nobody concludes from it what a store is to be; only what was said of it can be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Qcow2(Below),
    /// An image that QEMU would not open: a clause that says why, with the image as its subject.
    Unusable(String),
    Other,
    /// Its head could not be read, so nobody knows: whoever opens it says why.
    Unread,
}

/// Whether we may write to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writable {
    Yes,
    No,
}

/// Something that the VM Host does with a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostUse {
    /// A clause: `it is swap space`.
    pub what: String,
    /// It only reads, and so may a guest.
    pub is_read_only: bool,
    /// The commands that end it, in this order; none where there is more to it.
    pub ended_by: Vec<String>,
}

/// Another guest has the same file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharer {
    pub guest: GuestName,
    pub address: StorageAddress,
    /// It runs now and has the file open for this.
    pub held_for: Option<Access>,
    pub role: StoreRole,
    /// Whether it exists or was removed and is still kept.
    pub standing: Standing,
    pub tenancy: Tenancy,
}

impl Sharer {
    /// It runs now and has the file open.
    #[must_use]
    pub fn holds_it(&self) -> bool {
        self.held_for.is_some()
    }

    /// It runs, and may write to the store at any moment.
    #[must_use]
    pub fn writes(&self) -> bool {
        self.held_for == Some(Access::ReadWrite)
    }
}

/// Who keeps a disk from being used, and what for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lock {
    /// It is the engine of this guest, of which nothing else tells that it has the disk.
    Guest { guest: GuestName, who: String },
    /// It is none of this VM Host's guests.
    Program { who: String },
    /// It is a clone that reads it.
    Copying { who: String },
    /// It is a clone that is to have it.
    Overwriting { who: String },
}

impl Lock {
    #[must_use]
    pub fn who(&self) -> &str {
        match self {
            Lock::Guest { who, .. }
            | Lock::Program { who }
            | Lock::Copying { who }
            | Lock::Overwriting { who } => who,
        }
    }

    /// What that means for the disk at a path.
    #[must_use]
    pub fn on(&self, path: &str) -> String {
        match self {
            Lock::Guest { guest, who } => {
                format!("'{path}' is in use by guest '{guest}': its QEMU, {who}, has a lock on it")
            }
            Lock::Program { who } => {
                format!("'{path}' is in use by another program: {who} has a lock on it")
            }
            Lock::Copying { who } => {
                format!("'{path}' is being copied by {who}, and nobody may write it meanwhile")
            }
            Lock::Overwriting { who } => format!("'{path}' is being overwritten by {who}"),
        }
    }
}

/// Whether another guest lets others to a store that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenancy {
    Alone,
    /// It shares the disk, which it reaches as we do.
    SharedBySamePath,
    /// It shares the disk, which it reaches by another path.
    SharedByOtherPath,
}

/// Whether a guest can be started, or only be brought back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Present,
    Removed(Kept),
}

impl Standing {
    #[must_use]
    pub fn kept(&self) -> Option<&Kept> {
        match self {
            Standing::Present => None,
            Standing::Removed(kept) => Some(kept),
        }
    }
}

/// What is kept of a guest that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// By that nobody else is meant.
    pub number: GuestNumber,
    /// The guests with disks that lie over images in its folder: before them it cannot be purged.
    pub needed_by: Vec<GuestNumber>,
}

/// What the device database says of a store, by what its path leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registered {
    pub restriction: Restriction,
    /// Of a folder: something below it that nobody may put into a drive.
    pub not_to_choose: Option<NotToChoose>,
    /// A file's other names, when one of them may lie where guests get nothing.
    pub other_names: Option<OtherNames>,
    pub share: Choice,
    pub read_only: Choice,
    /// What it is kept for, when that was said.
    pub usage: Option<DeviceKind>,
    /// The block device or file the path led to when a guest got it.
    pub kept: Option<StoreIdentity>,
    /// The one it leads to now.
    pub found: Option<StoreIdentity>,
}

impl Registered {
    /// What the path leads to now, where a device with this behind it is known by that. Of files a raw disk is: its content does
    /// not say how long it is, as an image's does.
    #[must_use]
    pub fn found_behind(&self, kind: DeviceKind, storage: StorageType) -> Option<&StoreIdentity> {
        let is_raw_disk = (kind, storage) == (DeviceKind::Disk, StorageType::File);
        self.found.as_ref().filter(|found| is_raw_disk || !found.is_of_file())
    }
}

/// Names of a file that nobody knows: only who reads a whole file system finds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherNames {
    /// How many it has, the known one included.
    pub names: u32,
    /// Where it was found, which may be under the store.
    pub file: String,
    /// The restricted folders of its file system.
    pub folders: Vec<String>,
}

/// Why something below a folder is no image to choose, by the name of its entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotToChoose {
    /// Guests are kept from it.
    Restricted { name: String },
    /// It is a file of the VM Host's own by another name (a hard link).
    HostFile { name: String, file: String },
    /// It is kept for devices that are no dvds.
    OtherUse { name: String, usage: DeviceKind },
}

/// Whether guests are kept from a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Restriction {
    #[default]
    None,
    /// It, or something that has the same bytes, is an rdev entry.
    Entry { name: String },
    /// It lies below a folder that is an rdev entry.
    Below { folder: String },
    /// It lies below a folder that is the VM Host's own.
    HostFolder { folder: String },
    /// It lies in the folder of the guest itself, and nothing is named that it lies over, as hpvmclone's images do.
    OwnFolder,
    /// It is a file of the VM Host's own by another name (a hard link).
    HostFile { file: String },
    /// hpvmhostrdev read on it that something else owns it.
    Signature { name: String, reason: String },
    /// Its path leads through what another process has, so nobody knows below which folders it lies.
    Hidden,
    /// An entry with ALLOW=GUEST says that guests may have it, whatever else is true of it.
    Lifted { name: String },
}

impl Restriction {
    /// Why guests may not have it, as a clause; nothing where they may.
    #[must_use]
    pub fn why(&self) -> Option<String> {
        Some(match self {
            Restriction::None | Restriction::Lifted { .. } => return None,
            Restriction::Entry { name } => format!("rdev:{name} restricts it"),
            Restriction::Below { folder } => format!("rdev:{folder} restricts what lies below it"),
            Restriction::HostFolder { folder } => {
                format!("{folder} is a folder of this VM Host itself")
            }
            Restriction::OwnFolder => "it lies in the guest's own folder, where only the images that `hpvmclone --linked` made are disks, with what they lie over: name that too, by --layer STORAGE:LOCATION such as --layer file:/base.img".into(),
            Restriction::HostFile { file } => {
                format!("it is {file}, a file of this VM Host itself, by another name (a hard link)")
            }
            Restriction::Hidden => "its path leads where only another process, or an open descriptor, leads (a link of /proc such as root, cwd or fd/3); name it by a path of this VM Host".into(),
            Restriction::Signature { name, reason } => format!(
                "{reason}, as hpvmhostrdev read when no guest had it; if that is of no use any more, `hpvmdevmgmt -d {}` lifts it",
                quoted(&format!("rdev:{}", escaped(name)))
            ),
        })
    }
}

/// The engine of this host, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    pub program: String,
    /// As QEMU says it: `10.0.2`.
    pub version: String,
}

impl Engine {
    /// The versioned machine type of this engine, which a guest keeps from its first start on.
    #[must_use]
    pub fn machine_type(&self) -> String {
        let mut parts = self.version.split('.');
        let major = parts.next().unwrap_or("10");
        let minor = parts.next().unwrap_or("0");
        format!("pc-q35-{major}.{minor}")
    }
}

/// A file the host must offer, at a path, present or not and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provision {
    pub path: String,
    pub missing: Option<Lack>,
}

/// Why a file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// What is in it is not known to whoever asks, and may be good.
    #[error("this user may not read it")]
    Forbidden,
    #[error("{0}")]
    Unfit(String),
}

impl From<&str> for Lack {
    fn from(reason: &str) -> Lack {
        Lack::Unfit(reason.to_owned())
    }
}

/// What only a start needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFacts {
    pub memory_available: Bytes,
    pub engine: Result<Engine, String>,
    pub accelerator: Result<Accelerator, String>,
    /// Who is to serve AVIO adapters, where that was asked for.
    pub avio_service: Option<AvioService>,
    pub firmware: Provision,
    /// The guest's own firmware variables: missing, of the wrong size, or damaged, and why.
    pub nvram: Provision,
    /// The firmware's driver of lan NICs.
    pub lan_rom: Provision,
    /// The program that makes reservations for guests.
    pub reservation_helper: Provision,
    /// Folders of the guest in which nothing can be written.
    pub shut: Vec<ShutFolder>,
}

/// A folder that is to be written to, on a file system that takes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShutFolder {
    pub path: String,
    pub why: Shut,
}

impl ShutFolder {
    /// What keeps `who` from writing there.
    #[must_use]
    pub fn lack(&self, who: &str) -> String {
        let path = &self.path;
        match self.why {
            Shut::Full { needed } => {
                format!("no room is left where '{path}' lies; {who} needs {needed} there")
            }
            Shut::ReadOnly => {
                format!("'{path}' is on a read-only file system, and {who} writes there")
            }
        }
    }

    /// What the administrator does about it.
    #[must_use]
    pub fn way_out(&self) -> String {
        let path = &self.path;
        match self.why {
            Shut::Full { .. } => format!("make room on the file system of {path}"),
            Shut::ReadOnly => {
                format!("see what made the file system of {path} read-only, and mount it writable")
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shut {
    Full { needed: Bytes },
    ReadOnly,
}

/// Everything a decision may depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    pub processors: u32,
    /// `None`: nothing is given in MHz.
    pub processor_mhz: Option<u32>,
    pub memory_total: Bytes,
    pub limits: LimitsTable,
    /// Backing files of the configuration (and of the one before), by path.
    pub files: BTreeMap<String, FileFact>,
    /// By what other paths bytes of some of them are found: the file under a loop device, and loop devices on either.
    pub doubles: BTreeMap<String, BTreeSet<String>>,
    /// Those of them that share bytes with others, each with all of these: one lies under the other, or both are one thing.
    pub overlaps: BTreeMap<FileIdentity, BTreeSet<FileIdentity>>,
    /// What the VM Host itself does with some of them, a clause each, by path.
    pub used_by_host: BTreeMap<String, Vec<HostUse>>,
    /// What the device database says of them, by path; of most it says nothing.
    pub registered: BTreeMap<String, Registered>,
    /// Other guests' claims, by identity of our store: they have it, or one that overlaps it.
    pub sharers: BTreeMap<FileIdentity, Vec<Sharer>>,
    pub network: network::NetworkFacts,
    /// The firmware's driver of scsi adapters.
    pub option_rom: Provision,
    /// Disks that a program keeps from being used. Looked for at a start, and of what a running guest is to get.
    pub locked: BTreeMap<String, Lock>,
    /// Present when a start is judged.
    pub start: Option<StartFacts>,
}

impl HostFacts {
    #[must_use]
    pub fn identity(&self, path: &str) -> Option<FileIdentity> {
        self.files.get(path)?.identity()
    }

    /// Whether two stores are one, or share bytes.
    #[must_use]
    pub fn overlap(&self, one: FileIdentity, other: FileIdentity) -> bool {
        one == other || self.overlaps.get(&one).is_some_and(|others| others.contains(&other))
    }

    /// Whether guests may read a disk and not write it.
    #[must_use]
    pub fn is_read_only(&self, path: &str) -> bool {
        self.registered.get(path).is_some_and(|known| known.read_only == Choice::Yes)
    }

    /// A device with what is opened for it.
    #[must_use]
    pub fn attach(&self, device: &StorageDevice) -> Attached {
        let fact = device.backing.store().and_then(|path| self.files.get(path));
        let access = match device.kind {
            DeviceKind::Dvd => Access::ReadOnly,
            DeviceKind::Disk if self.is_read_only(&device.backing.path) => Access::ReadOnly,
            _ => Access::ReadWrite,
        };
        let cache = match (device.kind, device.backing.storage, fact) {
            (DeviceKind::Disk, _, Some(FileFact::Regular { cache, .. })) => *cache,
            (DeviceKind::Disk, StorageType::Disk | StorageType::Lv, _) => Cache::Direct,
            _ => Cache::Page,
        };
        let identity = fact.and_then(FileFact::identity);
        let image_length = self.image_length(&device.backing);
        let layers = device.layers.iter().map(|backing| self.attach_layer(backing)).collect();
        let sharing = self.sharing(device);
        Attached { device: device.clone(), identity, image_length, access, cache, sharing, layers }
    }

    /// A disk is shared because its entry says so, and for no other reason; with the VM Host for one reason, too.
    #[must_use]
    pub fn sharing(&self, device: &StorageDevice) -> Sharing {
        let StorageDevice { kind, backing, .. } = device;
        let is_disk = (*kind, backing.storage) == (DeviceKind::Disk, StorageType::Disk);
        match self.registered.get(&backing.path) {
            Some(known) if is_disk && known.share == Choice::Yes => Sharing::Reserved,
            Some(Registered { restriction: Restriction::Lifted { .. }, .. }) => Sharing::WithHost,
            _ => Sharing::Alone,
        }
    }

    fn attach_layer(&self, backing: &Backing) -> AttachedLayer {
        let fact = self.files.get(&backing.path);
        let cache = match (backing.storage, fact) {
            (_, Some(FileFact::Regular { cache, .. })) => *cache,
            (StorageType::Disk | StorageType::Lv, _) => Cache::Direct,
            _ => Cache::Page,
        };
        let identity = fact.and_then(FileFact::identity);
        let image_length = self.image_length(backing);
        AttachedLayer { backing: backing.clone(), identity, image_length, cache }
    }

    fn image_length(&self, backing: &Backing) -> Option<Bytes> {
        match (backing.storage, self.files.get(&backing.path)?) {
            (StorageType::Qcow2, FileFact::Regular { size, .. }) => Some(*size),
            _ => None,
        }
    }
}
