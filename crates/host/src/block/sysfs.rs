//! Reads one device's folder in sysfs.
//!
//! Called by `read` and `record`. Each value has its own file, any of which may be missing, vanish or hold nonsense: the
//! value is then absent, never an error. A folder is listed once, and only what it has is opened.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::device::{Access, Device, DeviceNumber, Identifier, Kind, Mapping, Medium};
use super::far::{Answer, Asker};
use super::lead::{Character, Lead};

/// What sysfs gives for one value at most, and at once (a page; Documentation/filesystems/sysfs.rst, 'Attributes').
const VALUE_BYTES_MAX: usize = 4096;

/// More entries than any folder of sysfs has; a hostile tree shall not fill our memory.
const ENTRIES_MAX: usize = 65_536;

/// `size` counts in these, whatever the device's own blocks are.
const SECTOR_BYTES: u64 = 512;

/// The unit of a device that does not tell its own.
const BLOCK_BYTES_DEFAULT: u32 = 512;

/// A device, and what it is attached to when it is a loop device.
pub(super) struct Found {
    pub(super) device: Device,
    pub(super) backing: Option<Backing>,
}

/// What a loop device is attached to, and the path that the kernel remembers it by.
pub(super) struct Backing {
    pub(super) path: PathBuf,
    pub(super) answer: Answer,
}

/// The link that leads to a device's folder.
pub(super) fn folder(sysfs: &Path, number: DeviceNumber) -> PathBuf {
    sysfs.join("dev/block").join(number.to_string())
}

/// The number of the device with this name in sysfs.
pub(super) fn number(sysfs: &Path, name: &str) -> Option<DeviceNumber> {
    number_in(&sysfs.join("class/block").join(name))
}

fn number_in(folder: &Path) -> Option<DeviceNumber> {
    text(&folder.join("dev"))?.parse().ok()
}

