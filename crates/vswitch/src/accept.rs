//! The forwarding thread takes the peers that come to the sockets of stream ports.

use std::io;
use std::os::unix::net::UnixStream;

use hpvm_model::PortNumber;

use crate::event::Event;
use crate::forward::Forwarder;
use crate::port::{Peer, PlaceIndex};
use crate::stream::StreamPeer;
use crate::switch::PortLink;
use crate::watch::{Interest, Token};

/// Until a peer is tried again for which there was no descriptor.
const ACCEPT_AGAIN_NS: u64 = 100_000_000;

impl Forwarder {
    /// Has a stream port wait for a peer again.
    pub(crate) fn accept_again(&mut self, place: PlaceIndex) {
        let Some(port) = self.ports[usize::from(place)].as_deref() else { return };
        port.shared.set_link(PortLink::Absent);
        if let Some(listener) = &port.listener {
            let _ = self.watch.change(listener, Token::Listener(place), Interest::Arrival);
        }
    }

    /// Takes the peer that waits at a stream port's socket.
    pub(crate) fn accept(&mut self, place: PlaceIndex) {
        let Some(port) = self.ports[usize::from(place)].as_deref() else { return };
        let Some(listener) = &port.listener else { return };
        if port.is_open() {
            return;
        }
        let accepted = listener.accept();
        if matches!(&accepted, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            return;
        }
        let _ = self.watch.change(listener, Token::Listener(place), Interest::Nothing);
        match accepted {
            Ok((socket, _)) => self.connect(place, socket),
            // Without a descriptor for it the peer stays at the socket, which would tell of it without end.
            Err(_) => self.pause(place, self.clock_ns() + ACCEPT_AGAIN_NS),
        }
    }

    /// Gives a place the stream peer at the other end of a socket.
    pub(crate) fn connect(&mut self, place: PlaceIndex, socket: UnixStream) {
        let peer = StreamPeer::new(socket).map(|peer| Peer::Stream(Box::new(peer)));
        if peer.and_then(|peer| self.open(place, peer)).is_err() {
            self.accept_again(place);
            return;
        }
        if let Some(port) = self.port(place) {
            port.shared.set_link(PortLink::Started);
        }
        if let Some(port) = PortNumber::new(place) {
            let _ = self.events.send(Event::Connected { port });
            let _ = self.events.send(Event::Started { port });
        }
    }
}
