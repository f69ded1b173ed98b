//! hpvmnetd's end of the link to its keeper, over which descriptors come and go too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use hpvm_host::fdpass;
use hpvm_host::keeper_link::{FromKeeper as Message, MESSAGE_BYTES, ToKeeper};
use rustix::io::write;

/// What the keeper says that concerns a switch.
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
            let mut bytes = [0; MESSAGE_BYTES];
            let (count, fds) = match fdpass::receive(&self.0, &mut bytes) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return None,
            };
            if count == 0 {
                return None;
            }
            match (Message::from_bytes(bytes), fds.into_iter().next()) {
                (Some(Message::Kept { tag }), Some(fd)) => {
                    return Some(FromKeeper::Kept { tag, fd });
                }
                (Some(Message::AllKept), _) => return Some(FromKeeper::AllKept),
                _ => {}
            }
        }
    }

    /// Has the keeper hold a copy for whoever comes after us.
    pub(crate) fn keep(&self, tag: u32, fd: BorrowedFd<'_>) -> io::Result<()> {
        fdpass::send(&self.0, &ToKeeper::Keep { tag }.to_bytes(), &[fd]).map(drop)
    }

    /// What is not kept any more. A keeper that is gone keeps nothing.
    pub(crate) fn release(&self, tag: u32) {
        let _ = write(self.0.as_fd(), &ToKeeper::Release { tag }.to_bytes());
    }

    /// All is done: nobody is to come after us.
    pub(crate) fn finished(&self) {
        let _ = write(self.0.as_fd(), &ToKeeper::Finished.to_bytes());
    }
}
