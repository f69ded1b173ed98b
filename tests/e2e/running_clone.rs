//! hpvmclone of a running guest: its disks and firmware variables as they are at one moment, file systems clean where an agent
//! answers; whoever is killed, interrupted or out of room, the guest runs on and nothing is left.

mod slow;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hpvm_app::snapshot::Agent;
use hpvm_host::lock::pause_for;
use hpvm_host::process::{PidFd, Signal};
use hpvm_plan::nvram;
use hpvm_qmp::RunState;
use hpvm_qmp::blocking::Client;
use hpvm_qmp::command::QueryStatus;
use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use self::slow::{Slow, end, engine_is_as_it_was, left_in_engine};
use crate::Test;
use crate::chance::{Met, Moments};
use crate::clone::{Mounted, fill, nothing_is_left, on, with_web};
use crate::file_server::FileServer;
use crate::guest_processes::{Process, process};
use crate::loop_device::LoopDevice;
use crate::pool::image;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_running_guest_is_copied_and_told_how,
    disks_of_a_running_guest_are_not_linked,
    no_link_to_a_running_guests_own_image_is_proposed,
    more_disks_hold_a_guest_no_longer,
    with_an_agent_file_systems_are_clean,
    a_guest_that_writes_its_variables_meanwhile_goes_on,
    images_of_a_running_guest_are_copied,
    a_disk_of_a_running_guest_is_copied_to_a_device,
    a_device_that_gets_a_running_guests_disk_is_given_to_nobody,
    only_a_device_that_may_be_written_is_told_to_be,
    a_command_killed_at_any_moment_leaves_nothing,
    a_worker_killed_in_the_middle_leaves_nothing,
    a_worker_killed_while_it_holds_the_guest_leaves_it_running,
    an_engine_killed_in_the_middle_leaves_nothing,
    an_engine_that_hangs_in_the_middle_is_rid_of_the_copy_when_it_answers,
    a_target_that_falls_silent_is_named_and_not_the_source,
    whoever_waits_for_a_clone_says_so,
    an_interrupted_copy_leaves_the_guest_running,
    a_stop_does_not_wait_for_a_copy,
    no_room_harms_no_guest,
    ; long:
    two_disks_are_copied_at_one_moment,
];

const BOUND: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

/// With an agent, without one, and with one that may not hold file systems.
fn a_running_guest_is_copied_and_told_how() {
    for (behaviour, told) in [
        ("agent=answers", None),
        ("text=login:", Some("no agent runs in it")),
        ("agent=cannot", Some("has been disabled")),
    ] {
        let mut host = with_web();
        host.engine_behaves(behaviour);
        host.ok(&["hpvmstart", "-P", "web"]);
        if behaviour.starts_with("agent") {
            let answers =
                || matches!(host.snapshot(1).expect("it runs").agent, Agent::Answers { .. });
            wait_until(BOUND, "the agent answers", answers);
        }
        for name in ["new", "another"] {
            let copy = host.path(&format!("{name}.img"));
            let said = host.run(&["hpvmclone", "-P", "web", "-N", name, "-b", &on(&copy, "file")]);
            assert!(said.status.success(), "{said}");
            assert_eq!(said.stderr.matches("at one moment").count(), told.iter().count(), "{said}");
            assert!(said.stderr.contains(told.unwrap_or_default()), "{said}");
            assert_eq!(fs::read(&copy).unwrap(), fs::read(host.path("web.img")).unwrap());
            assert_eq!(variables(&host, "web"), variables(&host, name));
            engine_is_as_it_was(&host);
        }
        host.wait_for_state("web", "On (OS)", BOUND);
        assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
    }
}

fn disks_of_a_running_guest_are_not_linked() {
    let host = with_web();
    host.ok(&["hpvmstart", "-P", "web"]);
    let said = host.refused(&["hpvmclone", "-P", "web", "-N", "new", "--linked"]);
    assert!(
        said.contains("must only be read") && said.contains("copy its disks with -b"),
        "{said}"
    );
    nothing_is_left(&host, host.root());
    // The configuration alone can be had.
    host.ok(&["hpvmclone", "-P", "web", "-N", "new"]);
}

