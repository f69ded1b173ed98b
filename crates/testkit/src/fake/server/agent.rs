//! The channel of the guest agent: one client, whose bytes reach the agent while an operating system runs.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::event::PollFlags;

use crate::fake::agent::answers;
use crate::fake::behaviour::Agent;

pub(super) struct AgentPort {
    listener: UnixListener,
    client: Option<UnixStream>,
    agent: Agent,
    bytes: Vec<u8>,
}

impl AgentPort {
    pub(super) fn new(listener: UnixListener, agent: Agent) -> anyhow::Result<AgentPort> {
        listener.set_nonblocking(true)?;
        Ok(AgentPort { listener, client: None, agent, bytes: Vec::new() })
    }

    pub(super) fn poll_fd(&self) -> (BorrowedFd<'_>, PollFlags) {
        match &self.client {
            Some(client) if self.agent == Agent::Junk => {
                (client.as_fd(), PollFlags::IN | PollFlags::OUT)
            }
            Some(client) => (client.as_fd(), PollFlags::IN),
            None => (self.listener.as_fd(), PollFlags::IN),
        }
    }

    /// Called when the descriptor is ready.
    pub(super) fn serve(&mut self, os_runs: bool) {
        let Some(client) = &mut self.client else {
            if let Ok((stream, _)) = self.listener.accept()
                && stream.set_nonblocking(true).is_ok()
            {
                self.client = Some(stream);
            }
            return;
        };
        if os_runs && self.agent == Agent::Junk {
            // No line end, or one long line after another: neither is an answer.
            let _ = client.write(&[b"x\n".repeat(4 << 10), vec![b'y'; 100 << 10]].concat());
        }
        let mut bytes = [0; 4096];
        match client.read(&mut bytes) {
            Ok(count) if count > 0 => {
                self.bytes.extend_from_slice(&bytes[..count]);
                let said = match os_runs {
                    true => answers(&self.agent, &mut self.bytes),
                    false => Vec::new(),
                };
                let _ = client.write_all(&said);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => self.client = None,
        }
    }
}
