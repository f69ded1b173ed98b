//! `cargo xtask defects`: which of the 162 admitted defects of A.03.50 are settled here, and by which test.
//!
//! Called by people and by `.ci/run`. `docs/release-notes.md` has one row per defect; a row is settled when the doc
//! comment of a test says so (`Settles 82.`, `Settles 33, 35-36.`, `Settles 77: why.`), and by nothing else. So the
//! count in README.md cannot be better than the tests: this task fails when row, test and count disagree, and `--write`
//! brings what can be derived up to date. It reads the tests as text and does not know whether they pass; running them
//! is `make test`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::cache::checkout;
use crate::tidy::{TextFile, Tree};

/// Rows of the table, as numbered by the release notes of A.03.50 in the order of their sections.
const ROWS: u16 = 162;

const RELEASE_NOTES: &str = "docs/release-notes.md";
const README: &str = "README.md";
const README_LINE: &str = "Defects of A.03.50: ";

/// Prints every row and the counts; with `--write` first updates the states and README's line.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let update = match arguments {
        [] => Update::CheckOnly,
        [word] if word == "--write" => Update::Write,
        _ => bail!("usage: cargo xtask defects [--write]"),
    };
    let root = checkout();
    let tree = Tree::read(&root).with_context(|| format!("reading {}", root.display()))?;
    let mut report = Report::read(&tree)?;
    if update == Update::Write {
        report.write(&tree)?;
        report = Report::read(&Tree::read(&root)?)?;
    }
    print!("{report}");
    report.verdict()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Update {
    CheckOnly,
    Write,
}

/// What a row of the release notes says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Settled,
    CannotApply(String),
    Open(String),
}

impl State {
    fn parse(text: &str) -> Option<Self> {
        let told = |prefix: &str| {
            let reason = text.strip_prefix(prefix)?.trim();
            (!reason.is_empty()).then(|| reason.to_owned())
        };
        match text {
            "settled" => Some(Self::Settled),
            _ => told("n/a:").map(Self::CannotApply).or_else(|| told("open:").map(Self::Open)),
        }
    }
}

/// A doc comment that says which rows the test below it settles.
#[derive(Debug, PartialEq, Eq)]
struct Claim {
    test: String,
    rows: Vec<u16>,
}

struct Report {
    root: PathBuf,
    states: BTreeMap<u16, State>,
    tests: BTreeMap<u16, Vec<String>>,
    readme_line: Option<String>,
    faults: Vec<String>,
}

impl Report {
    fn read(tree: &Tree) -> anyhow::Result<Self> {
        let notes =
            tree.file(RELEASE_NOTES).with_context(|| format!("{RELEASE_NOTES} is missing"))?;
        let mut faults = Vec::new();
        let states = rows(&notes.text, &mut faults);
        let mut tests: BTreeMap<u16, Vec<String>> = BTreeMap::new();
        for file in tree.with_extension("rs").filter(|file| holds_tests(&file.path)) {
            for claim in claims(file, &mut faults) {
                for row in claim.rows {
                    tests.entry(row).or_default().push(claim.test.clone());
                }
            }
        }
        let readme = tree.file(README).map(|file| file.text.as_str()).unwrap_or_default();
        let readme_line =
            readme.lines().find(|line| line.starts_with(README_LINE)).map(str::to_owned);
        let mut report = Self { root: tree.root.clone(), states, tests, readme_line, faults };
        report.compare();
        Ok(report)
    }

    /// Adds what rows and tests say against each other.
    fn compare(&mut self) {
        for row in 1..=ROWS {
            if !self.states.contains_key(&row) {
                self.faults.push(format!("{RELEASE_NOTES} has no row {row}"));
            }
        }
        for (row, tests) in &self.tests {
            let by = tests.join(", ");
            match self.states.get(row) {
                Some(State::CannotApply(reason)) => {
                    self.faults.push(format!("row {row} cannot apply ({reason}), yet is claimed by {by}"));
                }
                Some(State::Open(_)) => self.faults.push(format!(
                    "row {row} is noted as open and settled by {by}: run `cargo xtask defects --write`"
                )),
                Some(State::Settled) => {}
                None => self.faults.push(format!("there is no row {row}, claimed by {by}")),
            }
        }
        for (row, state) in &self.states {
            if *state == State::Settled && !self.tests.contains_key(row) {
                self.faults.push(format!(
                    "row {row} is noted as settled and no test says so: note it as 'open: …' or write the test"
                ));
            }
        }
        if self.readme_line.as_deref() != Some(self.counts().as_str()) {
            self.faults.push(format!(
                "{README} lacks the line '{}': run `cargo xtask defects --write`",
                self.counts()
            ));
        }
    }

