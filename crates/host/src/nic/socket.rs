//! Asks the kernel over rtnetlink for all interfaces, or all addresses.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

use super::message::{
    ADDRESS_BYTES, DELETED_LINK, DONE, ERROR, GET_ADDRESS, GET_LINK, HEAD_BYTES, LINK_BYTES,
    messages,
};

/// The kernel answers at once.
const DEADLINE: Duration = Duration::from_secs(2);
/// The kernel fills a page or two at a time, and this much at most.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Interfaces came and went while they were listed.
const ATTEMPTS_MAX: usize = 5;
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const DUMP: u16 = 0x300;
const DUMP_INTERRUPTED: u16 = 0x10;

/// Why the kernel's list of interfaces is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("the kernel cannot be asked for network interfaces")]
    Open(#[source] io::Error),
    #[error("the kernel did not tell its network interfaces")]
    Ask(#[source] io::Error),
    #[error("network interfaces came and went too fast to be listed")]
    Interrupted,
    #[error("changes of network interfaces cannot be followed")]
    Follow(#[source] io::Error),
    #[error("the kernel did not remove the network interface")]
    Remove(#[source] io::Error),
}

/// What a kernel said when it was asked for everything: messages as they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    pub links: Vec<u8>,
    pub addresses: Vec<u8>,
}

impl Recording {
    /// Asks this machine's.
    pub fn of_kernel() -> Result<Recording, NetlinkError> {
        let socket = asking()?;
        Ok(Recording {
            links: dump(&socket, GET_LINK, LINK_BYTES)?,
            addresses: dump(&socket, GET_ADDRESS, ADDRESS_BYTES)?,
        })
    }
}

/// A socket for questions, of which none is waited for without end.
fn asking() -> Result<OwnedFd, NetlinkError> {
    let socket = open(0).map_err(NetlinkError::Open)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(DEADLINE))
        .map_err(|error| NetlinkError::Open(error.into()))?;
    Ok(socket)
}

/// Removes an interface that is not of hardware. Takes root's rights.
pub(super) fn delete_link(index: u32) -> Result<(), NetlinkError> {
    let socket = asking()?;
    let mut bytes = request(DELETED_LINK, REQUEST | ACKNOWLEDGE, LINK_BYTES);
    // Behind family and type.
    bytes[HEAD_BYTES + 4..HEAD_BYTES + 8].copy_from_slice(&index.to_ne_bytes());
    acknowledged(&socket, &bytes).map_err(NetlinkError::Remove)
}

/// Sends a request of which the kernel says how it went, by an error that may be none.
fn acknowledged(socket: &OwnedFd, request: &[u8]) -> io::Result<()> {
    send(socket, request, SendFlags::empty())?;
    let mut piece = vec![0; RECEIVE_BYTES];
    let (count, _) = recv(socket, &mut piece[..], RecvFlags::empty())?;
    let answer = messages(&piece[..count]).find(|message| message.kind == ERROR);
    let refusal = refusal(answer.map_or(&[], |message| message.body));
    match refusal.raw_os_error() {
        Some(0) => Ok(()),
        _ => Err(refusal),
    }
}

/// A socket that hears of these groups of events.
pub(super) fn open(groups: u32) -> io::Result<OwnedFd> {
    // No protocol: NETLINK_ROUTE is 0.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

fn dump(socket: &OwnedFd, kind: u16, fixed_bytes: usize) -> Result<Vec<u8>, NetlinkError> {
    for _ in 0..ATTEMPTS_MAX {
        if let Some(messages) = try_dump(socket, kind, fixed_bytes).map_err(NetlinkError::Ask)? {
            return Ok(messages);
        }
    }
    Err(NetlinkError::Interrupted)
}

/// `None` when the list changed under way.
fn try_dump(socket: &OwnedFd, kind: u16, fixed_bytes: usize) -> io::Result<Option<Vec<u8>>> {
    send(socket, &everything(kind, fixed_bytes), SendFlags::empty())?;
    let mut all = Vec::new();
    let mut interrupted = false;
    let mut piece = vec![0; RECEIVE_BYTES];
    loop {
        let (count, _) = recv(socket, &mut piece[..], RecvFlags::empty())?;
        let received = &piece[..count];
        for message in messages(received) {
            interrupted |= message.flags & DUMP_INTERRUPTED != 0;
            match message.kind {
                DONE => return Ok((!interrupted).then_some(all)),
                ERROR => return Err(refusal(message.body)),
                _ => {}
            }
        }
        all.extend_from_slice(received);
    }
}

/// A request for everything of a kind, of whatever address family.
pub(super) fn everything(kind: u16, fixed_bytes: usize) -> Vec<u8> {
    request(kind, REQUEST | DUMP, fixed_bytes)
}

fn request(kind: u16, flags: u16, fixed_bytes: usize) -> Vec<u8> {
    let length = HEAD_BYTES + fixed_bytes;
    let mut bytes = u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.resize(length, 0);
    bytes
}

fn refusal(body: &[u8]) -> io::Error {
    let code = body.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    io::Error::from_raw_os_error(code.saturating_neg())
}
