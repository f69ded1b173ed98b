//! What `block` says of hosts with certain devices: each way in which a host uses a disk, and each that only looks like it.

mod tree;

use std::path::Path;

use hpvm_host::block::{Access, Blocks, Identifier, Kind, Lead, Medium, Places, Store};
use tree::{Tree, check, check_overlap, loop_on_file_on_lvm, lvm_on_raid_on_crypt, plain, said};

fn used(tree: &Tree) -> Vec<String> {
    let blocks = tree.read_all();
    let used = blocks.host_used();
    let mut names: Vec<String> =
        used.iter().map(|(number, _)| blocks.device(*number).expect("read").name.clone()).collect();
    names.sort();
    names
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

/// Of a file system with a journal elsewhere no mount names that, nor is it anybody's holder.
#[test]
fn the_journal_of_a_file_system_is_used() {
    let mut tree = plain();
    for disk in ["sdb", "sdc"] {
        tree.disk(disk);
    }
    tree.partition("sdb", 8, "sdb8");
    tree.mapped("dm-0", "vg0-log", "LVM-1", &["sdc"]);
    for name in ["sda1-8", "sdb8", "dm-0", "gone"] {
        tree.journal(name);
    }
    check(&tree, "sda2", &[]);
    check(&tree, "sdb8", &["it is the journal of a mounted file system"]);
    check(&tree, "sdb", &["its partition sdb8 is the journal of a mounted file system"]);
    check(&tree, "dm-0", &["it is the journal of a mounted file system"]);
    let volume = "whose volume log is the journal of a mounted file system";
    check(&tree, "sdc", &[&format!("volume group vg0 (LVM) lies on it, {volume}")]);
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
    tree.journal("sda3");
    tree.pool("/dev/sdb2");
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

/// By what an administrator takes it from the VM Host, who knows whether that can do without it.
#[test]
fn what_the_host_uses_is_left_from_the_top_down() {
    let mut tree = plain();
    for disk in ["sdb", "sdc", "sdd"] {
        tree.disk(disk);
    }
    tree.partition("sdb", 1, "sdb1");
    tree.mapped("dm-0", "luks-a", "CRYPT-LUKS2-a", &["sdb1"]);
    tree.raid("md0", &["dm-0", "sdc"]);
    tree.mapped("dm-1", "vg0-data", "LVM-1", &["md0"]);
    tree.mount("dm-1", "/srv/data");
    tree.file_on("/srv/data/image", "dm-1");
    tree.attached("loop0", "/srv/data/image");
    tree.mount("loop0", "/mnt");
    tree.mapped("dm-2", "old", "other", &["sdd"]);
    tree.expects("/dev/sda2 /later ext4 defaults 0 0");
    let blocks = tree.read_all();
    let of = |path: &str| -> Vec<String> {
        let store = tree.lead(path).store().expect("a store");
        blocks.uses(store).iter().map(|found| found.ended_by(path).join(" && ")).collect()
    };
    let raid = "umount /srv/data && vgchange -an vg0 && mdadm --stop /dev/md0";
    assert!(of("/dev/sdb").contains(&format!("{raid} && cryptsetup close luks-a")));
    assert!(of("/dev/sdc").contains(&raid.to_owned()));
    assert_eq!(of("/dev/sdd"), ["dmsetup remove old"]);
    assert_eq!(of("/dev/sda3"), ["swapoff /dev/sda3"]);
    assert_eq!(of("/srv/data/image"), ["umount /mnt"], "a loop device is no use");
    assert_eq!(of("/dev/sda1"), [""], "it is the root");
    assert_eq!(of("/dev/sda2"), [""], "a table says so");
}
