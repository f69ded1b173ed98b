//! Ctrl-C and its kin while a command waits: one line says what is left, the state is valid, and nothing stays half done.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use hpvm_host::lock::pause_for;
use hpvm_host::process::Signal;
use hpvm_registry::{Access, Outcome, Registry};
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::Test;
use crate::chance::{Met, Moments};
use crate::doctor::kill_supervisors;
use crate::guest_processes::process;
use crate::started::Started;
use crate::statements::disk_at;

pub(crate) const TESTS: &[Test] = crate::tests![
    an_interrupted_start_goes_on,
    a_start_that_waits_for_its_turn_changes_nothing,
    an_interrupted_hard_stop_goes_on,
    a_change_under_way_is_made_in_full,
    a_change_is_made_in_full_though_its_worker_is_killed,
    a_question_is_no_shelter,
    who_waits_for_the_registry_changes_nothing,
    what_an_interrupted_command_says_is_true,
    what_the_caller_ignores_is_ignored,
];

const BOUND: Duration = Duration::from_secs(20);
/// From a signal to the command's end.
const ANSWER_BOUND: Duration = Duration::from_secs(3);

/// A command that nobody answers.
#[track_caller]
fn running(host: &VmHost, line: &[&str]) -> Started {
    let mut command = host.command(line);
    command.stdin(Stdio::piped());
    Started::by(command)
}

/// Until the command catches signals, which it does before anything else.
#[track_caller]
fn wait_until_it_catches(command: &Started) {
    wait_until(BOUND, "it catches signals", || {
        let status = fs::read_to_string(format!("/proc/{}/status", command.number()));
        let status = status.unwrap_or_default();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        blocked.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap_or(0) & 2 != 0)
    });
}

fn created(behaviour: &str) -> VmHost {
    let mut host = VmHost::new(Engine::Fake);
    host.engine_behaves(behaviour);
    host.ok(&["hpvmcreate", "-P", "web"]);
    host
}

fn log(host: &VmHost) -> String {
    fs::read_to_string(host.path("var/opt/hpvm/guests/web/log")).unwrap_or_default()
}

#[track_caller]
fn wait_for_log(host: &VmHost, words: &str) {
    wait_until(BOUND, words, || log(host).contains(words));
}

/// How the last operation ended.
fn last_outcome(host: &VmHost) -> Outcome {
    let registry = Registry::open(&host.path("var/opt/hpvm/hpvm.db"), Access::ReadOnly);
    let mut last = registry.expect("the registry").operations(None, 1).expect("the operations");
    last.remove(0).operation.outcome
}

#[track_caller]
fn assert_sound(host: &VmHost) {
    let doctor = host.run(&["hpvm", "doctor"]);
    assert!(doctor.status.success(), "{doctor}");
}

/// A stop that nobody answers keeps the guest to itself until it is dropped or interrupted.
fn graceful_stop(host: &VmHost) -> Started {
    host.wait_for_state("web", "On (OS)", BOUND);
    let stop = running(host, &["hpvmstop", "-P", "web", "-gF"]);
    wait_for_log(host, "asked to shut down");
    stop
}

fn an_interrupted_start_goes_on() {
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let host = created("greet=2000");
        let start = running(&host, &["hpvmstart", "-P", "web"]);
        wait_until(BOUND, "the guest has a worker", || process(&host, "hpvmapp").is_some());
        start.gets(signal);
        let (code, said) = start.end_within(BOUND);
        assert_eq!(code, Some(status), "{said}");
        let line =
            "hpvmstart: interrupted; guest 'web' goes on starting; `hpvmstatus -P web` shows it\n";
        assert_eq!(said, line);
        assert!(
            matches!(last_outcome(&host), Outcome::Failed(text) if text.contains("interrupted"))
        );
        host.wait_for_state("web", "On (OS)", BOUND);
        assert_sound(&host);
        host.ok(&["hpvmstop", "-P", "web", "-hF"]);
    }
}

fn a_start_that_waits_for_its_turn_changes_nothing() {
    let host = created("powerdown=ignore");
    host.ok(&["hpvmstart", "-P", "web"]);
    let stop = graceful_stop(&host);
    for line in [["hpvmstart", "-P", "web"].as_slice(), &["hpvmmodify", "-P", "web", "-l", "new"]] {
        let waiting = running(&host, line);
        wait_until_it_catches(&waiting);
        waiting.gets(Signal::INT);
        let (code, said) = waiting.end_within(BOUND);
        assert_eq!(code, Some(130), "{said}");
        assert_eq!(said, format!("{}: interrupted; nothing was changed\n", line[0]));
    }
    stop.gets(Signal::TERM);
    let (code, said) = stop.end_within(BOUND);
    assert_eq!(code, Some(143), "{said}");
    assert!(said.contains("goes on shutting down"), "{said}");
    assert!(!host.ok(&["hpvmstatus", "-P", "web"]).contains("new"));
    assert_sound(&host);
    host.ok(&["hpvmstop", "-P", "web", "-hF"]);
}

