//! The tables of docs/options.md are held to the programs.

use std::collections::BTreeMap;
use std::fs;

use hpvm_testkit::vm_host::{Engine, VmHost, repository};

use crate::Test;
use crate::refusals::State;

pub(crate) const TESTS: &[Test] = crate::tests![the_documented_options_are_those_of_the_programs,];

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
