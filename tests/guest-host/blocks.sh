# Block trees of a server, set up on the guest-host's spare disks: shell functions for tests and for who records trees.
#
# Each NAME sets one up, NAME_gone takes it down again; all of them can be there at once. `all_blocks` sets all up.
#
#   swap_partition   spare0   a partition that the machine swaps to (its root is a partition of another disk)
#   stack            spare1, spare2   LVM on md RAID 1 on dm-crypt: stack/used mounted at /srv/used, stack/free free
#   loop_file        a file on stack/used as a loop device, mounted at /srv/loop; stack must be there
#   pair             spare3, spare4   btrfs over two disks, mounted at /srv/pair
#   half_array       spare5   one disk of a RAID 0 of two, the other (spare6) is gone: md that cannot run
#   multipath_disk   a disk of scsi_debug seen by two ways, as mpatha; mpatha-part1 mounted at /srv/multipath
#   iscsi_disk       a disk of tgt by iSCSI on the loopback interface, with its sg node
#   shared_disk      a disk of tgt seen by two sessions, each with an initiator of its own; /run/shared-disk has both names
#   library          a tape drive, a media changer and a burner with a blank disc of tgt, in the same way; neither it nor
#                    shared_disk is part of all_blocks
#
# `two_ways` serves a disk by two hosts, for multipath_disk or without multipath; `modprobe --remove scsi_debug` ends it.
# `generic TYPE` prints the sg node of the one SCSI device of that type (1 tape, 5 optical, 8 changer), `burner` that of the
# library's, beside which the guest-host has a drive on USB.
#
# spare7 is nobody's. Waits end with the bound of the script that calls.

spare() { echo "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_spare$1"; }

await() {
    until "$@"; do sleep 0.1; done
}

mounted_at() {
    mkdir -p "$2"
    mount "$1" "$2"
}

# Formats a device and has udev look what it holds now.
formatted() {
    mkfs.ext4 -q "$1"
    udevadm trigger --settle --action=change "$(readlink --canonicalize "$1")"
}

# Partition tables that are read anew may find udev at the disk for a moment.
settled() {
    "$@"
    udevadm settle
}

# udev puts an array together again as soon as it sees its disks; it looks away while an array is taken apart. And who
# opens the node of an array that is gone makes an empty one, unless the driver is told not to.
unseen() {
    opening=/sys/module/md_mod/parameters/create_on_open
    echo N >$opening
    udevadm control --stop-exec-queue
    "$@"
    udevadm control --start-exec-queue
    udevadm settle
    echo Y >$opening
}

# Stops an array and makes disks of it anything but its members.
array_gone() {
    mdadm --stop --quiet "$1"
    shift
    for member; do mdadm --zero-superblock "$member"; done
}

swap_partition() {
    echo ',,S' | settled sfdisk --quiet "$(spare 0)"
    await test -e "$(spare 0)-part1"
    mkswap --quiet "$(spare 0)-part1"
    udevadm trigger --settle --action=change "$(readlink --canonicalize "$(spare 0)-part1")"
    swapon "$(spare 0)-part1"
}

swap_partition_gone() {
    swapoff "$(spare 0)-part1"
    wipefs --quiet --all "$(spare 0)-part1" "$(spare 0)"
    settled blockdev --rereadpt "$(spare 0)"
}

stack() {
    for number in 1 2; do
        # A key that is quick to derive: the guest-host is emulated.
        printf secret | cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 \
            "$(spare $number)" -
        printf secret | cryptsetup open --key-file - "$(spare $number)" "safe$number"
    done
    settled mdadm --create /dev/md/mirror --quiet --run --level=1 --raid-devices=2 --metadata=1.2 --assume-clean \
        /dev/mapper/safe1 /dev/mapper/safe2
    vgcreate --quiet stack /dev/md/mirror
    lvcreate --quiet --yes --size 128M --name used stack
    lvcreate --quiet --yes --size 64M --name free stack
    formatted /dev/stack/used
    mounted_at /dev/stack/used /srv/used
    udevadm settle
}