/// An image that is its guest's alone gets a copy; as long as the guest runs nothing else is proposed.
fn no_link_to_a_running_guests_own_image_is_proposed() {
    let host = VmHost::new(Engine::Real);
    let disk = host.disk("web.img", MIB);
    host.ok(&["hpvmcreate", "-P", "web", "-r", "512M", "-a", &on(&disk, "file")]);
    host.ok(&["hpvmclone", "-P", "web", "-N", "own", "--linked"]);
    let clone = ["hpvmclone", "-P", "own", "-N", "new"];
    assert!(host.refused(&clone).contains("--linked gives 'new'"), "it is off");
    host.ok(&["hpvmstart", "-P", "own"]);
    let said = host.refused(&clone);
    let proposed = "-b disk:avio_stor:0,1,0:qcow2:/PATH";
    assert!(!said.contains("--linked") && said.contains(proposed), "{said}");
    let copy = host.path("copy.qcow2");
    let typed = proposed.replace("/PATH", &copy.to_string_lossy());
    let mut line = clone.to_vec();
    line.extend(typed.split(' '));
    host.ok(&line);
    assert!(copy.exists());
}

fn variables(host: &VmHost, name: &str) -> Vec<u8> {
    fs::read(host.path("var/opt/hpvm/guests").join(name).join("nvram")).expect("variables")
}

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
    let avio = format!("disk:avio_stor:0,2,0:file:{}", other.display());
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
        let statements = [
            format!("disk:scsi:0,1,0:file:{}", a.display()),
            format!("disk:avio_stor:0,2,0:file:{}", b.display()),
        ];
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
    let on_data = format!("disk:avio_stor:0,1,1:file:{}", data.display());
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
        let statement = format!("disk:avio_stor:0,1,1:file:{}", copy.display());
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

