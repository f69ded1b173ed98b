//! The control socket: takes requests of commands and hands them to the owner. One request a connection.
//!
//! Who may ask is decided by the kernel's word on the peer: root, and the user we run as, who owns this VM Host when it is
//! not root's. A peer that says nothing, too much, or something else is let go; none of them delays the owner.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hpvm_app::protocol::{Denial, Reply, Request};
use hpvm_host::lines::LINE_BYTES_MAX;
use hpvm_host::{fdpass, users};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::spawn_local;
use tokio::time::timeout;

/// From connecting to the end of the request.
const REQUEST_BOUND: Duration = Duration::from_secs(10);
/// A peer that does not read its answer.
const REPLY_BOUND: Duration = Duration::from_secs(10);
const CONNECTIONS_MAX: usize = 32;
const READ_BYTES: usize = 4 << 10;
/// Progress that nobody reads is dropped beyond this.
const REPLIES_WAITING: usize = 16;

/// A request with what rode along, and where its replies go.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) request: Request,
    pub(crate) descriptors: VecDeque<OwnedFd>,
    pub(crate) replies: mpsc::Sender<Reply>,
    pub(crate) peer: Peer,
}

/// Comes to its end when whoever asked closes the connection, or his half of it.
pub(crate) type Peer = oneshot::Receiver<()>;

/// Serves until the runtime ends.
pub(crate) async fn serve(listener: UnixListener, owner: mpsc::Sender<Asked>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // No descriptors left, for a moment: a busy loop would make it worse.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
        let owner = owner.clone();
        spawn_local(async move {
            let _place = place;
            converse(stream, owner).await;
        });
    }
}

async fn converse(mut stream: UnixStream, owner: mpsc::Sender<Asked>) {
    let reply = match timeout(REQUEST_BOUND, request(&stream)).await {
        Ok(Ok((request, descriptors))) => {
            let (replies, mut answers) = mpsc::channel(REPLIES_WAITING);
            let (listens, peer) = oneshot::channel();
            if owner.send(Asked { request, descriptors, replies, peer }).await.is_err() {
                return;
            }
            return answer(&mut stream, &mut answers, listens).await;
        }
        Ok(Err(Unheard::Denied(reason))) => Reply::Denied { reason },
        Ok(Err(Unheard::Gone)) | Err(_) => return,
    };
    say(&mut stream, &reply).await;
}

/// Hands replies on until the last one, or until nobody takes them.
async fn answer(
    stream: &mut UnixStream,
    answers: &mut mpsc::Receiver<Reply>,
    listens: oneshot::Sender<()>,
) {
    let mut listens = Some(listens);
    loop {
        let reply = tokio::select! {
            reply = answers.recv() => reply,
            () = hung_up(stream), if listens.is_some() => {
                listens = None;
                continue;
            }
        };
        let Some(reply) = reply else { return };
        if !say(stream, &reply).await || reply.is_last() {
            return;
        }
    }
}

/// Until the peer says that it asks for nothing more. What it says beside that is not listened to.
async fn hung_up(stream: &UnixStream) {
    let mut part = [0; 64];
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut part) {
            Ok(0) => return,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
            Ok(_) | Err(_) => {}
        }
    }
}

enum Unheard {
    Denied(Denial),
    Gone,
}

async fn request(stream: &UnixStream) -> Result<(Request, VecDeque<OwnedFd>), Unheard> {
    let peer = stream.peer_cred().map_err(|_| Unheard::Gone)?.uid();
    if peer != 0 && peer != users::effective_uid() {
        return Err(Unheard::Denied(Denial::NotAllowed));
    }
    let mut line = Vec::new();
    let mut descriptors = VecDeque::new();
    let mut part = vec![0; READ_BYTES];
    while !line.ends_with(b"\n") {
        stream.readable().await.map_err(|_| Unheard::Gone)?;
        let received = stream.try_io(Interest::READABLE, || fdpass::receive(stream, &mut part));
        match received {
            Ok((0, _)) => return Err(Unheard::Gone),
            Ok((count, sent)) => {
                line.extend_from_slice(&part[..count]);
                descriptors.extend(sent);
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(Unheard::Gone),
        }
        if line.len() > LINE_BYTES_MAX {
            return Err(Unheard::Denied(Denial::NotUnderstood));
        }
    }
    match serde_json::from_slice(&line) {
        Ok(request) => Ok((request, descriptors)),
        Err(_) => Err(Unheard::Denied(Denial::NotUnderstood)),
    }
}

/// Whether the peer took it.
async fn say(stream: &mut UnixStream, reply: &Reply) -> bool {
    let Ok(mut line) = serde_json::to_vec(reply) else { return false };
    line.push(b'\n');
    matches!(timeout(REPLY_BOUND, stream.write_all(&line)).await, Ok(Ok(())))
}
