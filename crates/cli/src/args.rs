//! Options that several commands share. Values are parsed into types of the model right here, so that a command never
//! sees a text that means nothing; the sentences about bad ones are the model's.

mod guest;
mod operation;
mod selector;
mod undertaking;

pub use guest::{GuestOptions, Setting, SettingError};
pub use operation::Operation;
pub use selector::{GuestArgument, Selector, StopTarget};
pub use undertaking::Undertaking;

use hpvm_model::storage::StatementError;
use hpvm_model::{Statement, StatementForm};

/// The value parser of `-a`.
pub fn statement_to_add(text: &str) -> Result<Statement, StatementError> {
    Statement::parse(text, StatementForm::Add)
}

/// The value parser of `-m`.
pub fn statement_to_modify(text: &str) -> Result<Statement, StatementError> {
    Statement::parse(text, StatementForm::Modify)
}

/// The value parser of `-d`.
pub fn statement_to_delete(text: &str) -> Result<Statement, StatementError> {
    Statement::parse(text, StatementForm::Delete)
}
