//! What `block` says of hosts with certain devices: each way in which a host uses a disk, and each that only looks like it.

mod tree;

use std::collections::BTreeSet;
use std::path::Path;

use hpvm_host::block::{Access, Blocks, Identifier, Kind, Lead, Medium, Places, Store};
use tree::{Tree, plain};

fn said(blocks: &Blocks, store: Store) -> Vec<String> {
    blocks.uses(store).iter().map(ToString::to_string).collect()
}

/// Asserts what is said of a device, from reading everything and from reading around it.
#[track_caller]
fn check(tree: &Tree, device: &str, expected: &[&str]) {
    let store = tree.store(device);
    assert_eq!(said(&tree.read_all(), store), expected, "{device}, all read");
    let path = format!("/dev/{}", device.replace('!', "/"));
    assert_eq!(said(&tree.read_around(&[&path]), store), expected, "{device}, read around");
}

fn used(tree: &Tree) -> Vec<String> {
    let blocks = tree.read_all();
    let used = blocks.host_used();
    let mut names: Vec<String> =
        used.iter().map(|(number, _)| blocks.device(*number).expect("read").name.clone()).collect();
    names.sort();
    names
}

#[track_caller]
fn check_overlap(tree: &Tree, one: &str, other: &str, expected: bool) {
    let (first, second) = (tree.lead(one), tree.lead(other));
    let (a, b) = (first.store().expect("a store"), second.store().expect("a store"));
    let all = Blocks::read_all_with(&tree.places(), &[first, second]);
    for blocks in [all, tree.read_around(&[one, other])] {
        assert_eq!(blocks.overlap(a, b), expected, "{one} and {other}");
        assert_eq!(blocks.overlap(b, a), expected, "{other} and {one}");
    }
}

#[test]
fn a_mounted_partition_is_used_and_its_neighbour_is_not() {
    let tree = plain();
    check(&tree, "sda1", &["it is mounted at /"]);
    check(&tree, "sda2", &[]);
    check(&tree, "sda3", &["it is swap space"]);
    check(
        &tree,
        "sda",
        &["its partition sda1 is mounted at /", "its partition sda3 is swap space"],
    );
    assert_eq!(used(&tree), ["sda", "sda1", "sda3"]);
    check_overlap(&tree, "/dev/sda", "/dev/sda2", true);
    check_overlap(&tree, "/dev/sda1", "/dev/sda2", false);
    check_overlap(&tree, "/dev/sda1", "/dev/sda1", true);
}

#[test]
fn a_device_tells_its_size_and_identity() {
    let mut tree = plain();
    tree.value("sda", "size", "4194304");
    tree.value("sda", "ro", "1");
    tree.value("sda", "removable", "1");
    tree.value("sda", "queue/logical_block_size", "4096");
    let blocks = tree.read_all();
    let disk = blocks.device(tree.number("sda")).expect("read");
    assert_eq!((disk.size_bytes, disk.block_bytes), (2 << 30, 4096));
    assert_eq!((disk.access, disk.medium), (Access::ReadOnly, Medium::Removable));
    assert_eq!(disk.identifier, Some(Identifier::Wwid("naa.5000c500a1b2c3d4".into())));
    let partition = blocks.device(tree.number("sda2")).expect("read");
    assert_eq!(partition.kind, Kind::Partition { of: disk.number, number: 2 });
    assert_eq!((partition.block_bytes, partition.medium), (4096, Medium::Removable));
    let identifier = partition.identifier.as_ref().expect("known again");
    assert_eq!(identifier.to_string(), "wwid:naa.5000c500a1b2c3d4-part2");
}

#[test]
fn the_identifier_is_the_best_there_is() {
    let mut tree = Tree::new();
    for (disk, value, text) in [
        ("nvme0n1", "wwid", "eui.0025385b91b0"),
        ("sdb", "device/serial", "S1"),
        ("vda", "serial", "S2"),
        ("sdc", "device/wwid", ""),
    ] {
        tree.disk(disk);
        tree.value(disk, value, text);
    }
    tree.value("nvme0n1", "device/serial", "S0");
    tree.raid("md0", &["sdb"]);
    tree.mapped("dm-0", "x", "CRYPT-LUKS2-1-x", &["sdc"]);
    let blocks = tree.read_all();
    for (disk, identifier) in [
        ("nvme0n1", Some("wwid:eui.0025385b91b0")),
        ("sdb", Some("serial:S1")),
        ("vda", Some("serial:S2")),
        ("sdc", None),
        ("md0", Some("md:uuid-of-md0")),
        ("dm-0", Some("dm:CRYPT-LUKS2-1-x")),
    ] {
        let device = blocks.device(tree.number(disk)).expect("read");
        let found = device.identifier.as_ref().map(ToString::to_string);
        assert_eq!(found.as_deref(), identifier, "{disk}");
    }
}

