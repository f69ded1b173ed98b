//! SCSI devices of the VM Host that guests command themselves: a tape, a changer and a burner, found, refused where they must not go,
//! and given to one guest up to its firmware. What a guest's operating system does with them is seen in `attached` beside
//! this folder, on a machine that need not have them.

use super::Turn;
use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![; long:
    a_tape_a_changer_and_a_burner_go_to_one_guest,
    what_a_program_has_open_is_refused,
    an_attached_device_comes_and_goes_while_the_guest_runs,
    a_usb_drive_is_attached_as_a_burner,
    a_usb_drive_backs_a_dvd_with_and_without_a_disc,
];

/// `refused WORDS COMMAND…`: it must be refused, with these words. `status NAME`, `engine NAME`: state and QEMU of a guest.
/// `asked NODE`: how many requests its device was sent. `disc_of NODE`: the block device of a drive.
const FUNCTIONS: &str = r#"
refused() {
    words=$1; shift
    if said=$("$@" 2>&1); then echo "not refused: $*"; exit 1; fi
    case $said in *"$words"*) ;; *) echo "$* says: $said"; exit 1 ;; esac
}
state() { hpvmstatus | grep "^$1 " | cut -c36-44 | sed 's/ *$//'; }
in_firmware() { test "$(state "$1")" = 'On (EFI)'; }
engine() { sed -n 's/.*"qemu":{"pid":\([0-9]*\).*/\1/p' "/run/hpvm/$(hpvmstatus | awk "\$1 == \"$1\" { print \$2 }")/status"; }
asked() { printf '%d\n' "$(cat "/sys/class/scsi_generic/${1#/dev/}/device/iorequest_cnt")"; }
was_asked() { test "$(asked "$1")" -gt "$2"; }
tape=$(generic 1 || true) changer=$(generic 8 || true) burner=$(burner || true)
disc_of() { echo "/dev/$(ls "/sys/class/scsi_generic/${1#/dev/}/device/block")"; }
"#;

#[track_caller]
fn ok(host: &mut Turn, commands: &str) -> String {
    host.ok(&format!("{FUNCTIONS}\n{commands}"))
}

fn a_tape_a_changer_and_a_burner_go_to_one_guest() {
    let mut host = Turn::take();
    host.ok("library");
    ok(
        &mut host,
        r#"create() { hpvmcreate -P g -r 64M -a "$1"; }
         refused 'is a tape and cannot be attached as a changer' create changer:scsi::attach:$tape
         refused 'is a changer and cannot be attached as a tape' create tape:scsi::attach:$changer
         refused 'is a changer and cannot be attached as a burner' create burner:avio_stor::attach:$changer
         refused 'is a drive of optical media and cannot be attached as a tape' create tape:scsi::attach:$burner
         refused 'its storage type is attach' create dvd:scsi::disk:$burner
         refused 'is a block device' create burner:scsi::attach:$(disc_of $burner)
         refused 'type 0x00' create tape:scsi::attach:$(lsscsi --generic | awk '/spare|QEMU HARDDISK/ { print $NF; exit }')
         refused 'its storage type is attach' create disk:scsi::disk:$tape
         refused 'is a character device' create tape:scsi::attach:/dev/nst0"#,
    );
    ok(
        &mut host,
        r#"hpvmcreate -P g -r 64M -a tape:scsi::attach:$tape -a changer:avio_stor::attach:$changer -a burner:avio_stor::attach:$burner
         refused 'only images of dvds are shared' hpvmdevmgmt -m gdev:$tape:attr:SHARE=YES
         refused 'only images of dvds are shared' hpvmdevmgmt -m gdev:$burner:attr:SHARE=YES
         mknod /root/another-node c $(stat -c '0x%t 0x%T' $tape)
         hpvmcreate -P other -r 64M -a tape:scsi::attach:/root/another-node 2>&1 | grep -q "'g' (0,0,0)"
         hpvmcreate -P burning -r 64M -a burner:scsi::attach:$burner 2>&1 | grep -q "'g' (0,1,1)"
         before="$(asked $changer)" before_burner="$(asked $burner)"
         node=$(stat -c '%U %G %a' $changer)
         hpvmstart -P g
         await in_firmware g
         await was_asked $changer $before
         await was_asked $burner $before_burner
         refused "in use by the running guest 'g'" hpvmstart -P other
         refused "in use by the running guest 'g'" hpvmstart -P burning
         test "$(stat -c '%U %G %a' $changer)" = "$node"
         test -z "$(find /dev -name '.hpvm*')"
         test $(stat -c %u /proc/$(engine g)) -ge 1000000
         hpvmstop -P g -F
         hpvmstart -P other
         await in_firmware other
         refused "in use by the running guest 'other'" hpvmstart -P g
         hpvmstop -P other -F
         before_burner="$(asked $burner)"
         hpvmstart -P burning
         await in_firmware burning
         await was_asked $burner $before_burner
         hpvmstop -P burning -F"#,
    );
    host.ok("rm /root/another-node; for guest in g other burning; do hpvmremove -P $guest -F --purge; done; library_gone");
}

/// The nodes of the drivers for tapes and for optical media lead to the same device as the generic one.
fn what_a_program_has_open_is_refused() {
    let mut host = Turn::take();
    host.ok("library");
    ok(
        &mut host,
        r#"hpvmcreate -P g -r 64M -a tape:scsi::attach:$tape
         exec 9<>/dev/nst0
         sleep 100 & sleeper=$!
         exec 9>&-
         refused "sleep (process $sleeper) of this VM Host has the device open" hpvmstart -P g
         kill $sleeper
         wait $sleeper || true
         exec 9<>$tape
         refused 'is in use' hpvmstart -P g
         hpvmdevmgmt -m rdev:$tape:attr:ALLOW=GUEST --reason 'a test'
         hpvmstart -P g
         hpvmstop -P g -F
         hpvmdevmgmt -d rdev:$tape
         refused 'is in use' hpvmstart -P g
         exec 9>&-
         hpvmstart -P g
         hpvmstop -P g -F
         hpvmremove -P g -F --purge"#,
    );
    ok(
        &mut host,
        r#"hpvmcreate -P g -r 64M -a burner:avio_stor::attach:$burner
         exec 9<$(disc_of $burner)
         sleep 100 & sleeper=$!
         exec 9<&-
         refused "sleep (process $sleeper) of this VM Host has the device open" hpvmstart -P g
         kill $sleeper
         wait $sleeper || true
         hpvmstart -P g
         hpvmstop -P g -F
         hpvmremove -P g -F --purge"#,
    );
    what_is_restricted_is_given_by_word_alone(&mut host);
    host.ok("library_gone");
}

/// By any node of the device, at create and at start.
fn what_is_restricted_is_given_by_word_alone(host: &mut Turn) {
    ok(
        host,
        r#"create() { hpvmcreate -P g -r 64M -a tape:scsi::attach:$tape; }
         hpvmdevmgmt -a rdev:$tape
         refused "rdev:$tape restricts it" create
         hpvmdevmgmt -m rdev:$tape:attr:ALLOW=GUEST --reason 'a test'
         create
         hpvmstart -P g
         hpvmstop -P g -F
         hpvmdevmgmt -d rdev:$tape:attr:ALLOW
         refused "rdev:$tape restricts it" hpvmstart -P g
         hpvmremove -P g -F --purge
         hpvmdevmgmt -d rdev:$tape"#,
    );
}

fn an_attached_device_comes_and_goes_while_the_guest_runs() {
    let mut host = Turn::take();
    host.ok("library");
    ok(
        &mut host,
        r#"hpvmcreate -P g -r 64M -a disk:avio_stor::disk:$(spare 7)
         hpvmstart -P g
         await in_firmware g
         hpvmmodify -P g -a changer:avio_stor:0,1,0:attach:$changer -a tape:avio_stor:0,1,1:attach:$tape
         hpvmstatus -P g -d | grep -q ":attach:$tape"
         holds() { ls -l /proc/$(engine g)/fd | grep -c '/dev/.hpvm-21:'; }
         test "$(holds)" = 2
         hpvmmodify -P g -d changer:avio_stor:0,1,0
         test "$(holds)" = 1
         hpvmmodify -P g -a changer:avio_stor:0,1,0:attach:$changer
         test "$(holds)" = 2
         resets() { iscsiadm --mode session --stats | awk '/tmfcmd_pdus/ { sum += $2 } END { print sum + 0 }'; }
         before=$(resets)
         hpvm gvsdmgr bdr -P g -q lun=0,1,1 -f
         test "$(resets)" -gt $before
         hpvm gvsdmgr bdr -P g -D 0,0 -q lun=all -f
         refused 'Reset 0,1,1' hpvm gvsdmgr bdr -P g -q lun=0,1,1 </dev/null
         in_firmware g
         hpvmstatus -e | grep -q bdr
         hpvmstop -P g -F
         hpvmremove -P g -F --purge"#,
    );
    host.ok("library_gone");
}

/// Settles 144: a drive on USB is a SCSI device as any other, and goes to one guest for its commands.
fn a_usb_drive_is_attached_as_a_burner() {
    let mut host = Turn::take();
    ok(
        &mut host,
        r#"drive=$(generic 5)
         readlink -f /sys/class/block/sr0 | grep -q /usb
         hpvmcreate -P g -r 64M -a burner:avio_stor::attach:$drive
         before=$(asked $drive)
         hpvmstart -P g
         await in_firmware g
         await was_asked $drive $before
         hpvmcreate -P other -r 64M -a dvd:avio_stor::disk:/dev/sr0 2>&1 | grep -q "'g' (0,0,0)"
         refused "in use by the running guest 'g'" hpvmstart -P other
         hpvmstop -P g -F
         hpvmremove -P g -F --purge; hpvmremove -P other -F --purge"#,
    );
}

/// A guest on such a drive runs, and firmware reads the disc; an empty drive is a drive without medium, told when the guest
/// gets it, shown for as long as it is empty, and asked a few times a second at most. Ejected at the console it is taken from
/// the guest, and given back there. Settles 45, 129.
fn a_usb_drive_backs_a_dvd_with_and_without_a_disc() {
    let mut host = Turn::take();
    ok(
        &mut host,
        r#"drive=$(generic 5)
         hpvmcreate -P g -r 64M -a dvd:avio_stor::disk:/dev/sr0 2>&1 | grep 'no medium' && exit 1
         before=$(asked $drive)
         hpvmstart -P g
         await in_firmware g
         await was_asked $drive $((before + 10))
         test "$(hpvmstatus -P g | grep -c 'has no medium')" = 0
         hpvmstop -P g -F
         sg_start --eject $drive
         hpvmstart -P g 2>&1 | grep -q "'/dev/sr0' has no medium"
         await in_firmware g
         hpvmstatus -P g | grep -q "'/dev/sr0', the drive behind the dvd at 0,0,0, has no medium"
         status=/run/hpvm/$(hpvmstatus | awk '$1 == "g" { print $2 }')/status
         beat() { head -n 1 $status | cut -c15- | sed 's/^0*//'; }
         begun=$(beat) before=$(asked $drive)
         later() { test $(beat) -ge $((begun + 5000)); }
         await later
         storm=$(($(asked $drive) - before))
         test $storm -le 20 || { echo "$storm requests in 5 s"; exit 1; }
         sg_start --load $drive
         test "$(hpvmstatus -P g | grep -c 'has no medium')" = 0
         in_firmware g
         hpvmconsole -P g -q -c ej
         hpvmstatus -P g -d | grep -q 'dvd:avio_stor:0,0,0:null:/dev/sr0'
         refused 'takes no image' hpvmconsole -P g -q -c 'in -filedvd sr0'
         hpvmconsole -P g -q -c in
         hpvmstatus -P g -d | grep -q 'dvd:avio_stor:0,0,0:disk:/dev/sr0'
         in_firmware g
         hpvmstop -P g -F
         hpvmremove -P g -F --purge"#,
    );
}