/// An image of its own, and one over another, which its copy is over too.
fn images_of_a_running_guest_are_copied() {
    let host = VmHost::new(Engine::Real);
    fill(&host.disk("web.img", 64 * MIB), 8);
    let (image, own) = (host.path("own.qcow2"), host.path("web.img"));
    let convert = ["convert", "-f", "raw", "-O", "qcow2"];
    let made = Command::new("qemu-img").args(convert).args([&own, &image]).status();
    assert!(made.expect("qemu-img").success());
    let second = format!("disk:avio_stor:0,1,1:qcow2:{}", image.display());
    host.ok(&["hpvmcreate", "-P", "base", "-r", "512M", "-a", &on(&own, "file"), "-a", &second]);
    host.ok(&["hpvmclone", "-P", "base", "-N", "web", "--linked"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    let (a, b) = (host.path("a.qcow2"), host.path("b.qcow2"));
    let second = format!("disk:avio_stor:0,1,1:qcow2:{}", b.display());
    host.ok(&["hpvmclone", "-P", "web", "-N", "new", "-b", &on(&a, "qcow2"), "-b", &second]);
    for (copy, size) in [(&a, 64 * MIB), (&b, 64 * MIB)] {
        let allocated = fs::metadata(copy).expect("a copy").blocks() * 512;
        assert!(allocated < MIB, "what lies below is not copied: {allocated} of {size} bytes");
        let same = ["compare", "-f", "qcow2", "-F", "raw"];
        let same = Command::new("qemu-img").args(same).args([copy, &own]).output();
        assert!(same.expect("qemu-img").status.success(), "{}", copy.display());
        let check = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(copy).output();
        assert!(check.expect("qemu-img").status.success(), "{}", copy.display());
    }
    host.ok(&["hpvmstart", "-P", "new"]);
    host.ok(&["hpvmstop", "-P", "new", "-F"]);
    // One that stands alone.
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
    host.ok(&["hpvmremove", "-P", "web", "-F", "--purge"]);
    host.ok(&["hpvmstart", "-P", "base"]);
    let alone = host.path("alone.qcow2");
    let statement = format!("disk:avio_stor:0,1,1:qcow2:{}", alone.display());
    host.ok(&["hpvmclone", "-P", "base", "-N", "new", "-b", &statement]);
    let same = ["compare", "-f", "qcow2", "-F", "qcow2"];
    let same = Command::new("qemu-img")
        .args(same)
        .args(["-U".as_ref(), alone.as_os_str(), image.as_os_str()])
        .output();
    assert!(same.expect("qemu-img").status.success());
    engine_is_as_it_was(&host);
}

/// Its engine has it to write, and nobody else; what lies behind the copy becomes zeroes.
fn a_disk_of_a_running_guest_is_copied_to_a_device() {
    let host = VmHost::new(Engine::Real);
    let disk = host.disk("web.img", 64 * MIB);
    fill(&disk, 64);
    host.ok(&["hpvmcreate", "-P", "web", "-r", "512M", "-a", &on(&disk, "file")]);
    host.ok(&["hpvmstart", "-P", "web"]);
    let behind = host.disk("behind.img", 65 * MIB);
    fill(&behind, 65);
    let device = LoopDevice::on(&behind, &[]);
    host.ok(&["hpvmclone", "-P", "web", "-N", "new", "-b", &on(device.path(), "disk")]);
    let mut wanted = fs::read(&disk).expect("the disk");
    wanted.resize(65 << 20, 0);
    assert!(fs::read(device.path()).expect("the device") == wanted);
    engine_is_as_it_was(&host);
    host.ok(&["hpvmstart", "-P", "new"]);
    host.ok(&["hpvmstop", "-P", "new", "-F"]);
}

/// Neither while the engine has not begun to write it, however long that takes, nor while it writes it. The worker is held
/// still at both, so that none of it passes meanwhile.
fn a_device_that_gets_a_running_guests_disk_is_given_to_nobody() {
    let slow = Slow::start();
    let host = &slow.host;
    let device = LoopDevice::on(&host.disk("device.img", 512 * MIB), &[]);
    let (steps, torn) = (host.path("steps"), on(&host.path("torn.img"), "file"));
    let statement = on(device.path(), "disk");
    let is_refused = |clone: &Child| {
        host.ok(&["hpvmcreate", "-P", "other", "-r", "64M", "-a", &statement]);
        let number = clone.id();
        let said = host.refused(&["hpvmstart", "-P", "other"]);
        assert!(said.contains(&format!("process {number}")), "{number}: {said}");
        // Who only reads it meets nothing but the locks on it.
        let said = host.refused(&["hpvmclone", "-P", "other", "-N", "torn", "-b", &torn]);
        let told = format!("is being overwritten by hpvmclone (process {number})");
        assert!(said.contains(&told), "{told}: {said}");
        host.ok(&["hpvmremove", "-P", "other", "-F", "--purge"]);
    };
    let has_ended = |child: &mut Child| child.try_wait().expect("our own child").is_some();
    let worker = process(host, "hpvmapp").expect("a worker");
    for _ in 0..10 {
        let mut command = host.command(&["hpvmclone", "-P", "web", "-N", "new", "-b", &statement]);
        command.env("HPVM_STEPS_TO", &steps).stdin(Stdio::null());
        let mut child = command.spawn().expect("it starts");
        let has_recorded =
            || fs::read_to_string(&steps).is_ok_and(|steps| steps.contains("clone.recorded"));
        wait_until(BOUND, "the copy is about to begin", has_recorded);
        let held = Still::hold(&worker);
        let is_asked = |child: &mut Child| has_socket(child) || has_ended(child);
        wait_until(BOUND, "its worker is asked for the copy", || is_asked(&mut child));
        let mut is_met = left_in_engine(host).is_empty() && !has_ended(&mut child);
        if is_met {
            is_refused(&child);
        }
        drop(held);
        let is_under_way = || left_in_engine(host).contains("job copy-0");
        wait_until(BOUND, "the engine copies", || is_under_way() || has_ended(&mut child));
        let held = Still::hold(&worker);
        is_met &= is_under_way();
        if is_met {
            is_refused(&child);
        }
        drop(held);
        let (status, said) = end(child);
        assert_eq!(status, Some(0), "{said}");
        assert!(fs::read(device.path()).unwrap() == fs::read(host.path("web.img")).unwrap());
        engine_is_as_it_was(host);
        if is_met {
            return;
        }
        host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
        fs::remove_file(&steps).expect("the steps");
    }
    panic!("none of ten was met at both");
}

/// An engine that refuses to begin has written nothing; one that fails at the end has.
fn only_a_device_that_may_be_written_is_told_to_be() {
    for (refused, wanted) in [("blockdev-add", 0), ("blockdev-mirror", 0), ("stop", 1)] {
        let mut host = with_web();
        host.engine_behaves(&format!("fail={refused}:not today"));
        host.ok(&["hpvmstart", "-P", "web"]);
        let device = LoopDevice::on(&host.disk("device.img", 64 * MIB), &[]);
        let statement = on(device.path(), "disk");
        let said = host.refused(&["hpvmclone", "-P", "web", "-N", "new", "-b", &statement]);
        assert!(said.contains("not today"), "{said}");
        assert_eq!(said.matches("partly overwritten").count(), wanted, "{refused}: {said}");
    }
}

/// A process that goes on in the end.
struct Still<'a>(&'a Process);

impl Still<'_> {
    fn hold(process: &Process) -> Still<'_> {
        process.signal(Signal::STOP);
        Still(process)
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        self.0.signal_if_alive(Signal::CONT);
    }
}

