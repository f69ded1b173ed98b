//! Folders that look to `hpvm_host::block` like the /sys and /proc of a host with certain devices.
//!
//! Used by the tests of `block` and by the example that times it. Paths lead where the tree says: a device's node and its
//! name in /dev/mapper by themselves, others by [`Tree::file`] and [`Tree::link`].

// Each of its users needs another part of it.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use hpvm_host::block::{Blocks, DeviceNumber, InUse, Lead, Places, Store};

pub struct Tree {
    folder: tempfile::TempDir,
    /// Each device's number, and its folder below `sys/devices/virtual/block`.
    devices: BTreeMap<String, (DeviceNumber, PathBuf)>,
    leads: String,
    mounts: String,
    swaps: String,
    fstab: String,
    minor_next: u32,
    files: u64,
}

impl Tree {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for below in ["sys/dev/block", "sys/class/block", "sys/block", "proc/1"] {
            fs::create_dir_all(folder.path().join(below)).expect("made");
        }
        Self {
            folder,
            devices: BTreeMap::new(),
            leads: String::new(),
            mounts: String::new(),
            swaps: "Filename Type Size Used Priority\n".to_owned(),
            fstab: String::new(),
            minor_next: 0,
            files: 0,
        }
    }

    /// A whole disk.
    pub fn disk(&mut self, name: &str) {
        let major = match name {
            _ if name.starts_with("loop") => 7,
            _ if name.starts_with("md") => 9,
            _ if name.starts_with("dm-") => 253,
            _ if name.starts_with("nvme") => 259,
            _ => 8,
        };
        self.device(name, major, PathBuf::from(name));
        self.value(name, "removable", "0");
        self.value(name, "queue/logical_block_size", "512");
        symlink(
            Path::new("../devices/virtual/block").join(name),
            self.path().join("sys/block").join(name),
        )
        .expect("linked");
    }

    pub fn partition(&mut self, disk: &str, number: u32, name: &str) {
        self.device(name, 8, Path::new(disk).join(name));
        self.value(name, "partition", &number.to_string());
    }

    pub fn raid(&mut self, name: &str, slaves: &[&str]) {
        self.disk(name);
        self.value(name, "md/uuid", &format!("uuid-of-{name}"));
        self.tie(name, slaves);
    }

    /// A device-mapper volume; `uuid` without its device-mapper prefix tells nothing.
    pub fn mapped(&mut self, name: &str, mapped: &str, uuid: &str, slaves: &[&str]) {
        self.disk(name);
        self.value(name, "dm/name", mapped);
        self.value(name, "dm/uuid", uuid);
        self.tie(name, slaves);
        self.link(&format!("/dev/mapper/{mapped}"), name);
    }

    /// A loop device attached to a path.
    pub fn attached(&mut self, name: &str, path: &str) {
        self.disk(name);
        self.value(name, "loop/backing_file", path);
    }

    /// A regular file in the file system on a device, given by number.
    pub fn file(&mut self, path: &str, device: u64, mount: u64) {
        self.files += 1;
        let path = path.replace(' ', "\\040");
        self.leads += &format!("file {device} {} {mount} {path}\n", self.files);
    }

    pub fn file_on(&mut self, path: &str, device: &str) {
        let DeviceNumber { major, minor } = self.number(device);
        self.file(path, rustix::fs::makedev(major, minor), 0);
    }

    /// Another path to a device.
    pub fn link(&mut self, path: &str, device: &str) {
        self.leads += &format!("block {} {path}\n", self.number(device));
    }

    pub fn mount(&mut self, device: &str, at: &str) {
        let (number, id) = (self.number(device), self.mounts.lines().count() + 100);
        self.mounts += &format!("{id} 1 {number} / {at} rw - ext4 /dev/{device} rw\n");
    }

    /// A line of mountinfo as it is.
    pub fn mount_line(&mut self, line: &str) {
        self.mounts += line;
        self.mounts.push('\n');
    }

    pub fn swap(&mut self, path: &str) {
        self.swaps += &format!("{path}\tpartition\t1\t0\t-2\n");
    }

    /// A line of /etc/fstab.
    pub fn expects(&mut self, line: &str) {
        self.fstab += line;
        self.fstab.push('\n');
    }

    /// A line of /etc/crypttab.
    pub fn opens(&self, line: &str) {
        self.write("crypttab", &format!("{line}\n"));
    }

    /// The table of ZFS's pools, with one member.
    pub fn pool(&self, path: &str) {
        let length = u32::try_from(path.len()).expect("short").to_be_bytes();
        let name = b"\0\0\0\x04path\0\0\0\x09\0\0\0\x01";
        let table = [&name[..], &length, path.as_bytes(), &[0; 4]].concat();
        fs::write(self.path().join("zpool.cache"), table).expect("written");
    }

    /// A journal in use, as the kernel lists it.
    pub fn journal(&self, name: &str) {
        self.write(&format!("proc/fs/jbd2/{name}"), "");
    }

    /// A unit of systemd that a target wants.
    pub fn wants(&self, unit: &str, text: &str) {
        self.write(&format!("units/{unit}"), text);
        self.write(&format!("units/local-fs.target.wants/{unit}"), text);
    }

    /// The type that udev read of a partition.
    pub fn partition_type(&self, partition: &str, text: &str) {
        let record = format!("udev/b{}", self.number(partition));
        self.write(&record, &format!("S:x\nE:ID_PART_ENTRY_TYPE={text}\n"));
    }

    pub fn btrfs(&mut self, uuid: &str, members: &[&str]) {
        for member in members {
            self.write(&format!("sys/fs/btrfs/{uuid}/devices/{member}"), "");
        }
    }

    /// Writes one value of a device.
    pub fn value(&mut self, device: &str, value: &str, text: &str) {
        let path = self.device_folder(device).join(value);
        self.write(path.to_str().expect("a path"), &format!("{text}\n"));
    }

    /// Says that `over` is made of the slaves, at both ends.
    pub fn tie(&mut self, over: &str, slaves: &[&str]) {
        for slave in slaves {
            let (up, down) = (self.device_folder(over), self.device_folder(slave));
            for (folder, ties, other) in [(&up, "slaves", slave), (&down, "holders", &over)] {
                let ties = self.path().join(folder).join(ties);
                fs::create_dir_all(&ties).expect("made");
                let target = Path::new("../../../../../class/block").join(other);
                symlink(target, ties.join(other)).expect("linked");
            }
        }
    }

    pub fn number(&self, device: &str) -> DeviceNumber {
        self.devices[device].0
    }

    pub fn store(&self, device: &str) -> Store {
        Store::Device(self.number(device))
    }

    pub fn names(&self) -> Vec<String> {
        self.devices.keys().cloned().collect()
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where to read it; everything added so far is there.
    pub fn places(&self) -> Places {
        self.write("leads", &self.leads);
        self.write("proc/1/mountinfo", &self.mounts);
        self.write("proc/swaps", &self.swaps);
        self.write("fstab", &self.fstab);
        Places::recorded(self.path()).expect("a recording")
    }

    pub fn lead(&self, path: &str) -> Lead {
        self.places().lead(Path::new(path)).expect("it leads somewhere")
    }

    pub fn read_all(&self) -> Blocks {
        Blocks::read_all(&self.places())
    }

    /// What hangs together with the devices and files at these paths.
    pub fn are_plain_files(&self, paths: &[&str]) -> bool {
        let leads: Vec<Lead> = paths.iter().map(|path| self.lead(path)).collect();
        let places = self.places();
        Blocks::are_plain_files(&leads, |stores| InUse::now(&places).has_any(stores, &places))
    }

    pub fn read_around(&self, paths: &[&str]) -> Blocks {
        let leads: Vec<Lead> = paths.iter().map(|path| self.lead(path)).collect();
        Blocks::read_around(&self.places(), &leads)
    }

    fn device(&mut self, name: &str, major: u32, below: PathBuf) {
        let number = DeviceNumber { major, minor: self.minor_next };
        self.minor_next += 1;
        let target = Path::new("../../devices/virtual/block").join(&below);
        self.devices.insert(name.to_owned(), (number, below));
        self.value(name, "dev", &number.to_string());
        self.value(name, "size", "2048");
        self.value(name, "ro", "0");
        for link in [format!("dev/block/{number}"), format!("class/block/{name}")] {
            symlink(&target, self.path().join("sys").join(link)).expect("linked");
        }
        self.link(&format!("/dev/{}", name.replace('!', "/")), name);
    }

    fn device_folder(&self, name: &str) -> PathBuf {
        Path::new("sys/devices/virtual/block").join(&self.devices[name].1)
    }

    fn write(&self, below: &str, text: &str) {
        let path = self.path().join(below);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }
}

