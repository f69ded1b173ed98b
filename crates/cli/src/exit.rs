//! How a command ends. The only place that turns an outcome into an exit status and prints the error that caused it.

use std::error::Error;
use std::process::ExitCode;

use hpvm_host::deputy;
use hpvm_host::signals::Interruption;
use hpvm_model::{GuestName, Problem, chain};
use hpvm_operations::Refusal;

use crate::messages::Say;
use crate::output::OutputError;

/// The exit statuses of all commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done,
    /// Refused or failed; nothing changed, or what changed was told.
    Refused,
    /// The command line could not be understood; nothing was tried.
    Usage,
    /// Ended by a signal, as a shell says it: 128 and its number.
    Signal(i32),
}

/// What ends a command early. Any typed error becomes one by `?`; [`About::about`] names the guest it is about.
#[derive(Debug)]
pub enum Failure {
    /// The command line is wrong: the sentence, and the synopsis.
    Usage { text: String, synopsis: String },
    /// Refused or failed, and why.
    Refused { guest: Option<GuestName>, error: Box<dyn Error> },
    /// Refused, and these are the reasons; warnings among them are told as such.
    Problems { guest: GuestName, problems: Vec<Problem> },
    /// The output could not be written. Where its reader has gone nobody is told.
    Output(OutputError),
    /// Everything was said already.
    Said,
    /// A signal asked the command to end.
    Signal(i32),
    /// The same, and what is left.
    Interrupted { sentence: String, interruption: Interruption },
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Failure {
        let error: Box<dyn Error> = Box::new(error);
        let error = match error.downcast::<OutputError>() {
            Ok(error) => return Failure::Output(*error),
            Err(error) => error,
        };
        match error.downcast::<Refusal>().map(|refusal| *refusal) {
            Ok(Refusal::Interrupted { interruption, left }) => {
                Failure::interrupted(interruption, &left.to_string())
            }
            Ok(other) => Failure::Refused { guest: None, error: other.into() },
            Err(error) => Failure::Refused { guest: None, error },
        }
    }
}

/// Names the guest that an error is about.
pub trait About<T> {
    fn about(self, guest: &GuestName) -> Result<T, Failure>;
}

impl<T, E: Into<Failure>> About<T> for Result<T, E> {
    fn about(self, guest: &GuestName) -> Result<T, Failure> {
        self.map_err(|error| match error.into() {
            Failure::Refused { guest: None, error } => {
                Failure::Refused { guest: Some(guest.clone()), error }
            }
            other => other,
        })
    }
}

/// Says what went wrong, if anything did, and gives the status.
#[must_use]
pub fn conclude(command: &str, result: Result<(), Failure>) -> ExitCode {
    let exit = match result {
        Ok(()) => Exit::Done,
        Err(failure) => failure.say(&Say::new(command)),
    };
    deputy::say(exit.status());
    ExitCode::from(exit.status())
}

impl Exit {
    fn status(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Refused => 1,
            Exit::Usage => 2,
            Exit::Signal(number) => u8::try_from(number).map_or(1, |n| n.saturating_add(128)),
        }
    }
}

impl Failure {
    fn say(&self, say: &Say) -> Exit {
        match self {
            Failure::Usage { text, synopsis } => {
                say.error(None, text);
                say.plain(synopsis);
                Exit::Usage
            }
            Failure::Refused { guest, error } => {
                say.error(guest.as_ref(), &chain(error.as_ref()));
                Exit::Refused
            }
            Failure::Problems { guest, problems } => {
                say.problems(guest, problems);
                Exit::Refused
            }
            Failure::Output(error) if error.is_unread() => Exit::Refused,
            Failure::Output(error) => {
                say.error(None, &chain(error));
                Exit::Refused
            }
            Failure::Said => Exit::Refused,
            Failure::Signal(number) => Exit::Signal(*number),
            Failure::Interrupted { sentence, interruption } => {
                say.note(sentence);
                Exit::Signal(interruption.number())
            }
        }
    }

    /// What an interrupted command has to tell: one sentence, which follows the word.
    #[must_use]
    pub fn interrupted(interruption: Interruption, left: &str) -> Failure {
        Failure::Interrupted { sentence: format!("interrupted; {left}"), interruption }
    }

    /// A refusal that is one sentence already.
    #[must_use]
    pub fn refused(sentence: String) -> Failure {
        Failure::Refused { guest: None, error: sentence.into() }
    }

    /// Says what went wrong and lets the command go on with the next guest.
    pub fn tell(&self, command: &str) {
        self.say(&Say::new(command));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the registry cannot be opened")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn the_whole_chain_is_told_once() {
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&error), "the registry cannot be opened: disk on fire");
    }

    #[test]
    fn the_first_guest_named_stays() {
        let (a, b): (GuestName, GuestName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let failed: Result<(), Outer> = Err(Outer(std::io::Error::other("x")));
        match failed.about(&a).about(&b) {
            Err(Failure::Refused { guest, .. }) => assert_eq!(guest, Some(a)),
            other => panic!("{other:?}"),
        }
    }
}
