//! Whoever is killed or hangs, the guest runs on, or its end is told with the reason, and no other command waits.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hpvm_app::client;
use hpvm_app::protocol::{Reply, Request};
use hpvm_host::lock::pause_for;
use hpvm_host::process::PidFd;
use hpvm_testkit::vm_host::{Engine, Outcome, VmHost};
use hpvm_testkit::wait::wait_until;
use hpvm_testkit::write_script;
use rustix::process::Signal;

use crate::Test;
use crate::chance::{Lot, rounds};
use crate::devices;
use crate::guest_processes::{Process, process};
use crate::pool::Leased;
use crate::statements::disk_at;
use crate::terminal::Terminal;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_supervisor_that_is_killed_is_replaced,
    a_guest_whose_supervisors_are_both_killed_is_taken_over,
    a_graceful_stop_outlives_both_supervisors,
    supervisors_killed_at_any_moment_are_replaced,
    a_qemu_that_stands_still_without_supervisors_delays_nobody,
    a_qemu_that_is_killed_is_told_with_the_reason,
    a_guest_is_supervised_whoever_starts_it,
    a_qemu_that_stands_still_delays_nobody_and_is_shown,
    a_qemu_that_stands_still_is_told_of_for_any_device,
    a_change_that_qemu_hears_late_leaves_nothing,
    a_supervisor_that_stands_still_harms_nobody,
    a_start_that_neither_qemu_nor_worker_lives_through_leaves_a_guest_that_is_off,
    a_hard_stop_ends_a_guest_past_whoever_hangs,
    a_host_boot_starts_what_starts_with_it,
    a_console_that_is_killed_leaves_its_guest_running,
    a_console_session_outlives_the_guests_power,
    a_start_at_the_console_tells_what_hpvmstart_tells,
];

/// Nothing shows a guest that does not run as running, not for a moment after the start was refused.
fn a_start_that_neither_qemu_nor_worker_lives_through_leaves_a_guest_that_is_off() {
    let mut host = VmHost::new(Engine::Fake);
    host.install();
    host.engine_after("exit 3");
    host.ok(&["hpvmcreate", "-P", "web"]);
    let worker = host.path("opt/hpvm/lbin/hpvmapp");
    write_script(&worker, "exit 1");
    host.refused(&["hpvmstart", "-P", "web"]);
    assert_eq!(host.state("web"), "Off");
    let stopped = host.run(&["hpvmstop", "-P", "web", "-h", "-F"]);
    assert!(stopped.status.success(), "{stopped}");
    assert!(process(&host, "hpvmkeeper").is_none(), "nobody is left");
}

const SUPERVISORS: [&str; 2] = ["hpvmapp", "hpvmkeeper"];
/// A guest is supervised again within this time.
const REPLACED_BOUND: Duration = Duration::from_secs(2);
const SETTLE_BOUND: Duration = Duration::from_secs(10);
/// What a command may take that has nothing to do with a guest that hangs.
const UNDISTURBED: Duration = Duration::from_secs(2);
/// And one that has an engine of its own come up, or end, on a machine that is busy.
const POWERED: Duration = Duration::from_secs(10);

/// What must be the same before and after a supervisor was killed.
#[derive(Debug, PartialEq)]
struct Before {
    state: String,
    devices: String,
    qemu: hpvm_app::snapshot::Process,
}

impl Before {
    fn of(guest: &Leased) -> Before {
        let host = guest.host();
        Before {
            state: host.state("pool"),
            devices: host.ok(&["hpvmstatus", "-P", "pool", "-d"]),
            qemu: host.snapshot(1).expect("it runs").qemu,
        }
    }
}

/// Keeper and worker live, and the worker answers.
pub(crate) fn is_supervised(host: &VmHost) -> bool {
    let control = host.run_dir(1).join("control");
    let ping = || client::ask(&control, &Request::Ping, &[], UNDISTURBED, &mut |_| {});
    SUPERVISORS.iter().all(|name| process(host, name).is_some())
        && matches!(ping(), Ok(Reply::Done))
}