fn an_interrupted_hard_stop_goes_on() {
    let host = created("hang=quit");
    host.ok(&["hpvmstart", "-P", "web"]);
    // The one who may kill QEMU does not, until it goes on.
    let keeper = process(&host, "hpvmkeeper").expect("a keeper");
    keeper.signal(Signal::STOP);
    let stop = running(&host, &["hpvmstop", "-P", "web", "-hF"]);
    wait_for_log(&host, "stopped hard");
    stop.gets(Signal::INT);
    let (code, said) = stop.end_within(BOUND);
    keeper.signal(Signal::CONT);
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("hpvmstop: interrupted; guest 'web' is being stopped"), "{said}");
    assert!(matches!(last_outcome(&host), Outcome::Failed(_)));
    host.wait_for_state("web", "Off", BOUND);
    wait_until(BOUND, "nothing of it runs", || host.processes().is_empty());
    assert_sound(&host);
}

/// Configuration and machine agree, whenever the signal comes.
fn a_change_under_way_is_made_in_full() {
    let host = created("slow=device_add:1500");
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", BOUND);
    let disk = host.disk("more.img", 1 << 20);
    let statement = disk_at("0,2,0", &disk);
    let modify = running(&host, &["hpvmmodify", "-P", "web", "-a", &statement]);
    let record = host.path("var/opt/hpvm/guests/web/boot.record");
    wait_until(BOUND, "the guest is asked", || {
        fs::read_to_string(&record).expect("a boot record").contains("more.img")
    });
    modify.gets(Signal::INT);
    let (code, said) = modify.end_within(BOUND);
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("hpvmmodify: interrupted; guest 'web' is changed already"), "{said}");
    let shown = host.ok(&["hpvmstatus", "-P", "web"]);
    assert!(shown.contains("more.img") && !shown.contains("Waiting for Next"), "{shown}");
    assert_eq!(last_outcome(&host), Outcome::Done);
    assert_sound(&host);
}

/// The next worker finds out what was done, and is asked for the rest; where its keeper has died too, the command brings both.
fn a_change_is_made_in_full_though_its_worker_is_killed() {
    let host = created("slow=device_add:500,slow=device_del:500");
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", BOUND);
    let disk = host.disk("more.img", 1 << 20);
    let statement = disk_at("0,2,0", &disk);
    let record = host.path("var/opt/hpvm/guests/web/boot.record");
    let asked = || {
        let text = fs::read_to_string(&record).expect("a boot record");
        text.matches("\"asked\"").count()
    };
    let kill_worker = |host: &VmHost| process(host, "hpvmapp").expect("a worker").kill();
    let kill_both = |host: &VmHost| assert_eq!(kill_supervisors(host), 2);
    for (verb, has_it, kill) in [
        ("-a", true, &kill_worker as &dyn Fn(&VmHost)),
        ("-d", false, &kill_worker),
        ("-a", true, &kill_both),
        ("-d", false, &kill_both),
    ] {
        let before = asked();
        let modify = running(&host, &["hpvmmodify", "-P", "web", verb, &statement, "-F"]);
        wait_until(BOUND, "the guest is asked", || asked() > before);
        kill(&host);
        let (code, said) = modify.end_within(BOUND);
        assert_eq!(code, Some(0), "{verb}: {said}");
        let shown = host.ok(&["hpvmstatus", "-P", "web"]);
        assert_eq!(shown.contains("more.img"), has_it, "{shown}");
        assert!(!shown.contains("Waiting for Next Start"), "{shown}");
        assert_eq!(last_outcome(&host), Outcome::Done);
    }
    assert_sound(&host);
}

