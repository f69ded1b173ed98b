//! What every changing command takes beside its own options.

use hpvm_model::bytes::shown;

/// The longest reason kept in an operation record.
const REASON_CHARACTERS_MAX: usize = 1000;

#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Operation {
    /// Why, kept in the record of the operation
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub reason: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum ReasonError {
    #[error("the reason has control characters: '{0}'")]
    ControlCharacter(String),
    #[error("the reason has {0} characters; the longest has {REASON_CHARACTERS_MAX}")]
    TooLong(usize),
}

fn reason(text: &str) -> Result<String, ReasonError> {
    match text.chars().count() {
        length if length > REASON_CHARACTERS_MAX => Err(ReasonError::TooLong(length)),
        _ if text.chars().any(char::is_control) => Err(ReasonError::ControlCharacter(shown(text))),
        _ => Ok(text.to_owned()),
    }
}
