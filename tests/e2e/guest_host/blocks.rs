//! The block trees of a server, as the guest-host sets them up: they are what `tests/guest-host/blocks.sh` says, go without
//! a trace, and what the host uses of them is not given to a guest.

use std::time::Instant;

use super::Turn;
use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![; long:
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
    what_is_given_away_is_given(&mut host);
    host.ok("all_blocks_gone");
    assert_eq!(host.ok(LOOK), before);
}

/// Names below /dev by which the guest-host's own are asked for, a pattern each. What udev makes of a device is all asked for;
/// these say that it was made.
const KINDS_OF_NAMES: &[&str] = &[
    "/dev/vda1 ",
    "/dev/vda2 ",
    "/dev/md127 ",
    "/dev/md/mirror ",
    "/dev/dm-0 ",
    "/dev/loop7 ",
    "/dev/stack/used ",
    "/dev/mapper/safe1 ",
    "/dev/mapper/safe2 ",
    "/dev/mapper/mpatha ",
    "/dev/mapper/mpatha-part1 ",
    "/dev/loop20 ",
    "/dev/loop20p1 ",
    "/dev/loop22 ",
    "/dev/loop23 ",
    "/dev/mapper/loop20-way1 ",
    "/dev/mapper/over-loop ",
    "/dev/block/253:",
    "/dev/disk/by-path/",
    "/dev/disk/by-uuid/",
    "/dev/disk/by-partuuid/",
    "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_spare0-part1 ",
    "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_spare5 ",
    "/dev/disk/by-id/dm-name-stack-used ",
    "/dev/disk/by-id/dm-uuid-CRYPT-",
    "/dev/disk/by-id/dm-uuid-LVM-",
    "/dev/disk/by-id/md-uuid-",
    "/root/another-node ",
    "/root/link-to-a-link ",
];

/// What the guest-host does not use: the array that cannot run is there, and has nothing; its member is in use.
const FREE_DEVICES: &str = "/dev/loop24 $(spare 6) $(spare 7) /dev/stack/free /dev/mapper/mpatha-part2 $(disk_of IET) /dev/vdb \
     /dev/sr0 /dev/$(sed -n 's/^\\(md[^ ]*\\) : inactive.*/\\1/p' /proc/mdstat)";

/// What loop devices and device-mapper make of disks, partitions and volumes that are used, and of one that is free.
const DETOURS: &str = "
    losetup --partscan /dev/loop20 /dev/vda
    losetup /dev/loop21 /dev/vda1
    losetup /dev/loop22 /dev/loop21
    losetup /dev/loop23 /dev/mapper/mpatha-part1
    losetup /dev/loop24 /dev/stack/free
    dmsetup create over-loop --table \"0 $(blockdev --getsz /dev/loop22) linear /dev/loop22 0\"
    kpartx -a -p -way /dev/loop20
    udevadm settle";
const DETOURS_GONE: &str = "
    kpartx -d -p -way /dev/loop20
    udevadm settle
    dmsetup remove --retry over-loop
    losetup --detach /dev/loop22
    losetup --detach /dev/loop20 /dev/loop21 /dev/loop23 /dev/loop24
    udevadm settle";

/// Shell functions. `names` prints `NAME ` of every block device that is not free, by every node and link; `refused_as_used`
/// reads these and tells which are given to a guest, by which command, or refused for another reason. Several are asked for
/// at a time, since the guest-host is emulated; each is told of by its name.
const ASKING: &str = r#"
    disk_of() { lsscsi | awk "/$1/ && /dev.sd/ { print \$NF; exit }"; }
    number() { stat --dereference --format=%Hr:%Lr "$@" 2>/dev/null; }
    names() {
        free=$(number FREE)
        attached=$(lsblk --raw --noheadings --output MAJ:MIN | grep -vxF "$free" | sort --unique)
        find /dev /root -xdev \( -type b -o -type l \) | while read -r name; do
            test -b "$name" && number "$name" | grep -qxF "$attached" && echo "$name "
        done
    }
    refused_as_used() {
        xargs -n 40 | while read -r batch; do
            devices=$(printf -- ' -a disk:scsi::disk:%s' $batch)
            for command in "hpvmcreate -P g -O linux" "hpvmmodify -P runs"; do
                said=$($command -F $devices 2>&1 </dev/null) && echo "$command takes $batch"
                for name in $batch; do
                    case "$said" in
                    *"'$name' is in use by this VM Host and is not given"*) ;;
                    *) echo "$command takes $name: $said" ;;
                    esac
                done
            done
        done
    }"#;

