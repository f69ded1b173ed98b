//! The control socket: takes requests of commands, one a connection, and hands them to the one owner of the switch. Who may
//! ask is decided by the kernel's word on the peer. A peer that says nothing delays others for its bound and no more.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use hpvm_host::lines::LINE_BYTES_MAX;
use hpvm_host::lock::pause_for;
use hpvm_host::{fdpass, users};
use rustix::net::sockopt::socket_peercred;

use crate::Input;
use hpvm_vswitchd::protocol::{Reply, Request};

/// From connecting to the end of the request: commands send theirs at once.
const REQUEST_BOUND: Duration = Duration::from_secs(1);
const REPLY_BOUND: Duration = Duration::from_secs(1);
/// The owner answers within milliseconds, or the switch's thread hangs.
const ANSWER_BOUND: Duration = Duration::from_secs(5);

/// A request with what rode along.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) request: Request,
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) replies: Sender<Reply>,
    /// For requests that last as long as their asker.
    pub(crate) connection: UnixStream,
}

/// Serves as long as the process lives.
pub(crate) fn serve(listener: &UnixListener, owner: &Sender<Input>) {
    for connection in listener.incoming() {
        match connection {
            Ok(connection) => converse(connection, owner),
            // No descriptors left, for a moment: a busy loop would make it worse.
            Err(_) => pause_for(Duration::from_millis(100)),
        }
    }
}

fn converse(connection: UnixStream, owner: &Sender<Input>) {
    let Ok(mut answering) = connection.try_clone() else { return };
    let reply = match read_request(&connection) {
        Some(Ok((request, descriptors))) => {
            let (replies, answers) = channel();
            let asked = Asked { request, descriptors, replies, connection };
            if owner.send(Input::Asked(Box::new(asked))).is_err() {
                return;
            }
            match answers.recv_timeout(ANSWER_BOUND) {
                Ok(reply) => reply,
                Err(_) => return,
            }
        }
        Some(Err(reason)) => Reply::Denied { reason: reason.into() },
        None => return,
    };
    let Ok(mut line) = serde_json::to_vec(&reply) else { return };
    line.push(b'\n');
    // Who does not read his answer has given up.
    let _ = answering.set_write_timeout(Some(REPLY_BOUND));
    let _ = answering.write_all(&line);
    let _ = owner.send(Input::Answered);
}

type Read = Result<(Request, Vec<OwnedFd>), &'static str>;

/// `None`: the peer is gone, or said nothing in time.
fn read_request(connection: &UnixStream) -> Option<Read> {
    let peer = socket_peercred(connection).ok()?.uid.as_raw();
    if peer != 0 && peer != users::effective_uid() {
        return Some(Err("only root and the owner of this VM Host may do that"));
    }
    let deadline = Instant::now() + REQUEST_BOUND;
    let (mut line, mut descriptors) = (Vec::new(), Vec::new());
    let mut part = vec![0; 4 << 10];
    while !line.ends_with(b"\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        connection.set_read_timeout(Some(left)).ok()?;
        let (count, sent) = fdpass::receive(connection, &mut part).ok()?;
        if count == 0 || line.len() + count > LINE_BYTES_MAX {
            return None;
        }
        line.extend_from_slice(&part[..count]);
        descriptors.extend(sent);
    }
    match serde_json::from_slice(&line) {
        Ok(request) => Some(Ok((request, descriptors))),
        Err(_) => Some(Err("the request is not understood by this version of hpvmnetd")),
    }
}
