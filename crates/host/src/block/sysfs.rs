//! Reads one device's folder in sysfs.
//!
//! Called by `read` and `record`. Each value has its own file, any of which may be missing, vanish or hold nonsense: the
//! value is then absent, never an error. A folder is opened and listed once, and only what it has is opened.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, Mode, OFlags, openat};
use rustix::path::Arg;

use super::device::{Access, Device, DeviceNumber, Identifier, Kind, Mapping, Medium};
use super::lead::Character;

/// What sysfs gives for one value at most, and at once (a page; Documentation/filesystems/sysfs.rst, 'Attributes').
const VALUE_BYTES_MAX: usize = 4096;

/// More entries than any folder of sysfs has; a hostile tree shall not fill our memory.
const ENTRIES_MAX: usize = 65_536;

/// `size` counts in these, whatever the device's own blocks are.
const SECTOR_BYTES: u64 = 512;

/// The unit of a device that does not tell its own.
const BLOCK_BYTES_DEFAULT: u32 = 512;

/// A device, and the path that the kernel remembers what it is attached to by when it is a loop device.
pub(super) struct Found {
    pub(super) device: Device,
    pub(super) backing: Option<PathBuf>,
}

/// The link that leads to a device's folder.
pub(super) fn folder(sysfs: &Path, number: DeviceNumber) -> PathBuf {
    sysfs.join("dev/block").join(number.to_string())
}

/// The number of the device with this name in sysfs.
pub(super) fn number(sysfs: &Path, name: &str) -> Option<DeviceNumber> {
    value(CWD, sysfs.join("class/block").join(name).join("dev"))
}

/// The device's name, from the link to its folder.
pub(super) fn name(sysfs: &Path, number: DeviceNumber) -> Option<String> {
    let target = fs::read_link(folder(sysfs, number)).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

/// Reads the device of this number and name. `named` tells the number of another device by its name.
pub(super) fn read(
    sysfs: &Path,
    number: DeviceNumber,
    name: String,
    named: impl Fn(&str) -> Option<DeviceNumber>,
) -> Option<Found> {
    let folder = Folder::open(&folder(sysfs, number))?;
    let size_sectors: u64 = folder.value("size")?;
    let block_bytes = || folder.value_in("queue", "queue/logical_block_size");
    let kind = kind(&folder, &name, number);
    let is_partition = matches!(kind, Kind::Partition { .. });
    let numbers = |names: Vec<String>| names.iter().filter_map(|name| named(name)).collect();
    // The partitions of a disk are folders in it that begin with its name.
    let is_part = |entry: &&String| **entry != name && entry.starts_with(&name);
    let parts = || folder.entries.iter().filter(is_part).cloned().collect();
    let device = Device {
        number,
        size_bytes: size_sectors.saturating_mul(SECTOR_BYTES),
        access: if folder.is_set("ro") { Access::ReadOnly } else { Access::ReadWrite },
        medium: if folder.is_set("removable") { Medium::Removable } else { Medium::Fixed },
        block_bytes: block_bytes().unwrap_or(BLOCK_BYTES_DEFAULT),
        identifier: if is_partition { None } else { folder.identifier() },
        partitions: if is_partition { Vec::new() } else { numbers(parts()) },
        slaves: numbers(folder.list("slaves")),
        holders: numbers(folder.list("holders")),
        kind,
        name,
    };
    Some(Found { device, backing: folder.backing() })
}

/// The kind, but for what a loop device is attached to.
fn kind(folder: &Folder, name: &str, number: DeviceNumber) -> Kind {
    let partition = || {
        let (of, number) = (folder.value("../dev")?, folder.value("partition")?);
        Some(Kind::Partition { of, number })
    };
    if folder.has("partition") {
        return partition().unwrap_or(Kind::Disk);
    }
    if folder.has("dm") {
        let name = folder.text("dm/name").unwrap_or_default();
        let uuid = folder.text("dm/uuid").unwrap_or_default();
        let mapping = Mapping::of(&name, &uuid);
        return Kind::Mapped { name, mapping };
    }
    // Major numbers of Documentation/admin-guide/devices.txt; zram's is given out at run time.
    match number.major {
        _ if folder.has("md") => Kind::Raid,
        7 => Kind::Loop { backing: None },
        11 => Kind::Optical,
        1 => Kind::Memory,
        _ if name.starts_with("zram") => Kind::Memory,
        _ => Kind::Disk,
    }
}

/// A device's folder. What is in it is opened from there: the way to it is long, and there are many devices.
struct Folder {
    opened: OwnedFd,
    entries: BTreeSet<String>,
}

impl Folder {
    fn open(path: &Path) -> Option<Folder> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(CWD, path, flags, Mode::empty()).ok()?;
        let entries = names(Dir::read_from(&opened).ok()?).collect();
        Some(Folder { opened, entries })
    }

    fn has(&self, entry: &str) -> bool {
        self.entries.contains(entry)
    }

    fn value<T: std::str::FromStr>(&self, path: &str) -> Option<T> {
        value(&self.opened, path)
    }

    fn text(&self, path: &str) -> Option<String> {
        text(&self.opened, path)
    }

    fn value_in<T: std::str::FromStr>(&self, entry: &str, path: &str) -> Option<T> {
        if self.has(entry) { self.value(path) } else { None }
    }

    fn is_set(&self, entry: &str) -> bool {
        self.value_in(entry, entry).is_some_and(|n: u32| n > 0)
    }

    fn list(&self, entry: &str) -> Vec<String> {
        if self.has(entry) { entries_at(&self.opened, entry) } else { Vec::new() }
    }

    fn identifier(&self) -> Option<Identifier> {
        let own = |entry: &str, path: &str| {
            if self.has(entry) { self.text(path).filter(|text| !text.is_empty()) } else { None }
        };
        let page = || bytes(&self.opened, "device/vpd_pg80");
        let unit = || if self.has("device") { unit_serial(&page()?) } else { None };
        None.or_else(|| own("device", "device/wwid").map(Identifier::Wwid))
            .or_else(|| own("wwid", "wwid").map(Identifier::Wwid))
            .or_else(|| own("device", "device/serial").map(Identifier::Serial))
            .or_else(|| unit().map(Identifier::Serial))
            .or_else(|| own("serial", "serial").map(Identifier::Serial))
            .or_else(|| own("dm", "dm/uuid").map(Identifier::Mapped))
            .or_else(|| own("md", "md/uuid").map(Identifier::Raid))
            .or_else(|| self.attached())
    }

    fn attached(&self) -> Option<Identifier> {
        let path = self.backing()?.to_string_lossy().replace(char::is_control, "?");
        Some(Identifier::Attached { path, offset: self.value("loop/offset").unwrap_or(0) })
    }

    fn backing(&self) -> Option<PathBuf> {
        if self.has("loop") { backing_at(&self.opened, "loop/backing_file") } else { None }
    }
}

