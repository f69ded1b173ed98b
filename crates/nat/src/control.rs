//! What a running `hpvmnat` can be asked: one JSON value a line each way over its control socket.
//!
//! Called by commands that change a switch's forwards or look at its wire.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use hpvm_host::lines::{Connection, Unheard};
use hpvm_model::{Forward, MacAddress};
use serde::{Deserialize, Serialize};

/// How long an answer may take. It comes out of one loop that waits for nobody.
pub const DEADLINE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Listen on a port of the VM Host for a guest. Done already when this very forward is there.
    Add {
        forward: Forward,
    },
    Remove {
        forward: Forward,
    },
    Status,
    /// End, and take every forward along.
    End,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Done,
    Refused { why: String },
    Status(Status),
}

/// How the wire is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The process that does the work; another one when it had to be started again.
    pub pid: u32,
    /// Whether a switch is connected.
    pub connected: bool,
    pub forwards: Vec<Forward>,
    /// The guests that have an address.
    pub leases: Vec<Lease>,
    pub counters: Counters,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub mac: MacAddress,
    pub address: std::net::Ipv4Addr,
}

/// Frames since the start, as seen from the guests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub frames_out: u64,
    /// Of guests, and not for the world outside: multicasts, IPv6, pieces of packets, what is too long.
    pub frames_out_unfit: u64,
    /// To what guests may not reach: the VM Host's loopback, link-local addresses, others' sources.
    pub frames_out_refused: u64,
    pub frames_in: u64,
    /// The switch did not take them in time.
    pub frames_in_dropped: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("no hpvmnat answers at {0}")]
    Connect(String, #[source] io::Error),
    #[error("hpvmnat did not take the request")]
    Send(#[source] io::Error),
    #[error("hpvmnat did not answer as it should, within {} s", DEADLINE.as_secs())]
    Answer(#[source] Unheard),
}

impl ControlError {
    /// Whether whoever asks may not.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        matches!(
            self,
            ControlError::Connect(_, why) if why.kind() == ErrorKind::PermissionDenied
        )
    }

    /// Whether nobody listens there: no process is left, neither one that works nor one that would start it again.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(
            self,
            ControlError::Connect(_, why)
                if matches!(why.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
        )
    }
}

/// Asks the `hpvmnat` that listens at a path, and waits [`DEADLINE`] at most.
pub fn ask(socket: &Path, request: &Request) -> Result<Reply, ControlError> {
    let connect = |source| ControlError::Connect(socket.display().to_string(), source);
    let mut connection = Connection::open(socket).map_err(connect)?;
    connection.say(request, &[], DEADLINE).map_err(ControlError::Send)?;
    connection.hear(DEADLINE).map_err(ControlError::Answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn who_does_not_answer_is_not_absent() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("control");
        let is_absent = || ask(&path, &Request::Status).expect_err("no answer").is_absence();
        assert!(is_absent(), "never there");
        let listener = UnixListener::bind(&path).expect("a socket");
        let silent = std::thread::spawn(move || drop(listener.accept()));
        assert!(!is_absent());
        silent.join().expect("ended");
        assert!(is_absent(), "gone");
    }
}
