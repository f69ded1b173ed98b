//! Follows what becomes of interfaces: link down and up, another MTU or address, gone. No switch has to be started again
//! because its cable was.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::message::{DELETED_LINK, GET_LINK, LINK_BYTES, NEW_LINK, link, messages};
use super::socket::{NetlinkError, open, request};
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
}

/// Hears of every interface of this machine. Readable when there is news.
#[derive(Debug)]
pub struct LinkWatch {
    socket: OwnedFd,
}

impl LinkWatch {
    pub fn new() -> Result<LinkWatch, NetlinkError> {
        open(GROUP_OF_LINKS).map(|socket| LinkWatch { socket }).map_err(NetlinkError::Follow)
    }

    /// Has every interface told as news, as it is now. A process that may open no socket any more looks anew so.
    pub fn ask_for_all(&self) -> Result<(), NetlinkError> {
        send(&self.socket, &request(GET_LINK, LINK_BYTES), SendFlags::DONTWAIT)
            .map(|_| ())
            .map_err(|error| NetlinkError::Follow(error.into()))
    }

    /// What has happened so far; never waits.
    pub fn read(&mut self) -> Result<Vec<LinkNews>, NetlinkError> {
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
    let link = link(message.body)?;
    match message.kind {
        NEW_LINK => Some(LinkNews::Now(Nic::of(&link))),
        DELETED_LINK => Some(LinkNews::Gone { index: link.index, name: link.name }),
        _ => None,
    }
}
