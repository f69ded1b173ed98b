//! hpvmnetd's end of the link to its keeper: whole messages of 16 bytes, some with a descriptor, as ARCHITECTURE.md,
//! 'Keeper', lists them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use hpvm_host::fdpass;
use rustix::io::write;

/// What the keeper says.
#[derive(Debug)]
pub(crate) enum FromKeeper {
    /// A descriptor that one of us had it keep.
    Kept {
        tag: u32,
        fd: OwnedFd,
    },
    AllKept,
}

/// A socket of packets under the type for streams: each call moves one message.
#[derive(Debug)]
pub(crate) struct Link(UnixStream);

impl Link {
    pub(crate) fn new(socket: OwnedFd) -> Link {
        Link(socket.into())
    }

    pub(crate) fn try_clone(&self) -> io::Result<Link> {
        self.0.try_clone().map(Link)
    }

    /// Waits for the next message that is understood; `None` when the keeper is gone.
    pub(crate) fn receive(&self) -> Option<FromKeeper> {
        loop {
            let mut bytes = [0; 16];
            let (count, fds) = match fdpass::receive(&self.0, &mut bytes) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return None,
            };
            if count == 0 {
                return None;
            }
            let [a, b, c, d, e, f, g, h, ..] = bytes;
            let tag = u32::from_le_bytes([e, f, g, h]);
            match (u32::from_le_bytes([a, b, c, d]), fds.into_iter().next()) {
                (5, Some(fd)) => return Some(FromKeeper::Kept { tag, fd }),
                (7, _) => return Some(FromKeeper::AllKept),
                _ => {}
            }
        }
    }

    /// Has the keeper hold a copy for whoever comes after us.
    pub(crate) fn keep(&self, tag: u32, fd: BorrowedFd<'_>) -> io::Result<()> {
        fdpass::send(&self.0, &message(5, tag), &[fd]).map(drop)
    }

    /// What is not kept any more. A keeper that is gone keeps nothing.
    pub(crate) fn release(&self, tag: u32) {
        let _ = write(self.0.as_fd(), &message(6, tag));
    }

    /// All is done: nobody is to come after us.
    pub(crate) fn finished(&self) {
        let _ = write(self.0.as_fd(), &message(3, 0));
    }
}

fn message(kind: u32, value: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[4..8].copy_from_slice(&value.to_le_bytes());
    bytes
}