stack_gone() {
    umount /srv/used
    settled vgremove --quiet --yes stack
    unseen array_gone /dev/md/mirror /dev/mapper/safe1 /dev/mapper/safe2
    for number in 1 2; do
        cryptsetup close "safe$number"
        settled wipefs --quiet --all "$(spare $number)"
    done
}

loop_file() {
    truncate --size=48M /srv/used/disk.img
    losetup /dev/loop7 /srv/used/disk.img
    formatted /dev/loop7
    mounted_at /dev/loop7 /srv/loop
}

loop_file_gone() {
    umount /srv/loop
    losetup --detach /dev/loop7
    rm /srv/used/disk.img
}

pair() {
    mkfs.btrfs --quiet --data single --metadata single "$(spare 3)" "$(spare 4)" 2>/dev/null
    udevadm settle
    mounted_at "$(spare 3)" /srv/pair
}

pair_gone() {
    umount /srv/pair
    settled wipefs --quiet --all "$(spare 3)" "$(spare 4)"
}

half_array() {
    settled mdadm --create /dev/md/half --quiet --run --level=0 --raid-devices=2 "$(spare 5)" "$(spare 6)"
    unseen array_gone /dev/md/half "$(spare 6)"
    grep -q inactive /proc/mdstat || mdadm --incremental --quiet "$(spare 5)" || true
    await grep -q inactive /proc/mdstat
}

half_array_gone() {
    array=$(sed -n 's/^\(md[^ ]*\) : inactive.*/\1/p' /proc/mdstat)
    unseen array_gone "/dev/$array" "$(spare 5)"
}

# A disk that two hosts serve under the same identity; prints its two names. By the number of a host scsi_debug says how
# its disk may be used: each third one is on standby and is taken away.
two_ways() {
    modprobe scsi_debug add_host=3 vpd_use_hostno=0 dev_size_mb=32
    three_there() { test "$(lsscsi | grep -c 'scsi_debug.*/dev/sd')" = 3; }
    await three_there
    standby=$(lsscsi | sed -n 's/^\[\([0-9:]*\)\].*scsi_debug.*/\1/p' | awk -F: '$1 % 3 == 2')
    echo 1 >"/sys/class/scsi_device/$standby/device/delete"
    udevadm settle
    lsscsi | awk '/scsi_debug/ { print $NF }'
}

multipath_disk() {
    two_ways >/dev/null
    systemctl start multipathd.service
    await test -e /dev/mapper/mpatha
    printf ',8M\n,\n' | sfdisk --quiet --no-reread --no-tell-kernel /dev/mapper/mpatha
    # udev maps the partitions too, at the same time: who comes second finds them busy for a moment.
    udevadm settle
    await kpartx -a -p -part /dev/mapper/mpatha
    await test -e /dev/mapper/mpatha-part1
    formatted /dev/mapper/mpatha-part1
    mounted_at /dev/mapper/mpatha-part1 /srv/multipath
    udevadm settle
}

multipath_disk_gone() {
    umount /srv/multipath
    kpartx -d -p -part /dev/mapper/mpatha
    udevadm settle
    multipath -f mpatha
    systemctl stop multipathd.socket multipathd.service
    udevadm settle
    modprobe --remove scsi_debug
}

