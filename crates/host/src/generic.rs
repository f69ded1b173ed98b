//! Generic SCSI nodes (`/dev/sg*`) that a guest's QEMU is to command: which other nodes lead to the same device, which
//! program has one of them open, a door to the device for one user, and its reset.
//!
//! Called where what backs a device of a guest is opened. QEMU tells a generic node by its path, so a descriptor alone does
//! not do: it opens `/proc/self/fd/NUMBER`, and the kernel then looks at the rights of the node behind it. The host's own
//! nodes keep theirs; the guest's user gets a node of his own that has no name any more.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::libc;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, mknodat, open};

use crate::block::DeviceNumber;
use crate::openers::{Opener, openers};
use crate::users::Ids;

/// The devices by which programs have one SCSI device.
#[derive(Debug, PartialEq, Eq)]
pub struct Doors {
    /// For a tape `st0` and `nst0`, for a changer `sch0`, and the generic node (Linux, drivers/scsi: each is a child of the
    /// SCSI device in sysfs).
    characters: BTreeSet<DeviceNumber>,
    /// For a drive of optical media `sr0`.
    blocks: BTreeSet<DeviceNumber>,
}

/// What leads to the same SCSI device as this generic node, itself among it.
#[must_use]
pub fn doors(sysfs: &Path, number: DeviceNumber) -> Doors {
    let device = sysfs.join("dev/char").join(number.to_string()).join("device");
    Doors {
        characters: nodes_of(&device).into_iter().chain([number]).collect(),
        blocks: numbers_in(&device.join("block")).collect(),
    }
}

/// The numbers of the character devices that lead to the same SCSI device as this block device, such as a drive of optical
/// media: who has one of them commands the drive.
#[must_use]
pub fn doors_of_block(sysfs: &Path, number: DeviceNumber) -> BTreeSet<DeviceNumber> {
    nodes_of(&sysfs.join("dev/block").join(number.to_string()).join("device"))
}

fn nodes_of(device: &Path) -> BTreeSet<DeviceNumber> {
    let classes = ["scsi_generic", "scsi_tape", "scsi_changer"];
    classes.iter().flat_map(|class| numbers_in(&device.join(class))).collect()
}

fn numbers_in(class: &Path) -> impl Iterator<Item = DeviceNumber> + use<> {
    let nodes = fs::read_dir(class).into_iter().flatten().flatten();
    nodes.filter_map(|node| {
        fs::read_to_string(node.path().join("dev")).ok()?.trim().parse::<DeviceNumber>().ok()
    })
}

/// A program other than this one that has one of these open, as far as we may look.
#[must_use]
pub fn opener(proc: &Path, doors: &Doors) -> Option<Opener> {
    let of_kind = |kind, devices: &BTreeSet<DeviceNumber>| {
        (!devices.is_empty()).then(|| openers(proc, kind, devices)).into_iter().flatten()
    };
    of_kind(FileType::CharacterDevice, &doors.characters)
        .chain(of_kind(FileType::BlockDevice, &doors.blocks))
        .next()
}

/// A descriptor that leads to the character device of this number and is not open itself (`O_PATH`): who has it opens the
/// device by `/proc/self/fd/NUMBER`. With `ids` that user may, through a node of his own whose name is gone before anybody
/// else could use it; without, whoever may open `path`.
pub fn door(path: &Path, number: DeviceNumber, ids: Option<Ids>) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Some(Ids { uid, gid }) = ids else {
        return Ok(open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?);
    };
    let name = PathBuf::from(format!("/dev/.hpvm-{number}-{}", std::process::id()));
    let device = number.to_raw();
    let made = mknodat(CWD, &name, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, device);
    made.map_err(|error| {
        io::Error::new(error.kind(), format!("a node in /dev cannot be made: {error}"))
    })?;
    let opened = open(&name, flags, Mode::empty());
    fs::remove_file(&name)?;
    let door = opened?;
    chownat(
        door.as_fd(),
        "",
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::EMPTY_PATH,
    )?;
    Ok(door)
}

/// Whether a node by itself leads to a SCSI device, which a partition does not.
#[must_use]
pub fn is_scsi(sysfs: &Path, kind: &str, number: DeviceNumber) -> bool {
    sysfs.join("dev").join(kind).join(number.to_string()).join("device/scsi_device").is_dir()
}

