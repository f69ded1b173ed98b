//! What the VM Host will use though it does not now: devices that /etc/fstab names, and partitions that it is started from.

mod tree;

use hpvm_host::block::{Blocks, Store};
use tree::{Tree, plain};

const EFI: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

/// The uses of a device, as all is read and as what hangs together with it is.
#[track_caller]
fn check(tree: &Tree, device: &str, expected: &[&str]) {
    let said = |blocks: &Blocks| -> Vec<String> {
        blocks.uses(tree.store(device)).iter().map(ToString::to_string).collect()
    };
    assert_eq!(said(&tree.read_all()), expected, "{device} among all");
    assert_eq!(said(&tree.read_around(&[&format!("/dev/{device}")])), expected, "{device} alone");
}

/// The system's disk, with a partition that is mounted (sda1), a free one (sda2) and swap (sda3), and one for the firmware.
#[test]
fn a_machine_is_started_from_what_nobody_mounts() {
    for (kind, words) in [
        (EFI, "an EFI system partition"),
        ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "an EFI system partition"),
        ("0xef", "an EFI system partition"),
        ("21686148-6449-6e6f-744e-656564454649", "a BIOS boot partition"),
        ("bc13c2ff-59e6-4262-a352-b275fd6f7172", "an extended boot partition (XBOOTLDR)"),
        ("9e1a2d38-c612-4316-aa26-8b49521e5a8b", "a PReP boot partition"),
    ] {
        let mut tree = plain();
        tree.partition("sda", 4, "sda4");
        tree.partition_type("sda4", kind);
        let fact = format!("is {words} of a disk that this VM Host uses");
        check(&tree, "sda4", &[&format!("it {fact}")]);
        check(&tree, "sda2", &[]);
        let whole = tree.read_all().uses(tree.store("sda"));
        let said: Vec<String> = whole.iter().map(ToString::to_string).collect();
        assert!(said.contains(&format!("its partition sda4 {fact}")), "{said:?}");
    }
}

/// A disk that a guest has may well be one that a machine starts from.
#[test]
fn a_disk_that_the_host_does_not_use_is_free_with_all_its_partitions() {
    let mut tree = plain();
    tree.disk("sdb");
    for (number, name) in [(1, "sdb1"), (2, "sdb2")] {
        tree.partition("sdb", number, name);
    }
    tree.partition_type("sdb1", EFI);
    for device in ["sdb", "sdb1", "sdb2"] {
        check(&tree, device, &[]);
    }
    // What is mounted says what it is for better than its type.
    tree.mount("sdb1", "/boot/efi");
    check(&tree, "sdb1", &["it is mounted at /boot/efi"]);
    check(&tree, "sdb2", &[]);
    tree.partition("sdb", 3, "sdb3");
    tree.partition_type("sdb3", EFI);
    check(&tree, "sdb3", &["it is an EFI system partition of a disk that this VM Host uses"]);
}

#[test]
fn volumes_on_a_partition_make_the_disk_the_hosts() {
    let mut tree = Tree::new();
    tree.disk("sda");
    for (number, name) in [(1, "sda1"), (2, "sda2")] {
        tree.partition("sda", number, name);
    }
    tree.partition_type("sda1", EFI);
    check(&tree, "sda1", &[]);
    tree.mapped("dm-0", "vg-root", "LVM-1", &["sda2"]);
    check(&tree, "sda1", &["it is an EFI system partition of a disk that this VM Host uses"]);
}

/// By each path of the disk, and by what kpartx made.
#[test]
fn the_disk_is_known_by_all_its_paths() {
    let mut tree = Tree::new();
    for disk in ["sda", "sdb"] {
        tree.disk(disk);
        tree.value(disk, "device/wwid", "naa.600508b4");
        tree.partition(disk, 1, &format!("{disk}1"));
    }
    tree.mapped("dm-0", "mpatha", "mpath-3600508b4", &["sda", "sdb"]);
    tree.mapped("dm-1", "mpatha-part1", "part1-mpath-3600508b4", &["dm-0"]);
    tree.mapped("dm-2", "mpatha-part2", "part2-mpath-3600508b4", &["dm-0"]);
    tree.mapped("dm-3", "vg-root", "LVM-1", &["dm-2"]);
    for partition in ["sda1", "sdb1", "dm-1"] {
        tree.partition_type(partition, EFI);
    }
    tree.mount("dm-3", "/");
    check(&tree, "dm-1", &["it is an EFI system partition of a disk that this VM Host uses"]);
    for path in ["sda1", "sdb1"] {
        let said =
            format!("{:?}", tree.read_around(&[&format!("/dev/{path}")]).uses(tree.store(path)));
        assert!(said.contains("Boot(Efi)"), "{path}: {said}");
    }
}

