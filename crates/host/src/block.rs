//! Which block devices this VM Host has, how they lie on one another, and what the VM Host itself does with them.
//!
//! Called before a disk is given to a guest (`Blocks::read_around`, then `lineage` and `uses`), and to list what is to be
//! restricted (`Blocks::read_all`, then `host_used`). It knows neither guests nor the registry: whether a use is a guest's
//! own is for the caller to say.
//!
//! ```text
//!   path ── Places::lead ──► Lead ──► Store (a device by number, a file by inode)
//!                                       │
//!        sysfs, mountinfo, swaps ──► Blocks ── lineage, overlap, uses, host_used: pure
//!                                       │
//!        first and last bytes ── Probe ─┴─ signatures, claims: only when asked, since they open devices
//! ```
//!
//! A store that lies on another is over it: a partition over its disk, a volume over the slaves it is made of, a loop
//! device over its backing file, and that file over the device of its file system.
//!
//! Sources, in the kernel's tree: Documentation/ABI/stable/sysfs-block (`size`, `ro`, `holders`, `partition`, `queue/…`),
//! ABI/testing/sysfs-block and sysfs-block-device, ABI/testing/sysfs-block-dm (`dm/name`, `dm/uuid`), ABI/testing/sysfs-dev
//! (`/sys/dev/block/MAJOR:MINOR`), ABI/testing/sysfs-block-loop (`loop/backing_file`), admin-guide/md.rst (`md/uuid`),
//! filesystems/proc.rst section 3.5 (`mountinfo`), and where the ABI files say nothing the drivers: drivers/scsi/scsi_sysfs.c
//! and drivers/nvme/host/sysfs.c (`wwid`, `serial`), fs/btrfs/sysfs.c (`/sys/fs/btrfs/UUID/devices`), fs/jbd2/journal.c (`/proc/fs/jbd2`). What is neither mounted
//! nor swapped on now is in /etc/fstab (`fstab`), /etc/crypttab (`crypttab`), a unit of systemd (`units`) or the table of ZFS's pools (`zpool`), or has the type of what a machine boots from (`boot`). Everything there may vanish while it is read, and is then passed over.

mod boot;
mod crypttab;
mod device;
mod elsewhere;
mod ending;
mod expected;
mod far;
mod file_system;
mod fstab;
mod ground;
mod in_use;
mod keys;
mod lead;
mod lineage;
mod mounts;
mod names;
mod near;
mod places;
mod probe;
mod read;
pub mod record;
mod signature;
mod sysfs;
mod units;
mod uses;
mod zpool;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use hpvm_model::FileIdentity;

pub use boot::Boot;
pub use device::{Access, Device, DeviceNumber, Identifier, Kind, Mapping, Medium};
pub use expected::{Expected, Purpose};
pub use file_system::FileSystem;
pub use in_use::{Claims, InUse};
pub use lead::{Character, FileLead, Lead, Store};
pub use lineage::Lineage;
pub(crate) use near::is_near;
pub use places::{Leads, Places};
pub use probe::{DeviceProbe, Probe, ProbeError};
pub use signature::{Signature, signatures};
pub use uses::{Fact, Step, StepKind, Use};

/// Where a file system is mounted, and whether it is only read there.
#[derive(Clone, Debug)]
struct MountPoint {
    at: PathBuf,
    is_read_only: bool,
}

/// What was read of this VM Host's block devices at one moment. All questions to it are answered from memory.
#[derive(Clone, Debug, Default)]
pub struct Blocks {
    devices: BTreeMap<DeviceNumber, Device>,
    /// Where a device's file system is mounted: `/` before all else, then the mount of the file system's root.
    mounted: BTreeMap<DeviceNumber, MountPoint>,
    /// Members of btrfs file systems in use, with where they are mounted when it is known.
    btrfs: BTreeMap<DeviceNumber, Option<PathBuf>>,
    swap: BTreeSet<Store>,
    /// Devices that have but the journal of a file system elsewhere.
    journals: BTreeSet<DeviceNumber>,
    /// What /etc/fstab, /etc/crypttab and systemd's units name by a path that is the device's own.
    expected: BTreeMap<Store, Expected>,
    /// What they name by what is written on the device.
    labelled: BTreeMap<Store, Expected>,
    /// Partitions that machines are started from, of disks that the VM Host uses.
    boot: BTreeMap<DeviceNumber, Boot>,
    /// The devices a known file's file system is on.
    files: BTreeMap<FileIdentity, Vec<DeviceNumber>>,
    /// Loop devices by what they are attached to.
    loops: BTreeMap<Store, Vec<DeviceNumber>>,
    /// The paths by which the kernel remembers what loop devices are attached to.
    attached: BTreeMap<Store, BTreeSet<PathBuf>>,
    /// Loop devices on what does not answer: nobody knows whose bytes they have.
    silent: BTreeSet<DeviceNumber>,
    keys: keys::Keys,
}

impl Blocks {
    #[must_use]
    pub fn device(&self, number: DeviceNumber) -> Option<&Device> {
        self.devices.get(&number)
    }

    /// Every device that was read, by number.
    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values()
    }

    /// The world-wide names of the disks that were read, as [`Identifier`] prints them. Another path to one of them, that
    /// nothing joins here, has the same.
    #[must_use]
    pub fn world_wide_names(&self) -> BTreeSet<String> {
        let disks = self.devices.values().filter(|device| device.kind == Kind::Disk);
        let names = disks.filter_map(|disk| disk.identifier.as_ref());
        names.filter(|name| matches!(name, Identifier::Wwid(_))).map(ToString::to_string).collect()
    }

    /// The loop devices attached to this store itself.
    #[must_use]
    pub fn loops_on(&self, store: Store) -> &[DeviceNumber] {
        self.loops.get(&store).map_or(&[], Vec::as_slice)
    }

    /// The paths by which loop devices were attached to this store, as they are now.
    pub fn attached_paths(&self, store: Store) -> impl Iterator<Item = &Path> {
        self.attached.get(&store).into_iter().flatten().map(PathBuf::as_path)
    }
}
