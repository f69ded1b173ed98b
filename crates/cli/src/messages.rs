//! What commands say on standard error, in the form of A.03.50: `command: ERROR (guest): text`. Also questions, which are
//! asked there and answered on standard input, terminal or not.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::os::fd::AsFd;

use hpvm_host::signals;
use hpvm_model::{GuestName, Problem, Severity};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// An answer longer than this is none.
const ANSWER_BYTES_MAX: usize = 256;
/// Whoever writes more without ending the line answers no question.
const LINE_BYTES_MAX: usize = 64 << 10;
const TRIES_MAX: usize = 3;

/// Speaks for one command.
#[derive(Clone, Debug)]
pub struct Say {
    command: String,
    volume: Volume,
}

/// Whether notes are wanted. Errors and warnings always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volume {
    Normal,
    Quiet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Yes,
    No,
    /// The input ended before, or whoever was asked interrupted the command.
    None,
    /// What came was neither, as often as it was asked.
    Noise,
}

impl Say {
    #[must_use]
    pub fn new(command: &str) -> Say {
        Say { command: command.to_owned(), volume: Volume::Normal }
    }

    #[must_use]
    pub fn at(&self, volume: Volume) -> Say {
        Say { volume, ..self.clone() }
    }

    #[must_use]
    pub fn command(&self) -> &str {
        &self.command
    }

    pub fn error(&self, guest: Option<&GuestName>, text: &str) {
        self.line(Some(Severity::Error), guest, text);
    }

    pub fn warning(&self, guest: Option<&GuestName>, text: &str) {
        self.line(Some(Severity::Warning), guest, text);
    }

    /// What went well: `hpvmstart: Successful start initiation of guest 'web'`.
    pub fn note(&self, text: &str) {
        if self.volume == Volume::Normal {
            self.line(None, None, text);
        }
    }

    /// How long work goes on, for somebody who watches; a log file gets none of it.
    pub fn progress(&self, text: &str) {
        if std::io::stderr().is_terminal() {
            self.note(text);
        }
    }

    /// Each problem of a change, once, in the order given.
    pub fn problems(&self, guest: &GuestName, problems: &[Problem]) {
        let is_said = |n: usize| {
            let says_it =
                |p: &Problem| (p.severity, &p.text) == (problems[n].severity, &problems[n].text);
            problems[..n].iter().any(says_it)
        };
        for (_, problem) in problems.iter().enumerate().filter(|(n, _)| !is_said(*n)) {
            self.line(Some(problem.severity), Some(guest), &problem.text);
        }
    }

    /// The report that precedes a start.
    pub fn start_problems(&self, guest: &GuestName, problems: &[Problem]) {
        write_stderr(&start_report(guest, problems));
    }

    /// A line without the command's name.
    pub fn plain(&self, text: &str) {
        write_stderr(&format!("{}\n", printable(text)));
    }

    fn line(&self, severity: Option<Severity>, guest: Option<&GuestName>, text: &str) {
        write_stderr(&line(&self.command, severity, guest, text));
    }

    /// Asks until the answer is understood.
    #[must_use]
    pub fn ask(&self, question: &str) -> Answer {
        self.ask_with(question, "n/y")
    }

    /// The same as hpvmnet of A.03.50 printed it.
    #[must_use]
    pub fn ask_unless_no(&self, question: &str) -> Answer {
        self.ask_with(question, "n")
    }

    fn ask_with(&self, question: &str, choices: &str) -> Answer {
        for _ in 0..TRIES_MAX {
            write_stderr(&format!("{}: {} [{choices}]: ", self.command, printable(question)));
            let line = read_line(std::io::stdin());
            // A terminal has shown the end of the line that was typed.
            if line.is_some() && !std::io::stdin().is_terminal() {
                write_stderr("\n");
            }
            match line.map(|line| Answer::understood(&line)) {
                Some(Some(answer)) => return answer,
                Some(None) => {}
                None => {
                    write_stderr("\n");
                    return Answer::None;
                }
            }
        }
        Answer::Noise
    }
}

impl Answer {
    /// Enter alone is no.
    fn understood(line: &str) -> Option<Answer> {
        match line.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => Some(Answer::Yes),
            "" | "n" | "no" => Some(Answer::No),
            _ => None,
        }
    }
}

fn line(
    command: &str,
    severity: Option<Severity>,
    guest: Option<&GuestName>,
    text: &str,
) -> String {
    let mut line = format!("{command}: ");
    // Writing to a string cannot fail.
    let _ = match (severity, guest) {
        (Some(severity), Some(guest)) => write!(line, "{severity} ({guest}): "),
        (Some(severity), None) => write!(line, "{severity}: "),
        (None, _) => Ok(()),
    };
    line.push_str(&printable(text));
    line.push('\n');
    line
}

