//! Opens what backs a device, once per use: two uses of one open description would not see each other's image locks. What
//! the plan believed about the store is checked on the descriptor itself.

use std::collections::BTreeSet;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use hpvm_host::block::{Blocks, DeviceNumber, DeviceProbe, InUse, Lead, Places, Store};
use hpvm_host::generic::{self, Doors};
use hpvm_host::lock::pause_for;
use hpvm_host::openers::{Opener, disk_and_partitions, openers};
use hpvm_host::qcow2::{self, Head, HeaderFault};
use hpvm_host::users::Ids;
use hpvm_host::{answers, identity};
use hpvm_model::{Below, DeviceKind, FileIdentity, StorageAddress, StorageType};
use hpvm_plan::record::{Access, Attached, AttachedLayer, Cache, Sharing};
use rustix::fs::{FileType, OFlags};

/// Why what backs a device is not opened for a guest.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    #[error("cannot {action} '{path}'")]
    File { action: &'static str, path: String, source: io::Error },
    #[error("'{path}' is another file than it was a moment ago; try again")]
    Changed { path: String },
    #[error(
        "'{path}' is in use: {who} has it open for itself; `hpvmhostrdev` lists what this VM Host uses"
    )]
    StoreBusy { path: String, who: String },
    #[error("'{path}' is in use: {program} (process {pid}) of this VM Host has the device open")]
    Opened { path: String, program: String, pid: i32 },
    #[error("the image '{path}' cannot be used: {fault}")]
    Image { path: String, fault: HeaderFault },
    #[error(
        "'{path}' needs a backing file, and an image given to a guest has to stand alone; `qemu-img convert -O qcow2` makes such a copy"
    )]
    NotAlone { path: String },
}

impl MediaError {
    fn file(action: &'static str, path: &str) -> impl FnOnce(io::Error) -> MediaError {
        move |source| MediaError::File { action, path: path.to_owned(), source }
    }

    /// The kernel does not say who has it, so whoever has it open is named. A mount or a volume has nothing open.
    #[must_use]
    pub fn busy(path: &str) -> MediaError {
        let openers = openers_of(path).into_iter();
        let named: Vec<String> =
            openers.map(|Opener { pid, name }| format!("{name} (process {pid})")).collect();
        let who = match named.is_empty() {
            true => "this VM Host, another guest, or a volume or partition on it".to_owned(),
            false => named.join(", "),
        };
        MediaError::StoreBusy { path: path.to_owned(), who }
    }
}

/// What is opened of a device.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// Its store, for the guest.
    Store(Attached),
    /// Its store beside the engine that has it.
    Beside(Attached),
    /// What lies under it.
    Layer(AttachedLayer),
}

impl Wanted {
    /// The store of a device that comes, and what lies under it.
    pub fn whole(attached: &Attached) -> impl Iterator<Item = Wanted> {
        let layers = attached.layers.iter().cloned().map(Wanted::Layer);
        std::iter::once(Wanted::Store(attached.clone())).chain(layers)
    }

    fn path(&self) -> &str {
        match self {
            Wanted::Store(attached) | Wanted::Beside(attached) => &attached.device.backing.path,
            Wanted::Layer(layer) => &layer.backing.path,
        }
    }

    fn open(&self, ids: Option<Ids>, in_use: &HostsOwn) -> Result<OwnedFd, MediaError> {
        let path = Path::new(self.path());
        let comes_back = match self {
            Wanted::Store(attached) if attached.access == Access::ReadWrite => {
                answers::may_be_written(path)
            }
            _ => answers::may_be_asked(path),
        };
        if !comes_back {
            return Err(MediaError::file("open", self.path())(answers::silent()));
        }
        match self {
            Wanted::Store(attached) => open(attached, ids, in_use),
            Wanted::Beside(attached) => Ok(open_beside(attached, OFlags::empty())?.into()),
            Wanted::Layer(layer) => Ok(open_layer(layer, OFlags::empty())?.into()),
        }
    }
}

/// What the VM Host itself has. A look at it costs more than opening a file, so all that is opened together shares one.
type HostsOwn = OnceLock<InUse>;

