//! Real guests: they boot from both adapters, see the machine that was configured, keep their data and their addresses, end
//! as they are told or by themselves, and run confined.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use hpvm_qmp::blocking::Client as Rescue;
use hpvm_qmp::command::SystemReset;
use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::Test;
use crate::guest_processes::{process, status_field};
use crate::pool::{Leased, image};
use crate::statements::disk_at;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_guest_boots_from_scsi_and_keeps_data_and_addresses,
    a_guest_that_powers_itself_off_is_off_and_its_nvram_can_be_restored,
    a_graceful_stop_says_where_it_got_stuck,
    a_reboot_inside_the_guest_is_no_stop,
    a_disk_that_came_while_the_guest_ran_is_booted_from,
    the_console_has_many_readers_and_one_writer,
    a_guest_runs_confined,
];

/// Until a command that worked shows in what others see.
const SETTLE_BOUND: Duration = Duration::from_secs(10);

/// What a guest sees of its machine, as it must be again after a restart.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    adapter: String,
    identity: String,
}

impl Seen {
    #[track_caller]
    fn of(console: &mut Console, disk: &str) -> Seen {
        let path = console.run(&format!("readlink -f /sys/class/block/{disk}"));
        let adapter = path.split("/host").next().expect("a first part").to_owned();
        assert!(adapter.starts_with("/sys/devices/pci0000:00/"), "{path}");
        let identity = console.run(&format!("cat /sys/class/block/{disk}/device/wwid"));
        assert!(identity.starts_with("naa."), "{disk} has {identity}");
        Seen { adapter, identity }
    }
}

/// Also: a guest has the processors and the memory of its configuration, and none beyond. Settles 65.
fn a_guest_boots_from_scsi_and_keeps_data_and_addresses() {
    let host = VmHost::new(Engine::Real);
    let disk = format!("disk:scsi:0,2,0:file:{}", host.copy_of(&image("test-full"), "d").display());
    host.ok(&["hpvmcreate", "-P", "vio", "-O", "linux", "-c", "2", "-r", "576M", "-a", &disk]);
    host.ok(&["hpvmstart", "-P", "vio"]);
    assert_eq!(host.state("vio"), "On (EFI)");
    let mut console = Console::attach(&host.run_dir(1));
    console.wait_for_shell();
    host.wait_for_state("vio", "On (OS)", SETTLE_BOUND);

    assert_eq!(console.run("nproc"), "2");
    for known in ["possible", "present", "online"] {
        assert_eq!(console.run(&format!("cat /sys/devices/system/cpu/{known}")), "0-1", "{known}");
    }
    assert_eq!(console.run("ls -d /sys/bus/acpi/devices/LNXCPU:* | wc -l"), "2");
    let mib = memory_mib(&console.run("grep 'System RAM' /proc/iomem"));
    assert!((560..=576).contains(&mib), "{mib} MiB of 576");
    assert_eq!(console.run("cat /sys/class/scsi_host/host0/proc_name"), "mptsas");
    let seen = Seen::of(&mut console, "sda");
    console.run("echo kept over the restart | dd of=/dev/sda1 conv=sync,fsync");

    let outcome = host.run(&["hpvmstop", "-P", "vio", "-g", "-F"]);
    assert!(outcome.status.success(), "{outcome}");
    assert_eq!(host.state("vio"), "Off");
    let shown = host.ok(&["hpvmstatus", "-P", "vio"]);
    assert!(shown.contains("stopped gracefully"), "{shown}");

    // A device that comes in front moves nothing.
    let front = disk_at("0,1,0", &host.disk("front", 8 << 20));
    host.ok(&["hpvmmodify", "-P", "vio", "-a", &front]);
    host.ok(&["hpvmstart", "-P", "vio"]);
    let mut console = Console::attach_from_now(&host.run_dir(1));
    console.wait_for_shell();
    let data = console.run("head -n 1 /dev/sda1; head -n 1 /dev/sdb1");
    assert!(data.contains("kept over the restart"), "{data}");
    let disks = ["sda", "sdb"].map(|disk| Seen::of(&mut console, disk));
    assert!(disks.contains(&seen), "{seen:?} is none of {disks:?}");

    host.ok(&["hpvmstop", "-P", "vio", "-h", "-F"]);
    assert_eq!(host.state("vio"), "Off");
    let shown = host.ok(&["hpvmstatus", "-P", "vio"]);
    assert!(shown.contains("stopped (hard)"), "{shown}");
}

/// Adds up lines such as `00100000-1ea89fff : System RAM`.
fn memory_mib(ranges: &str) -> u64 {
    let bytes = ranges.lines().map(|line| {
        let (range, _) = line.split_once(" : ").expect("a range and what it is");
        let (from, to) = range.trim().split_once('-').expect("from and to");
        let number = |text| u64::from_str_radix(text, 16).expect("hexadecimal");
        number(to) - number(from) + 1
    });
    bytes.sum::<u64>() >> 20
}

