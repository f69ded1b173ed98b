//! The commands' side of the control protocol: one request, one answer, within a bound.

use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use hpvm_host::lines::{Connection, Unheard};

use crate::protocol::{Reply, Request};

/// Why a switch could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("its process cannot be reached")]
    Connect(#[source] io::Error),
    #[error("the request could not be sent to its process")]
    Send(#[source] io::Error),
    #[error("its process did not answer within {} s", .0.as_secs_f32())]
    Deadline(Duration),
    #[error("its process ended over the request")]
    Closed,
    #[error("its process gave an answer that is not understood")]
    Malformed,
    #[error("{0}")]
    Refused(String),
}

/// A request whose connection is still open: some requests last as long as that.
#[derive(Debug)]
pub struct Asked {
    pub reply: Reply,
    pub connection: Connection,
}

/// Asks the process at a control socket; what it refuses is an error.
pub fn ask(
    control: &Path,
    request: &Request,
    descriptors: &[BorrowedFd<'_>],
    bound: Duration,
) -> Result<Asked, ClientError> {
    let mut connection = Connection::open(control).map_err(ClientError::Connect)?;
    connection.say(request, descriptors, bound).map_err(|unsent| match unsent.kind() {
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => ClientError::Closed,
        _ => ClientError::Send(unsent),
    })?;
    let reply = connection.hear(bound).map_err(|unheard| match unheard {
        Unheard::Late => ClientError::Deadline(bound),
        Unheard::Closed => ClientError::Closed,
        Unheard::Malformed(_) => ClientError::Malformed,
    })?;
    match reply {
        Reply::Denied { reason } => Err(ClientError::Refused(reason)),
        Reply::Failed { error } => Err(ClientError::Refused(error)),
        reply => Ok(Asked { reply, connection }),
    }
}
