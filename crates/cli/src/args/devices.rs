//! Devices as `-a`, `-m` and `-d` take them: a storage device or a NIC, told apart by the statement's first word.

use hpvm_model::bytes::shown;
use hpvm_model::network::NicStatementError;
use hpvm_model::storage::StatementError;
use hpvm_model::{NicStatement, Statement, StatementForm};
use hpvm_plan::request::{DeviceRequest, NicRequest, Request};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceStatement {
    Storage(Statement),
    Network(NicStatement),
}

/// Why a text is no device, in the words of the kind it is most like.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceStatementError {
    #[error(transparent)]
    Storage(#[from] StatementError),
    #[error(transparent)]
    Network(#[from] NicStatementError),
}

fn read(text: &str, form: StatementForm) -> Result<DeviceStatement, DeviceStatementError> {
    Ok(match NicStatement::is_meant(text) {
        true => DeviceStatement::Network(NicStatement::parse(text, form)?),
        false => DeviceStatement::Storage(Statement::parse(text, form)?),
    })
}

/// The value parser of `-a`.
pub(super) fn statement_to_add(text: &str) -> Result<DeviceStatement, DeviceStatementError> {
    read(text, StatementForm::Add)
}

/// The value parser of `-m`.
pub(super) fn statement_to_modify(text: &str) -> Result<DeviceStatement, DeviceStatementError> {
    read(text, StatementForm::Modify)
}

/// The value parser of `-d`.
pub(super) fn statement_to_delete(text: &str) -> Result<DeviceStatement, DeviceStatementError> {
    read(text, StatementForm::Delete)
}

/// Why a text is no device to be copied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    #[error(
        "'{}' has no address; write that of the disk to be copied, as `hpvmstatus -P SOURCE -d` prints it, such as disk:scsi:0,1,0:file:/path", shown(.0)
    )]
    AddressMissing(String),
    #[error(transparent)]
    Statement(#[from] StatementError),
}

/// The value parser of hpvmclone's `-b`, which is about storage alone.
pub fn store_to_copy(text: &str) -> Result<Statement, CopyError> {
    Statement::parse(text, StatementForm::Modify).map_err(|error| match error {
        StatementError::AddressMissing => CopyError::AddressMissing(text.to_owned()),
        error => CopyError::Statement(error),
    })
}

/// What is asked of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    Add,
    Modify,
    Delete,
}

/// Puts statements of one option into a request.
pub(super) fn put(request: &mut Request, deed: Deed, statements: &[DeviceStatement]) {
    for statement in statements.iter().cloned() {
        match (statement, deed) {
            (DeviceStatement::Storage(s), Deed::Add) => {
                request.devices.push(DeviceRequest::Add(s));
            }
            (DeviceStatement::Storage(s), Deed::Modify) => {
                request.devices.push(DeviceRequest::Modify(s));
            }
            (DeviceStatement::Storage(s), Deed::Delete) => {
                request.devices.push(DeviceRequest::Delete(s));
            }
            (DeviceStatement::Network(s), Deed::Add) => request.nics.push(NicRequest::Add(s)),
            (DeviceStatement::Network(s), Deed::Modify) => {
                request.nics.push(NicRequest::Modify(s));
            }
            (DeviceStatement::Network(s), Deed::Delete) => {
                request.nics.push(NicRequest::Delete(s));
            }
        }
    }
}