/// What precedes a start; nothing of a guest without problems.
#[must_use]
pub fn start_report(guest: &GuestName, problems: &[Problem]) -> String {
    if problems.is_empty() {
        return String::new();
    }
    let mut report = format!("HPVM guest {guest} configuration problems:\n");
    for (index, problem) in problems.iter().enumerate() {
        let severity = match problem.severity {
            Severity::Warning => "Warning",
            Severity::Error => "Error",
        };
        let (item, text) = (printable(&problem.item), printable(&problem.text));
        let text = text.trim_end_matches('.');
        let _ = writeln!(report, "    {severity} {} on item {item}: {text}.", index + 1);
    }
    let _ = writeln!(report, "These problems may prevent HPVM guest {guest} from starting.");
    report
}

/// A text that no terminal obeys: control characters, and those that turn the direction of writing, are escaped.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_hostile = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_hostile) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_hostile(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

/// Standard error that is closed or full changes nothing: there is nowhere left to say so.
fn write_stderr(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// One line, read byte by byte: what follows belongs to the next command that shares the descriptor. `None` at the end.
fn read_line(input: impl AsFd) -> Option<String> {
    let text = |line: &[u8]| String::from_utf8_lossy(line).into_owned();
    let mut line = Vec::new();
    let mut byte = [0u8; 1];
    for _ in 0..LINE_BYTES_MAX {
        if !is_readable(&input) {
            return None;
        }
        match rustix::io::retry_on_intr(|| rustix::io::read(&input, &mut byte)) {
            Ok(1) if byte[0] == b'\n' => return Some(text(&line)),
            Ok(1) if line.len() < ANSWER_BYTES_MAX => line.push(byte[0]),
            Ok(1) => {}
            Ok(_) | Err(_) if line.is_empty() => return None,
            Ok(_) | Err(_) => return Some(text(&line)),
        }
    }
    None
}

/// Waits for something to read, or the end; `false` when the command was interrupted before.
fn is_readable(input: &impl AsFd) -> bool {
    const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    while signals::interrupted().is_none() {
        match poll(&mut [PollFd::new(input, PollFlags::IN)], Some(&LOOK)) {
            Ok(0) | Err(Errno::INTR) => {}
            _ => return true,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> GuestName {
        "web".parse().unwrap()
    }

    #[test]
    fn messages_have_the_historical_form() {
        for (severity, guest, expected) in [
            (Some(Severity::Error), Some(guest()), "hpvmmodify: ERROR (web): no\n"),
            (Some(Severity::Warning), None, "hpvmmodify: WARNING: no\n"),
            (None, None, "hpvmmodify: no\n"),
        ] {
            assert_eq!(line("hpvmmodify", severity, guest.as_ref(), "no"), expected);
        }
    }

    #[test]
    fn the_start_report_numbers_its_problems() {
        let problems =
            [Problem::warning("/d1", "it is empty."), Problem::error("memory", "too little")];
        assert_eq!(
            start_report(&guest(), &problems),
            "HPVM guest web configuration problems:\n    \
             Warning 1 on item /d1: it is empty.\n    \
             Error 2 on item memory: too little.\n\
             These problems may prevent HPVM guest web from starting.\n"
        );
    }

    #[test]
    fn no_terminal_is_commanded() {
        assert_eq!(printable("a\u{1b}[2Jb\n\u{9b}\u{202e}"), r"a\u{1b}[2Jb\n\u{9b}\u{202e}");
        assert!(matches!(printable("plain ü"), Cow::Borrowed(_)));
    }

    #[test]
    fn an_answer_takes_no_more_than_its_line() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let noise = "x".repeat(2 * ANSWER_BYTES_MAX);
        write!(writer, " Yes \n{noise}\n\nn").unwrap();
        drop(writer);
        assert_eq!(read_line(&reader).as_deref(), Some(" Yes "));
        assert_eq!(read_line(&reader).map(|line| line.len()), Some(ANSWER_BYTES_MAX));
        assert_eq!(read_line(&reader).as_deref(), Some(""));
        assert_eq!(read_line(&reader).as_deref(), Some("n"), "a last line needs no end");
        assert_eq!(read_line(&reader), None);
        let endless = std::fs::File::open("/dev/zero").unwrap();
        assert_eq!(read_line(&endless), None, "whoever never ends the line");
    }

    #[test]
    fn answers_are_yes_no_or_asked_again() {
        for (line, answer) in [
            ("y", Some(Answer::Yes)),
            (" YES\r", Some(Answer::Yes)),
            ("n", Some(Answer::No)),
            ("", Some(Answer::No)),
            ("maybe", None),
            ("yy", None),
        ] {
            assert_eq!(Answer::understood(line), answer, "{line:?}");
        }
    }
}
