//! The table: rows as they were measured, printed, and put into README.md between two marks.

use std::fmt;
use std::fs;

use anyhow::{Context, Result};

use crate::cache::checkout;

const BEGIN: &str = "<!-- bench -->\n";
const END: &str = "<!-- end of bench -->\n";
const HEAD: &str =
    "| what | libvirt 9, or who is named | target | measured |\n| --- | --- | --- | --- |\n";

/// How the sentence under the table begins; the day follows.
pub(super) const MEASURED_ON: &str = "Measured on ";
/// In a row of another day.
const AS_OF: &str = " (as of ";

/// Whether a figure meets its target.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Met,
    Missed,
    /// This machine lacks what it takes; the row says what.
    Unmeasured,
}

impl Verdict {
    pub(super) fn of(is_met: bool) -> Verdict {
        if is_met { Verdict::Met } else { Verdict::Missed }
    }
}

pub(super) struct Row {
    pub(super) what: String,
    /// The peer's figure, empty where it has none or is not installed.
    pub(super) peer: String,
    pub(super) target: &'static str,
    pub(super) measured: String,
    pub(super) verdict: Verdict,
}

impl Row {
    pub(super) fn line(&self) -> String {
        let Row { what, peer, target, measured, verdict } = self;
        let peer = if peer.is_empty() { "–" } else { peer };
        let missed = if *verdict == Verdict::Missed { ", **missed**" } else { "" };
        format!("| {what} | {peer} | {target} | {measured}{missed} |")
    }
}

pub(super) struct Table {
    machine: String,
    lines: Vec<String>,
}

impl Table {
    pub(super) fn new(machine: String) -> Table {
        Table { machine, lines: Vec::new() }
    }

    pub(super) fn add(&mut self, rows: &[Row]) {
        self.lines.extend(rows.iter().map(Row::line));
    }

    /// Puts the table into README.md. Rows that were not measured now stay, with the day on which they were.
    pub(super) fn write(&self) -> Result<()> {
        let path = checkout().join("README.md");
        let text = fs::read_to_string(&path).context("reading README.md")?;
        let (before, rest) =
            text.split_once(BEGIN).context("README.md has no mark of the table")?;
        let (old, after) = rest.split_once(END).context("README.md has no end of the table")?;
        let fresh = self.merged(old);
        fs::write(&path, format!("{before}{BEGIN}{fresh}{END}{after}")).context("writing README.md")
    }

    fn merged(&self, old: &str) -> String {
        let kept =
            |line: &&str| line.starts_with("| ") && !HEAD.contains(line) && !self.has_row_of(line);
        let day = day(old).filter(|before| day(&self.machine) != Some(before));
        let kept = old.lines().filter(kept).map(|line| as_of(day, line));
        let mut lines: Vec<String> = kept.chain(self.lines.iter().cloned()).collect();
        lines.sort_by_key(|line| place(line));
        format!("{HEAD}{}\n\n{}\n", lines.join("\n"), self.machine)
    }

    fn has_row_of(&self, line: &str) -> bool {
        self.lines.iter().any(|fresh| is_of_the_same(fresh, line))
    }
}

/// How the rows of the table begin, in their order.
const ORDER: &[&str] = &[
    "`hpvmstatus`, 1,000",
    "`hpvmstatus`, 10,000",
    "`hpvmcreate`",
    "clone of",
    "the same by reflink (xfs)",
    "the same by reflink (btrfs)",
    "the same by `--linked`",
    "`hpvmstart`",
    "start until",
    "`hpvmstop",
    "QEMU killed",
    "keeper and hpvmapp",
    "all processes",
    "`hpvmhostrdev`",
    "device check",
    "VIO adapter added",
    "AVIO over VIO in one guest",
    "AVIO over VIO, stores on the disk, 1 MiB",
    "AVIO over VIO, stores on the disk, 4 KiB",
    "AVIO over VIO, stores in memory",
    "AVIO over lsi53c895a",
    "8 processes",
    "virtual switch, 64 B",
    "virtual switch, 1518 B one",
    "virtual switch, 1518 B both",
    "virtual switch, one frame",
    "virtual switch, 8,191",
    "virtual switch, ports",
    "virtual switch with",
    "hpvmnetd, its keeper",
    "one guest, AVIO, out",
    "one guest, AVIO, in",
    "two guests, AVIO to",
    "two guests, AVIO over",
    "`hpvm` binary",
];

