//! What a guest can be: types, defaults, limits, attributes, dry runs, names, the record of operations, and many commands at
//! once. The tables of docs/options.md are held to the programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use hpvm_cli::dispatch::COMMANDS;
use hpvm_host::removal;
use hpvm_testkit::vm_host::{Engine, Outcome, VmHost, repository};
use serde_json::Value;

use crate::Test;
use crate::refusals::{State, export, refused, stored};
use crate::statements::disk_on;

pub(crate) const TESTS: &[Test] = crate::tests![
    types_have_their_defaults,
    maxima_follow_the_host,
    the_old_table_comes_back_on_request,
    memory_is_rounded_up_and_said_so,
    attributes_are_kept_and_shown,
    a_guest_may_be_marked_not_runnable,
    entitlements_are_kept_as_given,
    the_documented_options_are_those_of_the_programs,
    a_dry_run_says_field_by_field,
    a_dry_run_changes_nothing,
    who_asks_for_what_is_so_already_is_told,
    a_guest_is_renamed_off_and_running,
    every_changing_command_leaves_its_record,
    what_is_refused_at_once_leaves_its_record_too,
    the_texts_say_what_a_guest_has_and_will_have,
    many_commands_at_once,
    as_many_devices_as_a_guest_can_have_start,
];

const UP: Duration = Duration::from_secs(20);

/// `key : value` lines of hpvmstatus -V.
fn fields(host: &VmHost, name: &str) -> BTreeMap<String, String> {
    let text = host.ok(&["hpvmstatus", "-V", "-P", name]);
    let pair = |line: &str| {
        let (key, value) = line.split_once(" : ").or_else(|| line.split_once(':'))?;
        Some((key.trim().to_owned(), value.trim().to_owned()))
    };
    text.lines().filter_map(pair).collect()
}

#[track_caller]
fn warned_once(outcome: &Outcome, about: &str) {
    assert!(outcome.status.success(), "{outcome}");
    let warnings: Vec<&str> = outcome.stderr.lines().filter(|l| l.contains("WARNING")).collect();
    assert_eq!(warnings.len(), 1, "{outcome}");
    assert!(warnings[0].contains(about), "{outcome}");
}

/// Settles 41.
fn types_have_their_defaults() {
    let host = VmHost::new(Engine::Fake);
    let types = [
        ("a", None, "UNKNOWN"),
        ("b", Some("hpux"), "HPUX"),
        ("c", Some("HPUX:11i v3"), "HPUX"),
        ("d", Some("LiNuX"), "LINUX"),
        ("e", Some("windows"), "WINDOWS"),
        ("f", Some("Unknown"), "UNKNOWN"),
    ];
    for (name, asked, shown) in types {
        let mut line = vec!["hpvmcreate", "-P", name];
        line.extend(asked.iter().flat_map(|asked| ["-O", asked]));
        let made = host.run(&line);
        assert!(made.status.success(), "{made}");
        assert_eq!((made.stdout.as_str(), made.stderr.as_str()), ("", ""), "{made}");
        let text = host.ok(&["hpvmstatus"]);
        let row = text.lines().find(|l| l.split_whitespace().next() == Some(name)).expect("a row");
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(words[2..], [shown, "Off", "1", "0", "0", "2", "GB", "0"], "{row}");
        let guest = stored(&host, name);
        assert!(guest.to_string().to_lowercase().contains("manual"), "started by command only");
        let section = host.ok(&["hpvmstatus", "-P", name]);
        assert!(section.contains("10.0%  100.0%"), "{section}");
    }
    assert!(stored(&host, "c").to_string().contains("11i v3"), "the version is kept");
}

/// Settles 33, 93.
fn maxima_follow_the_host() {
    let host = VmHost::new(Engine::Fake);
    let processors = thread::available_parallelism().expect("processors").get();
    for kind in ["hpux", "windows", "linux", "unknown"] {
        host.ok(&["hpvmcreate", "-P", kind, "-O", kind, "-c", &processors.to_string()]);
        let more = (processors + 1).to_string();
        warned_once(
            &host.run(&["hpvmmodify", "-P", kind, "-c", &more]),
            "processors of this VM Host",
        );
        let outcome = host.run(&["hpvmstart", "-P", kind]);
        assert_eq!(outcome.status.code(), Some(1), "{outcome}");
        assert!(outcome.stderr.contains("processors of this VM Host"), "{outcome}");
        refused(&host, &["hpvmmodify", "-P", kind, "-c", "289"]);
        refused(&host, &["hpvmmodify", "-P", kind, "-r", "513G"]);
    }
}