pub(crate) fn supervisor(host: &VmHost, name: &str) -> Process {
    process(host, name).unwrap_or_else(|| panic!("no {name} is running"))
}

/// The guest's own clock of how long it runs, in hundredths of a second.
#[track_caller]
fn uptime(guest: &mut Leased) -> u64 {
    let text = guest.console().run("cut -d' ' -f1 /proc/uptime");
    text.replace('.', "").parse().unwrap_or_else(|_| panic!("{text:?} is no time"))
}

/// The guest runs on as it was, and its console with all that it has shown.
#[track_caller]
fn assert_runs_on(guest: &mut Leased, before: &Before, uptime_before: u64) {
    assert_eq!(Before::of(guest), *before);
    guest.attach_again();
    guest.console().expect("HPVM GUEST READY", SETTLE_BOUND);
    assert!(uptime(guest) > uptime_before, "the guest was not started anew");
}

/// Settles 96.
fn a_supervisor_that_is_killed_is_replaced() {
    let mut guest = Leased::take();
    let before = Before::of(&guest);
    for name in ["hpvmapp", "hpvmkeeper", "hpvmkeeper", "hpvmapp"] {
        let uptime = uptime(&mut guest);
        let victim = supervisor(guest.host(), name);
        victim.kill();
        wait_until(REPLACED_BOUND, &format!("the guest is supervised after {name}"), || {
            is_supervised(guest.host())
        });
        assert_ne!(supervisor(guest.host(), name).pid, victim.pid);
        assert_runs_on(&mut guest, &before, uptime);
    }
}

/// Both are gone: neither could replace the other, for both stood still first.
#[track_caller]
fn kill_both(host: &VmHost, order: [&str; 2]) {
    let victims = order.map(|name| supervisor(host, name));
    victims.iter().for_each(|victim| victim.signal(Signal::STOP));
    victims.iter().for_each(Process::kill);
    assert!(SUPERVISORS.iter().all(|name| process(host, name).is_none()));
}

fn a_guest_whose_supervisors_are_both_killed_is_taken_over() {
    let mut guest = Leased::take();
    let before = Before::of(&guest);
    type Command = fn(&mut Leased);
    let commands: [Command; 3] = [
        |guest| _ = guest.host().state("pool"),
        |guest| {
            let why = guest.host().ok(&["hpvm", "why", "pool"]);
            assert!(why.starts_with("'pool' runs since 20"), "{why}");
        },
        |guest| {
            let shown = guest.host().ok(&["hpvmconsole", "-P", "pool", "-q", "-c", "co"]);
            assert!(shown.contains("HPVM GUEST READY"), "{shown}");
        },
    ];
    let orders = [["hpvmapp", "hpvmkeeper"], ["hpvmkeeper", "hpvmapp"]];
    let each = commands.into_iter().flat_map(|command| orders.map(|order| (command, order)));
    for (command, order) in each {
        let uptime = uptime(&mut guest);
        kill_both(guest.host(), order);
        command(&mut guest);
        wait_until(REPLACED_BOUND, "the command before has led to supervision", || {
            is_supervised(guest.host())
        });
        assert_runs_on(&mut guest, &before, uptime);
    }
}

