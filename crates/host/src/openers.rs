//! Which programs have a device open, as far as /proc shows it to us. Called where a device is refused because somebody has
//! it, so that the refusal can say who; it opens no device itself.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FileType;

use crate::block::DeviceNumber;

/// A program that has a device open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opener {
    pub pid: i32,
    /// Its name, as `ps` shows it.
    pub name: String,
}

/// The programs other than this one that have one of these devices open, in order of their numbers. `kind`: block or
/// character devices.
#[must_use]
pub fn openers(proc: &Path, kind: FileType, devices: &BTreeSet<DeviceNumber>) -> Vec<Opener> {
    let own = std::process::id();
    let processes = fs::read_dir(proc).into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut pids: Vec<u32> = numbers
        .filter(|pid| *pid != own && has_open(&proc.join(pid.to_string()), kind, devices))
        .collect();
    pids.sort_unstable();
    let openers = pids.into_iter().filter_map(|pid| {
        let name = fs::read_to_string(proc.join(pid.to_string()).join("comm")).unwrap_or_default();
        Some(Opener { pid: i32::try_from(pid).ok()?, name: name.trim().to_owned() })
    });
    openers.collect()
}

/// A block device with those that nobody gets for himself while somebody has it: of a partition its disk, of a disk its
/// partitions.
#[must_use]
pub fn disk_and_partitions(sysfs: &Path, number: DeviceNumber) -> BTreeSet<DeviceNumber> {
    let folder = sysfs.join("dev/block").join(number.to_string());
    let number_in = |folder: &Path| {
        fs::read_to_string(folder.join("dev")).ok()?.trim().parse::<DeviceNumber>().ok()
    };
    let mut numbers = BTreeSet::from([number]);
    if folder.join("partition").exists() {
        // The folder is a link to the device's own, which lies in its disk's.
        let disk = fs::canonicalize(&folder).ok().and_then(|own| number_in(own.parent()?));
        numbers.extend(disk);
        return numbers;
    }
    let parts = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
    numbers.extend(parts.filter(|p| p.join("partition").exists()).filter_map(|p| number_in(&p)));
    numbers
}

/// Only what lies below /dev is looked at more closely: a file on a server that is gone would hold us up.
fn has_open(process: &Path, kind: FileType, devices: &BTreeSet<DeviceNumber>) -> bool {
    let links = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let mut below_dev = links
        .map(|link| link.path())
        .filter(|link| fs::read_link(link).is_ok_and(|target| target.starts_with("/dev")));
    below_dev.any(|link| {
        let Ok(metadata) = fs::metadata(link) else { return false };
        FileType::from_raw_mode(metadata.mode()) == kind
            && devices.contains(&DeviceNumber::from_raw(metadata.rdev()))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn number(text: &str) -> DeviceNumber {
        text.parse().expect("a number")
    }

    #[test]
    fn a_disk_goes_with_its_partitions_and_a_partition_with_its_disk() {
        let folder = tempfile::tempdir().expect("a folder");
        let (sysfs, disk) = (folder.path(), folder.path().join("devices/sda"));
        fs::create_dir_all(sysfs.join("dev/block")).expect("made");
        for (place, own) in
            [(disk.clone(), "8:0"), (disk.join("sda1"), "8:1"), (disk.join("sda2"), "8:2")]
        {
            fs::create_dir_all(&place).expect("made");
            fs::write(place.join("dev"), format!("{own}\n")).expect("written");
            if place != disk {
                fs::write(place.join("partition"), "1\n").expect("written");
            }
            symlink(&place, sysfs.join("dev/block").join(own)).expect("a link");
        }
        let all = ["8:0", "8:1", "8:2"].map(number);
        assert_eq!(disk_and_partitions(sysfs, number("8:0")), BTreeSet::from(all));
        assert_eq!(disk_and_partitions(sysfs, number("8:2")), BTreeSet::from([all[0], all[2]]));
        assert_eq!(disk_and_partitions(sysfs, number("9:9")), BTreeSet::from([number("9:9")]));
    }

    #[test]
    fn who_has_a_device_open_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        for (pid, name, target) in
            [("7", "mt", "/dev/null"), ("9", "dd", "/dev/zero"), ("3", "cat", "/dev/null")]
        {
            let process = folder.path().join(pid);
            fs::create_dir_all(process.join("fd")).expect("made");
            fs::write(process.join("comm"), format!("{name}\n")).expect("written");
            symlink(target, process.join("fd/3")).expect("a link");
        }
        let null = BTreeSet::from([DeviceNumber { major: 1, minor: 3 }]);
        let found = openers(folder.path(), FileType::CharacterDevice, &null);
        let found: Vec<_> = found.iter().map(|opener| (opener.pid, opener.name.as_str())).collect();
        assert_eq!(found, [(3, "cat"), (7, "mt")]);
        assert_eq!(openers(folder.path(), FileType::BlockDevice, &null), []);
    }
}
