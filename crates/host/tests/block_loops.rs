//! What `block` says where loop devices are: what they make of a file, a disk and one another hides nothing, and is nothing
//! by itself.

mod tree;

use std::collections::BTreeSet;
use std::path::Path;

use hpvm_host::block::Store;
use tree::{Tree, check, check_overlap, loop_on_file_on_lvm, plain, said};

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
    tree.mapped("dm-4", "vg0-guest1", "part1-LVM-2", &["dm-1"]);
    tree.mount("dm-0", "/");
    check(&tree, "dm-1", &[]);
    check(&tree, "dm-4", &[]);
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
