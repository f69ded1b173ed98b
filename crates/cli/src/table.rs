//! A table as wide as its content, for layouts of our own; those of A.03.50 have fixed columns.

use std::fmt::Write as _;

use crate::messages::printable;

/// Rows of texts under a heading and a ruler.
pub(crate) struct Table<const COLUMNS: usize> {
    rows: Vec<[String; COLUMNS]>,
    heading: [&'static str; COLUMNS],
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    pub(crate) fn new(heading: [&'static str; COLUMNS]) -> Self {
        Table { rows: Vec::new(), heading }
    }

    pub(crate) fn row(&mut self, cells: [&str; COLUMNS]) {
        self.rows.push(cells.map(|cell| printable(cell).into_owned()));
    }

    pub(crate) fn render(&self) -> String {
        let widths: [usize; COLUMNS] = std::array::from_fn(|column| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.heading[column].len()]).max().unwrap_or_default()
        });
        let mut text = line(&self.heading, &widths);
        text.push_str(&line(&widths.map(|width| "=".repeat(width)), &widths));
        for row in &self.rows {
            text.push_str(&line(row, &widths));
        }
        text
    }
}

fn line<const COLUMNS: usize>(
    cells: &[impl AsRef<str>; COLUMNS],
    widths: &[usize; COLUMNS],
) -> String {
    let mut line = String::new();
    for (cell, width) in cells.iter().zip(widths) {
        // Writing to a string cannot fail.
        let _ = write!(line, "{:<width$} ", cell.as_ref());
    }
    format!("{}\n", line.trim_end())
}