/// On which all rows were measured that do not say another.
fn day(text: &str) -> Option<&str> {
    let sentence = text.lines().find_map(|line| line.strip_prefix(MEASURED_ON))?;
    sentence.split_once(':').map(|(day, _)| day)
}

/// A row that stays; one without a figure, or with its day, says all there is.
fn as_of(day: Option<&str>, line: &str) -> String {
    match (day, line.strip_suffix(" |")) {
        (Some(day), Some(cells)) if !cells.ends_with("| –") && !cells.contains(AS_OF) => {
            format!("{cells}{AS_OF}{day}) |")
        }
        _ => line.to_owned(),
    }
}

fn subject(line: &str) -> &str {
    line.trim_start_matches("| ")
}

/// Two rows that are in no order are of the same only when they say so.
fn is_of_the_same(one: &str, other: &str) -> bool {
    let first_cell = |line| subject(line).split(" |").next();
    place(one) == place(other) && (place(one).is_some() || first_cell(one) == first_cell(other))
}

fn place(line: &str) -> Option<usize> {
    ORDER.iter().position(|begin| subject(line).starts_with(begin))
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.merged(""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(what: &str, measured: &str) -> Row {
        Row {
            what: what.into(),
            peer: String::new(),
            target: "1 ms",
            measured: measured.into(),
            verdict: Verdict::Missed,
        }
    }

    #[test]
    fn a_measured_row_takes_the_place_of_the_old_one_and_others_stay() {
        let mut table = Table::new("on a machine".into());
        table.add(&[row("`hpvmcreate`, durable", "2 ms")]);
        let old = "| what | libvirt 9, or who is named | target | measured |\n| --- | --- | --- | --- |\n\
                   | `hpvmcreate`, durable | – | 1 ms | – |\n| `hpvmstatus`, 1,000 | – | 1 ms | 3 ms |\n\
                   \nbefore\n";
        let expected = format!(
            "{HEAD}| `hpvmstatus`, 1,000 | – | 1 ms | 3 ms |\n\
             | `hpvmcreate`, durable | – | 1 ms | 2 ms, **missed** |\n\non a machine\n"
        );
        assert_eq!(table.merged(old), expected);
    }

    #[test]
    fn rows_that_nobody_put_in_order_do_not_replace_each_other() {
        let mut table = Table::new("on a machine".into());
        table.add(&[row("one", "2 ms")]);
        let merged = table.merged("| one | – | 1 ms | 1 ms |\n| other | – | 1 ms | 3 ms |\n");
        assert!(merged.contains("| other | – | 1 ms | 3 ms |"), "{merged}");
        assert_eq!(merged.matches("| one |").count(), 1, "{merged}");
    }

    #[test]
    fn a_row_that_stays_says_on_which_day_it_was_measured() {
        let row = |figure: &str| format!("| `hpvmcreate`, durable | – | 1 ms | {figure} |");
        let under =
            |figure: &str, day: &str| format!("{}\n\nMeasured on {day}: here\n", row(figure));
        let after =
            |day: &str, old: &str| Table::new(format!("Measured on {day}: here")).merged(old);
        let first = under("2 ms", "2026-11-27");
        assert!(after("2026-11-27", &first).contains(&row("2 ms")));
        let next = after("2026-11-28", &first);
        assert!(next.contains(&row("2 ms (as of 2026-11-27)")), "{next}");
        let last = after("2026-11-29", &next);
        assert!(last.contains(&row("2 ms (as of 2026-11-27)")), "{last}");
        let without = under("–", "2026-11-27");
        assert!(after("2026-11-28", &without).contains(&row("–")));
    }
}