iscsi_disk() {
    truncate --size=32M /var/lib/iscsi-disk
    systemctl start tgt.service iscsid.service
    tgtadm --lld iscsi --op new --mode target --tid 1 --targetname iqn.2026-11.hpvm:disk
    tgtadm --lld iscsi --op new --mode logicalunit --tid 1 --lun 1 --backing-store /var/lib/iscsi-disk
    tgtadm --lld iscsi --op bind --mode target --tid 1 --initiator-address ALL
    iscsiadm --mode discovery --type sendtargets --portal 127.0.0.1 >/dev/null
    iscsiadm --mode node --login >/dev/null
    await grep -q IET /sys/class/scsi_generic/*/device/vendor
    udevadm settle
}

iscsi_disk_gone() {
    iscsiadm --mode node --logout >/dev/null
    iscsiadm --mode node --op delete
    systemctl stop iscsid.socket iscsid.service tgt.service
    rm /var/lib/iscsi-disk
}

shared_disk() {
    truncate --size=32M /var/lib/shared-disk
    systemctl start tgt.service iscsid.service
    tgtadm --lld iscsi --op new --mode target --tid 3 --targetname iqn.2026-11.hpvm:shared
    tgtadm --lld iscsi --op new --mode logicalunit --tid 3 --lun 1 --backing-store /var/lib/shared-disk
    tgtadm --lld iscsi --op bind --mode target --tid 3 --initiator-address ALL
    for name in one other; do
        iscsiadm --mode iface --interface $name --op new
        iscsiadm --mode iface --interface $name --op update --name iface.initiatorname --value iqn.2026-11.hpvm:$name
    done >/dev/null
    iscsiadm --mode discovery --type sendtargets --portal 127.0.0.1 --interface one --interface other >/dev/null
    iscsiadm --mode node --login >/dev/null
    both_there() { test "$(lsscsi --transport | grep -c 'hpvm:shared.*/dev/sd')" = 2; }
    await both_there
    udevadm settle
    lsscsi --transport | awk '/hpvm:shared.*\/dev\/sd/ { print $NF }' >/run/shared-disk
}

shared_disk_gone() {
    iscsiadm --mode node --logout >/dev/null
    iscsiadm --mode node --op delete
    for name in one other; do iscsiadm --mode iface --interface $name --op delete; done >/dev/null
    systemctl stop iscsid.socket iscsid.service tgt.service
    rm /var/lib/shared-disk /run/shared-disk
}

library() {
    mkdir -p /var/lib/library
    tgtimg --op new --device-type tape --barcode TAPE --size 64 --type data --file /var/lib/library/tape >/dev/null
    truncate --size=1k /var/lib/library/changer
    truncate --size=0 /var/lib/library/disc
    systemctl start tgt.service iscsid.service
    tgtadm --lld iscsi --op new --mode target --tid 2 --targetname iqn.2026-11.hpvm:library
    tgtadm --lld iscsi --op new --mode logicalunit --tid 2 --lun 1 --device-type tape --bstype ssc \
        --backing-store /var/lib/library/tape
    tgtadm --lld iscsi --op new --mode logicalunit --tid 2 --lun 2 --device-type changer \
        --backing-store /var/lib/library/changer
    tgtadm --lld iscsi --op new --mode logicalunit --tid 2 --lun 3 --device-type cd --backing-store /var/lib/library/disc
    tgtadm --lld iscsi --op bind --mode target --tid 2 --initiator-address ALL
    iscsiadm --mode discovery --type sendtargets --portal 127.0.0.1 >/dev/null
    iscsiadm --mode node --login >/dev/null
    await generic 1 >/dev/null
    await generic 8 >/dev/null
    await burner >/dev/null
    udevadm settle
}

library_gone() {
    iscsiadm --mode node --logout >/dev/null
    iscsiadm --mode node --op delete
    systemctl stop iscsid.socket iscsid.service tgt.service
    rm -r /var/lib/library
}

generic() {
    node=$(grep --line-regexp --files-with-matches "$1" /sys/class/scsi_generic/*/device/type) &&
        node=${node#/sys/class/scsi_generic/} && echo "/dev/${node%%/*}"
}

burner() {
    lsscsi --generic | grep VIRTUAL-CDROM | grep --only-matching '/dev/sg[0-9]*'
}

all_blocks() {
    swap_partition
    stack
    loop_file
    pair
    half_array
    multipath_disk
    iscsi_disk
    # What was written last may not have been looked at yet.
    udevadm trigger --settle --subsystem-match=block --action=change
}

all_blocks_gone() {
    iscsi_disk_gone
    multipath_disk_gone
    half_array_gone
    pair_gone
    loop_file_gone
    stack_gone
    swap_partition_gone
}
