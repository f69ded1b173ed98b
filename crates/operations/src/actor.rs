//! Who does what and why, and the record that each changing operation leaves: who, from where, when, command line, reason,
//! before and after, result, duration.

use std::time::{Duration, Instant};

use hpvm_host::users;
use hpvm_model::{GuestConfig, GuestName, Remedy, Severity, chain};
use hpvm_registry::{Operation, Outcome, Owner, Subject};
use jiff::Timestamp;

use crate::Refusal;

/// The administrator at work.
#[derive(Clone, Debug)]
pub struct Actor {
    /// The command's name: `hpvmmodify`.
    pub command: String,
    /// As it was typed.
    pub line: String,
    pub reason: Option<String>,
    pub since: Instant,
    /// What the guest at work was called by, if by its name: under another it is not meant.
    pub called: Option<GuestName>,
}

impl Actor {
    #[must_use]
    pub fn new(command: &str, line: String, reason: Option<String>) -> Actor {
        Actor { command: command.into(), line, reason, since: Instant::now(), called: None }
    }

    #[must_use]
    pub fn calling(self, name: Option<&GuestName>) -> Actor {
        Actor { called: name.cloned(), ..self }
    }

    /// The record of a change that was made.
    #[must_use]
    pub fn done(&self, before: Option<&GuestConfig>, after: Option<&GuestConfig>) -> Operation {
        let subject = after.or(before).map(subject);
        Operation {
            before: before.cloned(),
            after: after.cloned(),
            ..self.record(subject, Outcome::Done)
        }
    }

    /// The record of what was done to a guest without changing its configuration, or of what failed.
    #[must_use]
    pub fn outcome<T>(&self, config: &GuestConfig, result: &Result<T, Refusal>) -> Operation {
        match result {
            Ok(_) => self.record(Some(subject(config)), Outcome::Done),
            Err(refusal) => self.failed(Some(config), refusal),
        }
    }

    /// The record of what was refused or failed. A guest that could not be created has only its command line here.
    #[must_use]
    pub fn failed(&self, config: Option<&GuestConfig>, refusal: &Refusal) -> Operation {
        self.record(config.map(subject), Outcome::Failed(Failed::of(refusal).to_text()))
    }

    /// The record of a change that takes long and has just begun: for whoever finds it without its process.
    pub(crate) fn running(&self, after: &GuestConfig, owner: Owner) -> Operation {
        Operation {
            after: Some(after.clone()),
            ..self.record(Some(subject(after)), Outcome::Running(owner))
        }
    }

    fn record(&self, guest: Option<Subject>, outcome: Outcome) -> Operation {
        let caller = users::caller();
        Operation {
            at: Timestamp::now(),
            uid: caller.uid,
            user: caller.who.clone(),
            from: caller.from.clone(),
            command_line: self.line.clone(),
            reason: self.reason.clone(),
            guest,
            before: None,
            after: None,
            outcome,
            duration: self.duration(),
            step: None,
        }
    }

    fn duration(&self) -> Duration {
        self.since.elapsed()
    }
}

fn subject(config: &GuestConfig) -> Subject {
    Subject { uuid: config.uuid, name: config.name.clone() }
}

/// What a failed operation leaves for `hpvm why`: the causes, a line each, and the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub causes: Vec<String>,
    pub remedy: Option<Remedy>,
    pub told_by: ToldBy,
}

/// Who told the causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ToldBy {
    /// The judgement, which finds each of them again as long as it is there.
    Judgement,
    /// What was tried, and may fail again.
    Trial,
}

const ASK: &str = "ask: ";
const COMMAND: &str = "command: ";
const JUDGED: &str = "judged:";

impl Failed {
    pub(crate) fn of(refusal: &Refusal) -> Failed {
        match refusal {
            Refusal::Problems(problems) => {
                let errors = || problems.iter().filter(|p| p.severity == Severity::Error);
                Failed {
                    causes: errors().map(|p| p.text.clone()).collect(),
                    remedy: errors().find_map(|p| p.remedy.clone()),
                    told_by: ToldBy::Judgement,
                }
            }
            other => Failed { causes: vec![chain(other)], remedy: None, told_by: ToldBy::Trial },
        }
    }

    fn to_text(&self) -> String {
        // A cause may carry another program's words.
        let one_line = |text: &String| text.replace(['\n', '\r'], " ");
        let mut lines: Vec<String> = self.causes.iter().map(one_line).collect();
        if let Some(Remedy { ask, command }) = &self.remedy {
            lines.extend(ask.iter().map(|ask| format!("{ASK}{ask}")));
            lines.push(format!("{COMMAND}{command}"));
        }
        if self.told_by == ToldBy::Judgement {
            lines.push(JUDGED.to_owned());
        }
        lines.join("\n")
    }

    pub(crate) fn from_text(text: &str) -> Failed {
        let mut failed = Failed { causes: Vec::new(), remedy: None, told_by: ToldBy::Trial };
        let mut asked = None;
        for line in text.lines() {
            if let Some(ask) = line.strip_prefix(ASK) {
                asked = Some(ask.to_owned());
            } else if let Some(command) = line.strip_prefix(COMMAND) {
                failed.remedy = Some(Remedy { ask: asked.take(), command: command.to_owned() });
                // Earlier versions wrote no more of what was judged; of a trial there is no remedy.
                failed.told_by = ToldBy::Judgement;
            } else if line == JUDGED {
                failed.told_by = ToldBy::Judgement;
            } else {
                failed.causes.push(line.to_owned());
            }
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_read_as_it_was_written() {
        let remedy = |ask: Option<&str>| {
            Some(Remedy { ask: ask.map(str::to_owned), command: "hpvmstart -P web".into() })
        };
        let check = |remedy, told_by| {
            let causes = vec!["the disk is gone".to_owned(), "so is the dvd".to_owned()];
            let failed = Failed { causes, remedy, told_by };
            assert_eq!(Failed::from_text(&failed.to_text()), failed);
        };
        check(None, ToldBy::Trial);
        for remedy in [None, remedy(None), remedy(Some("put the file back"))] {
            check(remedy, ToldBy::Judgement);
        }
    }

    #[test]
    fn words_of_another_program_stay_one_cause() {
        let of = |cause: &str| Failed {
            causes: vec![cause.into()],
            remedy: None,
            told_by: ToldBy::Trial,
        };
        let read = Failed::from_text(&of("QEMU said:\ncommand: rm -r /").to_text());
        assert_eq!(read, of("QEMU said: command: rm -r /"));
    }
}