/// Whoever asked the one that is gone brings the next one, and hears from that what came of it.
fn a_graceful_stop_outlives_both_supervisors() {
    let mut host = VmHost::new(Engine::Fake);
    // Longer than a worker is waited for that its keeper starts.
    host.engine_behaves("powerdown=off:5000");
    host.ok(&["hpvmcreate", "-P", "web"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", SETTLE_BOUND);
    let mut stop = host.command(&["hpvmstop", "-P", "web", "-g", "-F"]);
    let stop = stop.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it runs");
    let log = host.path("var/opt/hpvm/guests/web/log");
    let is_asked = || fs::read_to_string(&log).unwrap_or_default().contains("asked to shut down");
    wait_until(SETTLE_BOUND, "the guest is asked to shut down", is_asked);
    kill_both(&host, SUPERVISORS);
    let stopped = stop.wait_with_output().expect("it ends");
    assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    assert_eq!(host.state("web"), "Off");
    let shown = host.ok(&["hpvmstatus", "-P", "web"]);
    assert!(shown.contains("stopped gracefully"), "{shown}");
    wait_until(SETTLE_BOUND, "nothing of it runs", || host.processes().is_empty());
}

/// Each may be about to replace the other when it is killed itself. What came while the guest ran is known to whoever is next.
fn supervisors_killed_at_any_moment_are_replaced() {
    const REPLACEMENT: Duration = Duration::from_millis(150);
    /// A keeper whose workers were all killed at once starts the next one after ten seconds.
    const LULL_BOUND: Duration = Duration::from_secs(30);
    let mut lot = Lot::new();
    let mut guest = Leased::take();
    let file = guest.host().disk("late.img", 8 << 20);
    let disk = disk_at("0,6,0", &file);
    guest.host().ok(&["hpvmmodify", "-P", "pool", "-a", &disk]);
    devices::wait_for(guest.console(), "sdb");
    let before = Before::of(&guest);
    let uptime = uptime(&mut guest);
    for round in 0..rounds() {
        let host = guest.host();
        for step in 0..2 {
            let name = SUPERVISORS[lot.index(SUPERVISORS.len())];
            if let Some(victim) = process(host, name) {
                victim.signal_if_alive(Signal::KILL);
                wait_until(SETTLE_BOUND, "it has ended", || !victim.lives());
            }
            if step == 0 {
                // The moment is what is drawn by lot: nothing is waited for.
                pause_for(lot.within(REPLACEMENT));
            }
        }
        let what = format!("{lot}, round {round}: one of each supervises it as it was");
        wait_until(LULL_BOUND, &what, || {
            // Where the second was killed before the first was replaced, nobody is left, and a command takes it over.
            let _ = host.state("pool");
            is_supervised(host)
                && SUPERVISORS.iter().all(|name| host.running(name).len() == 1)
                && Before::of(&guest) == before
        });
    }
    assert_runs_on(&mut guest, &before, uptime);
    guest.host().ok(&["hpvmmodify", "-P", "pool", "-F", "-d", &disk]);
    devices::wait_gone(guest.console(), "sdb");
    // Whoever leases the guest next compares what it has.
    let is_shown = || Before::of(&guest).devices.contains(&disk);
    wait_until(SETTLE_BOUND, "it has left", || !is_shown());
}

/// Who takes it over does not wait for it.
fn a_qemu_that_stands_still_without_supervisors_delays_nobody() {
    let mut guest = Leased::take();
    let host = guest.host();
    let qemu = host.qemu(1).expect("it runs");
    let go_on = Continued(&qemu);
    qemu.signal(Signal::STOP).expect("a signal");
    kill_both(host, SUPERVISORS);
    let since = Instant::now();
    assert_eq!(host.state("pool"), "On (ATTN)");
    let took = since.elapsed();
    assert!(took < POWERED, "the list took {took:?}");
    assert!(SUPERVISORS.iter().all(|name| process(host, name).is_some()));
    drop(go_on);
    host.wait_for_state("pool", "On (OS)", SETTLE_BOUND);
    assert!(is_supervised(host));
    guest.attach_again();
}

/// A guest that has nothing but its firmware: enough where no operating system is needed.
fn firmware_guest(name: &str) -> VmHost {
    let host = VmHost::new(Engine::Real);
    host.ok(&["hpvmcreate", "-P", name, "-r", "128M"]);
    host.ok(&["hpvmstart", "-P", name]);
    host
}

fn a_qemu_that_is_killed_is_told_with_the_reason() {
    let host = firmware_guest("victim");
    let qemu = host.qemu(1).expect("it runs");
    qemu.signal(Signal::KILL).expect("a signal");
    host.wait_for_state("victim", "Off", REPLACED_BOUND);
    let reason = "QEMU was killed by signal 9";
    for line in [["hpvmstatus", "-P", "victim"], ["hpvm", "why", "victim"]] {
        let shown = host.ok(&line);
        assert!(shown.contains(reason), "{shown}");
    }
    wait_until(SETTLE_BOUND, "nothing of it runs", || host.processes().is_empty());
    host.ok(&["hpvmstart", "-P", "victim"]);
    assert_eq!(host.state("victim"), "On (EFI)");
}

/// As many daemons and scripts do, it ignores how its children end, and so would what it starts.
#[track_caller]
fn by_one_who_ignores_children(host: &VmHost, line: &[&str]) {
    let own = host.command(line);
    let mut command = Command::new("env");
    command.arg("--ignore-signal=CHLD").arg(own.get_program()).args(own.get_args());
    for (name, value) in own.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let outcome = Outcome::of(&line.join(" "), command, b"");
    assert!(outcome.status.success(), "{outcome}");
}

fn a_guest_is_supervised_whoever_starts_it() {
    let mut host = VmHost::new(Engine::Fake);
    host.install();
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M"]);
    // The command answers for what it starts, and the keeper for itself; who follows a keeper starts no script.
    for victims in [&SUPERVISORS[..], &["hpvmapp"]] {
        by_one_who_ignores_children(&host, &["hpvm", "start", "-P", "web"]);
        for name in victims {
            let victim = supervisor(&host, name);
            victim.kill();
            wait_until(SETTLE_BOUND, &format!("the guest is supervised after {name}"), || {
                is_supervised(&host)
            });
            assert_ne!(supervisor(&host, name).pid, victim.pid);
        }
        by_one_who_ignores_children(&host, &["hpvm", "stop", "-P", "web", "-F"]);
        wait_until(SETTLE_BOUND, "nothing of it runs", || host.processes().is_empty());
        host.start_ignoring_children("hpvmkeeper");
    }
}

/// Commands about other guests, and the list, take no longer than usual.
#[track_caller]
fn assert_undisturbed(host: &VmHost) {
    let changes: [(&[&str], Duration); 9] = [
        (&["hpvmstatus", "-V"], UNDISTURBED),
        (&["hpvmcreate", "-P", "other", "-r", "64M"], UNDISTURBED),
        (&["hpvmmodify", "-P", "other", "-l", "x"], UNDISTURBED),
        (&["hpvmstart", "-P", "other"], POWERED),
        (&["hpvmconsole", "-P", "other", "-q", "-c", "he"], UNDISTURBED),
        (&["hpvmstop", "-P", "other", "-h", "-F"], POWERED),
        (&["hpvmremove", "-P", "other", "-F", "--purge"], UNDISTURBED),
        (&["hpvm", "autostart"], UNDISTURBED),
        (&["hpvm", "doctor"], UNDISTURBED),
    ];
    for (line, bound) in changes {
        let since = Instant::now();
        let outcome = host.run(line);
        let took = since.elapsed();
        // What the doctor finds is the guest that hangs.
        let is_finding = line.contains(&"doctor") && outcome.status.code() == Some(1);
        assert!(outcome.status.success() || is_finding, "{outcome}");
        assert!(took < bound, "{line:?} took {took:?}");
    }
}

/// The guest has no network at all: its health is told by its engine. Settles 51.
fn a_qemu_that_stands_still_delays_nobody_and_is_shown() {
    let guest = Leased::take();
    let host = guest.host();
    let qemu = host.qemu(1).expect("it runs");
    let go_on = Continued(&qemu);
    qemu.signal(Signal::STOP).expect("a signal");
    host.wait_for_state("pool", "On (ATTN)", SETTLE_BOUND);
    assert_undisturbed(host);
    let why = host.ok(&["hpvm", "why", "pool"]);
    assert!(why.contains("kill -CONT"), "{why}");
    drop(go_on);
    host.wait_for_state("pool", "On (OS)", SETTLE_BOUND);
}

/// What comes and what leaves is refused alike, at once and when the silence is known, and nothing of it waits.
fn a_qemu_that_stands_still_is_told_of_for_any_device() {
    let host = VmHost::new(Engine::Fake);
    let [stays, leaves, comes] = ["0,0,0", "0,0,1", "0,0,2"]
        .map(|at| format!("disk:avio_stor:{at}:file:{}", host.disk(at, 4096).display()));
    host.ok(&["hpvmcreate", "-P", "web", "-a", &stays, "-a", &leaves]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", SETTLE_BOUND);
    let qemu = host.qemu(1).expect("it runs");
    let before = host.ok(&["hpvmstatus", "-P", "web", "-d", "-D"]);
    let go_on = Continued(&qemu);
    qemu.signal(Signal::STOP).expect("a signal");
    for change in [["-d", &leaves], ["-d", &leaves], ["-a", &comes], ["-m", &leaves]] {
        let refused = host.run(&[&["hpvmmodify", "-P", "web"][..], &change].concat());
        let told = "hpvmmodify: ERROR (web): the guest does not answer; `hpvm why` tells";
        assert_eq!(refused.status.code(), Some(1), "{refused}");
        assert!(refused.stderr.starts_with(told), "{refused}");
        assert_eq!(refused.stderr.lines().count(), 1, "{refused}");
    }
    drop(go_on);
    host.wait_for_state("web", "On (OS)", SETTLE_BOUND);
    assert_eq!(host.ok(&["hpvmstatus", "-P", "web", "-d", "-D"]), before);
    host.ok(&["hpvmmodify", "-P", "web", "-d", &leaves, "-F"]);
}

/// What QEMU took in after the change was given up is taken away from it.
fn a_change_that_qemu_hears_late_leaves_nothing() {
    let host = firmware_guest("late");
    let comes = host.disk("comes.img", 1 << 20);
    let qemu = host.qemu(1).expect("it runs");
    let go_on = Continued(&qemu);
    qemu.signal(Signal::STOP).expect("a signal");
    let disk = disk_at("0,0,9", &comes);
    let refused = host.run(&["hpvmmodify", "-P", "late", "-a", &disk]);
    assert_eq!(refused.status.code(), Some(1), "{refused}");
    assert!(refused.stderr.contains("did not answer"), "{refused}");
    drop(go_on);
    let descriptors = PathBuf::from(format!("/proc/{}/fd", host.snapshot(1).expect("on").qemu.pid));
    let has_it = || {
        let open = fs::read_dir(&descriptors).expect("its descriptors").flatten();
        open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|path| path == comes)
    };
    host.wait_for_state("late", "On (EFI)", SETTLE_BOUND);
    wait_until(SETTLE_BOUND, "QEMU has let the file go", || !has_it());
    host.ok(&["hpvmmodify", "-P", "late", "-a", &disk]);
    assert!(has_it());
}

/// Lets a stopped process go on, also when the test fails.
struct Continued<'a>(&'a PidFd);

impl Drop for Continued<'_> {
    fn drop(&mut self) {
        let _ = self.0.signal(Signal::CONT);
    }
}

