//! A boot record that is cut, overwritten or removed while its guest runs: the guest runs on, is shown with the reason, is
//! explained, and is stopped and started like any other. Something else in the place of a file of a guest's.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hpvm_host::removal;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;
use rustix::process::Signal;

use crate::Test;
use crate::guest_processes::{Process, process};
use crate::refusals::no_control_bytes;
use crate::statements::disk_on;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_worker_that_follows_another_needs_no_boot_record,
    a_guest_without_supervisors_needs_no_boot_record_to_be_taken_over,
    one_guest_that_cannot_be_taken_over_keeps_no_other_without,
    a_boot_record_that_is_no_file_keeps_nobody_waiting,
    what_is_no_file_in_a_guests_folder_keeps_nobody_waiting,
    a_guest_without_boot_record_keeps_its_disk,
    a_removed_boot_record_is_written_again,
    a_boot_record_overwritten_under_its_worker_is_told,
    a_guest_keeps_its_machine_type,
];

const BOUND: Duration = Duration::from_secs(20);

/// What becomes of the file, and a word of the reason that is told.
type Damage = (fn(&Path), &'static str);

const DAMAGES: [Damage; 4] = [
    (
        |record| {
            let text = fs::read_to_string(record).expect("a boot record");
            fs::write(record, &text[..text.len() / 2]).expect("it is cut");
        },
        "empty",
    ),
    (|record| fs::write(record, [b"\xff{]\n".as_slice(), &[0; 900]].concat()).unwrap(), "line 1"),
    (
        |record| {
            let text = fs::read_to_string(record).expect("a boot record");
            fs::write(record, text + "garbage\n").expect("a line more");
        },
        "line 2",
    ),
    (|record| fs::remove_file(record).expect("it is removed"), "empty"),
];

fn running() -> VmHost {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", BOUND);
    host
}

/// A newer QEMU, as the next start finds it here, changes nothing of the machine; what is not known any more is told.
fn a_guest_keeps_its_machine_type() {
    let host = running();
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    let newest = fs::read_to_string(record(&host)).expect("a boot record");
    let (before, after) = ("\"pc-q35-10.0\"", "\"pc-q35-9.2\"");
    assert!(newest.contains(before), "{newest}");
    fs::write(record(&host), newest.replace(before, after)).expect("it is older");
    assert_eq!(host.run(&["hpvmstart", "-P", "web"]).stderr.matches("WARNING").count(), 0);
    host.wait_for_state("web", "On (OS)", BOUND);
    assert!(fs::read_to_string(record(&host)).expect("a boot record").contains(after));
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    fs::write(record(&host), "{").expect("it is cut");
    let outcome = host.run(&["hpvmstart", "-P", "web"]);
    assert!(outcome.status.success(), "{outcome}");
    assert!(outcome.stderr.contains("the machine it had before is not known"), "{outcome}");
    host.wait_for_state("web", "On (OS)", BOUND);
    assert!(fs::read_to_string(record(&host)).expect("a boot record").contains(before));
}

fn record(host: &VmHost) -> std::path::PathBuf {
    host.path("var/opt/hpvm/guests/web/boot.record")
}

/// The guest runs on without its record, everybody says so, and a stop and a start put it right.
#[track_caller]
fn assert_lives_without(host: &VmHost, reason: &str, stop: &[&str]) {
    let qemu = host.snapshot(1).expect("a snapshot").qemu;
    host.wait_for_state("web", "On (ATTN)", BOUND);
    assert_eq!(host.snapshot(1).expect("a snapshot").qemu, qemu, "the same QEMU runs on");
    let shown = host.ok(&["hpvmstatus", "-P", "web"]);
    assert!(shown.contains("boot record cannot be used") && shown.contains(reason), "{shown}");
    let why = host.ok(&["hpvm", "why", "web"]);
    assert!(why.contains(reason) && why.contains("hpvmstart -P web"), "{why}");
    assert!(host.run(&["hpvm", "doctor"]).stdout.contains("boot record cannot be used"));
    let said = host.refused(&["hpvmmodify", "-P", "web", "-a", "dvd:avio_stor:0,4,0:null:/srv"]);
    assert!(said.contains("boot.record"), "{said}");
    host.ok(stop);
    assert_eq!(host.state("web"), "Off");
    wait_until(BOUND, "nothing of it runs", || host.processes().is_empty());
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", BOUND);
    assert!(host.run(&["hpvm", "doctor"]).status.success());
}

fn a_worker_that_follows_another_needs_no_boot_record() {
    // One that is removed is not missed by those who have it open.
    for (damage, reason) in &DAMAGES[..3] {
        let host = running();
        damage(&record(&host));
        process(&host, "hpvmapp").expect("a worker").kill();
        assert_lives_without(&host, reason, &["hpvmstop", "-P", "web", "-gF"]);
    }
}

fn a_guest_without_supervisors_needs_no_boot_record_to_be_taken_over() {
    for (damage, reason) in DAMAGES {
        let host = running();
        let supervisors = ["hpvmapp", "hpvmkeeper"].map(|name| process(&host, name).expect("one"));
        supervisors.iter().for_each(|process| process.signal(Signal::STOP));
        supervisors.iter().for_each(Process::kill);
        damage(&record(&host));
        assert_lives_without(&host, reason, &["hpvmstop", "-P", "web", "-hF"]);
    }
}

fn a_boot_record_that_is_no_file_keeps_nobody_waiting() {
    for made in ["mkfifo", "ln -s /dev/zero"] {
        let host = running();
        let record = record(&host);
        fs::remove_file(&record).expect("it is removed");
        let mut words = made.split(' ');
        let mut make = Command::new(words.next().expect("a program"));
        assert!(make.args(words).arg(&record).status().expect("it runs").success());
        host.ok(&["hpvmstatus", "-P", "web"]);
        let change = ["hpvmmodify", "-P", "web", "-a", "dvd:avio_stor:0,4,0:null:/srv"];
        let said = host.refused(&change);
        assert!(said.contains("boot.record") && said.contains("no regular file"), "{said}");
        host.ok(&["hpvmstop", "-P", "web", "-hF"]);
        host.ok(&["hpvmstart", "-P", "web"]);
        host.ok(&change);
    }
}

/// Who opens a pipe waits for somebody at its other end, and a device has no end; a folder is told by the system.
fn what_is_no_file_in_a_guests_folder_keeps_nobody_waiting() {
    const FILES: [&str; 8] = [
        "busy",
        "log",
        "console.log",
        "qemu.log",
        "guest.json",
        "nvram",
        "nvram.prev",
        "vmm_config.current",
    ];
    let host = running();
    host.qemu(1).expect("it runs").signal(Signal::KILL).expect("a signal");
    host.wait_for_state("web", "Off", BOUND);
    let device = host.path("zero");
    let made = Command::new("mknod").arg(&device).args(["c", "1", "5"]).status();
    assert!(made.expect("mknod runs").success());
    let mode = || fs::metadata(&device).expect("the device").permissions().mode() & 0o777;
    let its_mode = mode();
    let link = format!("ln -s {}", device.display());
    for (name, made) in FILES.iter().flat_map(|name| ["mkfifo", &link, "mkdir"].map(|m| (name, m)))
    {
        let path = fs::canonicalize(host.path("var/opt/hpvm/guests/web")).expect("a folder");
        let (path, aside) = (path.join(name), host.path("aside"));
        fs::rename(&path, &aside).expect("it is put aside");
        let mut words = made.split(' ');
        let program = words.next().expect("a program");
        let made_by = Command::new(program).args(words).arg(&path).status();
        assert!(made_by.expect("it runs").success());
        let label = format!("{name} {program}");
        for line in [
            &["hpvmstatus", "-P", "web"][..],
            &["hpvmstatus", "-P", "web", "-e"],
            &["hpvmmodify", "-P", "web", "-l", &label],
            &["hpvm", "nvram", "-P", "web"],
            &["hpvmstart", "-P", "web"],
            &["hpvm", "why", "web"],
            &["hpvm", "doctor"],
            &["hpvmstop", "-P", "web", "-hF"],
        ] {
            let outcome = host.run(line);
            outcome.assert_prompt();
            assert!(matches!(outcome.status.code(), Some(0 | 1)), "{name} by {made}: {outcome}");
            no_control_bytes(&outcome);
        }
        assert_eq!(host.state("web"), "Off", "{name} by {made}");
        assert_eq!(mode(), its_mode, "what {name} leads to is not ours");
        removal::either(&path).expect("it goes");
        fs::rename(&aside, &path).expect("it comes back");
    }
    host.ok(&["hpvm", "doctor", "--repair"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", BOUND);
}

fn a_guest_without_boot_record_keeps_its_disk() {
    let host = VmHost::new(Engine::Fake);
    let disk = disk_on(&host.disk("web.img", 1 << 20));
    for name in ["web", "other"] {
        host.ok(&["hpvmcreate", "-P", name, "-r", "64M", "-a", &disk]);
    }
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", BOUND);
    fs::write(record(&host), "garbage\n").expect("it is overwritten");
    let said = host.refused(&["hpvmstart", "-P", "other"]);
    assert!(said.contains("in use by the running guest 'web'"), "{said}");
}

/// What the worker has of it is as good as the file: device changes of this run are in it, and the guest takes more.
fn a_removed_boot_record_is_written_again() {
    let host = running();
    host.ok(&["hpvmmodify", "-P", "web", "-a", "dvd:avio_stor:0,4,0:null:/srv"]);
    let (path, qemu) = (record(&host), host.snapshot(1).expect("a snapshot").qemu);
    let before = fs::read_to_string(&path).expect("a boot record");
    assert!(before.contains("/srv"));
    for lose in [
        (|path| fs::remove_file(path).expect("it is removed")) as fn(&Path),
        |path| fs::rename(path, path.with_extension("old")).expect("it is put aside"),
        |path| {
            fs::remove_file(path).expect("it is removed");
            fs::write(path, "something else\n").expect("another in its place");
        },
    ] {
        lose(&path);
        let why = host.ok(&["hpvm", "why", "web"]);
        assert!(
            why.contains("boot record") && why.contains("Next:  hpvm doctor --repair"),
            "{why}"
        );
        let found = host.run(&["hpvm", "doctor"]);
        assert!(
            !found.status.success() && found.stdout.contains("its worker still has it"),
            "{found}"
        );
        let done = host.ok(&["hpvm", "doctor", "--repair"]);
        assert!(done.contains("wrote the boot record of 'web' again"), "{done}");
        assert_eq!(fs::read_to_string(&path).expect("a boot record"), before);
        assert!(host.run(&["hpvm", "doctor"]).status.success());
        host.wait_for_state("web", "On (OS)", BOUND);
        assert!(host.ok(&["hpvm", "why", "web"]).contains("nothing is wrong"));
    }
    assert_eq!(host.snapshot(1).expect("a snapshot").qemu, qemu, "the same QEMU runs on");
    // What the next worker notes is in the file, and not in one that nobody sees.
    host.ok(&["hpvmmodify", "-P", "web", "-d", "dvd:avio_stor:0,4,0"]);
    let after = fs::read_to_string(&path).expect("a boot record");
    assert!(after.starts_with(&before) && after.len() > before.len(), "{after}");
    host.ok(&["hpvmstop", "-P", "web", "-gF"]);
}

/// Then its worker has no other copy, and works on from memory; nobody else knows the machine.
fn a_boot_record_overwritten_under_its_worker_is_told() {
    let host = running();
    fs::write(record(&host), "garbage\n").expect("it is overwritten");
    let why = host.ok(&["hpvm", "why", "web"]);
    assert!(why.contains("what machine it got") && why.contains("hpvmstart -P web"), "{why}");
    let found = host.run(&["hpvm", "doctor", "--repair"]);
    assert!(!found.status.success() && found.stdout.contains("is lost"), "{found}");
    host.ok(&["hpvmstop", "-P", "web", "-gF"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    assert!(host.run(&["hpvm", "doctor"]).status.success());
}

/// A folder in the place of the record lets no worker begin; even so the guest is shown, and ended by a hard stop.
fn one_guest_that_cannot_be_taken_over_keeps_no_other_without() {
    let host = running();
    host.ok(&["hpvmcreate", "-P", "other", "-B", "auto"]);
    host.ok(&["hpvmstart", "-P", "other"]);
    host.wait_for_state("other", "On (OS)", BOUND);
    // None brings another back while it is ended, so all are stopped first.
    let living = |name| host.running(name).into_iter().map(Process::open);
    let all: Vec<Process> = ["hpvmkeeper", "hpvmapp"].into_iter().flat_map(living).collect();
    assert_eq!(all.len(), 4, "two keepers and two workers");
    all.iter().for_each(|one| one.signal(Signal::STOP));
    all.iter().for_each(Process::kill);
    fs::remove_file(record(&host)).expect("a file");
    fs::create_dir(record(&host)).expect("a folder in its place");
    let qemus = [1, 2].map(|number| host.qemu(number).expect("it runs"));

    let outcome = host.run(&["hpvm", "autostart"]);
    assert!(outcome.stderr.contains("ERROR (web)"), "{outcome}");
    assert!(host.state("web").starts_with("On ("));
    wait_until(BOUND, "the other one is supervised", || {
        host.ok(&["hpvm", "why", "other"]).contains("nothing is wrong")
    });
    assert!(host.ok(&["hpvm", "why", "web"]).contains("nobody supervises it"));
    host.refused(&["hpvmstop", "-P", "web", "-gF"]);
    host.ok(&["hpvmstop", "-P", "web", "-hF"]);
    assert_eq!(host.state("web"), "Off");
    assert!(qemus[0].wait_exit(Duration::ZERO).expect("a pidfd"));
    assert!(!qemus[1].wait_exit(Duration::ZERO).expect("a pidfd"), "the other one runs on");
}
