//! The block devices of a real server, recorded in the guest-host by `record_blocks`: LVM on md on dm-crypt, multipath,
//! iSCSI, btrfs over two disks, a loop device on a file on a volume, an array that cannot run.

use std::collections::BTreeMap;
use std::path::Path;

use hpvm_host::block::{Blocks, Places, Store};

fn server() -> Blocks {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/trees/guest-host");
    Blocks::read_all(&Places::recorded(&folder).expect("the recording"))
}

/// What the server does with each of its devices, by what people call it.
fn uses() -> BTreeMap<String, String> {
    let server = server();
    let said = |number| {
        let uses = server.uses(Store::Device(number));
        uses.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    server.devices().map(|device| (device.label(), said(device.number))).collect()
}

#[test]
fn what_a_server_uses_is_told_of_every_device_under_it() {
    let uses = uses();
    for (device, words) in [
        ("vda1", "it is mounted at /"),
        ("stack-used", "it is mounted at /srv/used"),
        ("mpatha-part1", "it is mounted at /srv/multipath"),
        ("loop7", "it is mounted at /srv/loop"),
        ("md127", "volume group stack (LVM) lies on it"),
        ("safe1", "lies on it by way of md127, whose volume used is mounted at /srv/used"),
        ("mpatha", "mounted at /srv/multipath"),
        ("sda1", "it is swap space"),
        ("sda", "its partition sda1 is swap space"),
        ("vda", "its partition vda1 is mounted at /"),
        ("sdb", "lies on it by way of safe1 and md127, whose volume used is mounted at /srv/used"),
        ("sdc", "lies on it by way of safe2 and md127, whose volume used is mounted at /srv/used"),
        ("sdd", "it is a member of the btrfs file system mounted at /srv/pair"),
        ("sde", "it is a member of the btrfs file system mounted at /srv/pair"),
        ("sdf", "is built on it"),
    ] {
        let said = uses.get(device).unwrap_or_else(|| panic!("{device} is missing of {uses:#?}"));
        assert!(said.contains(words), "{device}: {said}");
    }
}

#[test]
fn what_nobody_uses_is_free() {
    let uses = uses();
    // The disk that was taken from the half array, and one that nobody ever had.
    for device in ["stack-free", "mpatha-part2", "sdg", "sdh"] {
        assert_eq!(uses.get(device).map(String::as_str), Some(""), "{uses:#?}");
    }
}