fn the_old_table_comes_back_on_request() {
    let mut host = VmHost::new(Engine::Fake);
    for kind in ["hpux", "windows", "linux", "unknown"] {
        host.ok(&["hpvmcreate", "-P", kind, "-O", kind]);
    }
    let accepted = |host: &VmHost, kind: &str, option: [&str; 2]| {
        let outcome = host.run(&["hpvmmodify", "-P", kind, option[0], option[1]]);
        assert!(outcome.status.success(), "{outcome}");
    };
    let denied = |host: &VmHost, kind: &str, option: [&str; 2], limit: &str| {
        let said = refused(host, &["hpvmmodify", "-P", kind, option[0], option[1]]);
        assert!(said.contains(limit), "{said}");
    };
    accepted(&host, "linux", ["-c", "5"]);
    accepted(&host, "linux", ["-r", "65G"]);
    accepted(&host, "linux", ["-c", "1"]);
    accepted(&host, "linux", ["-r", "2G"]);
    host.set("HPVMLIMITS", "A.03.50");
    for kind in ["hpux", "windows", "linux", "unknown"] {
        accepted(&host, kind, ["-c", "4"]);
        denied(&host, kind, ["-c", "5"], "more than the 4");
        let (least, below, most, above) = match kind {
            "unknown" => ("64M", None, "128G", ("131136M", "128 GB")),
            _ => ("512M", Some("448M"), "64G", ("65600M", "64 GB")),
        };
        accepted(&host, kind, ["-r", least]);
        if let Some(below) = below {
            denied(&host, kind, ["-r", below], "less than the 512 MB");
        }
        accepted(&host, kind, ["-r", most]);
        denied(&host, kind, ["-r", above.0], above.1);
    }
    // What became too much since only warns, and may be made less.
    host.set("HPVMLIMITS", "");
    accepted(&host, "linux", ["-c", "6"]);
    host.set("HPVMLIMITS", "A.03.50");
    accepted(&host, "linux", ["-l", "six"]);
    accepted(&host, "linux", ["-c", "2"]);
}

/// Settles 84.
fn memory_is_rounded_up_and_said_so() {
    let host = VmHost::new(Engine::Fake);
    for (index, (given, made)) in [
        ("1", "64 MB"),
        ("65", "128 MB"),
        ("100M", "128 MB"),
        ("1.1G", "1152 MB"),
        ("2047M", "2 GB"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("rounded{index}");
        let outcome = host.run(&["hpvmcreate", "-P", &name, "-r", given]);
        warned_once(&outcome, given);
        assert!(outcome.stderr.contains(made), "{outcome}");
        assert!(host.ok(&["hpvmstatus"]).contains(made));
        warned_once(&host.run(&["hpvmmodify", "-P", &name, "-r", given]), made);
    }
    for (given, made) in
        [("2048", "2 GB"), ("1.5G", "1536 MB"), ("0.5g", "512 MB"), ("64m", "64 MB")]
    {
        let name = format!("exact{}", made.replace(' ', ""));
        let outcome = host.run(&["hpvmcreate", "-P", &name, "-r", given]);
        assert!(outcome.status.success() && outcome.stderr.is_empty(), "{outcome}");
        let row = host.ok(&["hpvmstatus"]);
        let row = row.lines().find(|line| line.starts_with(&name)).expect("a row");
        assert!(row.contains(made), "{row}");
    }
}

fn attributes_are_kept_and_shown() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web", "-l", "The web server 1.0", "-B", "AUTO"]);
    let all = |host: &VmHost| fields(host, "web").into_values().collect::<BTreeSet<_>>();
    assert!(all(&host).contains("The web server 1.0"), "{:?}", fields(&host, "web"));
    assert!(all(&host).contains("Auto"), "{:?}", fields(&host, "web"));
    host.ok(&["hpvmmodify", "-P", "web", "-l", "", "-B", "Manual"]);
    assert!(!all(&host).contains("The web server 1.0"));
    assert!(all(&host).contains("Manual"), "{:?}", fields(&host, "web"));
}