    fn settled(&self) -> usize {
        self.states.keys().filter(|row| self.tests.contains_key(row)).count()
    }

    fn counts(&self) -> String {
        let settled = self.settled();
        let cannot_apply =
            self.states.values().filter(|state| matches!(state, State::CannotApply(_))).count();
        let open = self.states.len().saturating_sub(settled + cannot_apply);
        format!(
            "{README_LINE}{settled} settled by tests, {cannot_apply} cannot apply here, {open} open"
        )
    }

    fn write(&self, tree: &Tree) -> anyhow::Result<()> {
        if let Some(notes) = tree.file(RELEASE_NOTES) {
            let settled = |row: u16| {
                self.tests.contains_key(&row)
                    && matches!(self.states.get(&row), Some(State::Open(_)))
            };
            let lines = notes.text.lines().map(|line| match TableRow::parse(line) {
                Some(row) if settled(row.number) => row.with_state("settled"),
                _ => line.to_owned(),
            });
            store(&self.root, RELEASE_NOTES, &joined(lines))?;
        }
        let readme = tree.file(README).with_context(|| format!("{README} is missing"))?;
        if self.readme_line.is_none() {
            bail!("{README} has no line that begins with '{README_LINE}'");
        }
        let lines = readme.text.lines().map(|line| match line.starts_with(README_LINE) {
            true => self.counts(),
            false => line.to_owned(),
        });
        store(&self.root, README, &joined(lines))
    }

    fn verdict(&self) -> anyhow::Result<()> {
        if self.faults.is_empty() {
            return Ok(());
        }
        bail!("defects, tests and README.md disagree:\n  {}", self.faults.join("\n  "))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (row, state) in &self.states {
            match (self.tests.get(row), state) {
                (Some(tests), _) => writeln!(out, "{row:>3} settled  {}", tests.join(", "))?,
                (None, State::CannotApply(reason)) => writeln!(out, "{row:>3} n/a      {reason}")?,
                (None, State::Open(reason)) => writeln!(out, "{row:>3} open     {reason}")?,
                (None, State::Settled) => writeln!(out, "{row:>3} open     no test settles it")?,
            }
        }
        writeln!(out, "{}", self.counts())
    }
}

fn joined(lines: impl Iterator<Item = String>) -> String {
    lines.fold(String::new(), |text, line| text + &line + "\n")
}

fn store(root: &Path, path: &str, text: &str) -> anyhow::Result<()> {
    fs::write(root.join(path), text).with_context(|| format!("writing {path}"))
}

/// One line of the table: number, what the original did, what hpvm does, state.
struct TableRow<'line> {
    number: u16,
    line: &'line str,
    state: &'line str,
}

impl<'line> TableRow<'line> {
    fn parse(line: &'line str) -> Option<Self> {
        let cells: Vec<&str> = line.strip_prefix('|')?.strip_suffix('|')?.split('|').collect();
        let [number, _, _, state] = cells.as_slice() else { return None };
        Some(Self { number: number.trim().parse().ok()?, line, state: state.trim() })
    }

    fn with_state(&self, state: &str) -> String {
        let kept = self.line.len() - "|".len() - self.line.rsplit('|').nth(1).map_or(0, str::len);
        format!("{} {state} |", &self.line[..kept])
    }
}

fn rows(notes: &str, faults: &mut Vec<String>) -> BTreeMap<u16, State> {
    let mut states = BTreeMap::new();
    for (number, line) in notes.lines().enumerate() {
        let place = format!("{RELEASE_NOTES}:{}", number + 1);
        let begins_with_number = line
            .strip_prefix("| ")
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        let Some(row) = TableRow::parse(line) else {
            if begins_with_number {
                faults.push(format!("{place}: a row has a number and three more cells"));
            }
            continue;
        };
        if !(1..=ROWS).contains(&row.number) {
            faults.push(format!("{place}: row {} is out of range", row.number));
            continue;
        }
        match State::parse(row.state) {
            None => faults.push(format!(
                "{place}: the state of row {} is 'settled', 'n/a: reason' or 'open: which later work'",
                row.number
            )),
            Some(state) => {
                if states.insert(row.number, state).is_some() {
                    faults.push(format!("{place}: row {} stands there twice", row.number));
                }
            }
        }
    }
    states
}