/// Opens all of this for the guest whose QEMU runs as this user, in its order. A store may have fallen silent since it was
/// looked at: that is an error within [`answers::ANSWER_BOUND`], whatever it keeps.
pub fn open_all(wanted: Vec<Wanted>, ids: Option<Ids>) -> Result<Vec<OwnedFd>, MediaError> {
    let paths: Vec<String> = wanted.iter().map(|wanted| wanted.path().to_owned()).collect();
    let in_use = Arc::new(HostsOwn::new());
    let opened = answers::all_in_time(wanted.into_iter().map(|wanted| {
        let in_use = Arc::clone(&in_use);
        move || wanted.open(ids, &in_use)
    }));
    let opened = opened.into_iter().zip(paths);
    opened
        .map(|(opened, path)| {
            opened.unwrap_or_else(|| Err(MediaError::file("open", &path)(answers::silent())))
        })
        .collect()
}

/// Opens the store behind a device: a disk to be written, a dvd to be read, a SCSI device to be commanded by the user as
/// whom the guest's QEMU runs (`ids`).
///
/// A block device is opened for this guest alone (open(2), `O_EXCL` without `O_CREAT`): the kernel refuses it while the host,
/// another guest, a volume or a partition on it has it, and keeps all of them from taking it while the guest runs. A shared
/// disk is opened so for a moment, to see that nobody has it alone, and then for all. What the guest has beside the host is
/// opened beside it where the host has it, and for this guest alone where it does not.
fn open(attached: &Attached, ids: Option<Ids>, in_use: &HostsOwn) -> Result<OwnedFd, MediaError> {
    let open_as = |flags| open_as(attached, ids, flags, in_use);
    let for_all = flags(attached) - OFlags::EXCL;
    match (attached.sharing, open_as(flags(attached))) {
        (Sharing::Reserved, Ok(alone)) => {
            drop(alone);
            open_as(for_all)
        }
        (Sharing::WithHost, Err(MediaError::StoreBusy { .. })) => open_as(for_all),
        (_, opened) => opened,
    }
}

fn open_as(
    attached: &Attached,
    ids: Option<Ids>,
    flags: OFlags,
    in_use: &HostsOwn,
) -> Result<OwnedFd, MediaError> {
    let path = &attached.device.backing.path;
    let (file, metadata) = open_known(path, attached.identity, attached.access, flags)?;
    if attached.device.kind.is_attached() {
        return door(attached, &metadata, ids);
    }
    let is_ours = attached.access == Access::ReadWrite && attached.sharing != Sharing::WithHost;
    if is_ours && is_kept_by_loop(path, in_use) {
        return Err(MediaError::busy(path));
    }
    if attached.device.backing.storage == StorageType::Qcow2 {
        let below = below(&file, path)?;
        // With something left out the guest found other data than it has.
        if below == Below::Named && attached.device.layers.is_empty() {
            return Err(MediaError::NotAlone { path: path.clone() });
        }
    }
    Ok(file.into())
}

/// Opens what can back a device, if it is what the plan knows it by; whatever is there, where the plan knows nothing.
fn open_known(
    path: &str,
    known: Option<FileIdentity>,
    access: Access,
    flags: OFlags,
) -> Result<(File, Metadata), MediaError> {
    let file = OpenOptions::new()
        .read(true)
        .write(access == Access::ReadWrite)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or_default())
        .open(path)
        .map_err(|error| match rustix::io::Errno::from_io_error(&error) {
            Some(rustix::io::Errno::BUSY) => MediaError::busy(path),
            _ => MediaError::file("open", path)(error),
        })?;
    let metadata = file.metadata().map_err(MediaError::file("open", path))?;
    match identity::of_store(&metadata) {
        Some(found) if known.is_none_or(|known| known == found) => Ok((file, metadata)),
        _ => Err(MediaError::Changed { path: path.to_owned() }),
    }
}

fn openers_of(path: &str) -> Vec<Opener> {
    let places = Places::default();
    let Ok(metadata) = std::fs::metadata(path) else { return Vec::new() };
    if !metadata.file_type().is_block_device() {
        return Vec::new();
    }
    let number = DeviceNumber::from_raw(metadata.rdev());
    openers(&places.proc, FileType::BlockDevice, &disk_and_partitions(&places.sysfs, number))
}

