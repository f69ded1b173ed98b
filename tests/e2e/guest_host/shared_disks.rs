//! A disk that two guests have at once, on a VM Host with a real SCSI disk: who may have it, who makes reservations on it, and
//! that they hold. The disk is tgt's, reached by two sessions with an initiator each, so that it can tell its two guests
//! apart. What a guest's operating system does is seen in `shared_disks` beside this folder.

use super::Turn;
use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![; long:
    a_disk_is_shared_if_it_keeps_reservations_and_all_share_it,
    reservations_of_two_guests_keep_each_other_out,
];

/// `refused WORDS COMMAND…`: it must be refused, with these words. `told WORDS COMMAND…`: it is done, and says them.
/// `engine NAME`: QEMU of a guest. `number NAME`.
/// `reserve NAME DISK COMMAND…`: as QEMU of that guest does it. `monitor NAME COMMAND`: QEMU's monitor for people.
/// `helper NAME`: the process that reserves for it.
const FUNCTIONS: &str = r#"
refused() {
    words=$1; shift
    if said=$("$@" 2>&1); then echo "not refused: $*"; exit 1; fi
    case $said in *"$words"*) ;; *) echo "$* says: $said"; exit 1 ;; esac
}
told() {
    words=$1; shift
    said=$("$@" 2>&1)
    case $said in *"$words"*) ;; *) echo "$* says: $said"; exit 1 ;; esac
}
number() { hpvmstatus | awk "\$1 == \"$1\" { print \$2 }"; }
engine() { sed -n 's/.*"qemu":{"pid":\([0-9]*\).*/\1/p' "/run/hpvm/$(number "$1")/status"; }
socket() { echo "/run/hpvm/$(number "$1")/reservations"; }
reserve() { guest=$1 disk=$2; shift 2; /opt/guest-host/bin/ask-helper "$(socket "$guest")" "$disk" "$@"; }
helper() { grep -l "^Uid:.$((1600000 + $(number "$1")))" /proc/[0-9]*/status 2>/dev/null | tr -dc '0-9\n' | tail -n 1; }
is_another() { now=$(helper "$1"); test -n "$now" && test "$now" != "$2"; }
monitor() {
    perl -MIO::Socket::UNIX -e '
        my ($path, $line) = @ARGV;
        my $qemu = IO::Socket::UNIX->new(Peer => $path) or die "no monitor";
        for my $ask (q({"execute":"qmp_capabilities"}), $line) {
            print $qemu "$ask\n";
            while (<$qemu>) { last if /^\{"(return|error)"/ }
        }
        print' "/run/hpvm/$(number "$1")/rescue" "$2"
}
written() { monitor "$1" "{\"execute\":\"human-monitor-command\",\"arguments\":{\"command-line\":\"qemu-io -d device-0-0-0 \\\"write -P $2 0 4096\\\"\"}}" >/dev/null; }
content() { od --address-radix=n --format=u1 --read-bytes=1 /var/lib/shared-disk | tr -d ' '; }
set -- $(cat /run/shared-disk 2>/dev/null || true); one=${1-} other=${2-}
"#;

#[track_caller]
fn ok(host: &mut Turn, commands: &str) -> String {
    host.ok(&format!("{FUNCTIONS}\n{commands}"))
}

/// An entry that is marked outlives its guests; without its disk it would be a flaw to whoever looks next.
fn gone(host: &mut Turn) {
    let removed =
        "hpvmremove -P a -F --purge; hpvmremove -P b -F --purge; hpvmdevmgmt -d gdev:$one";
    ok(host, removed);
    host.ok("shared_disk_gone");
}

/// Settles 79: a disk is shared if it is marked, keeps reservations, and everybody who has it shares it; with whom is said.
fn a_disk_is_shared_if_it_keeps_reservations_and_all_share_it() {
    let mut host = Turn::take();
    host.ok("shared_disk");
    ok(
        &mut host,
        r#"share() { hpvmdevmgmt -m "gdev:$1:attr:SHARE=YES"; }
         hpvmcreate -P a -r 64M -a disk:avio_stor::disk:$one -a disk:avio_stor::disk:$(spare 6)
         refused 'keeps no persistent reservations' share $(spare 6)
         settled sfdisk --quiet $(spare 5) <<<',,L'
         await test -e $(spare 5)-part1
         hpvmdevmgmt -a gdev:$(spare 5)-part1
         refused 'a whole SCSI disk' share $(spare 5)-part1
         hpvmdevmgmt -d gdev:$(spare 5)-part1
         settled wipefs --quiet --all $(spare 5)
         told "configured in guest 'a'" hpvmcreate -P b -r 64M -a disk:avio_stor::disk:$other
         hpvmstart -P a
         share $one
         told 'SHARE=YES:a:' hpvmdevmgmt -l gdev
         refused "in use by the running guest 'a' (0,0,0)" hpvmstart -P b
         hpvmstop -P a -F
         told "shared with the guest 'b'" hpvmstart -P a
         hpvmdevmgmt -m gdev:$one:attr:SHARE=NO
         refused "in use by the running guest 'a' (0,0,0)" hpvmstart -P b
         share $one
         hpvmstop -P a -F"#,
    );
    gone(&mut host);
}

/// Settles 79: what one guest reserves, by its own helper, QEMU of another cannot write to, until that one takes it over; the
/// helper has one right of root, and is there again after it was killed, alone or with who watches over it.
fn reservations_of_two_guests_keep_each_other_out() {
    let mut host = Turn::take();
    host.ok("shared_disk");
    ok(
        &mut host,
        r#"hpvmcreate -P a -r 64M -a disk:avio_stor::disk:$one
         hpvmdevmgmt -m gdev:$one:attr:SHARE=YES
         hpvmcreate -P b -r 64M
         hpvmstart -P a
         hpvmstart -P b
         test ! -e $(socket b)
         told "shared with the running guest 'a'" hpvmmodify -P b -a disk:avio_stor:0,0,0:disk:$other
         told '"connected": true' monitor b '{"execute":"query-pr-managers"}'"#,
    );
    ok(
        &mut host,
        r#"process=$(helper a)
         grep -q 'CapEff:.0000000000020000' /proc/$process/status
         grep -q 'CapBnd:.0000000000000000' /proc/$process/status
         grep -q 'NoNewPrivs:.1' /proc/$process/status
         test "$(stat -c '%a %g' $(socket a))" = "660 $(stat -c %g /proc/$(engine a))"
         refused 'waiting for an answer' reserve a $one inquiry"#,
    );
    ok(
        &mut host,
        r#"written a 65
         test "$(content)" = 65
         test "$(reserve a $one register 161)" = 0
         test "$(reserve b $other register 162)" = 0
         test "$(reserve a $one reserve 161)" = 0
         test "$(reserve b $other reserve 162)" = 24
         written b 66
         test "$(content)" = 65
         written a 67
         test "$(content)" = 67
         old=$(helper b)
         kill -KILL $old
         await is_another b $old
         test "$(reserve b $other preempt 162 161)" = 0
         written a 68
         test "$(content)" = 67
         written b 69
         test "$(content)" = 69
         test "$(reserve b $other clear 162)" = 0"#,
    );
    ok(
        &mut host,
        r#"parent=$(sed -n 's/^PPid:.//p' /proc/$(helper a)/status)
         kill -KILL $parent
         await sh -c 'hpvmstatus -P a | grep -q "its reservation helper does not answer since"'
         hpvmstart -P a
         await sh -c '! hpvmstatus -P a | grep -q "does not answer"'
         test "$(reserve a $one register 161)" = 0
         test "$(reserve a $one clear 161)" = 0
         process=$(helper a)
         hpvmmodify -P b -d disk:avio_stor:0,0,0
         hpvmstop -P a -F
         hpvmstop -P b -F
         await test ! -e /proc/$process
         grep -q 'the reservation helper ended by itself' /var/opt/hpvm/guests/b/log"#,
    );
    gone(&mut host);
}
