//! One line that tells how far long work is, for somebody who watches: written over and over, and gone at the end. A log
//! file or a pipe gets none of it.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use rustix::termios::tcgetwinsize;

use crate::messages::printable;

/// How often the line changes at most.
const PERIOD: Duration = Duration::from_millis(200);
const ERASE: &str = "\r\x1b[K";

/// The line of one command.
#[derive(Debug)]
pub struct ProgressLine {
    command: String,
    is_watched: bool,
    last: Option<Instant>,
}

impl ProgressLine {
    #[must_use]
    pub fn new(command: &str) -> ProgressLine {
        let is_watched = std::io::stderr().is_terminal();
        ProgressLine { command: command.to_owned(), is_watched, last: None }
    }

    /// `hpvmclone: /srv/web.img: 512 of 1024 MB`.
    pub fn show(&mut self, what: &str, done_bytes: u64, whole_bytes: u64) {
        let is_due = self.last.is_none_or(|last| last.elapsed() >= PERIOD);
        if self.is_watched && is_due {
            self.last = Some(Instant::now());
            let (done, whole) = (done_bytes >> 20, whole_bytes >> 20);
            let line = format!("{}: {}: {done} of {whole} MB", self.command, printable(what));
            let columns = tcgetwinsize(std::io::stderr()).map_or(0, |size| size.ws_col);
            let text = format!("{ERASE}{}", fitting(&line, columns.into()));
            // A terminal that is gone changes nothing.
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
        }
    }

    /// Makes room for another line.
    pub fn erase(&mut self) {
        if self.last.take().is_some() {
            let _ = std::io::stderr().lock().write_all(ERASE.as_bytes());
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.erase();
    }
}

/// What of a line stays on one line of the terminal, which could not be written over otherwise: its end, where the figures are.
/// A terminal of no columns does not tell how many it has.
fn fitting(line: &str, columns: usize) -> Cow<'_, str> {
    let surplus = (line.chars().count() + 1).saturating_sub(columns);
    if columns == 0 || surplus == 0 {
        return line.into();
    }
    let end: String = line.chars().skip(surplus + 1).collect();
    format!("…{end}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_keeps_its_figures_in_a_narrow_terminal() {
        let line = "hpvmclone: /srv/web.img: 512 of 1024 MB";
        assert_eq!(fitting(line, 0), line);
        assert_eq!(fitting(line, 40), line);
        assert_eq!(fitting(line, 39), "…vmclone: /srv/web.img: 512 of 1024 MB");
        assert_eq!(fitting(line, 16), "…512 of 1024 MB");
        assert_eq!(fitting(line, 1), "…");
    }
}
