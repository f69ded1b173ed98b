//! One line that tells how far long work is, for somebody who watches: written over and over, and gone at the end. A log
//! file or a pipe gets none of it.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

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
            let text =
                format!("{ERASE}{}: {}: {done} of {whole} MB", self.command, printable(what));
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
