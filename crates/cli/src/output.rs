//! Standard output, written once: a command renders everything, then writes it whole.

use std::io::Write;

use hpvm_host::stdio::stdout_was_closed;

#[derive(Debug, thiserror::Error)]
#[error("the output could not be written")]
pub struct OutputError(#[source] std::io::Error);

/// For who writes as he goes.
pub fn must_be_open() -> Result<(), OutputError> {
    match stdout_was_closed() {
        true => Err(OutputError(std::io::Error::other("standard output is closed"))),
        false => Ok(()),
    }
}

pub fn print(text: &str) -> Result<(), OutputError> {
    if !text.is_empty() {
        must_be_open()?;
    }
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(OutputError)
}