fn has_socket(child: &Child) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", child.id())).into_iter().flatten();
    let targets = descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.into_iter().any(|target| target.to_string_lossy().starts_with("socket:"))
}

fn a_command_killed_at_any_moment_leaves_nothing() {
    let slow = Slow::start();
    let mut moments = Moments::within(Duration::from_secs(1));
    while let Some(moment) = moments.next() {
        let mut child = slow.clone();
        // Each second moment counts from where the copy has begun, so that enough of them meet it.
        if moments.round().is_multiple_of(2) {
            slow.until_it_copies();
        }
        pause_for(moment);
        let has_begun = slow.is_copying();
        child.kill().expect("our own child");
        moments.was(match child.wait().expect("our own child").success() {
            true => Met::AfterItsEnd,
            false if has_begun => Met::AtWork,
            false => Met::BeforeItsWork,
        });
        let doctor = slow.host.run(&["hpvm", "doctor", "--repair"]);
        assert!(doctor.status.success(), "{moments}: {doctor}");
        slow.runs_on();
        if slow.copy.exists() {
            slow.host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
            fs::remove_file(&slow.copy).expect("the copy");
        }
        nothing_is_left(&slow.host, slow.host.root());
    }
}

fn a_worker_killed_in_the_middle_leaves_nothing() {
    let slow = Slow::start();
    let kill = |_: &Child| process(&slow.host, "hpvmapp").expect("a worker").kill();
    let (status, said) = slow.in_the_middle(kill);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("could not be copied"), "{said}");
    slow.runs_on();
    nothing_is_left(&slow.host, slow.host.root());
    // And the next worker copies.
    let (status, said) = end(slow.clone());
    assert_eq!(status, Some(0), "{said}");
    slow.runs_on();
}

/// On an engine that takes long to complete a mirror.
fn a_worker_killed_while_it_holds_the_guest_leaves_it_running() {
    let mut host = with_web();
    host.engine_behaves("complete=4000");
    host.ok(&["hpvmstart", "-P", "web"]);
    let statement = on(&host.path("copy.img"), "file");
    let mut command = host.command(&["hpvmclone", "-P", "web", "-N", "new", "-b", &statement]);
    let child = command.stdin(Stdio::null()).spawn().expect("it starts");
    let mut second = Client::connect(&host.run_dir(1).join("rescue")).expect("the second monitor");
    wait_until(BOUND, "the guest is held", || {
        // The engine copies meanwhile, to a disk on which other tests write too.
        let status = second.execute_within(&QueryStatus {}, BOUND).expect("told").status;
        status == RunState::Paused
    });
    process(&host, "hpvmapp").expect("a worker").kill();
    drop(second);
    let (status, said) = end(child);
    assert_eq!(status, Some(1), "{said}");
    engine_is_as_it_was(&host);
    host.wait_for_state("web", "On (OS)", BOUND);
    nothing_is_left(&host, host.root());
}