/// The folders whose tests may settle rows; what this task itself is tested with does not count.
fn holds_tests(path: &str) -> bool {
    path.starts_with("crates/") || path.starts_with("tests/")
}

/// Folders of tests with a runner of their own, which lists its functions.
const OWN_RUNNERS: [&str; 2] = ["tests/", "crates/console/tests/session/"];

/// The claims of one file. A claim belongs to the next function below it, which has to carry a test attribute where no
/// runner of our own lists it.
fn claims(file: &TextFile, faults: &mut Vec<String>) -> Vec<Claim> {
    let lines: Vec<&str> = file.text.lines().map(str::trim).collect();
    let mut found = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let Some(rest) = line.strip_prefix("///").and_then(after_claim) else { continue };
        let place = format!("{}:{}", file.path, number + 1);
        let Some(rows) = row_numbers(rest) else {
            faults.push(format!(
                "{place}: a claim reads 'Settles 82.', 'Settles 33, 35-36.' or 'Settles 77: why'"
            ));
            continue;
        };
        match function_below(&lines[number + 1..]) {
            Some(function)
                if function.is_test || OWN_RUNNERS.iter().any(|r| file.path.starts_with(r)) =>
            {
                found.push(Claim { test: format!("{}::{}", file.path, function.name), rows });
            }
            _ => faults.push(format!("{place}: this claim stands above no test")),
        }
    }
    found
}

/// What follows the word of a claim; it stands at the beginning of the comment or of one of its sentences.
fn after_claim(comment: &str) -> Option<&str> {
    const WORD: &str = "Settles ";
    let comment = comment.trim_start();
    comment.strip_prefix(WORD).or_else(|| Some(comment.split_once(&format!(". {WORD}"))?.1))
}

/// Numbers and ranges up to the full stop, or to the colon before an explanation.
fn row_numbers(text: &str) -> Option<Vec<u16>> {
    let mut rows = Vec::new();
    for part in text.split_once(['.', ':'])?.0.split(',') {
        let (first, last) = part.split_once(['-', '–']).unwrap_or((part, part));
        let (first, last) = (row_number(first)?, row_number(last)?);
        if first > last || last > ROWS {
            return None;
        }
        rows.extend(first..=last);
    }
    Some(rows)
}

fn row_number(text: &str) -> Option<u16> {
    text.trim().parse().ok()
}

struct FunctionBelow<'line> {
    name: &'line str,
    is_test: bool,
}