/// The serial number of a SCSI device that has no world-wide name, as QEMU's have none (SPC-4, 7.8.18: page code at 1, length
/// at 2, then ASCII).
fn unit_serial(page: &[u8]) -> Option<String> {
    const PAGE: u8 = 0x80;
    let [_, PAGE, high, low, text @ ..] = page else { return None };
    let length = usize::from(u16::from_be_bytes([*high, *low])).min(text.len());
    let serial = String::from_utf8_lossy(&text[..length]);
    let serial = serial.trim_matches([' ', '\0']).replace(char::is_control, "?");
    (!serial.is_empty()).then_some(serial)
}

/// The path that the kernel remembers what a loop device is attached to by.
pub(super) fn backing_path(folder: &Path) -> Option<PathBuf> {
    backing_at(CWD, folder.join("loop/backing_file"))
}

/// The loop devices that are attached to something, by name, with the paths that the kernel remembers that by. Most hosts have
/// some that are not, and to ask each through the link in `/sys/block` takes a multiple of this.
pub(super) fn attached(sysfs: &Path) -> Vec<(String, PathBuf)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let virtual_devices = sysfs.join("devices/virtual/block");
    let Ok(folder) = openat(CWD, &virtual_devices, flags, Mode::empty()) else { return Vec::new() };
    let names = entries(&virtual_devices).into_iter().filter(|name| name.starts_with("loop"));
    let attached = |name: String| {
        let path = backing_at(&folder, format!("{name}/loop/backing_file"))?;
        Some((name, path))
    };
    names.filter_map(attached).collect()
}

fn backing_at(folder: impl AsFd, path: impl Arg) -> Option<PathBuf> {
    let bytes = bytes(folder, path)?;
    let path = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    (!path.is_empty() && !path.contains(&0)).then(|| PathBuf::from(OsStr::from_bytes(path)))
}