/// A host of `disks` disks with a partition each, and a volume on each second of them; the first is the system's.
pub fn large(disks: usize) -> Tree {
    let mut tree = Tree::new();
    for number in 0..disks {
        let disk = format!("sd{number}");
        let (partition, volume) = (format!("sd{number}p1"), format!("dm-{number}"));
        tree.disk(&disk);
        tree.value(&disk, "device/wwid", &format!("naa.{number:016x}"));
        tree.partition(&disk, 1, &partition);
        if number % 2 == 0 {
            let (mapped, uuid) = (format!("vg{number}-root"), format!("LVM-{number}"));
            tree.mapped(&volume, &mapped, &uuid, &[&partition]);
        }
    }
    tree.mount("dm-0", "/");
    tree
}

/// A disk with a mounted partition, a free one and one for swap.
pub fn plain() -> Tree {
    let mut tree = Tree::new();
    tree.disk("sda");
    tree.value("sda", "device/wwid", "naa.5000c500a1b2c3d4");
    for (number, name) in [(1, "sda1"), (2, "sda2"), (3, "sda3")] {
        tree.partition("sda", number, name);
    }
    tree.mount("sda1", "/home");
    tree.mount("sda1", "/");
    tree.swap("/dev/sda3");
    tree
}

pub fn said(blocks: &Blocks, store: Store) -> Vec<String> {
    blocks.uses(store).iter().map(ToString::to_string).collect()
}