fn a_supervisor_that_stands_still_harms_nobody() {
    let mut guest = Leased::take();
    let before = Before::of(&guest);
    let uptime = uptime(&mut guest);

    let keeper = supervisor(guest.host(), "hpvmkeeper");
    keeper.signal(Signal::STOP);
    assert_eq!(guest.host().state("pool"), before.state);
    assert_undisturbed(guest.host());
    assert_eq!(guest.console().run("echo here"), "here");
    keeper.signal(Signal::CONT);

    let worker = supervisor(guest.host(), "hpvmapp");
    worker.signal(Signal::STOP);
    guest.host().wait_for_state("pool", "On (ATTN)", SETTLE_BOUND);
    assert_undisturbed(guest.host());
    worker.signal(Signal::CONT);
    guest.host().wait_for_state("pool", &before.state, SETTLE_BOUND);
    assert_runs_on(&mut guest, &before, uptime);
}

fn a_hard_stop_ends_a_guest_past_whoever_hangs() {
    let host = firmware_guest("stuck");
    for hanging in [&["hpvmapp"][..], &["hpvmkeeper"], &SUPERVISORS, &["hpvm-1"]] {
        if host.state("stuck") == "Off" {
            host.ok(&["hpvmstart", "-P", "stuck"]);
        }
        let qemu = host.qemu(1).expect("it runs");
        let stopped: Vec<Process> = hanging.iter().map(|name| supervisor(&host, name)).collect();
        stopped.iter().for_each(|process| process.signal(Signal::STOP));
        if hanging != ["hpvmkeeper"] {
            // Known not to answer, it is not waited for.
            host.wait_for_state("stuck", "On (ATTN)", SETTLE_BOUND);
        }
        let since = Instant::now();
        let outcome = host.run(&["hpvmstop", "-P", "stuck", "-h", "-F"]);
        assert!(since.elapsed() < SETTLE_BOUND, "with {hanging:?} hanging: {outcome}");
        assert!(outcome.status.success(), "with {hanging:?} hanging: {outcome}");
        let said = outcome.to_string();
        assert!(!said.contains("already"), "nobody else has asked, with {hanging:?}: {said}");
        assert!(qemu.wait_exit(Duration::ZERO).expect("a pidfd"), "QEMU has ended");
        // Those that hang keep nobody from the guest; let go on, they see the end themselves.
        for process in stopped {
            process.signal_if_alive(Signal::CONT);
        }
        host.wait_for_state("stuck", "Off", SETTLE_BOUND);
        wait_until(SETTLE_BOUND, "nothing of it runs", || host.processes().is_empty());
    }
}

