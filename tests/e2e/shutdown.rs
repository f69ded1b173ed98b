//! The VM Host goes down: all guests are asked at once, get the time that hpvmconf gives them, and none is left running.

use std::time::{Duration, Instant};

use hpvm_registry::{Access, Registry};
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;
use rustix::process::Signal;

use crate::Test;
use crate::statements::disk_at;

pub(crate) const TESTS: &[Test] = crate::tests![
    guests_are_ended_together_and_none_is_left,
    what_was_ended_is_started_at_the_next_boot_alone,
    a_dry_run_tells_who_would_not_be_started,
    nobody_is_asked_where_there_is_no_time,
    a_guest_out_of_reach_is_ended_and_said_why,
    a_guest_that_cannot_be_read_keeps_no_other_off_or_running,
];

const BOUND: Duration = Duration::from_secs(20);

fn running(host: &mut VmHost, name: &str, behaviour: &str) {
    host.engine_behaves(behaviour);
    host.ok(&["hpvmcreate", "-P", name, "-r", "64M", "-B", "auto"]);
    host.ok(&["hpvmstart", "-P", name]);
    host.wait_for_state(name, "On (OS)", BOUND);
}

#[track_caller]
fn assert_all_off(host: &VmHost) {
    wait_until(BOUND, "nothing runs", || host.processes().is_empty());
    assert!(!host.ok(&["hpvmstatus"]).contains("On ("));
    assert!(host.run(&["hpvm", "doctor"]).status.success());
}

/// Of two that shut down, one that does not react and one that hangs, the last two are ended by force, after one bound for
/// all.
fn guests_are_ended_together_and_none_is_left() {
    let mut host = VmHost::new(Engine::Fake);
    host.set("HPVMAUTOSTOP", "4");
    running(&mut host, "quick", "powerdown=off:100");
    running(&mut host, "slow", "powerdown=off:2500");
    running(&mut host, "deaf", "powerdown=ignore");
    running(&mut host, "held", "powerdown=off");
    host.ok(&["hpvmcreate", "-P", "idle"]);
    let dry = host.ok(&["hpvm", "autostop", "--dry-run"]);
    assert!(dry.contains("'slow' would be ended") && !dry.contains("idle"), "{dry}");
    host.qemu(4).expect("it runs").signal(Signal::STOP).expect("our own process");
    host.wait_for_state("held", "On (ATTN)", BOUND);

    let since = Instant::now();
    let outcome = host.run(&["hpvm", "autostop", "--reason", "maintenance"]);
    assert!(outcome.status.success(), "{outcome}");
    for told in ["'quick' has shut down", "'slow' has shut down"] {
        assert!(outcome.stderr.contains(told), "{outcome}");
    }
    for told in ["WARNING (deaf): ended by force: ", "WARNING (held): ended by force: "] {
        assert!(outcome.stderr.contains(told), "{outcome}");
    }
    assert!(!outcome.stderr.contains("idle"), "{outcome}");
    println!("four guests ended in {:.1} s", since.elapsed().as_secs_f64());
    assert_all_off(&host);
    for (name, how) in [("quick", "stopped gracefully"), ("deaf", "stopped (hard)")] {
        let shown = host.ok(&["hpvmstatus", "-P", name]);
        assert!(shown.contains(how), "{shown}");
    }
    let registry = Registry::open(&host.path("var/opt/hpvm/hpvm.db"), Access::ReadOnly);
    let done = registry.expect("the registry").operations(None, 10).expect("the operations");
    let of_slow: Vec<_> = done
        .iter()
        .map(|recorded| &recorded.operation)
        .filter(|o| o.guest.as_ref().is_some_and(|guest| guest.name.as_str() == "slow"))
        .collect();
    assert_eq!(of_slow[0].reason.as_deref(), Some("maintenance"));
    assert!(of_slow[0].command_line.contains("autostop"), "{:?}", of_slow[0]);
}

