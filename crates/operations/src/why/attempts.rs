//! What was tried with a guest since it runs, and failed: the guest may be well, and somebody wonders why it is not as he asked.

use hpvm_model::{GuestConfig, GuestName};
use hpvm_registry::{Operation, Outcome};
use jiff::Timestamp;

use super::{RECENT_OPERATIONS, Why};
use crate::VmHost;
use crate::actor::Failed;
use crate::presence::Presence;

/// A guest that is well is told with its last failure. Where something is wrong with it, that comes first.
pub(super) fn with_last_failure(
    mut why: Why,
    host: &VmHost,
    config: &GuestConfig,
    presence: &Presence,
) -> Why {
    let Some(since) = presence.runs_since() else { return why };
    let recent = host.registry.operations(Some(config.uuid), RECENT_OPERATIONS);
    let recent = recent.into_iter().flatten().map(|recorded| recorded.operation);
    let Some(failure) = last_failure(recent, since) else { return why };
    match why.remedy {
        Some(_) => {
            why.notes.push(failure.in_a_sentence());
            why
        }
        None => failure.screen(&config.name, since, why.notes),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Failure {
    at: Timestamp,
    command: String,
    command_line: String,
    causes: Vec<String>,
}

/// The newest failure since then after which no command of the kind went well. `recent` is newest first.
fn last_failure(recent: impl Iterator<Item = Operation>, since: Timestamp) -> Option<Failure> {
    let mut went_well = vec!["hpvmstart".to_owned()];
    for operation in recent.take_while(|operation| operation.at >= since) {
        let command = command(&operation.command_line);
        match operation.outcome {
            Outcome::Done => went_well.push(command),
            Outcome::Failed(text) if !went_well.contains(&command) => {
                let Operation { at, command_line, .. } = operation;
                let causes = Failed::from_text(&text).causes;
                return Some(Failure { at, command, command_line, causes });
            }
            Outcome::Failed(_) | Outcome::Running(_) => {}
        }
    }
    None
}

/// `hpvmstop` of all its spellings: by its path, and as `hpvm stop`.
pub(super) fn command(line: &str) -> String {
    let mut words = line.split_whitespace();
    let program = words.next().and_then(|word| word.rsplit('/').next()).unwrap_or_default();
    match program {
        "hpvm" => format!("hpvm{}", words.next().unwrap_or_default()),
        program => program.to_owned(),
    }
}

impl Failure {
    fn in_a_sentence(&self) -> String {
        let Failure { at, command_line, causes, .. } = self;
        let at = at.strftime(TO_THE_SECOND);
        format!("what failed last, at {at}, is `{command_line}`: {}", causes.join("; and "))
    }

    fn screen(self, name: &GuestName, since: Timestamp, notes: Vec<String>) -> Why {
        let [since, at] = [since, self.at].map(|time| time.strftime(TO_THE_SECOND));
        let next = match self.command.as_str() {
            "hpvmstop" => format!("hpvmstop -P {name} -g"),
            // What is to be made again may take a device away.
            _ => format!("hpvmstatus -P {name}"),
        };
        let line = self.command_line;
        Why::that(format!("'{name}' runs since {since}; what failed last, at {at}, is `{line}`"))
            .because_of(self.causes)
            .noting(notes)
            .run(next)
    }
}

const TO_THE_SECOND: &str = "%Y-%m-%dT%H:%M:%SZ";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn operation(second: i64, command_line: &str, outcome: Outcome) -> Operation {
        Operation {
            at: Timestamp::from_second(second).expect("a time"),
            uid: 0,
            user: "root".into(),
            from: "tty1".into(),
            command_line: command_line.into(),
            reason: None,
            guest: None,
            before: None,
            after: None,
            outcome,
            duration: Duration::ZERO,
            step: None,
        }
    }

    fn failed(second: i64, command_line: &str) -> Operation {
        operation(second, command_line, Outcome::Failed(format!("{command_line} did not")))
    }

    fn last(operations: impl IntoIterator<Item = Operation>) -> Option<String> {
        let since = Timestamp::from_second(10).expect("a time");
        last_failure(operations.into_iter(), since).map(|failure| failure.command_line)
    }

    #[test]
    fn the_last_failure_is_told_until_its_kind_goes_well() {
        let stop = || failed(12, "/opt/hpvm/bin/hpvmstop -P web -g");
        let done = |line: &str| operation(13, line, Outcome::Done);
        let told = Some("/opt/hpvm/bin/hpvmstop -P web -g".to_owned());
        assert_eq!(last([stop(), failed(11, "hpvmmodify -P web -d x")]), told);
        assert_eq!(last([done("hpvmmodify -P web -l x"), stop()]), told);
        assert_eq!(last([done("hpvm stop web"), stop()]), None);
        assert_eq!(last([failed(9, "hpvmstop -P web -g")]), None, "before this run");
        assert_eq!(last([failed(12, "hpvm start web")]), None, "it runs");
    }

    #[test]
    fn the_screen_has_the_words_of_the_failure_and_a_command_that_drops_nothing() {
        let name: GuestName = "web".parse().expect("a name");
        let since = Timestamp::from_second(10).expect("a time");
        let screen = |line: &str| {
            let failure = last_failure([failed(12, line)].into_iter(), since).expect("a failure");
            failure.screen(&name, since, Vec::new())
        };
        let why = screen("hpvmmodify -P web -d disk:scsi:0,0,0");
        assert_eq!(why.causes, ["hpvmmodify -P web -d disk:scsi:0,0,0 did not"]);
        assert!(
            why.headline
                .ends_with("at 1970-01-01T00:00:12Z, is `hpvmmodify -P web -d disk:scsi:0,0,0`")
        );
        assert_eq!(why.remedy.expect("a command").command, "hpvmstatus -P web");
        let why = screen("hpvmstop -P web -g");
        assert_eq!(why.remedy.expect("a command").command, "hpvmstop -P web -g");
    }
}
