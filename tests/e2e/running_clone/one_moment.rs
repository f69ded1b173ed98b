//! Disks and firmware variables of a running guest as they are at one moment, file systems clean where an agent answers; and
//! the guest stands still for no longer than that takes.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use hpvm_app::snapshot::Agent;
use hpvm_plan::nvram;
use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use super::slow::engine_is_as_it_was;
use super::{BOUND, MIB, variables};
use crate::Test;
use crate::clone::{fill, on};
use crate::pool::image;
use crate::statements::disk_at;

pub(crate) const TESTS: &[Test] = crate::tests![
    more_disks_hold_a_guest_no_longer,
    with_an_agent_file_systems_are_clean,
    a_guest_that_writes_its_variables_meanwhile_goes_on,
    ; long:
    two_disks_are_copied_at_one_moment,
];

/// Writes a number to the first disk, then to the second, then the next one, for ever.
const COUNTING: &str = "(n=10000000; while :; do n=$((n+1)); \
    for disk in $FIRST $OTHER; do \
    printf $n | dd of=$disk bs=8 count=1 conv=fsync,notrunc 2>/dev/null; done; done) & true";

/// Where the guest's first disk has its first partition.
fn scratch_begins(disk: &Path) -> u64 {
    // The first entry of the partition table lies at block 2; its first block stands at 32 (UEFI specification, 5.3.3).
    let mut first = [0; 8];
    let disk = File::open(disk).expect("the disk");
    disk.read_exact_at(&mut first, 1024 + 32).expect("a partition table");
    u64::from_le_bytes(first) * 512
}