/// What a character device is, and the disk behind it.
pub(super) fn character(sysfs: &Path, number: DeviceNumber) -> Character {
    let folder = sysfs.join("dev/char").join(number.to_string());
    let target = fs::read_link(folder.join("subsystem")).ok();
    let subsystem = target.and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    let behind = || {
        // SCSI: /dev/sg0 and /dev/bsg/… are children of the same device as the disk.
        let name = entries(&folder.join("device/block")).into_iter().next();
        // NVMe: ng0n1 is namespace nvme0n1.
        let name = name.or_else(|| {
            let target = fs::read_link(&folder).ok()?;
            Some(format!("nvme{}", target.file_name()?.to_str()?.strip_prefix("ng")?))
        });
        self::number(sysfs, &name?)
    };
    let peripheral = value(CWD, folder.join("device/type"));
    Character { number, subsystem, block: behind(), peripheral }
}

/// The names in a folder, sorted; empty when it cannot be read.
pub(super) fn entries(folder: &Path) -> Vec<String> {
    entries_at(CWD, folder)
}

fn entries_at(folder: impl AsFd, path: impl Arg) -> Vec<String> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(folder, path, flags, Mode::empty());
    let listed = opened.and_then(Dir::new).into_iter().flat_map(names);
    let mut names: Vec<String> = listed.collect();
    names.sort_unstable();
    names
}

/// What a folder has, but itself and the one above.
fn names(folder: Dir) -> impl Iterator<Item = String> {
    let entries = folder
        .filter_map(|entry| String::from_utf8(entry.ok()?.file_name().to_bytes().into()).ok());
    entries.filter(|name| name != "." && name != "..").take(ENTRIES_MAX)
}

fn value<T: std::str::FromStr>(folder: impl AsFd, path: impl Arg) -> Option<T> {
    text(folder, path)?.parse().ok()
}

/// A value as text that can be printed.
fn text(folder: impl AsFd, path: impl Arg) -> Option<String> {
    let bytes = bytes(folder, path)?;
    Some(String::from_utf8_lossy(&bytes).trim().replace(char::is_control, "?"))
}

fn bytes(folder: impl AsFd, path: impl Arg) -> Option<Vec<u8>> {
    let mut page = [0; VALUE_BYTES_MAX];
    let opened = openat(folder, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let length = rustix::io::read(opened, &mut page).ok()?;
    Some(page[..length].to_vec())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_character_device_leads_to_the_disk_behind_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let sysfs = folder.path();
        for made in ["dev/char/21:0/device/block/sda", "class/block/sda", "class/block/nvme0n1"] {
            fs::create_dir_all(sysfs.join(made)).expect("made");
        }
        fs::write(sysfs.join("class/block/sda/dev"), "8:0\n").expect("written");
        fs::write(sysfs.join("class/block/nvme0n1/dev"), "259:0\n").expect("written");
        let subsystem = "../../../class/scsi_generic";
        symlink(subsystem, sysfs.join("dev/char/21:0/subsystem")).expect("linked");
        fs::write(sysfs.join("dev/char/21:0/device/type"), "0\n").expect("written");
        symlink("../../devices/nvme/ng0n1", sysfs.join("dev/char/237:0")).expect("linked");
        let behind = |number: &str| character(sysfs, number.parse().expect("a number"));
        assert_eq!(behind("21:0").block, "8:0".parse().ok());
        assert_eq!(behind("21:0").subsystem.as_deref(), Some("scsi_generic"));
        assert_eq!((behind("21:0").peripheral, behind("21:0").is_generic()), (Some(0), true));
        assert_eq!(behind("237:0").block, "259:0".parse().ok());
        assert_eq!((behind("237:0").peripheral, behind("237:0").is_generic()), (None, false));
        assert_eq!(behind("1:3").block, None);
    }

    #[test]
    fn a_serial_number_is_as_long_as_its_page_says() {
        for (content, serial) in [
            (&b"\0\x80\0\x06spare7"[..], Some("spare7")),
            (b"\0\x80\0\x08  spare7junk", Some("spare7")),
            (b"\0\x80\xff\xffspare7", Some("spare7")),
            (b"\0\x80\0\x04    ", None),
            (b"\0\x83\0\x06spare7", None),
            (b"\0\x80", None),
            (b"", None),
        ] {
            assert_eq!(unit_serial(content).as_deref(), serial, "{content:?}");
        }
    }
}