/// A way to a SCSI device that no program of the VM Host has open, by none of its nodes, unless it may.
fn door(attached: &Attached, metadata: &Metadata, ids: Option<Ids>) -> Result<OwnedFd, MediaError> {
    let path = &*attached.device.backing.path;
    let (places, number) = (Places::default(), DeviceNumber::from_raw(metadata.rdev()));
    let doors = generic::doors(&places.sysfs, number);
    if attached.sharing != Sharing::WithHost
        && let Some(Opener { pid, name }) = who_stays(&places.proc, &doors)
    {
        return Err(MediaError::Opened { path: path.to_owned(), program: name, pid });
    }
    generic::door(Path::new(path), number, ids).map_err(MediaError::file("open", path))
}

/// udev opens a drive for a moment when a disc was put in or taken out; a program that uses it has it for longer.
const PASSING: Duration = Duration::from_millis(300);

fn who_stays(proc: &Path, doors: &Doors) -> Option<Opener> {
    let until = Instant::now() + PASSING;
    loop {
        let opener = generic::opener(proc, doors)?;
        if Instant::now() >= until {
            return Some(opener);
        }
        pause_for(PASSING / 10);
    }
}

/// Whether the kernel keeps a loop device on this file for somebody, who may be in a container: its mounts are not among the
/// host's, and the kernel, which refuses the device, lets everybody have the file.
fn is_kept_by_loop(path: &str, in_use: &HostsOwn) -> bool {
    let lead = Places::default().lead(Path::new(path));
    lead.is_ok_and(|lead| matches!(lead, Lead::File(_)) && is_kept(lead, in_use))
}

fn is_kept(lead: Lead, in_use: &HostsOwn) -> bool {
    let places = Places::default();
    let (store, leads) = (lead.store(), [lead]);
    let has_any = |stores: &BTreeSet<Store>| {
        in_use.get_or_init(|| InUse::now(&places)).has_any(stores, &places)
    };
    if Blocks::are_plain_files(&leads, has_any) {
        return false;
    }
    let blocks = Blocks::read_around(&places, &leads);
    store.is_some_and(|store| !blocks.claims(store, &DeviceProbe::new(&places)).is_empty())
}

/// Refuses what the kernel keeps for somebody, of whom the mounts of the VM Host may show nothing: for who opens it without
/// wanting it alone, and replaces it or wants it to stay as it is meanwhile. A file is kept with a loop device on it.
pub fn not_kept(path: &str) -> Result<(), MediaError> {
    let lead =
        Places::default().lead(Path::new(path)).map_err(MediaError::file("look at", path))?;
    match is_kept(lead, &HostsOwn::new()) {
        true => Err(MediaError::busy(path)),
        false => Ok(()),
    }
}

/// Whether an image names a file below it. One that QEMU cannot use is refused, and so is one with its data in another file, which
/// QEMU would open by the path there. What is no image QEMU says better.
fn below(file: &File, path: &str) -> Result<Below, MediaError> {
    // Opened anew, since a description past the memory of the host takes whole blocks only.
    let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let head = again.and_then(|file| qcow2::head(&file)).map_err(MediaError::file("read", path))?;
    match head {
        Head::Image(header) => Ok(header.below),
        Head::Unusable(fault) => Err(MediaError::Image { path: path.to_owned(), fault }),
        Head::Other => Ok(Below::Nothing),
    }
}

/// Opens what backs these devices beside the engine that has it, to see whether it answers: past the memory of the VM Host
/// where that can be. With the address of a device comes its store, then what lies under that, each by the device's address.
/// What cannot be opened now, or is not watched, is left out, and so is what lies under it.
pub fn open_to_watch<'a>(
    attached: impl IntoIterator<Item = &'a Attached>,
) -> Vec<(StorageAddress, File)> {
    let watched: Vec<&Attached> = attached.into_iter().filter(|a| is_watched(a)).collect();
    let opened = answers::all_in_time(watched.iter().map(|attached| {
        let attached = (*attached).clone();
        move || files_to_watch(&attached)
    }));
    let addresses = watched.iter().map(|attached| attached.device.address);
    let named = |(address, files): (StorageAddress, Option<Vec<File>>)| {
        files.unwrap_or_default().into_iter().map(move |file| (address, file))
    };
    addresses.zip(opened).flat_map(named).collect()
}