fn number_at(disk: &Path, place: u64) -> u64 {
    let mut digits = [0; 8];
    File::open(disk).expect("a disk").read_exact_at(&mut digits, place).expect("a number");
    std::str::from_utf8(&digits).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// One on each adapter. The first one must be as far as the second, or one step ahead.
fn two_disks_are_copied_at_one_moment() {
    let host = VmHost::new(Engine::Real);
    let (boot, other) =
        (host.copy_of(&image("test-full"), "web.img"), host.disk("b.img", 256 * MIB));
    fill(&other, 128);
    let scsi = format!("disk:scsi:0,1,0:file:{}", boot.display());
    let avio = disk_at("0,2,0", &other);
    host.ok(&["hpvmcreate", "-P", "web", "-O", "linux", "-r", "512M", "-a", &scsi, "-a", &avio]);
    host.ok(&["hpvmstart", "-P", "web"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.wait_for_shell();
    console.run("FIRST=$(ls /dev/sd?1); OTHER=/dev/sda; test $FIRST = /dev/sda1 && OTHER=/dev/sdb");
    console.run(COUNTING);
    let begins = scratch_begins(&boot);
    wait_until(BOUND, "the guest counts", || number_at(&other, 0) > 10_000_003);
    for round in 0..3 {
        let (a, b) = (host.path(&format!("a{round}.img")), host.path(&format!("b{round}.img")));
        let name = format!("new{round}");
        let statements = [format!("disk:scsi:0,1,0:file:{}", a.display()), disk_at("0,2,0", &b)];
        let before = number_at(&boot, begins);
        let mut line = vec!["hpvmclone", "-P", "web", "-N", &name];
        line.extend(statements.iter().flat_map(|statement| ["-b", statement.as_str()]));
        let done = host.run(&line);
        assert!(done.status.success(), "{done}");
        let (first, second) = (number_at(&a, begins), number_at(&b, 0));
        assert!(first == second || first == second + 1, "{first} and {second} are of two moments");
        assert!(first > before, "the guest counted on while it was copied: {before}, {first}");
        wait_until(BOUND, "the guest counts on", || number_at(&boot, begins) > first + 3);
        let blocks = |path: &Path| fs::metadata(path).expect("a disk").blocks();
        // QEMU copies by 64 KiB.
        assert!(blocks(&b) <= blocks(&other) + 1024, "holes are kept: {}", blocks(&b));
        assert!(variables(&host, "web") == variables(&host, &name), "of another guest");
        engine_is_as_it_was(&host);
    }
    let held = held_ms(&host);
    println!("the guest stood still for {held:?} ms");
    // On machines at work a process may wait its turn for longer than that takes: once in three it is not held up.
    assert!(held.iter().any(|held| *held <= 4 * HELD_MS), "the guest stood still for {held:?} ms");
}

/// A guest that is copied stands still for less.
const HELD_MS: u64 = 20;

/// For how long the guest 'web' stood still for each of its copies, as its log has it.
fn held_ms(host: &VmHost) -> Vec<u64> {
    let log = fs::read_to_string(host.path("var/opt/hpvm/guests/web/log")).expect("a log");
    let held =
        log.lines().filter_map(|line| line.split_once("stood still for ")?.1.split_once(" ms"));
    held.map(|(held, _)| held.parse().expect("a number")).collect()
}

/// Of one disk and of twelve the guest stands still for about as long.
fn more_disks_hold_a_guest_no_longer() {
    let host = VmHost::new(Engine::Real);
    let boot = host.copy_of(&image("test-cloud"), "web.img");
    let mut line = vec!["hpvmcreate".to_owned()];
    line.extend(["-P", "web", "-O", "linux", "-r", "512M"].map(str::to_owned));
    let of =
        |target: usize, path: &Path| format!("disk:avio_stor:0,1,{target}:file:{}", path.display());
    line.extend(["-a".to_owned(), of(0, &boot)]);
    for target in 1..12 {
        let path = host.disk(&format!("{target}.img"), MIB);
        line.extend(["-a".to_owned(), of(target, &path)]);
    }
    let run = |line: &[String]| host.ok(&line.iter().map(String::as_str).collect::<Vec<_>>());
    run(&line);
    host.ok(&["hpvmstart", "-P", "web"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.wait_for_shell();
    // In turns, so that both of a turn have the same company on this machine.
    for round in 0..6 {
        for disks in [1, 12] {
            let name = format!("new{disks}x{round}");
            let mut line = ["hpvmclone", "-P", "web", "-N", &name].map(str::to_owned).to_vec();
            for target in 0..disks {
                let copy = host.path(&format!("{name}-{target}.img"));
                line.extend(["-b".to_owned(), of(target, &copy)]);
            }
            run(&line);
        }
    }
    let held = held_ms(&host);
    let twelve = held.iter().skip(1).step_by(2).min().copied().expect("copies");
    let turns = held.iter().step_by(2).zip(held.iter().skip(1).step_by(2));
    let more = turns.map(|(one, twelve)| twelve.saturating_sub(*one)).min().expect("turns");
    println!(
        "held for {twelve} ms with twelve disks, {more} more than with one, at the least: {held:?}"
    );
    // Taken out of the way while the guest stands still, each would cost some milliseconds.
    assert!(twelve <= 4 * HELD_MS && more <= 15, "{held:?}");
    engine_is_as_it_was(&host);
}

/// Whether a file system needs no repair, to its own tool.
fn is_clean(disk: &Path) -> bool {
    let checked = Command::new("e2fsck").arg("-n").arg(disk).output().expect("e2fsck runs");
    let said = String::from_utf8_lossy(&checked.stdout).into_owned()
        + &String::from_utf8_lossy(&checked.stderr);
    assert!(said.contains("data"), "it is a file system: {said}");
    checked.status.success() && said.contains("data: clean,") && !said.contains("journal recovery")
}

/// Mounted and written meanwhile. Without the agent it is not clean, so that the check can fail.
fn with_an_agent_file_systems_are_clean() {
    let host = VmHost::new(Engine::Real);
    let boot = host.copy_of(&image("test-agent"), "web.img");
    let data = host.disk("data.img", 16 * MIB);
    let made = Command::new("mkfs.ext4").args(["-q", "-L", "data"]).arg(&data).status();
    assert!(made.expect("mkfs.ext4 runs").success());
    let on_data = disk_at("0,1,1", &data);
    host.create("web", "512M", &[on(&boot, "file"), on_data]);
    host.ok(&["hpvmstart", "-P", "web"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.wait_for_shell();
    let mounted =
        console.run("DATA=/dev/sdb; test -e /dev/sda1 || DATA=/dev/sda; mkdir -p /mnt; mount -t ext4 $DATA /mnt; grep -c /mnt /proc/mounts");
    assert_eq!(mounted, "1");
    console.run(
        "(n=0; while :; do n=$((n+1)); echo $n > /mnt/file$((n % 50)); rm -f /mnt/file$(((n + 25) % 50)); done) 2>/tmp/failed & true",
    );
    let answers = || matches!(host.snapshot(1).expect("it runs").agent, Agent::Answers { .. });
    wait_until(BOUND, "the agent answers", answers);
    let clone = |name: &str| {
        let copy = host.path(&format!("{name}.img"));
        let statement = disk_at("0,1,1", &copy);
        let done = host.run(&["hpvmclone", "-P", "web", "-N", name, "-b", &statement]);
        assert!(done.status.success(), "{done}");
        (copy, done.stderr)
    };
    let (held, said) = clone("held");
    assert!(!said.contains("at one moment"), "{said}");
    assert!(is_clean(&held));
    // It goes on, and was not held for longer than users may be kept waiting.
    let shown = console.run("sync; a=$(cat /mnt/file* 2>/dev/null | sort -n | tail -1); sleep 1; b=$(cat /mnt/file* 2>/dev/null | sort -n | tail -1); test $b -gt $a && echo goes on; cat /tmp/failed");
    assert_eq!(shown, "goes on");
    // One that does not answer.
    console.run("killall -STOP qemu-ga || kill -STOP $(pidof qemu-ga)");
    let (torn, said) = clone("torn");
    assert!(said.contains("as a failure of the power would leave them"), "{said}");
    assert!(!is_clean(&torn));
    console.run("killall -CONT qemu-ga || kill -CONT $(pidof qemu-ga)");
    engine_is_as_it_was(&host);
    let shown = console.run_within("echo x > /mnt/after && sync && echo written", BOUND);
    assert_eq!(shown, "written", "what was left frozen would not be");
}

/// Writes a number to one of its firmware variables, then the next one, for ever.
const WRITING: &str = "(n=10000000; while :; do n=$((n+1)); \
    printf \"\\007\\000\\000\\000$n\" > $VARIABLE || break; done; echo FAILED > /tmp/failed) & true";

/// The last number among firmware variables, which come one after the other.
fn number_among(variables: &[u8]) -> u64 {
    let numbers = variables.windows(8).filter_map(|digits| {
        std::str::from_utf8(digits).ok()?.parse().ok().filter(|number| *number > 10_000_000)
    });
    numbers.max().unwrap_or(0)
}

/// Whoever holds the variables at that moment would hold QEMU with the guest, and be held by it.
fn a_guest_that_writes_its_variables_meanwhile_goes_on() {
    let host = VmHost::new(Engine::Real);
    let boot = host.copy_of(&image("test-cloud"), "web.img");
    host.create("web", "512M", &[on(&boot, "file")]);
    host.ok(&["hpvmstart", "-P", "web"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.wait_for_shell();
    // A name of the kind that anybody may write.
    console.run("VARIABLE=/sys/firmware/efi/efivars/n-cfc8fc79-be2e-4ddc-97f0-9f98bfe298a0");
    let mounted = console.run("modprobe efivarfs && mount -t efivarfs x /sys/firmware/efi/efivars");
    assert_eq!(mounted, "");
    console.run(WRITING);
    let written = || number_among(&variables(&host, "web"));
    wait_until(BOUND, "the guest writes", || written() > 0);
    for round in 0..5 {
        let (name, before) = (format!("new{round}"), written());
        let copy = on(&host.path(&format!("{name}.img")), "file");
        host.ok(&["hpvmclone", "-P", "web", "-N", &name, "-b", &copy]);
        let copied = variables(&host, &name);
        assert_eq!(nvram::check(&copied), Ok(()), "{name}");
        let number = number_among(&copied);
        assert!((before..=written()).contains(&number), "{before}, {number}, {}", written());
        wait_until(BOUND, "the guest writes on", || written() > number + 3);
        engine_is_as_it_was(&host);
    }
    assert_eq!(console.run("cat /tmp/failed 2>/dev/null; echo answers"), "answers");
}