fn an_engine_killed_in_the_middle_leaves_nothing() {
    let slow = Slow::start();
    let kill = |_: &Child| process(&slow.host, "hpvm-1").expect("an engine").kill();
    let (status, said) = slow.in_the_middle(kill);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("could not be copied"), "{said}");
    slow.host.wait_for_state("web", "Off", BOUND);
    nothing_is_left(&slow.host, slow.host.root());
}

/// It would go on writing the copy that nobody wants any more.
fn an_engine_that_hangs_in_the_middle_is_rid_of_the_copy_when_it_answers() {
    let mut host = with_web();
    let statement = on(&host.path("copy.img"), "file");
    let clone = endless_clone(&mut host, &statement);
    let engine = Process::open(host.snapshot(1).expect("it runs").qemu.pid);
    let still = Still::hold(&engine);
    let (status, said) = end(clone);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("could not be copied: QEMU did not answer"), "{said}");
    let copy = host.path("copy.img");
    let told = format!("a copy of its disks has failed, and QEMU may write '{}'", copy.display());
    let shown = host.ok(&["hpvmstatus", "-P", "web"]);
    assert!(shown.contains(&told), "{shown}");
    drop(still);
    let is_told = || guest_log(&host).contains("nothing is left in QEMU of the copy");
    wait_until(BOUND, "its end is told", is_told);
    assert_eq!(left_in_engine(&host), "");
    host.wait_for_state("web", "On (OS)", BOUND);
    assert!(!host.ok(&["hpvmstatus", "-P", "web"]).contains("QEMU may write"));
    nothing_is_left(&host, host.root());
}

fn guest_log(host: &VmHost) -> String {
    fs::read_to_string(host.path("var/opt/hpvm/guests/web/log")).expect("a log")
}

/// A clone that goes on until it is interrupted.
fn endless_clone(host: &mut VmHost, statement: &str) -> Child {
    host.engine_behaves("mirror=60000");
    host.ok(&["hpvmstart", "-P", "web"]);
    let mut command = host.command(&["hpvmclone", "-P", "web", "-N", "new", "-b", statement]);
    let child = command.stdin(Stdio::null()).spawn().expect("it starts");
    wait_until(BOUND, "it is copied", || left_in_engine(host).contains("job copy-nvram"));
    child
}

fn interrupt(child: &Child) {
    let number = i32::try_from(child.id()).expect("a process number");
    let process = PidFd::open_number(number).expect("a handle").expect("it is not reaped");
    process.signal(Signal::INT).expect("a signal to our own child");
}

fn a_target_that_falls_silent_is_named_and_not_the_source() {
    let mut host = with_web();
    let server = FileServer::over(&host.path("far"), 64 * MIB);
    let device = LoopDevice::on(&server.file, &["--direct-io=on"]);
    let clone = endless_clone(&mut host, &on(device.path(), "disk"));
    server.leave_unanswered(|silence| &silence.reading);
    let target =
        format!("'{}', which is being made a copy of the disk at 0,1,0", device.path().display());
    host.wait_for_state("web", "On (ATTN)", BOUND);
    for look in [&["hpvmstatus", "-P", "web"][..], &["hpvm", "why", "web"]] {
        let shown = host.ok(look);
        assert!(shown.contains(&target) && !shown.contains("which backs"), "{shown}");
    }
    server.answer_again();
    host.wait_for_state("web", "On (OS)", BOUND);
    assert!(guest_log(&host).contains(&format!("{target}, answers again")));
    interrupt(&clone);
    assert_eq!(end(clone).0, Some(130));
    engine_is_as_it_was(&host);
}