/// The device's name, from the link to its folder.
pub(super) fn name(sysfs: &Path, number: DeviceNumber) -> Option<String> {
    let target = fs::read_link(folder(sysfs, number)).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

/// Reads the device of this number and name. `named` tells the number of another device by its name.
pub(super) fn read(
    asker: &Asker<'_>,
    number: DeviceNumber,
    name: String,
    named: impl Fn(&str) -> Option<DeviceNumber>,
) -> Option<Found> {
    let folder = folder(&asker.places.sysfs, number);
    let entries: BTreeSet<String> = entries(&folder).into_iter().collect();
    let size_sectors: u64 = value(&folder.join("size"))?;
    let has = |entry: &str| entries.contains(entry);
    let is_set = |entry: &str| has(entry) && value(&folder.join(entry)).is_some_and(|n: u32| n > 0);
    let block_bytes =
        || if has("queue") { value(&folder.join("queue/logical_block_size")) } else { None };
    let backing = if has("loop") { backing(asker, &folder) } else { None };
    let lead = backing.as_ref().and_then(|backing| backing.answer.lead());
    let kind = kind(&folder, &name, number, has, lead);
    let is_partition = matches!(kind, Kind::Partition { .. });
    let numbers = |names: Vec<String>| names.iter().filter_map(|name| named(name)).collect();
    let tied = |entry: &str| {
        if has(entry) { numbers(self::entries(&folder.join(entry))) } else { Vec::new() }
    };
    // The partitions of a disk are folders in it that begin with its name.
    let partitions = entries.iter().filter(|entry| **entry != name && entry.starts_with(&name));
    let device = Device {
        number,
        size_bytes: size_sectors.saturating_mul(SECTOR_BYTES),
        access: if is_set("ro") { Access::ReadOnly } else { Access::ReadWrite },
        medium: if is_set("removable") { Medium::Removable } else { Medium::Fixed },
        block_bytes: block_bytes().unwrap_or(BLOCK_BYTES_DEFAULT),
        identifier: if is_partition { None } else { identifier(&folder, has) },
        partitions: if is_partition { Vec::new() } else { numbers(partitions.cloned().collect()) },
        slaves: tied("slaves"),
        holders: tied("holders"),
        kind,
        name,
    };
    Some(Found { device, backing })
}

fn kind(
    folder: &Path,
    name: &str,
    number: DeviceNumber,
    has: impl Fn(&str) -> bool,
    backing: Option<&Lead>,
) -> Kind {
    let partition = || {
        let of = number_in(&folder.join(".."))?;
        Some(Kind::Partition { of, number: value(&folder.join("partition"))? })
    };
    if has("partition") {
        return partition().unwrap_or(Kind::Disk);
    }
    if has("dm") {
        let name = text(&folder.join("dm/name")).unwrap_or_default();
        let uuid = text(&folder.join("dm/uuid")).unwrap_or_default();
        let mapping = Mapping::of(&name, &uuid);
        return Kind::Mapped { name, mapping };
    }
    // Major numbers of Documentation/admin-guide/devices.txt; zram's is given out at run time.
    match number.major {
        _ if has("md") => Kind::Raid,
        7 => Kind::Loop { backing: backing.and_then(Lead::store) },
        11 => Kind::Optical,
        1 => Kind::Memory,
        _ if name.starts_with("zram") => Kind::Memory,
        _ => Kind::Disk,
    }
}

fn identifier(folder: &Path, has: impl Fn(&str) -> bool) -> Option<Identifier> {
    let own = |entry: &str, file: &str| {
        if has(entry) { text(&folder.join(file)).filter(|text| !text.is_empty()) } else { None }
    };
    let unit = || if has("device") { unit_serial(&folder.join("device/vpd_pg80")) } else { None };
    None.or_else(|| own("device", "device/wwid").map(Identifier::Wwid))
        .or_else(|| own("wwid", "wwid").map(Identifier::Wwid))
        .or_else(|| own("device", "device/serial").map(Identifier::Serial))
        .or_else(|| unit().map(Identifier::Serial))
        .or_else(|| own("serial", "serial").map(Identifier::Serial))
        .or_else(|| own("dm", "dm/uuid").map(Identifier::Mapped))
        .or_else(|| own("md", "md/uuid").map(Identifier::Raid))
        .or_else(|| if has("loop") { attached(folder) } else { None })
}

fn attached(folder: &Path) -> Option<Identifier> {
    let path = backing_path(folder)?.to_string_lossy().replace(char::is_control, "?");
    Some(Identifier::Attached { path, offset: value(&folder.join("loop/offset")).unwrap_or(0) })
}

/// The serial number of a SCSI device that has no world-wide name, as QEMU's have none (SPC-4, 7.8.18: page code at 1, length
/// at 2, then ASCII).
fn unit_serial(page: &Path) -> Option<String> {
    const PAGE: u8 = 0x80;
    let page = bytes(page)?;
    let [_, PAGE, high, low, text @ ..] = page.as_slice() else { return None };
    let length = usize::from(u16::from_be_bytes([*high, *low])).min(text.len());
    let serial = String::from_utf8_lossy(&text[..length]);
    let serial = serial.trim_matches([' ', '\0']).replace(char::is_control, "?");
    (!serial.is_empty()).then_some(serial)
}

pub(super) fn backing(asker: &Asker<'_>, folder: &Path) -> Option<Backing> {
    let path = backing_path(folder)?;
    let answer = asker.answer(&path);
    Some(Backing { path, answer })
}

pub(super) fn backing_path(folder: &Path) -> Option<PathBuf> {
    let bytes = bytes(&folder.join("loop/backing_file"))?;
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
    let peripheral = value(&folder.join("device/type"));
    Character { number, subsystem, block: behind(), peripheral }
}

/// The names in a folder, sorted; empty when it cannot be read.
pub(super) fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().take(ENTRIES_MAX);
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

fn value<T: std::str::FromStr>(path: &Path) -> Option<T> {
    text(path)?.parse().ok()
}

/// A value as text that can be printed.
fn text(path: &Path) -> Option<String> {
    let bytes = bytes(path)?;
    Some(String::from_utf8_lossy(&bytes).trim().replace(char::is_control, "?"))
}

fn bytes(path: &Path) -> Option<Vec<u8>> {
    let mut page = [0; VALUE_BYTES_MAX];
    let length = File::open(path).ok()?.read(&mut page).ok()?;
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
        let folder = tempfile::tempdir().unwrap();
        let page = folder.path().join("vpd_pg80");
        for (content, serial) in [
            (&b"\0\x80\0\x06spare7"[..], Some("spare7")),
            (b"\0\x80\0\x08  spare7junk", Some("spare7")),
            (b"\0\x80\xff\xffspare7", Some("spare7")),
            (b"\0\x80\0\x04    ", None),
            (b"\0\x83\0\x06spare7", None),
            (b"\0\x80", None),
            (b"", None),
        ] {
            fs::write(&page, content).unwrap();
            assert_eq!(unit_serial(&page).as_deref(), serial, "{content:?}");
        }
        assert_eq!(unit_serial(&folder.path().join("none")), None);
    }
}
