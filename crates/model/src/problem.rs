//! What is wrong with a configuration. Each problem once, with its subject and what would be right.

use std::fmt;

use crate::name::GuestName;

/// A change with an error is refused; a warning lets it pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    Warning,
    Error,
}

/// One thing wrong, or that will be wrong when the guest starts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    pub severity: Severity,
    /// What it is about: a path, an address, `memory`.
    pub item: String,
    /// What is wrong, with the value, and what would be right.
    pub text: String,
    pub remedy: Option<Remedy>,
}

/// The way out: what has to be done outside hpvm, if anything, and the command to type then.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Remedy {
    pub ask: Option<String>,
    pub command: String,
}

impl Problem {
    #[must_use]
    pub fn error(item: impl Into<String>, text: impl Into<String>) -> Problem {
        Problem { severity: Severity::Error, item: item.into(), text: text.into(), remedy: None }
    }

    #[must_use]
    pub fn warning(item: impl Into<String>, text: impl Into<String>) -> Problem {
        Problem { severity: Severity::Warning, item: item.into(), text: text.into(), remedy: None }
    }

    /// The line a command prints: `hpvmmodify: ERROR (guest): text`.
    #[must_use]
    pub fn line(&self, command: &str, guest: &GuestName) -> String {
        format!("{command}: {} ({guest}): {}", self.severity, self.text)
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Warning => "WARNING",
            Severity::Error => "ERROR",
        })
    }
}
