//! The seven commands in their everyday use.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use hpvm_host::process::{PidFd, start_time};
use hpvm_registry::{Access, Registry};
use hpvm_testkit::vm_host::{Engine, VmHost, program};
use hpvm_testkit::wait::wait_until;
use rustix::process::Signal;

use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_guest_is_created_listed_and_removed,
    a_change_of_nothing_leaves_its_record,
    a_long_record_is_shown_to_its_thousandth_line,
    a_stop_is_hard_unless_it_is_said_otherwise,
    a_guest_runs_from_a_folder_that_only_root_may_enter,
    nothing_becomes_a_vm_host_by_a_look
];

fn a_guest_is_created_listed_and_removed() {
    let host = VmHost::new(Engine::Fake);
    assert_eq!(host.ok(&["hpvmcreate", "-P", "web"]), "");
    assert_eq!(host.state("web"), "Off");
    host.ok(&["hpvmremove", "-P", "web", "-F"]);
    assert!(!host.ok(&["hpvmstatus"]).contains("web"));
    host.ok(&["hpvm", "undelete", "-P", "web"]);
    assert_eq!(host.state("web"), "Off");
}

/// Every changing command leaves one record, also one that finds everything as it is to be. A dry run leaves none.
fn a_change_of_nothing_leaves_its_record() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web", "-l", "same"]);
    let before = host.ok(&["hpvmstatus", "-e"]);
    host.ok(&["hpvmmodify", "-P", "web", "-l", "same", "--reason", "to be sure"]);
    host.ok(&["hpvmmodify", "-P", "web", "-l", "same", "-s"]);
    let after = host.ok(&["hpvmstatus", "-e"]);
    let new: Vec<&str> = after.strip_prefix(&before).expect("more lines").lines().collect();
    assert_eq!(new.len(), 1, "{new:?}");
    assert!(new[0].contains("hpvmmodify -P web -l same") && new[0].contains(": done"), "{new:?}");
}

/// And whoever sees less than all of it is told.
fn a_long_record_is_shown_to_its_thousandth_line() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web"]);
    let mut registry =
        Registry::open(&host.path("var/opt/hpvm/hpvm.db"), Access::ReadWrite).expect("a registry");
    let mut more = |count: usize| {
        let last = registry.operations(None, 1).expect("they can be read").remove(0).operation;
        let change = registry.change().expect("a change");
        for _ in 0..count {
            change.record(&last).expect("a record");
        }
        change.commit().expect("they are recorded");
        host.run(&["hpvmstatus", "-e"])
    };
    let all = more(999);
    assert_eq!((all.stdout.lines().count(), &*all.stderr), (1000, ""), "{:?}", all.status);
    let most = more(1);
    assert_eq!(most.stdout.lines().count(), 1000, "{:?}", most.status);
    let told = "hpvmstatus: earlier operations than the last 1000 are not shown\n";
    assert_eq!(most.stderr, told);
}

fn nothing_becomes_a_vm_host_by_a_look() {
    let host = VmHost::new(Engine::Fake);
    let unmade = |line: &[&str]| {
        let outcome = host.run(line);
        for made in ["var", "run"] {
            assert!(!host.path(made).exists(), "{made} is there: {outcome}");
        }
        outcome
    };
    let dry = unmade(&["hpvmcreate", "-P", "web", "-s"]);
    assert!(dry.status.success() && dry.stdout.contains("web"), "{dry}");
    for line in [
        &["hpvmstart", "-P", "web", "-s"][..],
        &["hpvmstart", "-P", "web"],
        &["hpvmstop", "-P", "web", "-F"],
        &["hpvmmodify", "-P", "web", "-l", "x"],
        &["hpvmclone", "-P", "web", "-N", "new"],
        &["hpvmremove", "-P", "web", "-F"],
    ] {
        let refused = unmade(line);
        assert_eq!(refused.status.code(), Some(1), "{refused}");
        assert!(refused.stderr.contains("No Guest by that name or number: 'web'"), "{refused}");
    }
    host.ok(&["hpvmcreate", "-P", "web"]);
    assert_eq!(host.state("web"), "Off");
}

/// Settles 42: the help and what is done agree.
fn a_stop_is_hard_unless_it_is_said_otherwise() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web"]);
    for (letter, how) in [(None, "(hard)"), (Some("-h"), "(hard)"), (Some("-g"), "gracefully")] {
        host.ok(&["hpvmstart", "-P", "web"]);
        host.wait_for_state("web", "On (OS)", Duration::from_secs(20));
        let line = ["hpvmstop", "-P", "web", "-F"];
        host.ok(&line.into_iter().chain(letter).collect::<Vec<_>>());
        let shown = host.ok(&["hpvmstatus", "-P", "web"]);
        assert!(shown.contains(&format!("stopped {how}")), "{letter:?}: {shown}");
    }
    let help = host.ok(&["hpvmstop", "--help"]);
    let hard = help.lines().find(|line| line.contains("--hard")).expect("it is listed");
    assert!(hard.contains("default"), "{help}");
}

/// A clone of the repository lies in /root as a rule, and the worker's user may not walk there.
fn a_guest_runs_from_a_folder_that_only_root_may_enter() {
    let host = VmHost::new(Engine::Fake);
    let closed = host.path("closed");
    fs::create_dir(&closed).unwrap();
    for name in ["hpvm", "hpvmkeeper", "hpvmapp"] {
        fs::copy(program(name), closed.join(name)).unwrap();
    }
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    host.ok(&["hpvmcreate", "-P", "web"]);
    let started = host.command_from(&closed, &["hpvmstart", "-P", "web"]).output().unwrap();
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    for (role, takeovers) in [("hpvmapp", 1), ("hpvmkeeper", 2)] {
        kill(&host, role);
        wait_until(Duration::from_secs(8), &format!("{role} is replaced"), || {
            host.snapshot(1).is_some_and(|snapshot| snapshot.adoptions >= takeovers)
        });
    }
    assert!(host.state("web").starts_with("On"));
}

/// Kills the guest's keeper or worker, whichever `role` names.
fn kill(host: &VmHost, role: &str) {
    let pid = host.running(role).pop_first();
    let pid = pid.unwrap_or_else(|| panic!("{role} runs: {:?}", host.processes()));
    let start_time = start_time(pid).expect("it lives");
    let process = PidFd::open(pid, start_time).unwrap().expect("it lives");
    process.signal(Signal::KILL).unwrap();
    assert!(process.wait_exit(Duration::from_secs(5)).unwrap());
}