/// Settles 56.
fn a_guest_that_powers_itself_off_is_off_and_its_nvram_can_be_restored() {
    let host = linux_guest("box");
    host.ok(&["hpvmstart", "-P", "box"]);
    let mut console = Console::attach_from_now(&host.run_dir(1));
    console.wait_for_shell();
    console.type_in("poweroff -f\n");
    host.wait_for_state("box", "Off", SETTLE_BOUND);
    let shown = host.ok(&["hpvmstatus", "-P", "box"]);
    assert!(shown.contains("the guest powered itself off"), "{shown}");
    wait_until(SETTLE_BOUND, "nothing of it runs", || host.processes().is_empty());

    // The firmware has written its boot entries; a start keeps them as the copy to go back to.
    let nvram = host.path("var/opt/hpvm/guests/box/nvram");
    let good = fs::read(&nvram).expect("the variables");
    host.ok(&["hpvmstart", "-P", "box"]);
    host.ok(&["hpvmstop", "-P", "box", "-F"]);
    fs::write(&nvram, vec![0xff; good.len()]).expect("they are damaged");
    let refusal = host.refused(&["hpvmstart", "-P", "box"]);
    assert!(refusal.contains("firmware variables"), "{refusal}");
    let why = host.ok(&["hpvm", "why", "box"]);
    assert!(why.contains("hpvm nvram"), "{why}");
    assert_eq!(host.state("box"), "Off");
    host.ok(&["hpvm", "nvram", "-P", "box", "--restore"]);
    assert!(fs::read(&nvram).expect("the variables") == good, "the good copy is back");
    host.ok(&["hpvmstart", "-P", "box"]);
    let mut console = Console::attach_from_now(&host.run_dir(1));
    console.wait_for_shell();
    let boot = fs::read_to_string(host.path("var/opt/hpvm/guests/box/console.log"));
    assert!(boot.is_ok_and(|text| text.contains("starting Boot")), "the entry is there");
}

/// Nobody listens, somebody listens and nobody obeys, nobody takes the press: three answers, and the guest runs on after
/// each. Settles 53.
fn a_graceful_stop_says_where_it_got_stuck() {
    let mut host = VmHost::new(Engine::Real);
    host.ok(&["hpvmcreate", "-P", "box", "-r", "64M"]);
    host.ok(&["hpvmstart", "-P", "box"]);
    stuck(&mut host, "box", 2, "no operating system listens to the power button");
    assert_eq!(host.state("box"), "On (EFI)");
    host.ok(&["hpvmstop", "-P", "box", "-F"]);

    let mut guest = Leased::take();
    guest.console().run("killall acpid");
    stuck(guest.host_mut(), "pool", 6, "is shutting down and has not finished yet");
    guest.host().wait_for_state("pool", "On (OS)", SETTLE_BOUND);

    // The chipset sends ACPI events by an interrupt that no driver listens to, so that the kernel never takes a press.
    let interrupt = |line: &str| {
        format!("printf '{line}' | dd of=/sys/bus/pci/devices/0000:00:1f.0/config bs=1 seek=68")
    };
    guest.console().run(&interrupt("\\202"));
    stuck(guest.host_mut(), "pool", 6, "did not react to the power button");
    guest.console().run(&interrupt("\\200"));
    guest.console().run("(acpid -f -d -c /etc/acpi </dev/null >/dev/null 2>&1 &)");
    assert_eq!(guest.host().state("pool"), "On (OS)");
}

/// A stop that gives up after so many seconds, says why in one line, and leaves the guest on.
#[track_caller]
fn stuck(host: &mut VmHost, name: &str, seconds: u32, why: &str) {
    host.set("HPVMSTOP", &seconds.to_string());
    let outcome = host.run(&["hpvmstop", "-P", name, "-g", "-F"]);
    host.set("HPVMSTOP", "");
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    let errors: Vec<&str> = outcome.stderr.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{outcome}");
    assert!(errors[0].starts_with(&format!("hpvmstop: ERROR ({name}): ")), "{outcome}");
    assert!(errors[0].contains(why), "{outcome}");
    assert!(host.state(name).starts_with("On"), "it runs on");
}

/// A VM Host with a guest that boots from avio_stor.
fn linux_guest(name: &str) -> VmHost {
    let host = VmHost::new(Engine::Real);
    let disk = host.copy_of(&image("test-cloud"), "disk.img");
    let disk = disk_at("0,0,0", &disk);
    host.ok(&["hpvmcreate", "-P", name, "-O", "linux", "-r", "512M", "-a", &disk]);
    host
}

fn a_reboot_inside_the_guest_is_no_stop() {
    let mut guest = Leased::take();
    let qemu = guest.host().snapshot(1).expect("it runs").qemu;
    let seen = Seen::of(guest.console(), "sda");
    guest.console().type_in("reboot -f\n");
    guest.host().wait_for_state("pool", "On (EFI)", SETTLE_BOUND);
    guest.console().wait_for_shell();
    guest.host().wait_for_state("pool", "On (OS)", SETTLE_BOUND);
    assert_eq!(guest.host().snapshot(1).expect("it runs").qemu, qemu);
    assert_eq!(Seen::of(guest.console(), "sda"), seen);
}

