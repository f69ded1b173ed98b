//! The block trees of a server, as the guest-host sets them up: they are what `tests/guest-host/blocks.sh` says, go without
//! a trace, and what the host uses of them is not given to a guest.

use super::Turn;
use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![
    every_tree_of_block_devices_can_be_set_up,
    a_multipath_volume_is_a_disk_like_any_other,
];

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
    what_the_host_uses_is_refused(&mut host);
    host.ok("all_blocks_gone");
    assert_eq!(host.ok(LOOK), before);
}

/// Statements whose store the guest-host uses, each by several of its names.
const USED: &[&str] = &[
    "disk:avio_stor::disk:/dev/vda",
    "disk:avio_stor::disk:/dev/vda1",
    "disk:scsi::disk:/dev/disk/by-uuid/$(findmnt -no UUID /)",
    "disk:scsi::disk:/dev/block/$(lsblk -dno MAJ:MIN /dev/vda1 | tr -d ' ')",
    "disk:scsi::disk:/root/another-node",
    "disk:scsi::disk:/root/link-to-a-link",
    "disk:scsi::disk:$(spare 0)",
    "disk:scsi::disk:$(spare 0)-part1",
    "disk:scsi::disk:$(spare 1)",
    "disk:scsi::disk:$(readlink -f $(spare 2))",
    "disk:scsi::disk:/dev/mapper/safe1",
    "disk:scsi::disk:/dev/md/mirror",
    "disk:scsi::disk:/dev/stack/used",
    "disk:scsi::lv:/dev/mapper/stack-used",
    "disk:scsi::disk:/dev/loop7",
    "disk:scsi::file:/srv/used/disk.img",
    "disk:scsi::disk:$(spare 3)",
    "disk:scsi::disk:$(spare 4)",
    "disk:scsi::disk:/dev/mapper/mpatha",
    "disk:scsi::disk:/dev/mapper/mpatha-part1",
    "disk:scsi::disk:/dev/$(lsscsi | awk '/scsi_debug/ { print $NF; exit }' | xargs basename)",
];

/// What lies beside it and is nobody's.
const FREE: &[&str] = &[
    "disk:avio_stor::lv:/dev/stack/free",
    "disk:avio_stor::disk:/dev/mapper/stack-free",
    "disk:avio_stor::disk:$(spare 7)",
];

fn what_the_host_uses_is_refused(host: &mut Turn) {
    host.ok("mknod /root/another-node b $(stat -c '0x%t 0x%T' /dev/vda1)");
    host.ok("ln -s /dev/vda1 /root/a-link; ln -s a-link /root/link-to-a-link");
    for statement in USED {
        let ran = host.run(&format!("hpvmcreate -P g -O linux -a \"{statement}\" 2>&1"));
        let is_told = ran.output.contains("is in use by this VM Host");
        assert!(ran.status == 1 && is_told, "{statement}: {} {}", ran.status, ran.output);
    }
    for statement in FREE {
        host.ok(&format!(
            "hpvmcreate -P g -O linux -a \"{statement}\" && hpvmremove -P g -F --purge"
        ));
    }
    host.ok("rm /root/another-node /root/a-link /root/link-to-a-link");
}

/// Settles 152, 153: no list of arrays and no class of device files of its own; the volume is shown as a disk is, and is one
/// guest's by each of its names.
fn a_multipath_volume_is_a_disk_like_any_other() {
    let mut host = Turn::take();
    host.ok("multipath_disk");
    host.ok(
        r#"await_firmware() { await sh -c "hpvmstatus | grep '^$1 ' | grep -q 'On (EFI)'"; }
         hpvmcreate -P g -r 64M -a disk:avio_stor::disk:/dev/mapper/mpatha-part2 -a disk:avio_stor::disk:$(spare 7)
         hpvmstart -P g
         await_firmware g
         shown=$(hpvmstatus -P g | grep -E 'mpatha-part2|spare7' | awk '{ print $1, $2, $8 }' | sort --unique)
         test "$shown" = 'disk avio_stor disk'
         hpvmdevmgmt -l gdev:/dev/mapper/mpatha-part2 | grep -q 'EXIST=YES,DEVTYPE=DISK,SHARE=NO:g:'
         hpvmcreate -P other -r 64M -a disk:avio_stor::disk:$(readlink -f /dev/mapper/mpatha-part2) 2>&1 | grep -q "'g' (0,0,0)"
         hpvmstart -P other 2>&1 | grep -q "in use by the running guest 'g'"
         hpvmstop -P g -F
         hpvmremove -P g -F --purge; hpvmremove -P other -F --purge"#,
    );
    host.ok("multipath_disk_gone");
}
