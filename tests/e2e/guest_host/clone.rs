//! Copies where small machines have no place for them: to disks and volumes while the source runs, and by sharing blocks.

use super::Turn;
use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![; long:
    a_running_guest_is_copied_to_disks_and_volumes,
    file_systems_that_can_share_the_blocks_of_a_copy,
];

/// What lies behind the content of a larger target becomes zeroes.
fn a_running_guest_is_copied_to_disks_and_volumes() {
    let mut host = Turn::take();
    host.ok("vgcreate --quiet --yes v $(spare 6) >/dev/null
         lvcreate --quiet --yes -n src -L 16M v >/dev/null; lvcreate --quiet --yes -n dst -L 24M v >/dev/null
         for disk in 5 7; do
             printf ',16M\n' | settled sfdisk --quiet $(spare $disk)
             await test -e $(spare $disk)-part1
         done
         dd if=/dev/urandom of=/dev/v/src bs=1M count=5 seek=3 status=none
         dd if=/dev/urandom of=$(spare 5)-part1 bs=1M count=8 status=none
         tr '\\0' x </dev/zero | dd of=/dev/v/dst bs=1M count=24 iflag=fullblock status=none; sync");
    host.ok("hpvmcreate -P g -O linux -r 512M -a disk:avio_stor:0,1,0:disk:$(spare 5)-part1 -a disk:scsi:0,2,0:lv:/dev/v/src
         hpvmstart -P g");
    let done = host.ok("hpvmclone -P g -N new -b disk:avio_stor:0,1,0:disk:$(spare 7)-part1 -b disk:scsi:0,2,0:lv:/dev/v/dst 2>&1");
    assert_eq!(done.matches("cloned successfully").count(), 2, "{done}");
    host.ok("cmp $(spare 5)-part1 $(spare 7)-part1
         cmp -n $((16 << 20)) /dev/v/src /dev/v/dst
         cmp -n $((8 << 20)) -i $((16 << 20)):0 /dev/v/dst /dev/zero");
    assert!(host.ok("hpvmstatus").contains("On ("), "the guest runs on");
    // What has not room for it is refused before anything is written.
    let small = host.run("lvcreate --quiet --yes -n small -L 8M v >/dev/null; hpvmclone -P g -N none -b disk:scsi:0,2,0:lv:/dev/v/small 2>&1");
    let refused = small.status == 1 && small.output.contains("to be copied there has");
    assert!(refused, "{}", small.output);
    host.ok("hpvmstop -P g -F; hpvmremove -P g -F --purge; hpvmremove -P new -F --purge
         vgremove --quiet --yes v >/dev/null 2>&1; pvremove --quiet $(spare 6) >/dev/null
         for disk in 5 6 7; do settled wipefs --quiet --all --force $(spare $disk); done");
}

/// In no time whatever the size. An emulated machine's milliseconds are its own, so what a clone takes is judged by what is
/// beside it in the same round: the copy alone (`cp`), on the disk (and `sync`), a clone that copies nothing (`--linked`), and
/// a command that does nothing (`--version`). Times are the least of three.
fn file_systems_that_can_share_the_blocks_of_a_copy() {
    let mut host = Turn::take();
    for make in ["mkfs.xfs -q", "mkfs.btrfs -q"] {
        let printed = host.ok(&format!("{MEASURED}\n{}", CLONES.replace("MAKE", make)));
        println!("{make}: {}", printed.replace('\n', ", "));
        let number = |name: &str| -> f64 {
            let line = printed.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
            let line = line.unwrap_or_else(|| panic!("no {name}: {printed}"));
            line.parse().expect("a number")
        };
        let taken = number("taken");
        assert!(taken < 32.0, "{make}: nine copies of 64 MiB took {taken} MiB");
        let (reflink, linked, copy) = (number("reflink"), number("linked"), number("cp and sync"));
        let ratio = reflink / linked;
        println!("{make}: a clone by reflink takes {ratio:.2} of one that is linked");
        // It does what that one does, and such a copy.
        let bound = 2.0 * linked + 2.0 * copy;
        assert!(reflink < bound, "{make}: {reflink} ms, and linked {linked} ms, cp {copy} ms");
    }
}

/// `least NAME COMMAND…` prints the least time in ms of three runs; `@N` in the command is the number of the run.
const MEASURED: &str = r#"
least() {
    name=$1; shift; best=
    for n in 1 2 3; do
        begin=$(date +%s%N)
        eval "$(echo "$*" | sed "s/@N/$n/g")" >/dev/null 2>&1
        took=$((($(date +%s%N) - begin) / 10000))
        test -n "$best" && test "$best" -le "$took" || best=$took
    done
    echo "$name: $((best / 100)).$(printf %02d $((best % 100)))"
}
"#;

const CLONES: &str = r"truncate -s 400M /dev/shm/shared.img
MAKE /dev/shm/shared.img >/dev/null
mkdir -p /srv/shared; mount -o loop /dev/shm/shared.img /srv/shared; cd /srv/shared
truncate -s 4G web.img
dd if=/dev/urandom of=web.img bs=1M count=64 conv=notrunc status=none; sync
hpvmcreate -P g -O linux -r 512M -a disk:avio_stor:0,1,0:file:/srv/shared/web.img
before=$(df --output=used -B 1M . | tail -1)
least 'version' hpvm --version
least 'cp' cp --reflink=always web.img other@N.img
least 'cp and sync' 'cp --reflink=always web.img synced@N.img; sync synced@N.img'
least 'linked' hpvmclone -P g -N linked@N --linked
least 'reflink' hpvmclone -P g -N new@N -b disk:avio_stor:0,1,0:file:/srv/shared/copy@N.img
cmp -n $((96 << 20)) web.img copy3.img
sync; echo taken: $(($(df --output=used -B 1M . | tail -1) - before))
for n in 1 2 3; do for name in linked new; do hpvmremove -P $name$n -F --purge; done; done
hpvmremove -P g -F --purge
cd /; umount /srv/shared; rm /dev/shm/shared.img";
