//! The block trees of a server, as the guest-host sets them up: they are what `tests/guest-host/blocks.sh` says, and go
//! without a trace. Who tests what hpvm makes of block devices builds on them.

use super::Turn;
use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![every_tree_of_block_devices_can_be_set_up];

/// One line a device: what it is, what it is made of, what it holds, where it is mounted.
const LOOK: &str =
    "lsblk --raw --noheadings --output NAME,TYPE,FSTYPE,MOUNTPOINT | sed 's/ *$//' | sort --unique";

fn every_tree_of_block_devices_can_be_set_up() {
    let mut host = Turn::take();
    let before = host.ok(LOOK);
    host.ok("all_blocks");
    let tree = host.ok(LOOK);
    for wanted in [
        "vda1 part ext4 /",
        "sda1 part swap [SWAP]",
        "safe1 crypt linux_raid_member",
        "md127 raid1 LVM2_member",
        "stack-used lvm ext4 /srv/used",
        "stack-free lvm",
        "loop7 loop ext4 /srv/loop",
        "mpatha mpath",
        "mpatha-part1 part ext4 /srv/multipath",
        "mpatha-part2 part",
    ] {
        assert!(tree.lines().any(|line| line == wanted), "'{wanted}' is missing of:\n{tree}");
    }
    assert_eq!(host.ok("multipath -ll | grep -c 'active ready'"), "2");
    let inactive = host.ok("grep ' : inactive ' /proc/mdstat");
    assert_eq!(inactive.lines().count(), 1, "{inactive}");
    let pair = host.ok("btrfs filesystem show /srv/pair");
    assert!(pair.contains("Total devices 2"), "{pair}");
    let generic = host.ok(
        "sg_inq $(lsscsi --generic | grep VIRTUAL-DISK | grep --only-matching '[^ ]*sg[0-9]*')",
    );
    assert!(generic.contains("IET"), "{generic}");
    host.ok("all_blocks_gone");
    assert_eq!(host.ok(LOOK), before);
}