fn a_guest_may_be_marked_not_runnable() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-x", "runnable_status=disabled"]);
    let outcome = host.run(&["hpvmstart", "-P", "web"]);
    assert_eq!(outcome.status.code(), Some(1), "{outcome}");
    assert!(outcome.stderr.contains("not runnable"), "{outcome}");
    let why = host.ok(&["hpvm", "why", "web"]);
    assert!(why.contains("hpvmmodify -P web -x runnable_status=enabled"), "{why}");
    host.ok(&["hpvmmodify", "-P", "web", "-x", "runnable_status=ENABLED"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    // A guest that runs goes on when it is marked.
    host.ok(&["hpvmmodify", "-P", "web", "-x", "runnable_status=disabled"]);
    host.wait_for_state("web", "On (OS)", UP);
}

/// Settles 83, 85.
fn entitlements_are_kept_as_given() {
    let host = VmHost::new(Engine::Fake);
    for (name, letter, given, shown) in [
        ("a", "-e", "12.5", "12.5%"),
        ("b", "-e", "5", "5.0%"),
        ("c", "-e", "20:50", "20.0%:50.0%"),
        ("d", "-E", "1000", "1000 MHz"),
        ("e", "-E", "1000:1500", "1000 MHz:1500 MHz"),
    ] {
        let outcome = host.run(&["hpvmcreate", "-P", name, letter, given]);
        warned_once(&outcome, "nothing enforces it yet");
        let dry = host.run(&["hpvmcreate", "-P", "new", letter, given, "-s"]);
        assert!(dry.stdout.contains(shown), "{dry}");
        let text = fs::read_to_string(
            host.path(&format!("var/opt/hpvm/guests/{name}/vmm_config.current")),
        );
        let line = format!("entitlement={shown}");
        assert!(text.expect("the text for people").lines().any(|l| l == line), "{name}: {line}");
    }
    let outcome = host.run(&["hpvmcreate", "-P", "f", "-e", "10", "-E", "100"]);
    assert_eq!(outcome.status.code(), Some(2), "{outcome}");
    // Nothing was asked, so there is nothing to warn of.
    assert_eq!(host.run(&["hpvmmodify", "-P", "a", "-l", "x"]).stderr, "");
}

fn the_texts_say_what_a_guest_has_and_will_have() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web", "-c", "1"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", UP);
    let folder = host.path("var/opt/hpvm/guests/web");
    let vcpus = |name: &str| {
        let text = fs::read_to_string(folder.join(name)).ok()?;
        text.lines().find_map(|line| Some(line.strip_prefix("vcpus=")?.to_owned()))
    };
    let both = || (vcpus("vmm_config.current"), vcpus("vmm_config.next"));
    assert_eq!(both(), (Some("1".into()), None));
    host.ok(&["hpvmmodify", "-P", "web", "-c", "2"]);
    assert_eq!(both(), (Some("1".into()), Some("2".into())));
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    assert_eq!(both(), (Some("2".into()), None));
}

struct Row {
    command: String,
    letter: String,
    long: String,
    takes_value: bool,
    is_done: bool,
}

fn documented() -> Vec<Row> {
    let text = fs::read_to_string(repository().join("docs/options.md")).expect("docs/options.md");
    let rows = text.lines().filter(|line| line.starts_with("| hpvm")).map(|line| {
        let cells: Vec<String> =
            line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        Row {
            command: cells[0].clone(),
            letter: cells[1].clone(),
            long: cells[2].clone(),
            takes_value: !cells[3].is_empty(),
            is_done: cells[4] == "done",
        }
    });
    rows.collect()
}