/// Within the same boot of the VM Host they stay as they were left.
fn what_was_ended_is_started_at_the_next_boot_alone() {
    let mut host = VmHost::new(Engine::Fake);
    running(&mut host, "web", "powerdown=off");
    let outcome = host.run(&["hpvm", "autostop"]);
    assert!(outcome.status.success(), "{outcome}");
    host.ok(&["hpvm", "autostart"]);
    assert_eq!(host.state("web"), "Off");
    let record = host.path("var/opt/hpvm/guests/web/boot.record");
    let text = std::fs::read_to_string(&record).expect("a boot record");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id");
    let earlier = text.replace(boot.trim(), "00000000-0000-0000-0000-000000000000");
    assert_ne!(earlier, text);
    std::fs::write(&record, earlier).expect("a record of an earlier boot");
    host.ok(&["hpvm", "autostart"]);
    host.wait_for_state("web", "On (OS)", BOUND);
    host.ok(&["hpvmstop", "-P", "web", "-hF"]);
}

fn a_dry_run_tells_who_would_not_be_started() {
    let host = VmHost::new(Engine::Fake);
    let disk = host.disk("disk.img", 1 << 20);
    let statement = format!("disk:avio_stor:0,1,0:file:{}", disk.display());
    host.ok(&["hpvmcreate", "-P", "lacks", "-B", "auto", "-a", &statement]);
    host.ok(&["hpvmcreate", "-P", "web", "-B", "auto"]);
    std::fs::remove_file(&disk).expect("it is removed");
    let dry = host.run(&["hpvm", "autostart", "--dry-run"]);
    assert_eq!(dry.status.code(), Some(1), "{dry}");
    assert_eq!(dry.stdout, "'lacks' would not be started\n'web' would be started\n");
    assert!(dry.stderr.contains("disk.img' does not exist"), "{dry}");
    assert_eq!(host.run(&["hpvm", "autostart"]).status.code(), Some(1));
    assert_eq!(host.state("lacks"), "Off");
    host.wait_for_state("web", "On (OS)", BOUND);
}

fn nobody_is_asked_where_there_is_no_time() {
    let mut host = VmHost::new(Engine::Fake);
    host.set("HPVMAUTOSTOP", "0");
    running(&mut host, "web", "powerdown=off");
    let outcome = host.run(&["hpvm", "autostop"]);
    assert!(outcome.status.success() && outcome.stderr.contains("ended by force"), "{outcome}");
    let log = std::fs::read_to_string(host.path("var/opt/hpvm/guests/web/log"));
    assert!(!log.expect("a log").contains("asked to shut down"));
    assert_all_off(&host);
}

fn a_guest_out_of_reach_is_ended_and_said_why() {
    let mut host = VmHost::new(Engine::Fake);
    running(&mut host, "web", "powerdown=off");
    std::fs::remove_dir_all(host.run_dir(1)).expect("its run folder is removed");
    let outcome = host.run(&["hpvm", "autostop"]);
    assert!(outcome.status.success(), "{outcome}");
    let why = "its files in /run were gone or damaged, so nobody could ask it to shut down";
    let told = format!("hpvm autostop: WARNING (web): ended by force: {why}\n");
    assert_eq!(outcome.stderr, told);
    assert_all_off(&host);
}

/// A row that no version of ours wrote.
fn a_guest_that_cannot_be_read_keeps_no_other_off_or_running() {
    let host = VmHost::new(Engine::Fake);
    let disk = disk_at("0,1,0", &host.disk("disk.img", 1 << 20));
    host.ok(&["hpvmcreate", "-P", "broken", "-B", "auto", "-a", &disk]);
    host.ok(&["hpvmcreate", "-P", "web", "-B", "auto"]);
    let kind = |kind: &str| {
        let registry = rusqlite::Connection::open(host.path("var/opt/hpvm/hpvm.db"));
        let set = registry.expect("a database").execute("UPDATE device SET kind = ?1", [kind]);
        assert_eq!(set.expect("it is set"), 1);
    };
    let told = |command: &str| {
        kind("tape drive");
        let outcome = host.run(&["hpvm", command]);
        kind("disk");
        assert_eq!(outcome.status.code(), Some(1), "{outcome}");
        assert!(outcome.stderr.contains("ERROR (broken): "), "{outcome}");
    };
    told("autostart");
    assert!(host.state("web").starts_with("On ("));
    host.ok(&["hpvmstart", "-P", "broken"]);
    told("autostop");
    assert_eq!(host.state("web"), "Off");
    host.ok(&["hpvmstop", "-P", "broken", "-F"]);
    assert_all_off(&host);
}