/// The other ways in which a command is given a device, for one that is in use; above all a clone's disk, which would be
/// written. Prints what was taken or refused for another reason.
const OTHER_WAYS: &str = r#"
    used=/dev/mapper/safe1
    first() { head -c 1M $used | sha256sum; }
    before=$(first)
    # An empty qcow2 image of 64 MiB over it; there is no qemu-img here.
    perl -e '$_ = shift; print pack("a4 N Q> N2 Q> N2 Q>2 N2 Q> x8", "QFI\xfb", 2, 80, length, 16, 64 << 20, 0, 1, 3 << 16, 1 << 16, 1, 0, 0), $_' $used >/root/top.qcow2
    truncate -s 256K /root/top.qcow2
    hpvmcreate -P source -r 64M -a disk:avio_stor:0,0,0:disk:$(spare 7)
    refused() {
        said=$("$@" 2>&1 </dev/null) && echo "taken: $*"
        case "$said" in
        *"'$used' is in use by this VM Host and is not given"*) ;;
        *"'$used' is restricted or used by this VM Host and is no device for guests"*) ;;
        *) echo "$*: $said" ;;
        esac
    }
    refused hpvmclone -P source -N g -F -b disk:avio_stor:0,0,0:disk:$used
    refused hpvmclone -P source -N g -F -a disk:avio_stor::disk:$used
    refused hpvmclone -P source -N g -F -m disk:avio_stor:0,0,0:disk:$used
    refused hpvmclone -P source -N g -F -a disk:avio_stor::qcow2:/root/top.qcow2 --layer disk:$used
    refused hpvmcreate -P g -F -a disk:avio_stor::qcow2:/root/top.qcow2 --layer disk:$used
    refused hpvmmodify -P source -F -m disk:avio_stor:0,0,0:disk:$used
    refused hpvmmodify -P source -F -a disk:avio_stor::qcow2:/root/top.qcow2 --layer disk:$used
    refused hpvmmodify -P runs -F -a disk:avio_stor::qcow2:/root/top.qcow2 --layer disk:$used
    refused hpvmdevmgmt -a gdev:$used
    refused hpvmdevmgmt -n gdev:$(spare 7):$used
    test "$(first)" = "$before" || echo "$used was written"
    hpvmremove -P source -F --purge
    rm /root/top.qcow2
"#;

/// What lies beside it and is nobody's.
const FREE: &[&str] = &[
    "disk:avio_stor::lv:/dev/stack/free",
    "disk:avio_stor::disk:/dev/mapper/stack-free",
    "disk:avio_stor::disk:/dev/loop24",
    "disk:avio_stor::disk:$(spare 7)",
];

/// Every device that the guest-host uses, and the partition that its firmware starts it from, is refused by each of its names, to a guest that is created and to one that runs,
/// forced or not.
fn what_the_host_uses_is_refused(host: &mut Turn) {
    let asking = ASKING.replace("FREE", FREE_DEVICES);
    host.ok("mknod /root/another-node b $(stat -c '0x%t 0x%T' /dev/vda1)");
    host.ok("ln -s /dev/vda1 /root/a-link; ln -s a-link /root/link-to-a-link");
    host.ok(DETOURS);
    host.ok("hpvmcreate -P runs -r 64M && hpvmstart -P runs");
    let names = host.ok(&format!("{asking}\nnames | tee /run/names"));
    for kind in KINDS_OF_NAMES {
        let is_asked = names.lines().any(|name| format!("{} ", name.trim_end()).starts_with(kind));
        assert!(is_asked, "no name '{kind}' among:\n{names}");
    }
    let begun = Instant::now();
    let given = host.ok(&format!("{asking}\nrefused_as_used </run/names"));
    assert_eq!(given, "");
    assert_eq!(host.ok(OTHER_WAYS), "");
    println!("{} names asked for in {:.1} s", names.lines().count(), begun.elapsed().as_secs_f64());
    let file = host.run("hpvmcreate -P g -F -a disk:scsi::file:/srv/used/disk.img 2>&1");
    assert!(
        file.status == 1 && file.output.contains("is in use by this VM Host"),
        "{}",
        file.output
    );
    for statement in FREE {
        host.ok(&format!(
            "hpvmcreate -P g -O linux -a \"{statement}\" && hpvmremove -P g -F --purge"
        ));
    }
    host.ok("hpvmstop -P runs -F && hpvmremove -P runs -F --purge");
    host.ok(DETOURS_GONE);
    host.ok("rm /root/another-node /root/a-link /root/link-to-a-link /run/names");
}

/// What the guest-host uses is a guest's too where an entry gives it away, and each command warns: a mounted loop device, a
/// partition that is swap space, the one that firmware starts from, the member of an array that cannot run.
fn what_is_given_away_is_given(host: &mut Turn) {
    host.ok(
        r#"given="/dev/loop7 $(spare 0)-part1 /dev/vda2 $(spare 5)"
         reason() {
             case $1 in
             *loop7) echo 'it is mounted at /srv/loop' ;;
             *part1) echo 'it is swap space' ;;
             *vda2) echo 'it is an EFI system partition of a disk that this VM Host uses' ;;
             *) echo 'is built on it' ;;
             esac
         }
         warned() {
             said=$("$@" 2>&1)
             for device in $given; do
                 words="'$device' is in use by this VM Host and given to the guest all the same, since rdev:$device says ALLOW=GUEST: "
                 case $said in *"$words"*"$(reason $device)"*) ;; *) echo "$device: $said"; return 1 ;; esac
             done
         }
         for device in $given; do
             hpvmdevmgmt -a rdev:$device
             hpvmdevmgmt -m rdev:$device:attr:ALLOW=GUEST --reason 'a test'
         done
         warned hpvmcreate -P g -r 64M $(printf -- '-a disk:avio_stor::disk:%s ' $given)
         warned hpvmstart -P g
         await sh -c "hpvmstatus | grep '^g ' | grep -q 'On (EFI)'"
         hpvmstop -P g -F && hpvmremove -P g -F --purge
         for device in $given; do hpvmdevmgmt -d rdev:$device; done"#,
    );
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
