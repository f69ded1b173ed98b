//! The worker's end of the link to its keeper.

use std::io;
use std::os::fd::OwnedFd;

use hpvm_host::keeper_link::{FromKeeper, MESSAGE_BYTES, ToKeeper};
use tokio::net::UnixStream;

/// A socket of packets, under the type for streams: each read gives one message, each write is one.
#[derive(Debug)]
pub(crate) struct Link(UnixStream);

impl Link {
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Link> {
        let socket = std::os::unix::net::UnixStream::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Link(UnixStream::from_std(socket)?))
    }

    /// The next message that is understood; `None` when the keeper is gone.
    pub(crate) async fn receive(&self) -> Option<FromKeeper> {
        loop {
            self.0.readable().await.ok()?;
            let mut bytes = [0; MESSAGE_BYTES];
            match self.0.try_read(&mut bytes) {
                Ok(MESSAGE_BYTES) => {
                    if let Some(message) = FromKeeper::from_bytes(bytes) {
                        return Some(message);
                    }
                }
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
    }

    /// A message fits whenever the keeper lives; when it does not, nobody needs it.
    pub(crate) fn send(&self, message: ToKeeper) {
        let _ = self.0.try_write(&message.to_bytes());
    }
}