/// The run folder of another boot of the VM Host says nothing about now. Settles 35.
fn a_host_boot_starts_what_starts_with_it() {
    let host = VmHost::new(Engine::Real);
    for (name, boot) in [("auto", "auto"), ("manual", "manual")] {
        host.ok(&["hpvmcreate", "-P", name, "-r", "128M", "-B", boot]);
        host.ok(&["hpvmstart", "-P", name]);
    }
    // The product starting again is no boot of the VM Host.
    let running = [1, 2].map(|number| host.snapshot(number).expect("it runs").qemu);
    host.ok(&["hpvmstop", "-P", "manual", "-F"]);
    host.ok(&["hpvm", "autostart"]);
    assert_eq!(host.snapshot(1).expect("it runs").qemu, running[0]);
    assert_eq!(host.state("manual"), "Off");
    // Nor does it bring back what was stopped since.
    host.ok(&["hpvmstop", "-P", "auto", "-F"]);
    host.ok(&["hpvm", "autostart"]);
    assert_eq!(host.state("auto"), "Off");
    for name in ["auto", "manual"] {
        host.ok(&["hpvmstart", "-P", name]);
    }

    host.end_processes();
    for number in [1, 2] {
        let now = host.snapshot(number).expect("a snapshot").boot_id;
        let name = ["auto", "manual"][number as usize - 1];
        let record = host.path(&format!("var/opt/hpvm/guests/{name}/boot.record"));
        for file in [host.run_dir(number).join("status"), record] {
            let text = fs::read_to_string(&file).expect("a file of this boot");
            let before = text.replace(&now, "00000000-0000-4000-8000-000000000000");
            assert_ne!(before, text);
            fs::write(&file, before).expect("the file of another boot");
        }
    }
    assert_eq!(["auto", "manual"].map(|name| host.state(name)), ["Off", "Off"]);
    host.ok(&["hpvm", "autostart"]);
    assert_eq!(["auto", "manual"].map(|name| host.state(name)), ["On (EFI)", "Off"]);
    host.ok(&["hpvmstart", "-P", "manual"]);
    let doctor = host.run(&["hpvm", "doctor"]);
    assert!(doctor.status.success(), "{doctor}");
}

