//! Two commands that stop one guest at a time, and a stop whose worker stands still. Several that give one guest another name.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use hpvm_host::process::Signal;
use hpvm_registry::{Access, Outcome, Registry};
use hpvm_testkit::vm_host::{Engine, Outcome as Ran, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::Test;
use crate::guest_processes::process;
use crate::statements::disk_on;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_second_graceful_stop_has_the_outcome_of_the_first,
    a_hard_stop_ends_a_graceful_one_at_once,
    power_off_at_the_console_ends_a_graceful_stop_at_once,
    a_shutdown_of_the_host_ends_a_graceful_stop_at_once,
    a_second_hard_stop_has_the_outcome_of_the_first,
    a_hard_stop_goes_past_a_worker_that_was_just_stopped,
    a_worker_that_was_just_stopped_delays_no_change,
    one_of_several_renames_is_made,
    a_cycle_of_the_power_is_one_operation,
];

const BOUND: Duration = Duration::from_secs(20);
/// Well below the bounds of the waits that are not to be sat out.
const AT_ONCE: Duration = Duration::from_secs(6);

fn running(behaviour: &str) -> VmHost {
    let mut host = VmHost::new(Engine::Fake);
    host.engine_behaves(behaviour);
    host.ok(&["hpvmcreate", "-P", "web"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", BOUND);
    host
}

#[track_caller]
fn wait_for_log(host: &VmHost, words: &str) {
    let log = host.path("var/opt/hpvm/guests/web/log");
    wait_until(BOUND, words, || fs::read_to_string(&log).unwrap_or_default().contains(words));
}

/// Runs the first stop, and the second once the log has `words`; gives what both said and what the second took.
fn together(host: &VmHost, first: &str, words: &str, second: &str) -> (Ran, Ran, Duration) {
    beside(host, first, words, &["hpvmstop", "-P", "web", second])
}

/// The same with another command as the second.
fn beside(host: &VmHost, first: &str, words: &str, second: &[&str]) -> (Ran, Ran, Duration) {
    thread::scope(|scope| {
        let first = scope.spawn(|| host.run(&["hpvmstop", "-P", "web", first]));
        wait_for_log(host, words);
        let since = Instant::now();
        let second = host.run(second);
        let took = since.elapsed();
        (first.join().expect("the first stop"), second, took)
    })
}

/// Both went well, the guest is off, each left its record, and nothing is left over.
#[track_caller]
fn assert_stopped_by_both(host: &VmHost, first: &Ran, second: &Ran) {
    assert!(first.status.success() && second.status.success(), "{first}\n{second}");
    assert!(second.stderr.contains("is stopping it already"), "{second}");
    assert_eq!(host.state("web"), "Off");
    let registry = Registry::open(&host.path("var/opt/hpvm/hpvm.db"), Access::ReadOnly);
    let last = registry.expect("the registry").operations(None, 2).expect("the operations");
    for recorded in last {
        assert!(recorded.operation.command_line.starts_with("hpvmstop"));
        assert_eq!(recorded.operation.outcome, Outcome::Done);
    }
    assert!(!host.run_dir(1).join("control").exists());
    wait_until(BOUND, "nothing of it runs", || host.processes().is_empty());
    let doctor = host.run(&["hpvm", "doctor"]);
    assert!(doctor.status.success(), "{doctor}");
    host.ok(&["hpvmstart", "-P", "web"]);
}

fn a_second_graceful_stop_has_the_outcome_of_the_first() {
    let host = running("powerdown=off:2500");
    let (first, second, _) = together(&host, "-gF", "asked to shut down", "-gF");
    assert_stopped_by_both(&host, &first, &second);
}

fn a_hard_stop_ends_a_graceful_one_at_once() {
    let host = running("powerdown=ignore");
    let (first, second, took) = together(&host, "-gF", "asked to shut down", "-hF");
    assert!(took < AT_ONCE, "{took:?}");
    assert!(first.stderr.contains("stopped hard in the meantime"), "{first}");
    assert_stopped_by_both(&host, &first, &second);
}

/// Whatever command the second is.
fn power_off_at_the_console_ends_a_graceful_stop_at_once() {
    ends_at_once(
        &running("powerdown=ignore"),
        &["hpvmconsole", "-P", "web", "-q", "-c", "pc -off"],
    );
}

fn a_shutdown_of_the_host_ends_a_graceful_stop_at_once() {
    let mut host = running("powerdown=ignore");
    host.set("HPVMAUTOSTOP", "0");
    ends_at_once(&host, &["hpvm", "autostop"]);
}

#[track_caller]
fn ends_at_once(host: &VmHost, second: &[&str]) {
    let (first, second, took) = beside(host, "-gF", "asked to shut down", second);
    assert!(took < AT_ONCE, "{took:?}");
    assert!(second.status.success(), "{second}");
    assert!(first.stderr.contains("stopped hard in the meantime"), "{first}");
    assert_eq!(host.state("web"), "Off");
}

fn a_second_hard_stop_has_the_outcome_of_the_first() {
    let host = running("hang=quit");
    // The one who may kill QEMU does so only when both wait.
    let keeper = process(&host, "hpvmkeeper").expect("a keeper");
    keeper.signal(Signal::STOP);
    let (first, second) = thread::scope(|scope| {
        let first = scope.spawn(|| host.run(&["hpvmstop", "-P", "web", "-hF"]));
        wait_for_log(&host, "stopped hard");
        let second = scope.spawn(|| host.run(&["hpvmstop", "-P", "web", "-hF"]));
        let control = host.run_dir(1).join("control");
        wait_until(BOUND, "both are connected to the worker", || connections(&control) == 2);
        keeper.signal(Signal::CONT);
        (first.join().expect("the first stop"), second.join().expect("the second stop"))
    });
    assert_stopped_by_both(&host, &first, &second);
}

/// Connections to a listening socket, as /proc/net/unix shows the worker's ends.
fn connections(socket: &std::path::Path) -> usize {
    const CONNECTED: &str = "03";
    let socket = fs::canonicalize(socket).expect("the worker listens");
    let table = fs::read_to_string("/proc/net/unix").expect("the kernel's table");
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = rows.filter(|row| {
        row.last().is_some_and(|path| socket.ends_with(path.trim_start_matches('/')))
    });
    ours.filter(|row| row.get(5) == Some(&CONNECTED)).count()
}

fn a_hard_stop_goes_past_a_worker_that_was_just_stopped() {
    let host = running("");
    let qemu = host.qemu(1).expect("it runs");
    let worker = process(&host, "hpvmapp").expect("a worker");
    worker.signal(Signal::STOP);
    let since = Instant::now();
    host.ok(&["hpvmstop", "-P", "web", "-hF"]);
    let took = since.elapsed();
    assert!(took < AT_ONCE, "{took:?}");
    println!("past a stopped worker after {took:?}");
    assert!(qemu.wait_exit(Duration::ZERO).expect("a pidfd"), "QEMU has ended");
    worker.signal_if_alive(Signal::CONT);
    assert_eq!(host.state("web"), "Off");
    let shown = host.ok(&["hpvmstatus", "-P", "web"]);
    assert!(shown.contains("stopped (hard)"), "{shown}");
    wait_until(BOUND, "nothing of it runs", || host.processes().is_empty());
}

/// Before anybody has noticed: the successor of the worker goes on with what that was asked.
fn a_worker_that_was_just_stopped_delays_no_change() {
    let host = running("powerdown=off");
    let disk = disk_on(&host.disk("comes.img", 1 << 20));
    for line in [&["hpvmmodify", "-P", "web", "-a", &disk][..], &["hpvmstop", "-P", "web", "-gF"]] {
        process(&host, "hpvmapp").expect("a worker").signal(Signal::STOP);
        let since = Instant::now();
        host.ok(line);
        let took = since.elapsed();
        assert!(took < AT_ONCE, "{line:?} took {took:?}");
        println!("{line:?} past a stopped worker after {took:?}");
    }
    assert!(host.ok(&["hpvmstatus", "-P", "web", "-d"]).contains("comes.img"));
    assert!(host.ok(&["hpvmstatus", "-P", "web"]).contains("stopped gracefully"));
}

/// The others mean a guest that is not there any more, whether they come to look it up before or after.
fn one_of_several_renames_is_made() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web"]);
    let done = thread::scope(|scope| {
        let host = &host;
        let rename = |new| move || host.run(&["hpvmmodify", "-P", "web", "-N", new]);
        let begun = ["x1", "x2", "x3", "x4"].map(|new| scope.spawn(rename(new)));
        begun.map(|one| one.join().expect("a rename"))
    });
    let (made, refused): (Vec<_>, Vec<_>) = done.iter().partition(|ran| ran.status.success());
    assert_eq!(made.len(), 1, "{}", done.map(|ran| ran.to_string()).concat());
    for refused in refused {
        assert!(refused.stderr.contains("No Guest by that name or number: 'web'"), "{refused}");
    }
}

fn a_cycle_of_the_power_is_one_operation() {
    let host = running("powerdown=ignore");
    host.ok(&["hpvmconsole", "-P", "web", "-q", "-c", "pc -cycle"]);
    let registry = Registry::open(&host.path("var/opt/hpvm/hpvm.db"), Access::ReadOnly);
    let done = registry.expect("the registry").operations(None, 10).expect("the operations");
    let lines = done.iter().map(|recorded| recorded.operation.command_line.as_str());
    let at_console = lines.filter(|line| line.starts_with("hpvmconsole")).count();
    assert_eq!(at_console, 1, "{done:?}");
}