fn a_disk_that_came_while_the_guest_ran_is_booted_from() {
    let boots = |adapter: &str, system: &str| {
        let host = VmHost::new(Engine::Real);
        let file = host.copy_of(&image(system), "boot.img");
        let data = host.disk("data.img", 1 << 20);
        host.create("late", "512M", &[disk_at("0,6,0", &data)]);
        host.ok(&["hpvmstart", "-P", "late"]);
        let disk = format!("disk:{adapter}:0,1,0:file:{}", file.display());
        host.ok(&["hpvmmodify", "-P", "late", "-a", &disk]);
        let mut console = Console::attach(&host.run_dir(1));
        let rescue = Rescue::connect(&host.run_dir(1).join("rescue"));
        rescue.expect("the second monitor").execute(&SystemReset {}).expect("a reset");
        console.wait_for_shell();
    };
    boots("avio_stor", "test-cloud");
    boots("scsi", "test-full");
}

fn the_console_has_many_readers_and_one_writer() {
    let mut guest = Leased::take();
    guest.console().run("true");
    let mut late: Vec<Console> =
        (0..3).map(|_| Console::attach(&guest.host().run_dir(1))).collect();
    for reader in &mut late {
        reader.expect("HPVM GUEST READY", SETTLE_BOUND);
    }
    // The one that types first has the keyboard; what the others type goes nowhere.
    late[0].type_in("echo from''-another\n");
    guest.console().run("echo from''-the-writer");
    for reader in &mut late {
        let before = reader.expect("from-the-writer", SETTLE_BOUND);
        assert!(!before.contains("from-another"), "{before}");
    }
}

/// Of a descriptor, by its link below /proc.
fn is_writable(descriptor: &Path) -> bool {
    let mode = fs::symlink_metadata(descriptor).expect("a descriptor").permissions().mode();
    mode & 0o200 != 0
}

/// From a disk's removal until QEMU has closed its file, on a busy machine.
const LET_GO: Duration = Duration::from_secs(20);

fn a_guest_runs_confined() {
    let guest = Leased::take();
    let host = guest.host();
    let qemu = host.snapshot(1).expect("it runs").qemu.pid;
    let worker = process(host, "hpvmapp").expect("it is supervised");
    for pid in [qemu, worker.pid] {
        assert_eq!(status_field(pid, "Seccomp"), "2");
        assert_eq!(status_field(pid, "NoNewPrivs"), "1");
        assert_eq!(u64::from_str_radix(&status_field(pid, "CapEff"), 16), Ok(0));
        assert_eq!(u64::from_str_radix(&status_field(pid, "CapPrm"), 16), Ok(0));
    }
    let users = [qemu, worker.pid].map(|pid| status_field(pid, "Uid"));
    let users: BTreeSet<&str> = users.iter().flat_map(|uids| uids.split_whitespace()).collect();
    assert_eq!(users.len(), 2, "each has one user id of its own: {users:?}");
    assert!(!users.contains("0"), "{users:?}");

    // What QEMU has open is the guest's own, the firmware's code and nothing else.
    let folder = fs::canonicalize(host.path("var/opt/hpvm/guests/pool")).expect("the folder");
    let disk = host.path("pool.img");
    let foreign = || {
        let links = fs::read_dir(format!("/proc/{qemu}/fd")).expect("its descriptors").flatten();
        let mut opened = links.filter_map(|link| Some((fs::read_link(link.path()).ok()?, link)));
        let found = opened.find(|(target, link)| {
            let text = target.to_string_lossy();
            let is_file = text.starts_with('/') && !text.starts_with("/memfd:");
            let is_ours = target.starts_with(&folder) || *target == disk;
            // The empty file by whose locks a list finds running guests; for reading alone.
            let is_mark =
                *target == host.path("var/opt/hpvm/common/engines") && !is_writable(&link.path());
            let is_given = text == "/dev/null" || text.contains("OVMF_CODE") || is_mark;
            is_file && !is_ours && !is_given
        });
        found.map(|(target, _)| target)
    };
    // Who had the guest before may just have taken a disk from it.
    wait_until(LET_GO, &format!("QEMU has {:?} open", foreign()), || foreign().is_none());

    for secret in ["nvram", "nvram.prev", "console.log"] {
        let metadata = fs::metadata(folder.join(secret)).expect("it is there");
        assert_eq!((metadata.permissions().mode() & 0o777, metadata.uid()), (0o600, 0), "{secret}");
    }
    for socket in ["qmp", "rescue", "serial", "control"] {
        let metadata = fs::metadata(host.run_dir(1).join(socket)).expect("it is there");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{socket}");
    }
}
