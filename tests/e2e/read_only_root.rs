//! A root that cannot be written any more, as on a file system that met an error: changes are refused, what only looks works, and
//! guests that run can be ended.

use std::process::Command;
use std::time::Duration;

use hpvm_testkit::vm_host::{Outcome, VmHost};

use crate::Test;
use crate::input::{by_script, inhabited};
use crate::refusals::{State, refused_by};
use crate::statements::disk_on;

pub(crate) const TESTS: &[Test] = crate::tests![
    changes_are_refused_and_looks_are_not,
    dry_runs_tell_what_they_tell_elsewhere,
    guests_can_be_ended,
];

/// Runs a command where all below the root is read only, as on a file system that met an error.
fn read_only(host: &VmHost, line: &[&str]) -> Outcome {
    let script = "mount --bind \"$HPVM_ROOT\" \"$HPVM_ROOT\" && \
                  mount -o remount,ro,bind \"$HPVM_ROOT\" && cd / && exec -a \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "bash"]);
    Outcome::of(
        &format!("[read-only] {}", line.join(" ")),
        by_script(host, command, script, line),
        b"",
    )
}

fn changes_are_refused_and_looks_are_not() {
    let host = inhabited();
    let disk = host.disk("new.img", 1 << 20);
    let statement = disk_on(&disk);
    let before = State::of(&host);
    for line in [
        &["hpvmcreate", "-P", "new"][..],
        &["hpvmmodify", "-P", "web", "-l", "x"],
        &["hpvmmodify", "-P", "web", "-N", "x"],
        &["hpvmmodify", "-P", "other", "-a", &statement],
        &["hpvmremove", "-P", "web", "-F"],
        &["hpvmremove", "-P", "gone", "-F", "--purge"],
        &["hpvmstart", "-P", "web"],
        &["hpvm", "undelete", "-P", "gone"],
        &["hpvm", "nvram", "-P", "web", "--reset"],
        &["hpvmclone", "-P", "web", "-N", "new"],
        &["hpvmnet", "-c", "-S", "sw1"],
        &["hpvmdevmgmt", "-a", "rdev:/media"],
        &["hpvm", "autostart"],
    ] {
        let said = refused_by(|| read_only(&host, line));
        assert!(said.to_lowercase().contains("read-only"), "{said}");
        before.assert_unchanged(&host, &line.join(" "));
    }
    for line in [
        &["hpvmstatus"][..],
        &["hpvmstatus", "-V"],
        &["hpvmstatus", "-P", "other"],
        &["hpvmstatus", "-P", "web", "-d"],
        &["hpvmstatus", "-P", "web", "-D"],
        &["hpvmstatus", "-P", "web", "-X"],
        &["hpvmstatus", "-P", "web", "-M"],
        &["hpvmstatus", "-P", "web", "--json"],
        &["hpvmstatus", "-P", "web", "-r"],
        &["hpvmstatus", "-s"],
        &["hpvmstatus", "-e"],
        &["hpvmconsole", "-P", "other", "-q", "-c", "he"],
        &["hpvmdevmgmt", "-l", "all"],
        &["hpvmnet"],
        &["hpvm", "gvsdmgr", "get_info", "-P", "other"],
        &["hpvm", "nvram", "-P", "web"],
        &["hpvm", "undelete", "--list"],
        &["hpvm", "why", "web"],
    ] {
        let outcome = read_only(&host, line);
        assert!(outcome.status.success(), "what only looks still works: {outcome}");
        if line.contains(&"why") {
            assert!(outcome.stdout.contains("read-only file system"), "{outcome}");
        }
    }
    let doctor = read_only(&host, &["hpvm", "doctor"]);
    assert_eq!(doctor.status.code(), Some(1), "{doctor}");
    let at = host.path("var/opt/hpvm").display().to_string();
    let told = format!(
        "'{at}' is on a read-only file system, and hpvm writes there\n  next: see what made the file system of {at} read-only, and mount it writable\n"
    );
    assert_eq!(doctor.stdout, told, "{doctor}");
    before.assert_unchanged(&host, "looking");
}