#[test]
fn what_the_table_names_by_a_path_is_the_hosts_though_it_is_not_mounted() {
    let mut tree = plain();
    for disk in ["sdb", "sdc", "sdd"] {
        tree.disk(disk);
    }
    tree.partition("sdb", 1, "sdb1");
    tree.partition("sdb", 2, "sdb2");
    tree.link("/dev/disk/by-id/ata-1", "sdc");
    tree.file_on("/home/swap file", "sda1");
    tree.expects("# what is below /backup comes and goes");
    tree.expects("/dev/sdb1 /back\\040up ext4 noauto,user 0 2");
    tree.expects("/dev/disk/by-id/ata-1 none swap sw 0 0");
    tree.expects("/home/swap\\040file none swap sw 0 0");
    tree.expects("/dev/sda1 / ext4 defaults 0 1");
    tree.expects("/dev/nowhere /x ext4 noauto 0 0");
    let backup = "is to be mounted at /back up, says /etc/fstab";
    check(&tree, "sdb1", &[&format!("it {backup}")]);
    check(&tree, "sdb", &[&format!("its partition sdb1 {backup}")]);
    check(&tree, "sdb2", &[]);
    check(&tree, "sdc", &["it is to be swap space, says /etc/fstab"]);
    check(&tree, "sdd", &[]);
    check(&tree, "sda1", &["it is mounted at /"]);
    assert!(!tree.are_plain_files(&["/home/swap file"]));
    let file = tree.lead("/home/swap file").store().expect("a store");
    let said: Vec<String> =
        tree.read_around(&["/home/swap file"]).uses(file).iter().map(ToString::to_string).collect();
    assert_eq!(said, ["it is to be swap space, says /etc/fstab"]);
}

#[test]
fn what_units_and_crypttab_name_is_the_hosts_too() {
    let mut tree = plain();
    for disk in ["sdb", "sdc", "sdd", "sde"] {
        tree.disk(disk);
    }
    tree.partition("sdb", 1, "sdb1");
    tree.link("/dev/disk/by-id/ata-1", "sdc");
    tree.link("/dev/disk/by-uuid/1-a", "sde");
    tree.wants("srv-data.mount", "[Mount]\nWhat=/dev/sdb1\nWhere=/srv/data\n");
    tree.wants("dev-disk.swap", "[Swap]\nWhat=/dev/disk/by-id/ata-1\n");
    tree.wants("other.mount", "[Mount]\nWhat=UUID=1-a\nWhere=/other\n");
    tree.wants("sshd.service", "[Service]\nWhat=/dev/sdd\n");
    tree.opens("box /dev/sdd none luks,noauto");
    let data = "is to be mounted at /srv/data, says srv-data.mount";
    check(&tree, "sdb1", &[&format!("it {data}")]);
    check(&tree, "sdb", &[&format!("its partition sdb1 {data}")]);
    check(&tree, "sdc", &["it is to be swap space, says dev-disk.swap"]);
    check(&tree, "sdd", &["it is to be opened as the encrypted volume box, says /etc/crypttab"]);
    // By what a guest may have written: asked for by itself.
    check(&tree, "sde", &[]);
    let labels = tree.read_all().labels(tree.store("sde"));
    let said: Vec<String> = labels.iter().map(ToString::to_string).collect();
    assert_eq!(said, ["it is to be mounted at /other, says other.mount"]);
    // What is open already says it, and what lies on it.
    tree.mapped("dm-0", "box", "CRYPT-LUKS2-1-box", &["sdd"]);
    tree.mount("dm-0", "/box");
    check(
        &tree,
        "sdd",
        &[
            "it is to be opened as the encrypted volume box, says /etc/crypttab",
            "the encrypted volume box lies on it, which is mounted at /box",
        ],
    );
    // The table of mounts says what it says first.
    tree.expects("/dev/sdb1 /mnt ext4");
    check(&tree, "sdb1", &["it is to be mounted at /mnt, says /etc/fstab"]);
}

/// A guest may write a label on its disk that is in the table: it is told apart from what nobody can forge.
#[test]
fn what_the_table_names_by_its_content_is_asked_for_by_itself() {
    let mut tree = plain();
    tree.disk("sdb");
    tree.partition("sdb", 1, "sdb1");
    tree.link("/dev/disk/by-uuid/1234-ABCD", "sdb1");
    tree.link(r"/dev/disk/by-label/my\x20disk", "sdb1");
    tree.expects("UUID=1234-ABCD /backup vfat noauto 0 0");
    tree.expects("LABEL=my\\040disk /other vfat noauto 0 0");
    for device in ["sdb", "sdb1"] {
        check(&tree, device, &[]);
    }
    let labels = |device: &str| -> Vec<String> {
        let blocks = tree.read_around(&[&format!("/dev/{device}")]);
        blocks.labels(tree.store(device)).iter().map(ToString::to_string).collect()
    };
    let fact = "is to be mounted at /backup, says /etc/fstab";
    assert_eq!(labels("sdb1"), [format!("it {fact}")]);
    assert_eq!(labels("sdb"), [format!("its partition sdb1 {fact}")]);
    assert_eq!(labels("sda"), [""; 0]);
    assert!(
        !tree.read_all().host_used().iter().any(|(n, _)| Store::Device(*n) == tree.store("sdb"))
    );
}

#[test]
fn a_member_of_an_imported_pool_is_the_hosts() {
    let mut tree = plain();
    tree.disk("sdb");
    tree.partition("sdb", 1, "sdb1");
    tree.partition("sdb", 9, "sdb9");
    tree.link("/dev/disk/by-id/wwn-1-part1", "sdb1");
    tree.pool("/dev/disk/by-id/wwn-1-part1");
    let says = "is a member of a ZFS pool of this VM Host, says /etc/zfs/zpool.cache";
    check(&tree, "sdb1", &[&format!("it {says}")]);
    check(&tree, "sdb", &[&format!("its partition sdb1 {says}")]);
    check(&tree, "sdb9", &[]);
}