/// Two disks, encrypted, mirrored; volume group vg0 on the mirror with the host's root and a volume for a guest.
fn lvm_on_raid_on_crypt() -> Tree {
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

#[test]
fn what_lies_under_the_root_is_used_and_a_free_volume_beside_it_is_not() {
    let tree = lvm_on_raid_on_crypt();
    check(&tree, "dm-2", &["it is mounted at /"]);
    check(&tree, "dm-3", &[]);
    let root = "volume group vg0 (LVM) lies on it";
    check(&tree, "md0", &[&format!("{root}, whose volume root is mounted at /")]);
    let ways = "by way of sda2, luks-a and md0";
    check(&tree, "sda", &[&format!("{root} {ways}, whose volume root is mounted at /")]);
    assert_eq!(
        used(&tree),
        ["dm-0", "dm-1", "dm-2", "md0", "sda", "sda2", "sdb", "sdb2"],
        "all but the guest's volume"
    );
    check_overlap(&tree, "/dev/mapper/vg0-root", "/dev/mapper/vg0-my--guest", false);
    check_overlap(&tree, "/dev/sdb", "/dev/mapper/vg0-my--guest", true);
    check_overlap(&tree, "/dev/sda2", "/dev/sdb2", false);
}

#[test]
fn a_group_nobody_uses_yet_still_keeps_its_disk() {
    let mut tree = Tree::new();
    tree.disk("sda");
    tree.disk("sdb");
    tree.disk("sdc");
    tree.mapped("dm-0", "vg1-a", "LVM-1", &["sda"]);
    tree.mapped("dm-1", "vg1-b", "LVM-2", &["sda"]);
    tree.mapped("dm-2", "backup", "CRYPT-LUKS2-1", &["sdb"]);
    tree.mapped("dm-3", "striped", "", &["sdc"]);
    check(&tree, "sda", &["volume group vg1 (LVM) lies on it"]);
    check(&tree, "sdb", &["the encrypted volume backup lies on it"]);
    check(&tree, "sdc", &["it is open through device-mapper name striped"]);
    for volume in ["dm-0", "dm-1", "dm-2", "dm-3"] {
        check(&tree, volume, &[]);
    }
}

#[test]
fn an_array_is_named_with_what_it_is_mounted_at() {
    let mut tree = Tree::new();
    tree.disk("sda");
    tree.raid("md0", &["sda"]);
    check(&tree, "sda", &["md0 is built on it"]);
    tree.mount("md0", "/srv");
    check(&tree, "sda", &["md0 is built on it, which is mounted at /srv"]);
}

/// Two paths to one disk, joined by multipath, with two partitions by kpartx and the kernel's own on each path.
fn multipath() -> Tree {
    let mut tree = Tree::new();
    for disk in ["sda", "sdb"] {
        tree.disk(disk);
        tree.value(disk, "device/wwid", "naa.600508b4");
        for number in [1, 2] {
            tree.partition(disk, number, &format!("{disk}{number}"));
        }
    }
    tree.mapped("dm-0", "mpatha", "mpath-3600508b4", &["sda", "sdb"]);
    for number in [1, 2] {
        let uuid = format!("part{number}-mpath-3600508b4");
        let name = format!("mpatha-part{number}");
        tree.mapped(&format!("dm-{number}"), &name, &uuid, &["dm-0"]);
    }
    tree
}

#[test]
fn a_multipath_volume_is_free_while_its_paths_are_held() {
    let tree = multipath();
    check(&tree, "dm-0", &[]);
    check(&tree, "dm-1", &[]);
    check(&tree, "sda", &["the multipath volume mpatha lies on it"]);
    check(
        &tree,
        "sda1",
        &[
            "the multipath volume mpatha lies on sda, the disk it is a part of",
            "the multipath volume mpatha lies on sdb, the disk it is a part of",
        ],
    );
}

/// Settles 32: the host's multipath is used as it is, and two paths to one disk are known as that disk.
#[test]
fn two_paths_are_one_thing() {
    let tree = multipath();
    for (one, other, expected) in [
        ("/dev/sda", "/dev/sdb", true),
        ("/dev/sda1", "/dev/sdb1", true),
        ("/dev/sda1", "/dev/sdb2", false),
        ("/dev/sda", "/dev/sdb2", true),
        ("/dev/mapper/mpatha", "/dev/sdb", true),
        ("/dev/mapper/mpatha-part1", "/dev/sdb1", true),
        ("/dev/mapper/mpatha-part1", "/dev/mapper/mpatha-part2", false),
        ("/dev/mapper/mpatha-part1", "/dev/mapper/mpatha", true),
    ] {
        check_overlap(&tree, one, other, expected);
    }
}

#[test]
fn a_use_of_one_path_is_a_use_of_all() {
    let mut tree = multipath();
    tree.mount("dm-2", "/data");
    check(&tree, "dm-0", &["its partition mpatha-part2 is mounted at /data"]);
    check(&tree, "dm-1", &[]);
    let way = "its partition mpatha-part2 by way of mpatha is mounted at /data";
    check(&tree, "sdb", &[way]);
    // A partition that the kernel made of one path and mounted there is the volume's as well.
    let mut tree = multipath();
    tree.mount("sdb1", "/boot");
    check(&tree, "dm-1", &["it is mounted at /boot"]);
    check(&tree, "dm-0", &["its partition sdb1 is mounted at /boot"]);
    check(&tree, "dm-2", &[]);
}

#[test]
fn a_path_without_multipath_is_known_by_its_wwid() {
    let mut tree = Tree::new();
    for disk in ["sda", "sdb"] {
        tree.disk(disk);
        tree.value(disk, "device/wwid", "naa.600508b4");
        tree.partition(disk, 1, &format!("{disk}1"));
    }
    tree.mount("sda1", "/");
    check(&tree, "sdb", &["its partition sda1 is mounted at /"]);
    check(&tree, "sdb1", &["it is mounted at /"]);
}

/// Two guests, one by either path: each start alone knows which disk it is, and together they are one thing.
#[test]
fn a_path_that_another_has_is_the_same_disk() {
    let mut tree = Tree::new();
    for (disk, wwid) in [("sda", "naa.600508b4"), ("sdb", "naa.600508b4"), ("sdc", "naa.600508b5")]
    {
        tree.disk(disk);
        tree.value(disk, "device/wwid", wwid);
        tree.partition(disk, 1, &format!("{disk}1"));
    }
    let alone = tree.read_around(&["/dev/sda1"]);
    assert_eq!(alone.world_wide_names(), ["wwid:naa.600508b4".to_owned()].into());
    assert!(alone.device(tree.number("sdb")).is_none(), "nobody said that it is of interest");
    let both = tree.read_around(&["/dev/sda1", "/dev/sdb", "/dev/sdc"]);
    for (one, other, expected) in [
        ("sda1", "sdb", true),
        ("sda1", "sdb1", true),
        ("sda", "sdb", true),
        ("sda1", "sdc1", false),
        ("sda", "sdc", false),
    ] {
        let (one, other) = (tree.store(one), tree.store(other));
        assert_eq!(both.related(one).contains(&other), expected, "{one:?} {other:?}");
        assert_eq!(both.related(other).contains(&one), expected, "{other:?} {one:?}");
    }
}

#[test]
fn a_swap_file_is_used_wherever_it_lies() {
    let mut tree = plain();
    tree.file_on("/home/swap file", "sda1");
    tree.file_on("/home/image", "sda1");
    tree.swap("/home/swap\\040file");
    let store = tree.lead("/home/swap file").store().expect("a store");
    assert_eq!(said(&tree.read_around(&["/home/swap file"]), store), ["it is swap space"]);
    assert_eq!(said(&tree.read_all(), store), ["it is swap space"]);
    let store = tree.lead("/home/image").store().expect("a store");
    assert_eq!(said(&tree.read_around(&["/home/image"]), store), [""; 0]);
    check_overlap(&tree, "/home/image", "/home/swap file", false);
    check_overlap(&tree, "/home/image", "/dev/sda", true);
    check_overlap(&tree, "/home/image", "/dev/sda2", false);
}

/// A file on a volume, attached to a loop device with a partition.
fn loop_on_file_on_lvm() -> Tree {
    let mut tree = lvm_on_raid_on_crypt();
    tree.file_on("/var/image", "dm-2");
    tree.attached("loop0", "/var/image");
    tree.attached("loop1", "/var/image");
    tree.partition("loop0", 1, "loop0p1");
    tree.disk("loop2");
    tree
}

#[test]
fn a_loop_device_lies_on_its_file_and_the_file_on_its_disks() {
    let tree = loop_on_file_on_lvm();
    check_overlap(&tree, "/dev/loop0", "/var/image", true);
    check_overlap(&tree, "/dev/loop0p1", "/dev/sdb", true);
    check_overlap(&tree, "/dev/loop0", "/dev/loop1", true);
    check_overlap(&tree, "/dev/loop0", "/dev/loop2", false);
    check_overlap(&tree, "/dev/loop0", "/dev/mapper/vg0-my--guest", false);
    let file = tree.lead("/var/image").store().expect("a store");
    let blocks = tree.read_around(&["/var/image"]);
    let loops = [tree.number("loop0"), tree.number("loop1")];
    assert_eq!(blocks.loops_on(file), loops);
    let lineage = blocks.lineage(tree.store("loop0p1"));
    assert!(lineage.under.contains(&file) && lineage.under.contains(&tree.store("sda")));
    assert!(blocks.lineage(file).over.contains(&tree.store("loop0p1")));
    // What is said of the file is said of what lies on it; what is said of the file's disk is not.
    let bearers = blocks.bearers(tree.store("loop0p1"));
    assert!(bearers.contains(&file) && !bearers.contains(&tree.store("sda")));
    let paths: Vec<&Path> = blocks.attached_paths(file).collect();
    assert_eq!(paths, [Path::new("/var/image")]);
}

/// Whoever compares two guests reads around the stores of the one and has but the names of the other's.
#[test]
fn a_store_is_related_to_all_that_has_its_bytes_whichever_is_asked_about() {
    let mut tree = loop_on_file_on_lvm();
    tree.partition("loop1", 1, "loop1p1");
    tree.partition("loop1", 2, "loop1p2");
    let stores = ["/var/image", "/dev/loop0", "/dev/loop1", "/dev/loop0p1", "/dev/loop1p1"];
    for one in stores {
        let store = tree.lead(one).store().expect("a store");
        let related = tree.read_around(&[one]).related(store);
        for other in stores {
            let other_store = tree.lead(other).store().expect("a store");
            assert!(related.contains(&other_store), "{other} is not known to be {one}'s");
        }
        let is_part = ["/dev/loop0p1", "/dev/loop1p1"].contains(&one);
        assert_eq!(related.contains(&tree.store("loop1p2")), !is_part, "{one}");
        assert!(!related.contains(&tree.store("loop2")), "{one}");
    }
}

/// A lock is seen by the name alone under which it was taken.
#[test]
fn every_other_name_of_bytes_behind_loop_devices_is_known() {
    let mut tree = loop_on_file_on_lvm();
    tree.attached("loop3", "/dev/loop0");
    let stores = ["/var/image", "/dev/loop0", "/dev/loop1", "/dev/loop0p1", "/dev/loop3"];
    let store = |path: &str| tree.lead(path).store().expect("a store");
    for one in stores {
        let doubles = tree.read_around(&[one]).loop_doubles(store(one));
        let mut expected: BTreeSet<Store> = stores.iter().map(|other| store(other)).collect();
        expected.remove(&store(one));
        assert_eq!(doubles, expected, "{one}");
    }
    for apart in ["/dev/loop2", "/dev/mapper/vg0-my--guest", "/dev/sda"] {
        let doubles = tree.read_around(&[apart]).loop_doubles(store(apart));
        assert!(!doubles.contains(&store("/dev/loop2")), "{apart}: {doubles:?}");
    }
    assert!(tree.read_around(&["/dev/loop2"]).loop_doubles(store("/dev/loop2")).is_empty());
}

#[test]
fn a_partition_is_used_when_another_loop_device_on_its_file_is() {
    let mut tree = loop_on_file_on_lvm();
    tree.partition("loop1", 1, "loop1p1");
    tree.mount("loop1p1", "/mnt");
    check(&tree, "loop0p1", &["it is mounted at /mnt"]);
}

#[test]
fn a_file_is_used_when_its_loop_device_is() {
    let mut tree = loop_on_file_on_lvm();
    let file = tree.lead("/var/image").store().expect("a store");
    assert_eq!(said(&tree.read_around(&["/var/image"]), file), [""; 0]);
    check(&tree, "loop0", &[]);
    tree.mount("loop0p1", "/mnt");
    let use_of_file = "its partition loop0p1 by way of loop0 is mounted at /mnt";
    assert_eq!(said(&tree.read_around(&["/var/image"]), file), [use_of_file]);
    check(&tree, "loop1", &["its partition loop0p1 is mounted at /mnt"]);
    check(&tree, "loop0p1", &["it is mounted at /mnt"]);
}

#[test]
fn a_file_is_plain_until_the_host_makes_more_of_it() {
    let mut tree = loop_on_file_on_lvm();
    tree.file_on("/var/plain", "dm-2");
    tree.file_on("/var/swap", "dm-2");
    tree.swap("/var/swap");
    assert!(tree.are_plain_files(&[]));
    assert!(tree.are_plain_files(&["/var/plain"]));
    for other in ["/var/image", "/var/swap", "/dev/loop2", "/dev/sda"] {
        assert!(!tree.are_plain_files(&["/var/plain", other]), "{other}");
    }
}

#[test]
fn a_loop_device_that_something_was_made_of_keeps_its_file() {
    let mut tree = loop_on_file_on_lvm();
    let file = tree.lead("/var/image").store().expect("a store");
    tree.raid("md7", &["loop1"]);
    assert_eq!(
        said(&tree.read_around(&["/var/image"]), file),
        ["md7 is built on it by way of loop1"]
    );
    check(&tree, "loop0", &["md7 is built on it"]);
}

#[test]
fn a_loop_device_on_a_disk_counts_as_the_disk() {
    let mut tree = plain();
    tree.attached("loop0", "/dev/sda2");
    tree.attached("loop1", "/gone (deleted)");
    check(&tree, "sda2", &[]);
    tree.mount("loop0", "/mnt");
    check(&tree, "sda2", &["loop0 is attached to it, which is mounted at /mnt"]);
    check(&tree, "loop1", &[]);
    check_overlap(&tree, "/dev/loop0", "/dev/sda", true);
}

/// `losetup -P /dev/loop0 /dev/sda`: the kernel makes the disk's partitions once more.
#[test]
fn a_partition_seen_through_a_loop_device_is_the_disks() {
    let mut tree = plain();
    tree.attached("loop0", "/dev/sda");
    for (number, name) in [(1, "loop0p1"), (2, "loop0p2"), (3, "loop0p3")] {
        tree.partition("loop0", number, name);
    }
    tree.mapped("dm-0", "loop0p1", "part1-x", &["loop0"]);
    tree.attached("loop1", "/dev/loop0p1");
    for other in ["loop0p1", "dm-0", "loop1"] {
        check(&tree, other, &["it is mounted at /"]);
    }
    check(&tree, "loop0p3", &["it is swap space"]);
    check(&tree, "loop0p2", &[]);
    check(&tree, "sda2", &[]);
    let of_disk = ["its partition sda1 is mounted at /", "its partition sda3 is swap space"];
    check(&tree, "loop0", &of_disk);
    for (one, other, expected) in [
        ("/dev/sda1", "/dev/loop0p1", true),
        ("/dev/sda1", "/dev/loop0p2", false),
        ("/dev/sda1", "/dev/loop0", true),
        ("/dev/sda", "/dev/loop0p2", true),
        ("/dev/mapper/loop0p1", "/dev/sda1", true),
        ("/dev/loop1", "/dev/sda2", false),
    ] {
        check_overlap(&tree, one, other, expected);
        let [one, other] = [one, other].map(|path| tree.lead(path).store().expect("a store"));
        assert_eq!(tree.read_all().related(one).contains(&other), expected, "{one:?} {other:?}");
    }
}

/// Whoever compares two guests knows the names of the other's stores alone, whatever these were made of.
#[test]
fn a_partition_and_a_loop_device_on_its_disk_know_each_other() {
    let mut tree = Tree::new();
    tree.disk("sdb");
    tree.partition("sdb", 1, "sdb1");
    tree.partition("sdb", 2, "sdb2");
    tree.attached("loop0", "/dev/sdb");
    tree.attached("loop1", "/dev/loop0");
    tree.partition("loop1", 1, "loop1p1");
    let names = ["sdb1", "sdb2", "loop0", "loop1", "loop1p1"];
    for one in names {
        let related = tree.read_around(&[&format!("/dev/{one}")]).related(tree.store(one));
        for other in names {
            let are_apart = [one, other].contains(&"sdb2")
                && [one, other].iter().any(|name| ["sdb1", "loop1p1"].contains(name));
            assert_eq!(related.contains(&tree.store(other)), !are_apart, "{one} {other}");
        }
        let doubles = tree.read_around(&[&format!("/dev/{one}")]).loop_doubles(tree.store(one));
        assert_eq!(doubles.contains(&tree.store("loop0")), one != "loop0", "{one}: {doubles:?}");
        check(&tree, one, &[]);
    }
    let bearers = |name| tree.read_around(&[&format!("/dev/{name}")]).bearers(tree.store(name));
    assert_eq!(bearers("sdb1"), [tree.store("sdb")].into(), "a loop device may be a part of it");
    let below = ["sdb", "sdb1", "loop0", "loop1"].map(|name| tree.store(name));
    assert_eq!(bearers("loop1p1"), below.into());
    let disk = |name| tree.read_around(&[&format!("/dev/{name}")]).loop_doubles(tree.store(name));
    assert!(disk("loop1").contains(&tree.store("sdb")), "a lock is on the disk alone");
}

/// What was made of one name of some bytes is used as the other names are.
#[test]
fn what_is_made_of_another_name_of_used_bytes_is_used() {
    let mut tree = plain();
    tree.file_on("/image", "sda2");
    tree.attached("loop0", "/dev/sda1");
    tree.attached("loop1", "/dev/loop0");
    tree.mapped("dm-0", "x", "", &["loop1"]);
    tree.mapped("dm-1", "y", "", &["dm-0"]);
    tree.attached("loop2", "/dev/dm-1");
    let tells = |tree: &Tree, device: &str, what: &str| {
        for blocks in [tree.read_all(), tree.read_around(&[&format!("/dev/{device}")])] {
            let uses = said(&blocks, tree.store(device));
            assert!(uses.iter().any(|told| told == what), "{device}: {uses:?}");
        }
    };
    for device in ["loop0", "loop1", "dm-0", "dm-1", "loop2"] {
        tells(&tree, device, "it is mounted at /");
    }
    // A second loop device on a file of which the first is mounted, and one that hides it.
    for (name, path) in [("loop3", "/image"), ("loop4", "/image"), ("loop5", "/dev/loop4")] {
        tree.attached(name, path);
    }
    tree.mapped("dm-2", "z", "", &["loop5"]);
    check(&tree, "loop5", &["it is open through device-mapper name z"]);
    check(&tree, "dm-2", &[]);
    tree.mount("loop3", "/mnt");
    for device in ["loop4", "loop5", "dm-2"] {
        tells(&tree, device, "it is mounted at /mnt");
    }
    // Part of a disk that is used as a whole, and of a file that is.
    let mut tree = Tree::new();
    tree.disk("sda");
    tree.partition("sda", 1, "sda1");
    tree.file_on("/swap", "sda");
    tree.attached("loop0", "/dev/sda");
    tree.partition("loop0", 5, "loop0p5");
    tree.attached("loop1", "/dev/sda1");
    tree.attached("loop2", "/swap");
    tree.partition("loop2", 1, "loop2p1");
    tree.mapped("dm-0", "x", "", &["loop1"]);
    tree.mapped("dm-1", "y", "", &["loop2p1"]);
    tree.mount("sda", "/whole");
    tree.swap("/swap");
    let of_disk = "sda, the disk it is a part of, is mounted at /whole";
    for device in ["loop0p5", "loop1", "dm-0"] {
        tells(&tree, device, of_disk);
    }
    let file = tree.lead("/swap").store().expect("a store");
    let Store::File(file) = file else { panic!("no file") };
    let of_file = format!("file {}, the disk it is a part of, is swap space", file.inode);
    for device in ["loop2p1", "dm-1"] {
        tells(&tree, device, &of_file);
    }
}

/// What a volume was made of is in no use but the volume's, by whatever path the others of its group go there.
#[test]
fn a_volume_is_free_whatever_else_is_done_with_its_group() {
    let mut tree = Tree::new();
    for disk in ["sda", "sdb"] {
        tree.disk(disk);
        tree.value(disk, "device/wwid", "naa.1");
        tree.partition(disk, 2, &format!("{disk}2"));
    }
    tree.mapped("dm-0", "vg0-root", "LVM-1", &["sda2"]);
    tree.mapped("dm-1", "vg0-guest", "LVM-2", &["sdb2"]);
    tree.mount("dm-0", "/");
    check(&tree, "dm-1", &[]);
    assert!(!said(&tree.read_all(), tree.store("sdb2")).is_empty());
    // Nor is an encrypted volume the table's that says how it is opened.
    tree.disk("sdc");
    tree.file_on("/image", "dm-0");
    tree.attached("loop0", "/image");
    for (volume, source, path) in [("dm-2", "sdc", "/dev/sdc"), ("dm-3", "loop0", "/image")] {
        tree.mapped(volume, volume, &format!("CRYPT-LUKS2-{volume}"), &[source]);
        tree.opens(&format!("{volume} {path}"));
        check(&tree, volume, &[]);
        assert!(!said(&tree.read_all(), tree.store(source)).is_empty(), "{source}");
    }
}

/// Nobody can tell which partition of the disk a partition is that another table found, so it is taken for all of them.
#[test]
fn a_partition_of_a_loop_device_that_begins_elsewhere_may_be_any() {
    for (value, text) in [("loop/offset", "1048576"), ("queue/logical_block_size", "4096")] {
        let mut tree = plain();
        tree.attached("loop0", "/dev/sda");
        tree.value("loop0", value, text);
        tree.partition("loop0", 2, "loop0p2");
        let told = said(&tree.read_all(), tree.store("loop0p2"));
        assert!(told.contains(&"its partition sda1 is mounted at /".to_owned()), "{told:?}");
        assert_eq!(said(&tree.read_around(&["/dev/loop0p2"]), tree.store("loop0p2")), told);
        check_overlap(&tree, "/dev/loop0p2", "/dev/sda1", true);
    }
}

#[test]
fn all_members_of_a_btrfs_file_system_are_used() {
    let mut tree = Tree::new();
    for disk in ["sda", "sdb", "sdc", "sdd"] {
        tree.disk(disk);
    }
    tree.partition("sdc", 1, "sdc1");
    tree.btrfs("u1", &["sda", "sdc1"]);
    tree.btrfs("u2", &["sdd"]);
    tree.mount_line("40 1 0:45 /sub /data/sub rw - btrfs /dev/sdc1 rw");
    tree.mount_line("41 1 0:45 / /data rw - btrfs /dev/sdc1 rw");
    check(&tree, "sda", &["it is a member of the btrfs file system mounted at /data"]);
    check(&tree, "sdb", &[]);
    check(
        &tree,
        "sdc",
        &["its partition sdc1 is a member of the btrfs file system mounted at /data"],
    );
    check(&tree, "sdd", &["it is a member of a btrfs file system in use"]);
    // Files of a subvolume have a device number that no mount shows.
    tree.file("/data/sub/image", 77, 40);
    check_overlap(&tree, "/data/sub/image", "/dev/sda", true);
    check_overlap(&tree, "/data/sub/image", "/dev/sdc", true);
    check_overlap(&tree, "/data/sub/image", "/dev/sdd", false);
}

#[test]
fn what_a_fuse_user_calls_his_source_is_not_believed() {
    let mut tree = Tree::new();
    tree.disk("sda");
    tree.disk("sdb");
    tree.mount_line("40 1 0:45 / /home/u/m rw - fuse.x /dev/sda rw");
    tree.mount_line("41 1 0:46 / /b rw - bcachefs /dev/sdb:/dev/sdc rw");
    check(&tree, "sda", &[]);
    check(&tree, "sdb", &["it is mounted at /b"]);
}

#[test]
fn a_partition_of_a_disk_used_as_a_whole_is_used() {
    let mut tree = plain();
    tree.raid("md0", &["sda"]);
    check(&tree, "sda2", &["md0 is built on sda, the disk it is a part of"]);
    let mut tree = Tree::new();
    tree.disk("sda");
    tree.partition("sda", 1, "sda1");
    tree.mount("sda", "/whole");
    check(&tree, "sda1", &["sda, the disk it is a part of, is mounted at /whole"]);
}

#[test]
fn names_of_all_drivers_are_followed() {
    let mut tree = Tree::new();
    tree.disk("nvme0n1");
    tree.partition("nvme0n1", 1, "nvme0n1p1");
    tree.disk("cciss!c0d0");
    tree.partition("cciss!c0d0", 2, "cciss!c0d0p2");
    tree.link("/dev/disk/by-id/wwn-1", "nvme0n1");
    tree.mount("nvme0n1p1", "/");
    tree.swap("/dev/cciss/c0d0p2");
    check(&tree, "nvme0n1", &["its partition nvme0n1p1 is mounted at /"]);
    check(&tree, "cciss!c0d0", &["its partition cciss/c0d0p2 is swap space"]);
    check_overlap(&tree, "/dev/disk/by-id/wwn-1", "/dev/nvme0n1p1", true);
}

#[test]
fn deep_chains_and_circles_come_to_an_end() {
    let mut tree = Tree::new();
    tree.disk("sda");
    let mut below = "sda".to_owned();
    for number in 0..150 {
        let name = format!("dm-{number}");
        tree.mapped(&name, &format!("x{number}"), "", &[&below]);
        below = name;
    }
    tree.mount(&below, "/deep");
    let ways = "by way of x0, x1, x2 and more";
    let top = format!("the device-mapper volume x149 lies on it {ways}, which is mounted at /deep");
    check(&tree, "sda", &[&top]);
    tree.tie("dm-0", &[&below]);
    let blocks = tree.read_all();
    assert_eq!(blocks.host_used().len(), 151);
    assert!(blocks.overlap(tree.store("dm-0"), tree.store("dm-100")));
    let mut tree = plain();
    let mut below = "sda1".to_owned();
    for number in 0..300 {
        let name = format!("loop{number}");
        tree.attached(&name, &format!("/dev/{below}"));
        below = name;
    }
    check(&tree, "loop299", &["it is mounted at /"]);
    check_overlap(&tree, "/dev/loop299", "/dev/sda", true);
    tree.attached("loop300", "/dev/loop301");
    tree.attached("loop301", "/dev/loop300");
    tree.partition("loop300", 1, "loop300p1");
    check(&tree, "loop300p1", &[]);
}

#[test]
fn what_vanished_is_passed_over() {
    let mut tree = plain();
    tree.raid("md0", &["sda2"]);
    let gone = tree.path().join("sys/devices/virtual/block/md0");
    std::fs::remove_dir_all(gone).expect("removed");
    let blocks = tree.read_all();
    assert!(blocks.device(tree.number("md0")).is_none());
    check(&tree, "sda2", &[]);
}

#[test]
fn a_recording_says_what_the_host_says() {
    let mut tree = loop_on_file_on_lvm();
    tree.mount("loop0p1", "/mnt");
    tree.btrfs("u1", &["loop2"]);
    tree.swap("/dev/sda2");
    tree.partition("sda", 7, "sda7");
    tree.partition_type("sda7", "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
    tree.partition("sdb", 8, "sdb8");
    tree.expects("/dev/sdb8 /backup ext4 noauto 0 0");
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("copy");
    hpvm_host::block::record::record(&tree.places(), &copy).expect("recorded");
    let recorded = Blocks::read_all(&Places::recorded(&copy).expect("a recording"));
    let blocks = tree.read_all();
    assert_eq!(recorded.host_used(), blocks.host_used());
    assert!(recorded.devices().eq(blocks.devices()));
}

#[test]
fn this_machine_can_be_read() {
    let places = Places::default();
    let blocks = Blocks::read_all(&places);
    for device in blocks.devices() {
        let around = Blocks::read_around(&places, &[Lead::Block(device.number)]);
        let store = Store::Device(device.number);
        assert_eq!(around.uses(store), blocks.uses(store), "{}", device.name);
    }
    let lead = |path: &str| places.lead(Path::new(path)).expect("there");
    assert!(matches!(lead("/dev/null"), Lead::Character(found) if found.number.major == 1));
    assert_eq!(lead("/dev"), Lead::Other);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let Lead::File(found) = places.lead(file.path()).expect("there") else { panic!("no file") };
    let metadata = std::os::unix::fs::MetadataExt::ino(&file.as_file().metadata().expect("there"));
    assert_eq!(found.identity.inode, metadata);
    assert!(found.mount.is_some());
}
