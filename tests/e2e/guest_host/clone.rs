//! Copies where small machines have no place for them: to disks and volumes while the source runs, and by sharing blocks.

use super::Turn;
use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_running_guest_is_copied_to_disks_and_volumes,
    file_systems_that_can_share_the_blocks_of_a_copy,
];

/// What lies behind the content of a larger target becomes zeroes.
fn a_running_guest_is_copied_to_disks_and_volumes() {
    let mut host = Turn::take();
    host.ok("vgcreate --quiet --yes v $(spare 6) >/dev/null
         lvcreate --quiet --yes -n src -L 16M v >/dev/null; lvcreate --quiet --yes -n dst -L 24M v >/dev/null
         dd if=/dev/urandom of=/dev/v/src bs=1M count=5 seek=3 status=none
         dd if=/dev/urandom of=$(spare 5) bs=1M count=8 status=none
         for old in /dev/v/dst $(spare 7); do tr '\\0' x </dev/zero | dd of=$old bs=1M count=24 iflag=fullblock status=none; done; sync");
    host.ok("hpvmcreate -P g -O linux -r 512M -a disk:avio_stor:0,1,0:disk:$(spare 5) -a disk:scsi:0,2,0:lv:/dev/v/src
         hpvmstart -P g");
    let done = host.ok("hpvmclone -P g -N new -b disk:avio_stor:0,1,0:disk:$(spare 7) -b disk:scsi:0,2,0:lv:/dev/v/dst 2>&1");
    assert_eq!(done.matches("cloned successfully").count(), 2, "{done}");
    host.ok("cmp $(spare 5) $(spare 7)
         cmp -n $((16 << 20)) /dev/v/src /dev/v/dst
         cmp -n $((8 << 20)) -i $((16 << 20)):0 /dev/v/dst /dev/zero");
    assert!(host.ok("hpvmstatus").contains("On ("), "the guest runs on");
    // A disk that has not room for it is refused before anything is written.
    let small = host.run("lvcreate --quiet --yes -n small -L 8M v >/dev/null; hpvmclone -P g -N none -b disk:scsi:0,2,0:lv:/dev/v/small 2>&1");
    assert!(
        small.status == 1 && small.output.contains("to be copied there has"),
        "{}",
        small.output
    );
    host.ok("hpvmstop -P g -F; hpvmremove -P g -F --purge; hpvmremove -P new -F --purge
         vgremove --quiet --yes v >/dev/null 2>&1; pvremove --quiet $(spare 6) >/dev/null
         settled wipefs --quiet --all --force $(spare 5) $(spare 6) $(spare 7)");
}

/// In no time whatever the size: the time is printed, since an emulated machine's is its own.
fn file_systems_that_can_share_the_blocks_of_a_copy() {
    let mut host = Turn::take();
    for make in ["mkfs.xfs -q", "mkfs.btrfs -q"] {
        let printed = host.ok(&format!(
            "truncate -s 400M /dev/shm/shared.img
             {make} /dev/shm/shared.img
             mkdir -p /srv/shared; mount -o loop /dev/shm/shared.img /srv/shared
             truncate -s 4G /srv/shared/web.img
             dd if=/dev/urandom of=/srv/shared/web.img bs=1M count=128 conv=notrunc status=none; sync
             hpvmcreate -P g -O linux -r 512M -a disk:avio_stor:0,1,0:file:/srv/shared/web.img
             before=$(df --output=used -B 1M /srv/shared | tail -1)
             for n in 1 2 3 4 5; do
                 begin=$(date +%s%N)
                 hpvmclone -P g -N new$n -b disk:avio_stor:0,1,0:file:/srv/shared/copy$n.img >/dev/null 2>&1
                 echo \"whole: $((($(date +%s%N) - begin) / 1000)) us\"
             done
             cmp /srv/shared/web.img /srv/shared/copy5.img
             sync; after=$(df --output=used -B 1M /srv/shared | tail -1)
             echo taken: $((after - before))
             for name in g new1 new2 new3 new4 new5; do hpvmremove -P $name -F --purge; done
             umount /srv/shared; rm /dev/shm/shared.img"
        ));
        println!("{make}: {}", printed.replace('\n', ", "));
        let taken = printed.lines().find_map(|line| line.strip_prefix("taken: "));
        let taken: i64 = taken.and_then(|mib| mib.parse().ok()).expect("a number");
        assert!(taken < 32, "{make}: five copies of 128 MiB took {taken} MiB");
    }
}