fn a_console_that_is_killed_leaves_its_guest_running() {
    let guest = Leased::take();
    let qemu = guest.host().snapshot(1).expect("it runs").qemu;
    let mut session = Terminal::of(guest.host().command(&["hpvmconsole", "-P", "pool"]));
    session.expect("vMP> ");
    session.type_in("co\r");
    session.expect("HPVM GUEST READY");
    session.kill();
    assert_eq!(guest.host().state("pool"), "On (OS)");

    let mut session = Terminal::of(guest.host().command(&["hpvmconsole", "-P", "pool"]));
    session.expect("vMP> ");
    session.type_in("co\r");
    session.expect("HPVM GUEST READY");
    session.type_in("\x02");
    session.expect("vMP> ");
    session.type_in("x\r");
    assert_eq!(session.ended(), Some(0));
    assert_eq!(guest.host().snapshot(1).expect("it runs").qemu, qemu);
}

/// Ctrl-B during a start leaves the start alone; a cycle is one command with a result. Settles 94, 97.
fn a_console_session_outlives_the_guests_power() {
    let host = VmHost::new(Engine::Real);
    host.ok(&["hpvmcreate", "-P", "box", "-r", "128M"]);
    let mut session = Terminal::of(host.command(&["hpvmconsole", "-P", "box"]));
    session.expect("vMP> ");
    session.type_in("pc -on\r\x02");
    session.expect("the power is on");
    session.expect("vMP> ");
    assert_eq!(host.state("box"), "On (EFI)");

    session.type_in("pc -cycle\r");
    session.expect("the power was cycled");
    assert_eq!(host.state("box"), "On (EFI)");
    session.type_in("pc -off\r");
    session.expect("the power is off");
    assert_eq!(host.state("box"), "Off");
    session.type_in("pc -on\r");
    session.expect("the power is on");
    let first = host.snapshot(1).expect("it runs").qemu;
    let cycled = host.ok(&["hpvmconsole", "-P", "box", "-q", "-c", "pc -cycle"]);
    assert!(cycled.contains("the power was cycled"), "{cycled}");
    assert_ne!(host.snapshot(1).expect("it runs").qemu, first);

    // In the console itself, the session sees the guest end and stays.
    session.type_in("co\r");
    session.expect("Ctrl-B");
    host.ok(&["hpvmconsole", "-P", "box", "-q", "-c", "pc -off"]);
    session.expect("vMP> ");
    session.type_in("x\r");
    assert_eq!(session.ended(), Some(0));
}

