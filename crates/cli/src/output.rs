//! Standard output, written once: a command renders everything, then writes it whole.

use std::io::{ErrorKind, Write};

#[derive(Debug, thiserror::Error)]
#[error("the output could not be written")]
pub struct OutputError(#[source] std::io::Error);

impl OutputError {
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind()
    }
}

pub fn print(text: &str) -> Result<(), OutputError> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(OutputError)
}
