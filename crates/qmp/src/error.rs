//! What can go wrong between us and QEMU, each with the command it happened to.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot reach the monitor socket {path}; is the guest running?")]
    Connect { path: PathBuf, source: io::Error },
    #[error("the monitor sent no greeting within {after:?}; another client may hold it")]
    NoGreeting { after: Duration },
    /// QEMU may still perform it; its late answer is dropped. Ask for the state before asking again.
    #[error("QEMU did not answer {command} within {after:?}")]
    Deadline { command: &'static str, after: Duration },
    #[error("QEMU refused {command}: {refusal}")]
    Refused { command: &'static str, refusal: Refusal },
    #[error("QEMU answered {command} with something unknown")]
    Answer { command: &'static str, source: serde_json::Error },
    #[error("the command {command} cannot be written as JSON")]
    Request { command: &'static str, source: serde_json::Error },
    #[error("the connection to QEMU is closed")]
    Closed,
    /// What came, or what the socket reported, leaves the connection without meaning.
    #[error("the connection to QEMU broke: {reason}")]
    Broken { reason: String },
}

impl Error {
    /// Whether nothing can be asked through the connection any more.
    #[must_use]
    pub fn ends_connection(&self) -> bool {
        matches!(self, Error::Closed | Error::Broken { .. })
    }

    /// The refusal, when QEMU did answer.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Error::Refused { refusal, .. } => Some(refusal),
            _ => None,
        }
    }
}

/// QEMU's own words on why not.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("{description}")]
pub struct Refusal {
    pub class: Class,
    #[serde(rename = "desc")]
    pub description: String,
}

/// The few refusals QEMU tells apart by more than their text.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum Class {
    CommandNotFound,
    DeviceNotFound,
    Generic,
    Other(String),
}

impl From<String> for Class {
    fn from(text: String) -> Class {
        match text.as_str() {
            "CommandNotFound" => Class::CommandNotFound,
            "DeviceNotFound" => Class::DeviceNotFound,
            "GenericError" => Class::Generic,
            _ => Class::Other(text),
        }
    }
}