/// Resets the SCSI device behind an open node, and never more than that: where its transport cannot, that is an error. Requests
/// under way fail, and are sent again by whoever may do so. The kernel needs as long as the transport's time limits, some tens
/// of seconds at most.
pub fn reset(node: &File) -> io::Result<()> {
    let mut what: libc::c_int = RESET_DEVICE | NO_ESCALATION;
    // SAFETY: the call reads one int, which lives until it is over.
    #[allow(unsafe_code)]
    let done = unsafe { libc::ioctl(node.as_raw_fd(), SG_SCSI_RESET, &raw mut what) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `SG_SCSI_RESET` and its argument (Linux, include/scsi/sg.h).
const SG_SCSI_RESET: libc::Ioctl = 0x2284;
const RESET_DEVICE: libc::c_int = 1;
const NO_ESCALATION: libc::c_int = 0x100;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn a_device_has_several_doors() {
        let folder = tempfile::tempdir().expect("a folder");
        let device = folder.path().join("devices/1:0:0:1");
        for (node, number) in [
            ("scsi_generic/sg9", "21:9"),
            ("scsi_tape/st0", "9:0"),
            ("scsi_tape/nst0", "9:128"),
            ("block/sr0", "11:0"),
        ] {
            fs::create_dir_all(device.join(node)).expect("made");
            fs::write(device.join(node).join("dev"), format!("{number}\n")).expect("written");
        }
        let node = folder.path().join("dev/char/21:9");
        fs::create_dir_all(&node).expect("made");
        symlink(&device, node.join("device")).expect("linked");
        let found = doors(folder.path(), "21:9".parse().expect("a number"));
        let named = |numbers: &BTreeSet<DeviceNumber>| {
            numbers.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(named(&found.characters), ["9:0", "9:128", "21:9"]);
        assert_eq!(named(&found.blocks), ["11:0"]);
        let alone = doors(folder.path(), "21:3".parse().expect("a number"));
        assert_eq!(named(&alone.characters), ["21:3"], "what sysfs does not know is itself");
        assert!(alone.blocks.is_empty());
        let block = folder.path().join("dev/block/11:0");
        fs::create_dir_all(&block).expect("made");
        symlink(&device, block.join("device")).expect("linked");
        let found = doors_of_block(folder.path(), "11:0".parse().expect("a number"));
        assert!(found.contains(&"21:9".parse().expect("a number")), "{found:?}");
    }

    #[test]
    fn who_has_a_device_open_is_found_and_named() {
        let null = DeviceNumber::from_raw(fs::metadata("/dev/null").expect("it is there").rdev());
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .stdin(std::process::Stdio::null())
            .spawn()
            .expect("a child");
        // Others have it too; so a /proc that shows our child alone is made.
        let proc = tempfile::tempdir().expect("a folder");
        let pid = child.id();
        symlink(format!("/proc/{pid}"), proc.path().join(pid.to_string())).expect("linked");
        let by = |number| Doors { characters: BTreeSet::from([number]), blocks: BTreeSet::new() };
        let found = opener(proc.path(), &by(null));
        let other = opener(proc.path(), &by("21:77".parse().expect("a number")));
        child.kill().and_then(|()| child.wait().map(drop)).expect("it ends");
        assert_eq!(found, Some(Opener { pid: pid.cast_signed(), name: "sleep".into() }));
        assert_eq!(other, None);
    }

    #[test]
    fn a_door_leads_to_the_device_and_is_not_open() {
        let null = DeviceNumber::from_raw(fs::metadata("/dev/null").expect("it is there").rdev());
        let door = door(Path::new("/dev/null"), null, None).expect("a door");
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&door));
        let status = rustix::fs::fcntl_getfl(&door).expect("flags");
        assert!(status.contains(OFlags::PATH), "{status:?}");
        let metadata = fs::metadata(&path).expect("it leads there");
        assert_eq!(DeviceNumber::from_raw(metadata.rdev()), null);
        fs::OpenOptions::new().write(true).open(&path).expect("it can be opened");
    }
}