/// Asserts what is said of a device, from reading everything and from reading around it.
#[track_caller]
pub fn check(tree: &Tree, device: &str, expected: &[&str]) {
    let store = tree.store(device);
    assert_eq!(said(&tree.read_all(), store), expected, "{device}, all read");
    let path = format!("/dev/{}", device.replace('!', "/"));
    assert_eq!(said(&tree.read_around(&[&path]), store), expected, "{device}, read around");
}

#[track_caller]
pub fn check_overlap(tree: &Tree, one: &str, other: &str, expected: bool) {
    let (first, second) = (tree.lead(one), tree.lead(other));
    let (a, b) = (first.store().expect("a store"), second.store().expect("a store"));
    let all = Blocks::read_all_with(&tree.places(), &[first, second]);
    for blocks in [all, tree.read_around(&[one, other])] {
        assert_eq!(blocks.overlap(a, b), expected, "{one} and {other}");
        assert_eq!(blocks.overlap(b, a), expected, "{other} and {one}");
    }
}

/// Two disks, encrypted, mirrored; volume group vg0 on the mirror with the host's root and a volume for a guest.
pub fn lvm_on_raid_on_crypt() -> Tree {
    let mut tree = Tree::new();
    for (disk, partition, mapped, name) in
        [("sda", "sda2", "dm-0", "luks-a"), ("sdb", "sdb2", "dm-1", "luks-b")]
    {
        tree.disk(disk);
        tree.partition(disk, 2, partition);
        tree.mapped(mapped, name, &format!("CRYPT-LUKS2-{name}"), &[partition]);
    }
    tree.raid("md0", &["dm-0", "dm-1"]);
    tree.mapped("dm-2", "vg0-root", "LVM-1", &["md0"]);
    tree.mapped("dm-3", "vg0-my--guest", "LVM-2", &["md0"]);
    tree.mount("dm-2", "/");
    tree
}

/// A file on a volume, attached to a loop device with a partition.
pub fn loop_on_file_on_lvm() -> Tree {
    let mut tree = lvm_on_raid_on_crypt();
    tree.file_on("/var/image", "dm-2");
    tree.attached("loop0", "/var/image");
    tree.attached("loop1", "/var/image");
    tree.partition("loop0", 1, "loop0p1");
    tree.disk("loop2");
    tree
}