/// A drive of the VM Host would never rest.
#[must_use]
pub fn is_watched(attached: &Attached) -> bool {
    let device = &attached.device;
    match device.kind {
        DeviceKind::Disk => device.backing.store().is_some(),
        DeviceKind::Dvd => device.backing.storage == StorageType::File,
        DeviceKind::Tape | DeviceKind::Changer | DeviceKind::Burner => false,
    }
}

fn files_to_watch(attached: &Attached) -> Vec<File> {
    let past_memory = |open: &dyn Fn(OFlags) -> Result<File, MediaError>| {
        open(OFlags::DIRECT).or_else(|_| open(OFlags::empty())).ok()
    };
    let Some(store) = past_memory(&|flags| open_beside(attached, flags)) else { return Vec::new() };
    let layers = attached.layers.iter();
    let layers = layers.map_while(|layer| past_memory(&|flags| open_layer(layer, flags)));
    std::iter::once(store).chain(layers).collect()
}

/// Opens a store beside the engine that has it, only to be read.
fn open_beside(attached: &Attached, flags: OFlags) -> Result<File, MediaError> {
    let (path, flags) = (&attached.device.backing.path, OFlags::NONBLOCK | flags);
    let (file, _) = open_known(path, attached.identity, Access::ReadOnly, flags)?;
    Ok(file)
}

/// Opens a layer under a linked clone's disk, which several clones may read at once: so nobody else is kept from it here.
fn open_layer(layer: &AttachedLayer, more: OFlags) -> Result<File, MediaError> {
    let path = &layer.backing.path;
    let direct = if layer.cache == Cache::Direct { OFlags::DIRECT } else { OFlags::empty() };
    let flags = OFlags::NONBLOCK | direct | more;
    let (file, _) = open_known(path, layer.identity, Access::ReadOnly, flags)?;
    if layer.backing.storage == StorageType::Qcow2 {
        below(&file, path)?;
    }
    Ok(file)
}

fn flags(attached: &Attached) -> OFlags {
    // A pipe put in the file's place must not hold us up, nor a drive without medium.
    let mut flags = OFlags::NONBLOCK;
    // A generic SCSI node refuses who wants it alone while anybody has it (Linux, drivers/scsi/sg.c, sg_open).
    use StorageType::{Attach, Disk, Lv};
    if matches!(attached.device.backing.storage, Disk | Lv | Attach) {
        flags |= OFlags::EXCL;
    }
    if attached.cache == Cache::Direct {
        flags |= OFlags::DIRECT;
    }
    flags
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use hpvm_host::qcow2::{Base, Format};

    use super::*;

    /// Bit 2 of the incompatible features.
    const EXTERNAL_DATA: (u64, u8) = (79, 1 << 2);

    #[test]
    fn an_image_that_names_another_file_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (alone, over) = (folder.path().join("alone"), folder.path().join("over"));
        let below = |path: &Path| {
            let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap();
            let direct = OpenOptions::new().read(true).custom_flags(flags).open(path);
            let file = direct.or_else(|_| File::open(path)).unwrap();
            below(&file, &path.to_string_lossy())
        };
        let image = File::create(&alone).unwrap();
        assert_eq!(below(&alone).unwrap(), Below::Nothing, "QEMU says what is wrong");
        qcow2::write_empty(&image, 1 << 20).unwrap();
        let base = Base { path: &alone, format: Format::Qcow2, size: 1 << 20 };
        qcow2::write_overlay(&File::create(&over).unwrap(), &base).unwrap();
        assert_eq!(below(&alone).unwrap(), Below::Nothing);
        assert_eq!(below(&over).unwrap(), Below::Named);
        let (place, bit) = EXTERNAL_DATA;
        image.write_all_at(&[bit], place).unwrap();
        let refused = below(&alone).unwrap_err().to_string();
        assert!(refused.contains("its data are in another file"), "{refused}");
    }
}
