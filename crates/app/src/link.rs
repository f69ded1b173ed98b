//! The worker's end of the link to its keeper, over which descriptors come and go too.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use hpvm_host::fdpass;
use hpvm_host::keeper_link::{FromKeeper, MESSAGE_BYTES, ToKeeper};
use tokio::io::Interest;
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

    /// The next message that is understood, and what came beside it; `None` when the keeper is gone. One of which the descriptor
    /// cannot be taken in, since there is no number left for it, is passed over.
    pub(crate) async fn receive(&self) -> Option<(FromKeeper, Option<OwnedFd>)> {
        loop {
            self.0.readable().await.ok()?;
            let mut bytes = [0; MESSAGE_BYTES];
            let read = || fdpass::receive(&self.0, &mut bytes);
            match self.0.try_io(Interest::READABLE, read) {
                Ok((MESSAGE_BYTES, beside)) => {
                    if let Some(message) = FromKeeper::from_bytes(bytes) {
                        return Some((message, beside.into_iter().next()));
                    }
                }
                Ok((0, _)) => return None,
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Other) => {
                }
                Err(_) => return None,
            }
        }
    }

    /// A message fits whenever the keeper lives; when it does not, nobody needs it.
    pub(crate) fn send(&self, message: ToKeeper) {
        let _ = self.0.try_write(&message.to_bytes());
    }

    /// Has the keeper hold a copy for whoever comes after us.
    pub(crate) fn keep(&self, tag: u32, fd: BorrowedFd<'_>) -> io::Result<()> {
        let message = ToKeeper::Keep { tag }.to_bytes();
        let sent = self.0.try_io(Interest::WRITABLE, || fdpass::send(&self.0, &message, &[fd]));
        sent.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::IoSlice;
    use std::mem::MaybeUninit;
    use std::os::fd::AsFd;

    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
        SocketType, send, sendmsg, socketpair,
    };

    use super::*;

    /// More descriptors than a message has room for are lost as those are that there is no number for.
    #[tokio::test]
    async fn a_lost_descriptor_is_not_the_keepers_death() {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (ours, theirs) = socketpair(family, kind, SocketFlags::CLOEXEC, None).unwrap();
        let link = Link::new(ours).unwrap();
        let message = |kind: u8| [[kind, 0, 0, 0], [0; 4], [0; 4], [0; 4]].concat();
        let file = File::open("/dev/null").unwrap();
        let many = [file.as_fd(); fdpass::DESCRIPTORS_MAX + 50];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(200))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        sendmsg(&theirs, &[IoSlice::new(&message(5))], &mut control, SendFlags::empty()).unwrap();
        send(&theirs, &message(7), SendFlags::empty()).unwrap();
        assert!(matches!(link.receive().await, Some((FromKeeper::AllKept, None))));
        drop(theirs);
        assert!(link.receive().await.is_none());
    }
}
