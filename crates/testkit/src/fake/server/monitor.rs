//! One QMP monitor: its listening socket, its one client, and the client's bytes cut into messages.

use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

use crate::fake::machine::{Refusal, greeting};

pub(super) struct Monitor {
    listener: Option<UnixListener>,
    client: Option<Client>,
}

struct Client {
    stream: UnixStream,
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    has_capabilities: bool,
}

/// A message and the descriptor that came with it; or why it is none.
pub(super) struct Request {
    pub message: Result<Value, Refusal>,
    pub fd: Option<OwnedFd>,
}

impl Monitor {
    pub(super) fn listening(listener: UnixListener) -> anyhow::Result<Monitor> {
        listener.set_nonblocking(true)?;
        Ok(Monitor { listener: Some(listener), client: None })
    }

    pub(super) fn connected(socket: OwnedFd) -> anyhow::Result<Monitor> {
        let mut monitor = Monitor { listener: None, client: None };
        monitor.welcome(UnixStream::from(socket));
        Ok(monitor)
    }

    /// What to wait for: the client, or a client.
    pub(super) fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        match (&self.client, &self.listener) {
            (Some(client), _) => Some(client.stream.as_fd()),
            (None, Some(listener)) => Some(listener.as_fd()),
            (None, None) => None,
        }
    }

    pub(super) fn has_capabilities(&self) -> bool {
        self.client.as_ref().is_some_and(|client| client.has_capabilities)
    }

    pub(super) fn grant_capabilities(&mut self) {
        if let Some(client) = &mut self.client {
            client.has_capabilities = true;
        }
    }

    /// A client that does not take what is said is cut off.
    pub(super) fn say(&mut self, line: &str) {
        if let Some(client) = &mut self.client
            && client.stream.write_all(format!("{line}\r\n").as_bytes()).is_err()
        {
            self.client = None;
        }
    }

    /// Called when the descriptor is ready: takes a client in, or its messages.
    pub(super) fn receive(&mut self) -> Vec<Request> {
        match &mut self.client {
            None => {
                let accepted = self.listener.as_ref().and_then(|listener| listener.accept().ok());
                if let Some((stream, _)) = accepted {
                    self.welcome(stream);
                }
                Vec::new()
            }
            Some(client) => match client.read() {
                true => client.messages(),
                false => {
                    self.client = None;
                    Vec::new()
                }
            },
        }
    }

    fn welcome(&mut self, stream: UnixStream) {
        let (bytes, fds) = (Vec::new(), Vec::new());
        self.client = Some(Client { stream, bytes, fds, has_capabilities: false });
        self.say(&greeting().to_string());
    }
}

impl Client {
    /// False when the client is gone.
    fn read(&mut self) -> bool {
        let mut bytes = [0; 16 << 10];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received =
            recvmsg(&self.stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags);
        match received {
            Ok(message) if message.bytes == 0 => return false,
            Ok(message) => self.bytes.extend_from_slice(&bytes[..message.bytes]),
            Err(error) => return error == rustix::io::Errno::AGAIN,
        }
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        true
    }

    /// Whole messages; QEMU needs no line end after one. What is no JSON spoils what came with it.
    fn messages(&mut self) -> Vec<Request> {
        let mut requests = Vec::new();
        let mut stream = serde_json::Deserializer::from_slice(&self.bytes).into_iter::<Value>();
        let mut taken = 0;
        while let Some(message) = stream.next() {
            match message {
                Ok(message) => {
                    taken = stream.byte_offset();
                    requests.push(Request { message: Ok(message), fd: None });
                }
                Err(error) if error.is_eof() => break,
                Err(error) => {
                    let text = format!("JSON parse error, {error}");
                    requests.push(Request { message: Err(Refusal::generic(text)), fd: None });
                    taken = self.bytes.len();
                    break;
                }
            }
        }
        self.bytes.drain(..taken);
        if self.bytes.trim_ascii().is_empty() {
            self.bytes.clear();
        }
        for request in &mut requests {
            let wants_fd = request.message.as_ref().is_ok_and(|m| m["execute"] == "add-fd");
            if wants_fd && !self.fds.is_empty() {
                request.fd = Some(self.fds.remove(0));
            }
        }
        requests
    }
}
