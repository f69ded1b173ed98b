//! The serial console: one client, a log of every byte, an echo. Without a client bytes reach the log alone.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use crate::fake::serial;

pub(super) struct Console {
    listener: UnixListener,
    client: Option<UnixStream>,
    log: Option<File>,
}

impl Console {
    pub(super) fn new(listener: UnixListener, log: Option<OwnedFd>) -> anyhow::Result<Console> {
        listener.set_nonblocking(true)?;
        Ok(Console { listener, client: None, log: log.map(File::from) })
    }

    pub(super) fn poll_fd(&self) -> BorrowedFd<'_> {
        match &self.client {
            Some(client) => client.as_fd(),
            None => self.listener.as_fd(),
        }
    }

    /// A client that is slow or gone misses bytes; the log has them.
    pub(super) fn say(&mut self, bytes: &[u8]) {
        if let Some(log) = &mut self.log {
            let _ = log.write_all(bytes);
        }
        if let Some(client) = &mut self.client {
            let _ = client.write_all(bytes);
        }
    }

    /// Called when the descriptor is ready.
    pub(super) fn serve(&mut self) {
        let Some(client) = &mut self.client else {
            if let Ok((stream, _)) = self.listener.accept()
                && stream.set_nonblocking(true).is_ok()
            {
                self.client = Some(stream);
            }
            return;
        };
        let mut typed = [0; 4096];
        match client.read(&mut typed) {
            Ok(0) => self.client = None,
            Ok(count) => self.say(&serial::echo(&typed[..count])),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => self.client = None,
        }
    }
}
