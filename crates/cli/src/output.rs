//! Standard output, written once: a command renders everything, then writes it whole.

use std::io::{self, ErrorKind, Write};

use hpvm_host::stdio::stdout_was_closed;

#[derive(Debug, thiserror::Error)]
#[error("the output could not be written")]
pub struct OutputError(#[source] io::Error);

impl OutputError {
    pub fn of(error: io::Error) -> OutputError {
        OutputError(error)
    }

    /// Whether the reader has gone, as `head` goes once it has its lines.
    #[must_use]
    pub fn is_unread(&self) -> bool {
        self.0.kind() == ErrorKind::BrokenPipe
    }
}

/// For who writes as he goes.
pub fn must_be_open() -> Result<(), OutputError> {
    match stdout_was_closed() {
        true => Err(OutputError(io::Error::other("standard output is closed"))),
        false => Ok(()),
    }
}

pub fn print(text: &str) -> Result<(), OutputError> {
    if !text.is_empty() {
        must_be_open()?;
    }
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(OutputError)
}
