//! The record of operations: each changing command leaves one, whether it goes well or is refused, and looking leaves none.

use std::fs;

use hpvm_host::removal;
use hpvm_testkit::vm_host::{Engine, VmHost};
use serde_json::Value;

use crate::Test;
use crate::refusals::export;

pub(crate) const TESTS: &[Test] = crate::tests![
    every_changing_command_leaves_its_record,
    what_is_refused_at_once_leaves_its_record_too,
];

/// Commands that change something, in an order that makes sense, and whether they go well.
const CHANGES: &[(&[&str], bool)] = &[
    (&["hpvmcreate", "-P", "web", "-r", "64M"], true),
    (&["hpvmcreate", "-P", "web"], false),
    (&["hpvmmodify", "-P", "web", "-l", "new label"], true),
    (&["hpvmmodify", "-P", "web", "-a", "disk:scsi::file:/nowhere"], false),
    (&["hpvmmodify", "-P", "web", "-N", "other"], false),
    (&["hpvmstart", "-P", "web"], true),
    (&["hpvmstart", "-P", "web"], true),
    (&["hpvm", "gvsdmgr", "clear_stat", "-P", "web"], true),
    (&["hpvmremove", "-P", "web", "-F"], false),
    (&["hpvmstop", "-P", "web", "-F"], true),
    (&["hpvmstop", "-P", "web", "-F"], true),
    (&["hpvmclone", "-P", "web", "-N", "twin"], true),
    (&["hpvmnet", "-c", "-S", "sw1"], true),
    (&["hpvmdevmgmt", "-a", "server:db"], true),
    (&["hpvmhostrdev", "-u"], true),
    (&["hpvm", "doctor", "--repair"], true),
    (&["hpvm", "autostart"], true),
    (&["hpvm", "autostop"], true),
    (&["hpvm", "nvram", "-P", "web", "--reset", "-F"], true),
    (&["hpvmremove", "-P", "web", "-F"], true),
    (&["hpvm", "undelete", "-P", "web"], true),
    (&["hpvmmodify", "-P", "web", "-x", "runnable_status=disabled"], true),
    (&["hpvmstart", "-P", "web"], false),
    (&["hpvmremove", "-P", "web", "-F", "--purge"], true),
];

#[track_caller]
fn each_command_with_a_reason_is_there(host: &VmHost) {
    let help = host.ok(&["hpvm", "--help"]);
    for word in help.lines().filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next()) {
        let changes_something = host.ok(&["hpvm", word, "--help"]).contains("--reason");
        let own_name = format!("hpvm{word}");
        let is_here =
            |(line, _): &(&[&str], bool)| line.iter().any(|&w| w == word || w == own_name);
        assert!(!changes_something || CHANGES.iter().any(is_here), "no line for {word}");
    }
}

fn every_changing_command_leaves_its_record() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "other", "-r", "64M", "-B", "auto"]);
    each_command_with_a_reason_is_there(&host);
    // What the doctor finds to repair.
    fs::remove_file(host.path("var/opt/hpvm/guests/other")).expect("a link");
    for (line, goes_well) in CHANGES {
        let before = export(&host)["operations"].as_array().expect("a list").len();
        let reason = format!("it's ticket {before}");
        let outcome = host.run(&[line, &["--reason", &reason][..]].concat());
        assert_eq!(outcome.status.success(), *goes_well, "{outcome}");
        let export = export(&host);
        let operations = export["operations"].as_array().expect("a list");
        assert_eq!(operations.len(), before + 1, "one record of {}", outcome.line);
        let record = operations.last().expect("the last one");
        assert_eq!(record["reason"], reason.as_str(), "{record:#}");
        assert_eq!(record["result"], if *goes_well { "done" } else { "failed" }, "{record:#}");
        assert_eq!(record["error"].is_string(), !goes_well, "{record:#}");
        let typed = record["command_line"].as_str().expect("a text");
        assert!(line.iter().all(|word| typed.contains(word)), "{record:#}");
        let quoted = format!(r"'it'\''s ticket {before}'");
        assert!(typed.ends_with(&quoted), "a shell would read the same from it: {record:#}");
        assert_eq!(record["uid"], rustix::process::getuid().as_raw(), "{record:#}");
        for key in ["user", "from", "at"] {
            assert!(record[key].as_str().is_some_and(|v| !v.is_empty()), "{key}: {record:#}");
        }
        assert!(record["duration_ms"].as_u64().is_some_and(|ms| ms < 60_000), "{record:#}");
        let is_change = |command: &str| line.contains(&command) && *goes_well;
        if is_change("hpvmcreate") {
            assert!(record["before"].is_null() && record["after"]["name"] == "web", "{record:#}");
        }
        if is_change("hpvmmodify") {
            assert_ne!(record["before"], record["after"], "{record:#}");
        }
        if is_change("hpvmremove") {
            assert!(record["before"]["name"] == "web" && record["after"].is_null(), "{record:#}");
        }
    }
    let events = host.ok(&["hpvmstatus", "-e"]);
    assert!(events.contains("ticket") || events.contains("hpvmmodify"), "{events}");
    // What only looks leaves none.
    let before = export(&host)["operations"].clone();
    host.ok(&["hpvmstatus", "-V"]);
    host.ok(&["hpvm", "why", "other"]);
    assert_eq!(export(&host)["operations"], before);
}

/// Before anything was looked at: for what stands in hpvmconf, or since the guest is out of everybody's reach.
fn what_is_refused_at_once_leaves_its_record_too() {
    let mut host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M"]);
    let mut refused: Vec<String> = Vec::new();
    let mut refuse = |host: &VmHost, line: &[&str]| {
        host.refused(line);
        refused.push(line.join(" "));
    };
    host.set("HPVMKEEPREMOVED", "soon");
    refuse(&host, &["hpvmremove", "-P", "web", "-F"]);
    host.set("HPVMKEEPREMOVED", "7");
    host.ok(&["hpvmstart", "-P", "web"]);
    refuse(&host, &["hpvmremove", "-P", "web", "-F", "--purge"]);
    refuse(&host, &["hpvmremove", "-P", "web"]);
    removal::folder(&host.run_dir(1)).expect("nobody reaches it any more");
    for line in [
        ["hpvmstart", "-P", "web"].as_slice(),
        &["hpvmremove", "-P", "web", "-F"],
        &["hpvmstop", "-P", "web", "-g", "-F"],
        &["hpvm", "nvram", "-P", "web", "--reset"],
    ] {
        refuse(&host, line);
    }
    host.ok(&["hpvmstop", "-P", "web", "-h", "-F"]);
    let export = export(&host);
    let failed = export["operations"].as_array().expect("a list").iter();
    let failed = failed.filter(|record| record["result"] == "failed");
    let recorded: Vec<&Value> = failed.map(|record| &record["command_line"]).collect();
    assert_eq!(recorded, refused.iter().collect::<Vec<_>>());
}
