//! The commands' side of the control protocol: one request, one answer, within a bound.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use hpvm_host::fdpass;

use crate::protocol::{LINE_BYTES_MAX, Reply, Request};

/// Why a switch could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("its process cannot be reached")]
    Connect(#[source] io::Error),
    #[error("the request could not be sent to its process")]
    Send(#[source] io::Error),
    #[error("its process did not answer within {} s", .0.as_secs_f32())]
    Deadline(Duration),
    #[error("its process ended in the middle of an answer")]
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
    pub connection: UnixStream,
}

/// Asks the process at a control socket; what it refuses is an error.
pub fn ask(
    control: &Path,
    request: &Request,
    descriptors: &[BorrowedFd<'_>],
    bound: Duration,
) -> Result<Asked, ClientError> {
    let connection = UnixStream::connect(control).map_err(ClientError::Connect)?;
    connection.set_write_timeout(Some(bound)).map_err(ClientError::Send)?;
    connection.set_read_timeout(Some(bound)).map_err(ClientError::Send)?;
    let mut line = serde_json::to_vec(request).map_err(|e| ClientError::Send(e.into()))?;
    line.push(b'\n');
    let sent = fdpass::send(&connection, &line, descriptors).map_err(ClientError::Send)?;
    (&connection).write_all(&line[sent..]).map_err(ClientError::Send)?;
    let reply = read_reply(&connection, bound)?;
    match reply {
        Reply::Denied { reason } => Err(ClientError::Refused(reason)),
        Reply::Failed { error } => Err(ClientError::Refused(error)),
        reply => Ok(Asked { reply, connection }),
    }
}

fn read_reply(connection: &UnixStream, bound: Duration) -> Result<Reply, ClientError> {
    let mut line = Vec::new();
    let mut lines = BufReader::new(connection).take(LINE_BYTES_MAX as u64);
    match lines.read_until(b'\n', &mut line) {
        Ok(_) if line.last() == Some(&b'\n') => {
            serde_json::from_slice(&line).map_err(|_| ClientError::Malformed)
        }
        Ok(_) => Err(ClientError::Closed),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
        {
            Err(ClientError::Deadline(bound))
        }
        Err(_) => Err(ClientError::Closed),
    }
}