/// What would become of a change can be told where none can be made.
fn dry_runs_tell_what_they_tell_elsewhere() {
    let host = inhabited();
    // A disk there could not be written by any guest.
    let statement = format!("dvd:avio_stor::file:{}", host.disk("new.img", 1 << 20).display());
    host.ok(&["hpvmnet", "-c", "-S", "sw0"]);
    let before = State::of(&host);
    for line in [
        &["hpvmcreate", "-P", "new", "-a", &statement, "-s"][..],
        &["hpvmmodify", "-P", "web", "-N", "x", "-l", "x", "-s"],
        &["hpvmmodify", "-P", "other", "-a", &statement, "-s"],
        &["hpvmclone", "-P", "web", "-N", "new", "-s"],
        &["hpvmremove", "-P", "web", "--purge", "--dry-run"],
        &["hpvmremove", "-P", "gone", "--purge", "--dry-run"],
        &["hpvm", "undelete", "-P", "gone", "--dry-run"],
        &["hpvm", "nvram", "-P", "web", "--reset", "--dry-run"],
        &["hpvmdevmgmt", "-a", "rdev:/media", "--dry-run"],
        &["hpvmhostrdev", "-E", "--dry-run"],
        &["hpvm", "autostart", "--dry-run"],
        &["hpvmnet", "-c", "-S", "sw1", "--dry-run"],
        &["hpvmnet", "-C", "-S", "sw0", "-N", "sw1", "--wire", "nat", "--dry-run"],
        &["hpvmnet", "-b", "-S", "sw0", "--dry-run"],
        &["hpvmnet", "-h", "-S", "localnet", "--dry-run"],
        &["hpvmnet", "-r", "-S", "sw0", "--dry-run"],
        &["hpvmnet", "-d", "-S", "sw0", "--dry-run"],
        &["hpvmnet", "-S", "sw0", "-u", "portid:3:vlanid:5", "--dry-run"],
        &["hpvm", "doctor", "--rebuild", "--dry-run"],
    ] {
        let told = read_only(&host, line);
        assert!(told.status.success(), "{told}");
        assert_eq!(told.stdout, host.ok(line), "{told}");
        before.assert_unchanged(&host, &line.join(" "));
    }
    for (line, reason) in [
        // A start would write.
        (
            &["hpvmstart", "-P", "web", "-s"][..],
            "is on a read-only file system, and a start writes there",
        ),
        (&["hpvmnet", "-c", "-S", "sw0", "--dry-run"], "exists already"),
        (&["hpvmnet", "-C", "-S", "sw0", "-N", "localnet", "--dry-run"], "exists already"),
    ] {
        let told = read_only(&host, line);
        assert_eq!(told.status.code(), Some(1), "{told}");
        assert!(told.to_string().contains(reason), "{told}");
        before.assert_unchanged(&host, &line.join(" "));
    }
}

/// Who cannot write any more must still be able to end what runs: by a command, at the console, and when the host goes down.
fn guests_can_be_ended() {
    let host = inhabited();
    // A cycle of the power would end it for good.
    let cycle = ["hpvmconsole", "-P", "other", "-q", "-c", "pc -cycle"];
    let said = refused_by(|| read_only(&host, &cycle));
    assert!(said.contains("read-only"), "{said}");
    assert_eq!(host.state("other"), "On (OS)");
    for line in [
        &["hpvmstop", "-P", "other", "-F"][..],
        &["hpvmstop", "-P", "other", "-g", "-F"],
        &["hpvmstop", "-a", "-F"],
        &["hpvmconsole", "-P", "other", "-q", "-c", "pc -off"],
        &["hpvm", "autostop"],
    ] {
        let outcome = read_only(&host, line);
        assert!(outcome.status.success(), "{outcome}");
        outcome.assert_prompt();
        let told = "could not be recorded: the registry";
        assert_eq!(outcome.stderr.contains(told), line[0] == "hpvmstop", "{outcome}");
        assert_eq!(host.state("other"), "Off", "{outcome}");
        assert!(!host.run_dir(1).join("qmp").exists(), "nothing is left in /run: {outcome}");
        let again = read_only(&host, &["hpvmstop", "-P", "other", "-F"]);
        assert!(again.status.success(), "{again}");
        host.ok(&["hpvmstart", "-P", "other"]);
        host.wait_for_state("other", "On (OS)", Duration::from_secs(20));
    }
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
}