/// Those that are not done are unknown: exit status 2, and nothing happens. Those that are stand in the help, and the
/// parser takes them.
///
/// Settles 74.
fn the_documented_options_are_those_of_the_programs() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web"]);
    let before = State::of(&host);
    let rows = documented();
    for letter in ["-R", "-u", "-g", "-i", "-j"] {
        let is_open = |command: &str| {
            rows.iter().any(|r| r.command == command && r.letter == letter && !r.is_done)
        };
        assert!(is_open("hpvmcreate") && is_open("hpvmmodify"), "{letter} is documented as open");
    }
    let mut helps: BTreeMap<&str, String> = BTreeMap::new();
    for row in &rows {
        let Row { command, letter, long, takes_value, is_done } = row;
        let help =
            helps.entry(command).or_insert_with(|| host.ok(&[command.as_str(), "--help"])).clone();
        let spelled: Vec<&str> =
            [letter, long].into_iter().map(String::as_str).filter(|s| !s.is_empty()).collect();
        for option in spelled {
            let value = if *takes_value { Some("1") } else { None };
            // A name with which no command can do anything, whatever else is said.
            let name = if command == "hpvmcreate" { "web" } else { "nobody" };
            let line: Vec<&str> =
                [&[command.as_str(), "-P", name, option][..], value.as_slice()].concat();
            let outcome = host.run(&line);
            if *is_done {
                assert!(shown(&help, option), "{command} --help does not show {option}");
                let unknown = format!("'{option}' is no option");
                assert!(!outcome.stderr.contains(&unknown), "{outcome}");
            } else {
                assert_eq!(outcome.status.code(), Some(2), "{outcome}");
                assert!(outcome.stderr.contains("is no option of this command"), "{outcome}");
                assert!(!shown(&help, option), "{command} --help shows {option}");
            }
        }
    }
    before.assert_unchanged(&host, "options that are none");
}

/// Whether an option has a line in a help text: `  -F, --force   Ask nothing`.
fn shown(help: &str, option: &str) -> bool {
    let mut lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    lines.any(|line| {
        let (names, text) = line.split_once("  ").unwrap_or((line, ""));
        // hpvmstop's second letter for --quiet stands behind the text.
        names.split([' ', ',']).any(|word| word == option)
            || text.ends_with(&format!("[alias: {option}]"))
    })
}

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

fn a_guest_is_renamed_off_and_running() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "old", "-r", "64M"]);
    let target = |name: &str| fs::read_link(host.path(&format!("var/opt/hpvm/guests/{name}"))).ok();
    let folder = target("old").expect("a link");
    let config = stored(&host, "old");
    let uuid = config["uuid"].as_str().expect("a uuid");
    assert_eq!(folder.to_str(), Some(format!("../uuids/{uuid}").as_str()));
    host.ok(&["hpvmmodify", "-P", "old", "-N", "new"]);
    assert_eq!((target("old"), target("new").as_ref()), (None, Some(&folder)));
    refused(&host, &["hpvmstatus", "-P", "old"]);
    host.ok(&["hpvmstart", "-P", "new"]);
    host.wait_for_state("new", "On (OS)", UP);
    let engine = host.snapshot(1).expect("it runs").qemu.pid;
    host.ok(&["hpvmmodify", "-P", "new", "-N", "newer"]);
    assert_eq!((target("new"), target("newer").as_ref()), (None, Some(&folder)));
    assert_eq!(host.state("newer"), "On (OS)");
    assert_eq!(host.snapshot(1).expect("it runs").qemu.pid, engine, "it runs on");
    // Its name, uuid and number lead to the same guest; the old name is free.
    host.ok(&["hpvmcreate", "-P", "new", "-r", "64M"]);
    refused(&host, &["hpvmmodify", "-P", "newer", "-N", "new"]);
    host.ok(&["hpvmmodify", "-p", "1", "-N", "newer", "-l", "the same name is no rename"]);
    host.ok(&["hpvmstop", "-P", "newer", "-F"]);
    assert_eq!(host.state("newer"), "Off");
    let doctor = host.run(&["hpvm", "doctor"]);
    assert!(doctor.status.success(), "{doctor}");
}

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

const PROCESSES: usize = 8;
const OPERATIONS: usize = 1000;

