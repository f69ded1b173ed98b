//! What a command would do, told before it is done: field by field, with nothing changed. And what needs no change is said to
//! need none.

use std::time::Duration;

use hpvm_cli::dispatch::COMMANDS;
use hpvm_testkit::vm_host::{Engine, VmHost};
use serde_json::Value;

use crate::Test;
use crate::refusals::{State, export};
use crate::statements::disk_on;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_dry_run_says_field_by_field,
    a_dry_run_changes_nothing,
    who_asks_for_what_is_so_already_is_told,
];

const UP: Duration = Duration::from_secs(20);

fn a_dry_run_says_field_by_field() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", UP);
    let disk = host.disk("new.img", 1 << 20);
    let good = disk_on(&disk);
    let bad = "disk:avio_stor:0,5,0:file:/nowhere";
    let before = State::of(&host);
    let line = ["hpvmmodify", "-P", "web", "-l", "new", "-c", "2", "-r", "128M", "-a", &good, "-s"];
    let table = host.ok(&line);
    let row = |text: &str, field: &str| {
        let row = text.lines().find(|l| l.starts_with(field)).map(str::to_owned);
        row.unwrap_or_else(|| panic!("no row '{field}' in\n{text}"))
    };
    assert!(row(&table, "label").ends_with("now"), "{table}");
    assert!(row(&table, "vcpus").contains("next start: "), "{table}");
    assert!(row(&table, "memory").contains("next start: "), "{table}");
    assert!(row(&table, "storage 0,0,0").ends_with("now"), "{table}");
    let outcome = host.run(&[&line[..], &["-a", bad]].concat());
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    assert!(row(&outcome.stdout, "storage 0,5,0").ends_with(" refused"), "{outcome}");
    let why = outcome.stderr.lines().filter(|line| line.contains("'/nowhere'"));
    assert_eq!(why.count(), 1, "the reason is said once: {outcome}");
    assert!(!outcome.stdout.contains("'/nowhere'"), "{outcome}");
    let outcome = host.run(&[&line[..], &["-a", bad, "--json"]].concat());
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    let json: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    let changes = json["changes"].as_array().expect("a list");
    let when = |field: &str| {
        let change = changes.iter().find(|change| change["field"] == field);
        change.unwrap_or_else(|| panic!("no '{field}' in {json}"))["when"].clone()
    };
    assert_eq!(when("label"), "now");
    assert_eq!(when("vcpus"), "next_start");
    assert_eq!(when("storage 0,5,0"), "refused");
    before.assert_unchanged(&host, "dry runs");
}

/// Beside those of the scenes of `crash_steps`, of which there is one for each kind of change.
fn a_dry_run_changes_nothing() {
    for entry in COMMANDS {
        let options = entry.options();
        let has =
            |name: &str| options.get_arguments().any(|option| option.get_long() == Some(name));
        assert_eq!(has("reason"), has("dry-run"), "{}", entry.name());
    }
    let host = VmHost::new(Engine::Fake);
    for name in ["web", "other", "gone"] {
        host.ok(&["hpvmcreate", "-P", name, "-r", "64M"]);
    }
    host.ok(&["hpvmstart", "-P", "other"]);
    host.wait_for_state("other", "On (OS)", UP);
    host.ok(&["hpvmmodify", "-P", "web", "-B", "auto"]);
    host.ok(&["hpvmremove", "-P", "gone", "-F"]);
    let before = State::of(&host);
    let operations = export(&host)["operations"].clone();
    for line in [
        &["hpvmcreate", "-P", "new", "-s"][..],
        &["hpvmcreate", "-P", "new", "--dry-run"],
        &["hpvmmodify", "-P", "web", "-N", "new", "-r", "128M", "-s"],
        &["hpvmmodify", "-P", "other", "-N", "new", "--dry-run"],
        &["hpvmremove", "-P", "web", "--dry-run"],
        &["hpvmremove", "-P", "web", "--purge", "--dry-run"],
        &["hpvmremove", "-P", "gone", "--purge", "--dry-run"],
        &["hpvmstart", "-P", "web", "-s"],
        &["hpvmstart", "-P", "web", "--dry-run"],
        &["hpvmstop", "-P", "other", "--dry-run"],
        &["hpvmstop", "-a", "--dry-run"],
        &["hpvm", "undelete", "-P", "gone", "--dry-run"],
        &["hpvm", "autostart", "--dry-run"],
        &["hpvm", "nvram", "-P", "web", "--reset", "--dry-run"],
        &["hpvm", "nvram", "-P", "web", "--restore", "--dry-run"],
        &["gvsdmgr", "clear_stat", "-P", "other", "--dry-run"],
        &["hpvm", "gvsdmgr", "get_info", "-P", "other", "--dry-run"],
    ] {
        let outcome = host.run(line);
        assert!(outcome.status.success(), "{outcome}");
        assert!(!outcome.stdout.is_empty(), "a dry run says what would happen: {outcome}");
        before.assert_unchanged(&host, &line.join(" "));
    }
    assert_eq!(export(&host)["operations"], operations, "and leaves no record");
    host.ok(&["hpvmstop", "-a", "-F"]);
    host.ok(&["hpvmmodify", "-P", "web", "-B", "manual"]);
    let nothing = [&["hpvmstop", "-a"][..], &["hpvm", "autostart"], &["hpvm", "autostop"]];
    for line in nothing {
        assert_eq!(host.ok(&[line, &["--dry-run"]].concat()), "Nothing would change.\n");
    }
}

/// In one line, and it is no failure.
fn who_asks_for_what_is_so_already_is_told() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web", "-c", "2", "-l", "shop"]);
    let line = ["hpvmmodify", "-P", "web", "-c", "2", "-l", "shop"];
    let said = "hpvmmodify: nothing to change: guest 'web' is so already\n";
    let asked_for_nothing = host.run(&["hpvmmodify", "-P", "web"]);
    assert!(asked_for_nothing.status.success(), "{asked_for_nothing}");
    assert!(asked_for_nothing.stderr.contains("no option says what"), "{asked_for_nothing}");
    for state in ["Off", "On (OS)"] {
        host.wait_for_state("web", state, UP);
        let same = host.run(&line);
        assert!(same.status.success() && same.stdout.is_empty(), "{same}");
        assert_eq!(same.stderr, said, "{state}");
        host.ok(&["hpvmstart", "-P", "web"]);
    }
    let other = host.run(&["hpvmmodify", "-P", "web", "-c", "2", "-l", "site"]);
    assert!(other.status.success() && other.stderr.is_empty(), "{other}");
}
