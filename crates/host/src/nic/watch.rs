//! Follows what becomes of interfaces: link down and up, another MTU or address, gone. No switch has to be started again
//! because its cable was.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::message::{DELETED_LINK, DONE, ERROR, GET_LINK, LINK_BYTES, NEW_LINK, link, messages};
use super::socket::{NetlinkError, everything, open};
use super::{Nic, message};

const GROUP_OF_LINKS: u32 = 1;
const RECEIVE_BYTES: usize = 64 * 1024;

/// What happened to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkNews {
    /// It is so now, and may have been so before. Addresses, and the names of others, are not told.
    Now(Nic),
    Gone {
        index: u32,
        name: String,
    },
    /// More happened than the kernel could keep: look at all interfaces anew, [`LinkWatch::ask_for_all`].
    Missed,
    /// What was asked for by [`LinkWatch::ask_for_all`] is complete: an interface that was not told since is not there.
    AllTold,
}

/// Hears of every interface of this machine. Readable when there is news.
#[derive(Debug)]
pub struct LinkWatch {
    socket: OwnedFd,
}

impl LinkWatch {
    pub fn new() -> Result<LinkWatch, NetlinkError> {
        open(GROUP_OF_LINKS).map(LinkWatch::of).map_err(NetlinkError::Follow)
    }

    /// Goes on with the socket of a watch, which somebody kept for a process that may open none.
    #[must_use]
    pub fn of(socket: OwnedFd) -> LinkWatch {
        LinkWatch { socket }
    }

    /// Has every interface told as news, as it is now. A process that may open no socket any more looks anew so.
    pub fn ask_for_all(&self) -> Result<(), NetlinkError> {
        send(&self.socket, &everything(GET_LINK, LINK_BYTES), SendFlags::DONTWAIT)
            .map(|_| ())
            .map_err(|error| NetlinkError::Follow(error.into()))
    }

    /// What has happened so far; never waits.
    pub fn read(&self) -> Result<Vec<LinkNews>, NetlinkError> {
        let mut news = Vec::new();
        let mut piece = vec![0; RECEIVE_BYTES];
        loop {
            match recv(&self.socket, &mut piece[..], RecvFlags::DONTWAIT) {
                Ok((count, _)) => news.extend(messages(&piece[..count]).filter_map(|it| told(&it))),
                Err(Errno::AGAIN) => return Ok(news),
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => news.push(LinkNews::Missed),
                Err(error) => return Err(NetlinkError::Follow(error.into())),
            }
        }
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn told(message: &message::Message) -> Option<LinkNews> {
    match message.kind {
        DONE => return Some(LinkNews::AllTold),
        // A question that came while another was being answered.
        ERROR => return Some(LinkNews::Missed),
        _ => {}
    }
    let link = link(message.body)?;
    match message.kind {
        NEW_LINK => Some(LinkNews::Now(Nic::of(&link))),
        DELETED_LINK => Some(LinkNews::Gone { index: link.index, name: link.name }),
        _ => None,
    }
}