/// The function that the doc comment above `lines` documents: attributes and comments may stand between.
fn function_below<'line>(lines: &[&'line str]) -> Option<FunctionBelow<'line>> {
    let mut is_test = false;
    for line in lines {
        if line.starts_with("#[") {
            is_test |= line.starts_with("#[test]") || line.contains("::test");
        } else if !line.starts_with("//") {
            let name = line.split_once("fn ")?.1;
            let end = name.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
            return Some(FunctionBelow { name: &name[..end.unwrap_or(name.len())], is_test });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::seeded::Seeded;

    fn notes(changed: &[(u16, &str)]) -> String {
        let state = |row: u16| {
            changed
                .iter()
                .find(|(number, _)| *number == row)
                .map_or("open: later", |(_, state)| state)
        };
        let rows = (1..=ROWS).map(|row| format!("| {row} | did | does | {} |", state(row)));
        joined(
            ["# Notes".to_owned(), "| # | did | hpvm | state |".to_owned()].into_iter().chain(rows),
        )
    }

    fn test_file(comment: &str) -> String {
        format!("//! Tests.\n/// {comment}\n#[test]\nfn one() {{}}\n")
    }

    fn seeded(notes: &str, test: &str, readme: &str) -> Seeded {
        Seeded::new(&[(RELEASE_NOTES, notes), ("crates/a/tests/a.rs", test), (README, readme)])
    }

    fn faults(seeded: &Seeded) -> Vec<String> {
        Report::read(&seeded.tree()).expect("a report").faults
    }

    const COUNTED: &str = "Defects of A.03.50: 3 settled by tests, 1 cannot apply here, 158 open\n";

    #[test]
    fn rows_tests_and_count_that_agree_pass_and_are_printed() {
        let notes =
            notes(&[(1, "settled"), (3, "settled"), (4, "settled"), (7, "n/a: no such bundle")]);
        let seeded = seeded(&notes, &test_file("It works. Settles 1, 3-4."), COUNTED);
        let report = Report::read(&seeded.tree()).expect("a report");
        assert_eq!(report.faults, Vec::<String>::new());
        assert!(report.verdict().is_ok());
        let printed = report.to_string();
        assert!(printed.contains("  3 settled  crates/a/tests/a.rs::one\n"), "{printed}");
        assert!(printed.contains("  7 n/a      no such bundle\n"), "{printed}");
        assert!(printed.ends_with(COUNTED), "{printed}");
    }

    #[test]
    fn writing_settles_rows_and_counts_and_then_agrees() {
        let seeded = seeded(
            &notes(&[(7, "n/a: no such bundle")]),
            &test_file("Settles 1, 3\u{2013}4: both at once."),
            "# hpvm\nDefects of A.03.50: 0 settled\nend\n",
        );
        let before = Report::read(&seeded.tree()).expect("a report");
        assert_eq!(before.faults.len(), 4, "{:?}", before.faults);
        assert!(before.verdict().is_err());
        before.write(&seeded.tree()).expect("written");
        assert_eq!(faults(&seeded), Vec::<String>::new());
        let tree = seeded.tree();
        assert_eq!(tree.file(README).expect("README").text, format!("# hpvm\n{COUNTED}end\n"));
        let text = &tree.file(RELEASE_NOTES).expect("notes").text;
        assert!(text.contains("\n| 3 | did | does | settled |\n"), "{text}");
        assert!(text.contains("\n| 2 | did | does | open: later |\n"), "{text}");
    }

    #[test]
    fn a_readme_without_the_line_cannot_be_written() {
        let seeded = seeded(&notes(&[]), "//! Tests.\n", "# hpvm\n");
        assert!(Report::read(&seeded.tree()).expect("a report").write(&seeded.tree()).is_err());
    }

    #[test]
    fn settled_by_hand_alone_fails() {
        let seeded = seeded(&notes(&[(82, "settled")]), "//! Tests.\n", COUNTED);
        assert!(faults(&seeded)[0].starts_with("row 82 is noted as settled and no test says so"));
    }

    #[test]
    fn a_test_that_claims_what_cannot_apply_fails() {
        let seeded = seeded(&notes(&[(9, "n/a: no bundle")]), &test_file("Settles 9."), COUNTED);
        assert_eq!(
            faults(&seeded)[0],
            "row 9 cannot apply (no bundle), yet is claimed by crates/a/tests/a.rs::one"
        );
    }

    #[test]
    fn claims_out_of_range_unreadable_or_above_no_test_fail() {
        for (test, expected) in [
            (test_file("Settles 163."), "a claim reads"),
            (test_file("Settles 9-3."), "a claim reads"),
            (test_file("Settles the matter."), "a claim reads"),
            (test_file("Settles 0."), "there is no row 0"),
            (
                "//! T.\n/// Settles 9.\nfn helper() {}\n".to_owned(),
                "this claim stands above no test",
            ),
            ("//! T.\n/// Settles 9.\n".to_owned(), "this claim stands above no test"),
        ] {
            let seeded = seeded(&notes(&[]), &test, "");
            let faults = faults(&seeded);
            assert!(faults[0].contains(expected), "{test}: {faults:?}");
        }
    }

    #[test]
    fn rows_that_are_missing_doubled_or_malformed_fail() {
        let whole = notes(&[]);
        for (notes, expected) in [
            (whole.replace("| 5 | did | does | open: later |\n", ""), "has no row 5"),
            (whole.replace("| 5 | did |", "| 6 | did |"), "row 6 stands there twice"),
            (
                whole.replace("| 5 | did | does | open: later |", "| 5 | did | open: later |"),
                "three more cells",
            ),
            (
                whole.replace("| 5 | did | does | open: later |", "| 5 | did | does | open: |"),
                "the state of row 5",
            ),
            (whole + "| 163 | did | does | settled |\n", "row 163 is out of range"),
        ] {
            let seeded = seeded(&notes, "//! Tests.\n", "");
            assert!(faults(&seeded).iter().any(|fault| fault.contains(expected)), "{expected}");
        }
    }

    #[test]
    fn the_own_runner_of_the_tests_folder_needs_no_attribute() {
        let seeded = Seeded::new(&[
            (RELEASE_NOTES, &notes(&[(9, "settled")])),
            (
                "tests/e2e/stop.rs",
                "//! T.\n/// Settles 9.\n/// More words.\npub(crate) fn stops(host: &Host) {}\n",
            ),
        ]);
        let report = Report::read(&seeded.tree()).expect("a report");
        assert_eq!(report.tests[&9], ["tests/e2e/stop.rs::stops"]);
    }
}