fn a_question_is_no_shelter() {
    let host = created("");
    host.ok(&["hpvmnet", "-c", "-S", "lan"]);
    host.ok(&["hpvmcreate", "-P", "idle"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    for line in [
        ["hpvmstop", "-P", "web"].as_slice(),
        &["hpvmremove", "-P", "idle"],
        &["hpvmnet", "-S", "lan", "-d"],
    ] {
        let asking = running(&host, line);
        wait_until(BOUND, "it waits for an answer", || {
            let place = format!("/proc/{}/wchan", asking.number());
            fs::read_to_string(place).is_ok_and(|wait| wait.contains("poll"))
        });
        asking.gets(Signal::INT);
        let (code, said) = asking.end_within(BOUND);
        assert_eq!(code, Some(130), "{said}");
        let told = format!("{}: interrupted; nothing was changed\n", line[0]);
        assert!(said.ends_with(&told), "{said}");
    }
    assert!(host.state("web").starts_with("On ("));
    assert!(host.ok(&["hpvmnet"]).contains("lan") && host.state("idle") == "Off");
}

/// Commands that change the registry, on a host with the guest `web` and the removed guest `gone`; and a part of what they
/// say when they are done all the same.
const CHANGES: &[(&[&str], &str)] = &[
    (&["hpvmcreate", "-P", "new"], "guest 'new' is made already"),
    (&["hpvmclone", "-P", "web", "-N", "copy"], "guest 'copy' is made already"),
    (&["hpvmmodify", "-P", "web", "-l", "new"], "guest 'web' is changed already"),
    (&["hpvmremove", "-P", "web", "-F"], "guest 'web' is removed already"),
    (&["hpvm", "undelete", "-P", "gone"], "guest 'gone' is back already"),
    (&["hpvmdevmgmt", "-a", "gdev:/tmp"], "done already"),
    (&["hpvmhostrdev", "-D"], "done already"),
    (&["hpvmnet", "-c", "-S", "lan"], "virtual switch 'lan' is made already"),
];

fn with_a_removed_guest() -> VmHost {
    let host = created("");
    host.ok(&["hpvmcreate", "-P", "gone"]);
    host.ok(&["hpvmremove", "-P", "gone", "-F"]);
    host
}

/// The registry as text, but for its record of operations.
fn content(host: &VmHost) -> String {
    let registry = Registry::open(&host.path("var/opt/hpvm/hpvm.db"), Access::ReadOnly);
    let registry = registry.expect("the registry");
    let guests = (registry.all().expect("guests"), registry.removed().expect("removed guests"));
    let entries = registry.entries().expect("entries");
    let (switches, at_start) = (registry.vswitches(), registry.hostrdev_at_start());
    format!("{guests:?} {entries:?} {switches:?} {at_start:?}")
}

/// Another command's change goes on for longer than anybody likes to wait.
fn who_waits_for_the_registry_changes_nothing() {
    let host = with_a_removed_guest();
    let before = content(&host);
    let mut registry =
        Registry::open(&host.path("var/opt/hpvm/hpvm.db"), Access::ReadWrite).expect("a registry");
    let change = registry.change().expect("our turn");
    for (line, _) in CHANGES.iter().filter(|(line, _)| line[0] != "hpvmmodify") {
        for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
            let waiting = running(&host, line);
            wait_until_it_catches(&waiting);
            let since = std::time::Instant::now();
            waiting.gets(signal);
            let (code, said) = waiting.end_within(BOUND);
            assert!(since.elapsed() < ANSWER_BOUND, "{line:?} took {:?}", since.elapsed());
            assert_eq!(code, Some(status), "{said}");
            let name = if line[0] == "hpvm" { "hpvm undelete" } else { line[0] };
            assert_eq!(said, format!("{name}: interrupted; nothing was changed\n"));
        }
    }
    drop(change);
    assert_eq!(content(&host), before);
    assert_sound(&host);
}

/// At whatever moment a signal comes: what is said of what is left is what is left, and nothing is half done.
fn what_an_interrupted_command_says_is_true() {
    for (line, done) in CHANGES {
        let mut moments = Moments::within(Duration::from_millis(30));
        while let Some(moment) = moments.next() {
            let host = with_a_removed_guest();
            let before = content(&host);
            let command = running(&host, line);
            pause_for(moment);
            command.gets(Signal::INT);
            let (code, said) = command.end_within(BOUND);
            let now = content(&host);
            let told = || format!("{moments}, {line:?}: {code:?} {said}");
            match code {
                // Ended before it caught signals, which is before it does anything.
                None => assert_eq!(now, before, "{}", told()),
                Some(0) => assert_ne!(now, before, "{}", told()),
                Some(130) if said.contains("nothing was changed") => {
                    assert_eq!(now, before, "{}", told());
                }
                Some(130) => {
                    assert!(said.contains("interrupted; ") && said.contains(done), "{}", told());
                    assert_ne!(now, before, "{}", told());
                }
                _ => panic!("{}", told()),
            }
            let doctor = host.run(&["hpvm", "doctor"]);
            assert!(doctor.status.success(), "{}: {doctor}", told());
            moments.was(match code {
                None => Met::BeforeItsWork,
                Some(130) => Met::AtWork,
                _ => Met::AfterItsEnd,
            });
        }
    }
}

/// `nohup` and a shell's background work by ignoring a signal.
fn what_the_caller_ignores_is_ignored() {
    let host = created("powerdown=off:1500");
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", BOUND);
    let hpvm = host.command(&["hpvm"]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "trap '' HUP INT; exec \"$0\" stop -P web -gF"]).arg(hpvm.get_program());
    shell.envs(hpvm.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.stderr(Stdio::piped());
    let stop = Started::by(shell);
    wait_for_log(&host, "asked to shut down");
    stop.gets(Signal::HUP);
    stop.gets(Signal::INT);
    let (code, said) = stop.end_within(BOUND);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(host.state("web"), "Off");
}
