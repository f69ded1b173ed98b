//! Remembers who of the VM Host wrote to a guest by UDP, so that the guest may answer and nobody else is reached.
//!
//! A port forward's clients on the VM Host itself appear to the guest as the gateway. An answer to them looks like any other
//! datagram to the host's loopback, which guests must not send.

use std::collections::{HashSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::packet::{Packet, Protocol};

/// The oldest is forgotten first; what is asked by UDP is answered soon.
const CONVERSATIONS_MAX: usize = 4096;

/// Guest, and port of the gateway.
type Conversation = (SocketAddrV4, u16);

#[derive(Debug)]
pub(crate) struct Answerable {
    gateway: Ipv4Addr,
    known: HashSet<Conversation>,
    order: VecDeque<Conversation>,
}

impl Answerable {
    pub(crate) fn new(gateway: Ipv4Addr) -> Answerable {
        Answerable { gateway, known: HashSet::new(), order: VecDeque::new() }
    }

    /// A frame goes to a guest.
    pub(crate) fn note(&mut self, frame: &[u8]) {
        let Some(packet) = Packet::of_frame(frame) else { return };
        if packet.source != self.gateway || packet.protocol != Protocol::Udp {
            return;
        }
        let Some((from, to)) = packet.ports() else { return };
        let conversation = (SocketAddrV4::new(packet.destination, to), from);
        if !self.known.insert(conversation) {
            return;
        }
        self.order.push_back(conversation);
        if self.order.len() > CONVERSATIONS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    /// Whether a guest was written to from this port of the gateway.
    pub(crate) fn knows(&self, guest: SocketAddrV4, gateway_port: u16) -> bool {
        self.known.contains(&(guest, gateway_port))
    }
}
