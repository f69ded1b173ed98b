//! The tables of options against docs/options.md: what is documented as done is there, and what is there is documented.

use std::collections::BTreeSet;

use hpvm_cli::dispatch::{COMMANDS, Origin};
use hpvm_cli::later::LATER;

type Row = (String, Option<char>, String);

/// The rows whose state is wanted, which gives what belongs to it.
fn documented<T: Ord>(wanted: fn(&str) -> Option<T>) -> BTreeSet<(Row, T)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/options.md");
    let text = std::fs::read_to_string(path).expect("docs/options.md is there");
    let rows = text.lines().filter(|line| line.starts_with("| hpvm")).map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [command, letter, long, _argument, state, ..] = cells[..] else {
            panic!("a row has too few cells: {line}")
        };
        let row = (command.to_owned(), letter.chars().nth(1), long.replace("--", ""));
        wanted(state).map(|of_state| (row, of_state))
    });
    rows.flatten().collect()
}

fn in_the_tables() -> BTreeSet<Row> {
    let historical = COMMANDS.iter().filter(|entry| entry.origin == Origin::Historical);
    historical
        .flat_map(|entry| {
            let options = entry.options();
            let rows: Vec<Row> = options
                .get_arguments()
                .filter(|option| !option.is_positional() && option.get_long() != Some("help"))
                .flat_map(|option| {
                    let long = option.get_long().expect("every option has a long name").to_owned();
                    let letters = option.get_short_and_visible_aliases().unwrap_or_default();
                    let letters = match letters[..] {
                        [] => vec![None],
                        _ => letters.into_iter().map(Some).collect(),
                    };
                    let name = entry.name();
                    letters.into_iter().map(move |letter| (name.clone(), letter, long.clone()))
                })
                .collect();
            rows
        })
        .collect()
}

#[test]
fn the_documentation_and_the_tables_agree() {
    let done = documented(|state| (state == "done").then_some(()));
    let documented: BTreeSet<Row> = done.into_iter().map(|(row, ())| row).collect();
    let tables = in_the_tables();
    assert!(documented.len() > 60, "only {} rows were found", documented.len());
    let missing: Vec<_> = documented.difference(&tables).collect();
    let undocumented: Vec<_> = tables.difference(&documented).collect();
    assert!(missing.is_empty(), "documented as done, and no option: {missing:?}");
    assert!(undocumented.is_empty(), "not in docs/options.md: {undocumented:?}");
}

#[test]
fn what_is_told_to_come_later_is_documented_so() {
    let documented = documented(|state| state.strip_prefix("later: ").map(str::to_owned));
    let rows = LATER.iter().flat_map(|later| {
        let row = |command: &&str| {
            let row = ((*command).to_owned(), Some(later.letter), later.long.to_owned());
            (row, later.work.to_owned())
        };
        later.commands.iter().map(row)
    });
    assert_eq!(rows.collect::<BTreeSet<_>>(), documented);
}

#[test]
fn clap_accepts_the_tables() {
    for entry in COMMANDS {
        entry.options().debug_assert();
    }
}

#[test]
fn every_option_says_what_it_is_for() {
    for entry in COMMANDS {
        for option in entry.options().get_arguments() {
            let id = option.get_id();
            assert!(option.get_help().is_some(), "{}: {id} has no help", entry.name());
        }
    }
}