fn whoever_waits_for_a_clone_says_so() {
    let mut host = with_web();
    let statement = on(&host.path("copy.img"), "file");
    let clone = endless_clone(&mut host, &statement);
    let mut waits = host.command(&["hpvmmodify", "-P", "web", "-l", "later"]);
    let mut waits = waits.stdin(Stdio::null()).spawn().expect("it starts");
    let mut line = String::new();
    BufReader::new(waits.stderr.take().expect("a pipe")).read_line(&mut line).expect("text");
    let who = format!("hpvmmodify: waits for hpvmclone (process {})", clone.id());
    assert!(line.starts_with(&who) && line.contains("copying disks"), "{line}");
    interrupt(&clone);
    assert_eq!(end(clone).0, Some(130));
    assert!(waits.wait().expect("our own child").success());
}

fn an_interrupted_copy_leaves_the_guest_running() {
    let slow = Slow::start();
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let (code, said) = slow.in_the_middle(|child| {
            let number = i32::try_from(child.id()).expect("a process number");
            let command = PidFd::open_number(number).expect("a handle").expect("it is not reaped");
            command.signal(signal).expect("a signal to our own child");
            assert!(command.wait_exit(Duration::from_secs(5)).expect("it ends"), "it is answered");
            assert_eq!(left_in_engine(&slow.host), "", "taken back before the command ends");
        });
        assert_eq!(code, Some(status), "{said}");
        assert!(said.contains("interrupted; nothing was changed"), "{said}");
        slow.runs_on();
        nothing_is_left(&slow.host, slow.host.root());
    }
}

fn a_stop_does_not_wait_for_a_copy() {
    let mut host = with_web();
    host.engine_behaves("mirror=20000");
    host.ok(&["hpvmstart", "-P", "web"]);
    let statement = on(&host.path("copy.img"), "file");
    let mut command = host.command(&["hpvmclone", "-P", "web", "-N", "new", "-b", &statement]);
    let child = command.stdin(Stdio::null()).spawn().expect("it starts");
    wait_until(BOUND, "it is copied", || left_in_engine(&host).contains("job copy-nvram"));
    let stopped = host.run(&["hpvmstop", "-P", "web", "-h", "-F"]);
    assert!(stopped.status.success(), "{stopped}");
    assert!(stopped.stderr.contains("is copying its disks, and fails now"), "{stopped}");
    let (status, said) = end(child);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("could not be copied: the guest has ended in the meantime"), "{said}");
    assert_eq!(host.state("web"), "Off");
    assert!(!host.run_dir(1).join("qmp").exists(), "what is left of it is cleared");
    nothing_is_left(&host, host.root());
}

/// The copy fails, and the guest writes on without an error.
fn no_room_harms_no_guest() {
    let host = VmHost::new(Engine::Real);
    let boot = host.copy_of(&image("test-cloud"), "web.img");
    host.ok(&["hpvmcreate", "-P", "web", "-O", "linux", "-r", "512M", "-a", &on(&boot, "file")]);
    host.ok(&["hpvmstart", "-P", "web"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.wait_for_shell();
    console.run("OTHER=; (n=0; while :; do n=$((n+1)); printf %08d $n | dd of=/dev/sda1 bs=8 conv=fsync,notrunc 2>/dev/null || break; done; echo FAILED > /tmp/failed) & true");
    let small = host.path("small");
    fs::create_dir(&small).expect("a folder");
    let _mounted = Mounted::at(&small);
    let copy = on(&small.join("copy.img"), "file");
    let said = host.refused(&["hpvmclone", "-P", "web", "-N", "new", "-b", &copy]);
    assert!(said.contains("No space left"), "{said}");
    engine_is_as_it_was(&host);
    nothing_is_left(&host, &small);
    assert_eq!(host.state("web"), "On (OS)");
    assert_eq!(console.run("cat /tmp/failed 2>/dev/null; dmesg | grep -i 'i/o error'"), "");
}
