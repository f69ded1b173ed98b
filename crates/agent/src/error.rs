//! Why an agent could not be asked.

use std::io;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the guest agent's channel cannot be reached")]
    Connect(#[source] io::Error),
    #[error("the guest agent's channel was closed")]
    Closed,
    #[error("the guest agent did not answer '{command}' within {} ms", after.as_millis())]
    Deadline { command: &'static str, after: Duration },
    /// The agent's own words, cleaned.
    #[error("the guest agent refused '{command}': {words}")]
    Refused { command: &'static str, words: String },
    #[error("the guest agent's answer to '{command}' is not understood")]
    Answer { command: &'static str, source: serde_json::Error },
    #[error("the guest agent is still at an earlier request")]
    Busy,
    #[error("the guest agent says more than anybody asked it for")]
    Nonsense,
}

impl Error {
    /// Whether an agent answered, be it with a no.
    #[must_use]
    pub fn is_an_answer(&self) -> bool {
        matches!(self, Error::Refused { .. } | Error::Answer { .. })
    }
}