/// The bound that is told is one that the whole way of a start keeps, on QEMU and on its like. Settles 134.
fn as_many_devices_as_a_guest_can_have_start() {
    const MOST: usize = 1024;
    for engine in [Engine::Fake, Engine::Real] {
        let host = VmHost::new(engine);
        let device = |n: usize| {
            let file = host.disk(&format!("{n}.img"), 4096);
            let (slot, target) = (n / 100, n % 100);
            format!("disk:avio_stor:{},{},{target}:file:{}", 1 + slot / 8, slot % 8, file.display())
        };
        let devices: Vec<String> = (0..MOST).map(device).collect();
        host.create("web", "512M", &devices);
        let told = host.refused(&["hpvmmodify", "-P", "web", "-a", &device(MOST)]);
        assert!(told.contains("1025 devices are more than the 1024 a guest can have"), "{told}");
        host.ok(&["hpvmstart", "-P", "web"]);
        let shown = host.ok(&["hpvmstatus", "-P", "web", "-d"]);
        assert_eq!(shown.lines().filter(|line| line.contains(":file:")).count(), MOST, "{shown}");
        host.ok(&["hpvmstop", "-P", "web", "-h", "-F"]);
    }
}

/// Eight at once create, change and list; each sees its own work at once, and nobody's is lost.
///
/// Settles 80, 82.
fn many_commands_at_once() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "shared"]);
    let together = Barrier::new(PROCESSES);
    thread::scope(|scope| {
        for worker in 0..PROCESSES {
            let (host, together) = (&host, &together);
            scope.spawn(move || {
                together.wait();
                for round in 0..OPERATIONS / PROCESSES / 5 {
                    work(host, worker, round);
                }
            });
        }
    });
    let rounds = OPERATIONS / PROCESSES / 5;
    let export = export(&host);
    let guests = export["guests"].as_array().expect("a list");
    let numbers: BTreeSet<u64> = guests.iter().filter_map(|g| g["number"].as_u64()).collect();
    assert_eq!(numbers.len(), PROCESSES * rounds + 1, "each guest has a number of its own");
    for (worker, round) in (0..PROCESSES).flat_map(|w| (0..rounds).map(move |r| (w, r))) {
        let name = format!("w{worker}-{round}");
        let guest = guests.iter().find(|guest| guest["name"] == name.as_str());
        let guest = guest.unwrap_or_else(|| panic!("{name} is lost"));
        assert_eq!(guest["label"], format!("changed {round}"), "{name}");
    }
    let shared = guests.iter().find(|guest| guest["name"] == "shared").expect("it is there");
    let text = shared.to_string();
    for (worker, round) in (0..PROCESSES).flat_map(|w| (0..rounds).map(move |r| (w, r))) {
        assert!(
            text.contains(&format!("/drive/{worker}/{round}\"")),
            "a change of {worker} is lost"
        );
    }
    let made = export["operations"].as_array().expect("a list");
    assert_eq!(made.len(), 1 + PROCESSES * rounds * 3, "a record of each");
    assert!(made.iter().all(|operation| operation["result"] == "done"));
    let doctor = host.run(&["hpvm", "doctor"]);
    assert!(doctor.status.success(), "{doctor}");
}

/// Five commands: a guest made, changed and listed, and a change of a guest that all share.
fn work(host: &VmHost, worker: usize, round: usize) {
    let name = format!("w{worker}-{round}");
    let quiet = |line: &[&str]| {
        let outcome = host.run(line);
        assert!(outcome.status.success(), "{outcome}");
        outcome
    };
    quiet(&["hpvmcreate", "-P", &name, "-r", "64M"]);
    quiet(&["hpvmmodify", "-P", &name, "-l", &format!("changed {round}")]);
    let list = quiet(&["hpvmstatus"]).stdout;
    let own = (0..=round).map(|r| format!("w{worker}-{r}"));
    let names: BTreeSet<&str> = list.lines().filter_map(|l| l.split_whitespace().next()).collect();
    assert!(own.clone().all(|name| names.contains(name.as_str())), "own work is missing:\n{list}");
    let drive = format!("dvd:avio_stor::null:/drive/{worker}/{round}");
    quiet(&["hpvmmodify", "-P", "shared", "-a", &drive]);
    let shown = quiet(&["hpvmstatus", "-P", "shared", "-d"]).stdout;
    assert!(shown.contains(&format!("/drive/{worker}/{round}\n")), "{shown}");
}
