//! The one request that QEMU makes too early for the crate that carries the protocol: it enables a network card's rings
//! when the card is made (QEMU, hw/net/virtio-net.c, `peer_attach`), long before a driver acknowledges features, and the
//! crate refuses that as not agreed on. So while features are not acknowledged, each request is looked at first, and
//! this one is taken here.

use std::io;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, SendFlags, recv, send};

/// Header of request, flags and size, each 32 bits, then the ring's index and 1 or 0 (vhost-user, "Message Specification").
const BYTES: usize = 20;
const SET_VRING_ENABLE: u32 = 18;
const PAYLOAD_BYTES: u32 = 8;
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// A ring to be enabled or disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Enable {
    pub(crate) ring: u32,
    pub(crate) enable: bool,
    needs_reply: bool,
}

/// Waits for a request and takes it if it is this one; any other stays where it is.
pub(crate) fn take(socket: &UnixStream) -> io::Result<Option<Enable>> {
    let mut bytes = [0; BYTES];
    // QEMU sends a request in one piece. Half of one is left to the crate as well, which says what is wrong with it.
    let (_, seen) = recv(socket, &mut bytes, RecvFlags::PEEK)?;
    let Some(enable) = parse(&bytes).filter(|_| seen == BYTES) else { return Ok(None) };
    recv(socket, &mut bytes, RecvFlags::empty())?;
    Ok(Some(enable))
}

fn parse(bytes: &[u8; BYTES]) -> Option<Enable> {
    let word = |index: usize| {
        let at = 4 * index;
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let [request, flags, size, ring, enable] = [0, 1, 2, 3, 4].map(word);
    let whole = request == SET_VRING_ENABLE
        && size == PAYLOAD_BYTES
        && flags & (VERSION_MASK | REPLY) == VERSION
        && enable <= 1;
    let needs_reply = flags & NEED_REPLY != 0;
    whole.then_some(Enable { ring, enable: enable == 1, needs_reply })
}

/// Says whether it was done, if the peer wants to know.
pub(crate) fn answer(socket: &UnixStream, enable: Enable, done: bool) -> io::Result<()> {
    if !enable.needs_reply {
        return Ok(());
    }
    let mut bytes = Vec::with_capacity(BYTES);
    for word in [SET_VRING_ENABLE, VERSION | REPLY, PAYLOAD_BYTES, u32::from(!done), 0] {
        bytes.extend(word.to_le_bytes());
    }
    send(socket, &bytes, SendFlags::NOSIGNAL)?;
    Ok(())
}