/// In a session as its lines; one command has a standard error for it.
fn a_start_at_the_console_tells_what_hpvmstart_tells() {
    let host = VmHost::new(Engine::Fake);
    let disk = host.disk("disk.img", 1 << 20);
    let statement = format!("disk:avio_stor::file:{}", disk.display());
    host.ok(&["hpvmnet", "-c", "-S", "sw1"]);
    let nic = "network:avio_lan::vswitch:sw1";
    host.ok(&["hpvmcreate", "-P", "web", "-a", &statement, "-a", nic]);
    let halted = "virtual switch 'sw1' is halted";
    let gone = "disk.img' does not exist";
    let failed = "the guest cannot start; `hpvm why web` tells what to do";
    for (said, status, done, error) in [
        (halted, 0, "the power is on\n", String::new()),
        (gone, 1, "", format!("hpvmconsole: ERROR: {failed}\n")),
    ] {
        if status != 0 {
            fs::remove_file(&disk).expect("its disk is removed");
        }
        let stop = || host.ok(&["hpvmstop", "-P", "web", "-F"]);
        let started = host.run(&["hpvmstart", "-P", "web"]);
        let (report, _) = started.stderr.split_once("hpvmstart: ").expect("an outcome");
        assert!(report.contains(said), "{started}");
        stop();

        let one = host.run(&["hpvmconsole", "-P", "web", "-c", "pc -on"]);
        assert_eq!(one.status.code(), Some(status), "{one}");
        assert_eq!((&*one.stdout, one.stderr), (done, format!("{report}{error}")));
        stop();

        let session = host.run_with_input(&["hpvmconsole", "-P", "web"], b"pc -on\nx\n");
        let lines: String = report.lines().map(|line| format!("   {line}\n")).collect();
        let outcome = match status {
            0 => done.to_owned(),
            _ => format!("PC failed: {failed}\n"),
        };
        assert!(session.stdout.contains(&format!("\n{lines}   {outcome}\n")), "{session}");
        assert_eq!(session.stderr, "");
        stop();
    }
}
