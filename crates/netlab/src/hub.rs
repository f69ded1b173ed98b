//! What guests of a test are plugged into: hands each frame of a stream socket, or of a card, to the guest it is for. On the
//! stream each frame is behind its length in 4 bytes, big endian, as QEMU's `-netdev stream` has it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetAddress;

use crate::card::Card;

#[derive(Clone)]
pub struct Hub(Rc<RefCell<Inner>>);

struct Inner {
    line: Line,
    has_ended: bool,
    guests: Vec<(EthernetAddress, VecDeque<Vec<u8>>)>,
}

/// The way out.
enum Line {
    /// And what came of a frame that is not whole.
    Stream(UnixStream, Vec<u8>),
    Card(Box<Card>),
}

impl Hub {
    pub fn new(stream: UnixStream) -> Hub {
        stream.set_nonblocking(true).expect("a socket");
        Hub::over(Line::Stream(stream, Vec::new()))
    }

    /// Over an AVIO card.
    pub fn of_card(card: Card) -> Hub {
        Hub::over(Line::Card(Box::new(card)))
    }

    fn over(line: Line) -> Hub {
        Hub(Rc::new(RefCell::new(Inner { line, has_ended: false, guests: Vec::new() })))
    }

    /// Goes on over another connection; what was under way is lost.
    pub fn reconnect(&self, stream: UnixStream) {
        stream.set_nonblocking(true).expect("a socket");
        let mut inner = self.0.borrow_mut();
        (inner.line, inner.has_ended) = (Line::Stream(stream, Vec::new()), false);
    }

    /// Goes on at `place`, by what it was before.
    ///
    /// # Errors
    ///
    /// When nobody serves it there.
    pub fn reconnect_at(&self, place: &Path) -> io::Result<()> {
        let mut inner = self.0.borrow_mut();
        match &mut inner.line {
            Line::Card(card) => card.plug_in_again()?,
            Line::Stream(..) => {
                let stream = UnixStream::connect(place)?;
                stream.set_nonblocking(true)?;
                inner.line = Line::Stream(stream, Vec::new());
            }
        }
        inner.has_ended = false;
        Ok(())
    }

    /// Whether the other side was seen to close the connection.
    pub fn has_ended(&self) -> bool {
        self.0.borrow().has_ended
    }

    pub fn plug_in(&self, address: EthernetAddress) -> Plug {
        self.0.borrow_mut().guests.push((address, VecDeque::new()));
        Plug { hub: self.clone(), address }
    }

    pub fn send(&self, frame: &[u8]) {
        if let Line::Card(card) = &mut self.0.borrow_mut().line {
            // Nobody takes it from the ring of one that is not plugged in.
            if !card.has_ended() {
                card.send(frame);
            }
            return;
        }
        let mut message = u32::try_from(frame.len()).expect("short").to_be_bytes().to_vec();
        message.extend_from_slice(frame);
        self.send_raw(&message);
    }

    /// Sends bytes as they are. A connection that is gone takes them all.
    pub fn send_raw(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let written = match &mut self.0.borrow_mut().line {
                Line::Stream(stream, _) => stream.write(bytes),
                Line::Card(_) => return,
            };
            match written {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // The other side may wait for us to read.
                    self.pump();
                    self.wait(PollFlags::OUT | PollFlags::IN, Duration::from_secs(10));
                }
                Err(_) => return,
            }
        }
    }

    /// Waits until frames are there, but not for long.
    pub fn wait_for_frames(&self, at_most: Duration) {
        self.wait(PollFlags::IN, at_most);
    }

    /// Whether the other side has closed the connection, which it must within seconds.
    pub fn is_closed(&self) -> bool {
        self.wait(PollFlags::IN, Duration::from_secs(10));
        let mut piece = [0; 4096];
        loop {
            let Line::Stream(stream, _) = &mut self.0.borrow_mut().line else { return false };
            match stream.read(&mut piece) {
                Ok(0) => return true,
                // What was on its way before.
                Ok(_) => {}
                Err(error) => return error.kind() == ErrorKind::ConnectionReset,
            }
        }
    }

    fn wait(&self, events: PollFlags, at_most: Duration) {
        match &mut self.0.borrow_mut().line {
            Line::Stream(stream, _) => {
                let at_most = Timespec::try_from(at_most).expect("a time");
                poll(&mut [PollFd::new(stream, events)], Some(&at_most)).expect("polled");
            }
            Line::Card(card) => card.wait(at_most),
        }
    }

    fn pump(&self) {
        let mut inner = self.0.borrow_mut();
        let Inner { line, has_ended, guests } = &mut *inner;
        let mut hand_out = |frame: &[u8]| {
            let to = EthernetAddress::from_bytes(&frame[..6]);
            for (address, queue) in &mut *guests {
                if to == *address || !to.is_unicast() {
                    queue.push_back(frame.to_vec());
                }
            }
        };
        match line {
            Line::Card(card) => {
                while let Some(frame) = card.receive() {
                    hand_out(&frame);
                }
                *has_ended |= card.has_ended();
            }
            Line::Stream(stream, bytes) => {
                let mut piece = [0; 64 * 1024];
                while let Ok(count) = stream.read(&mut piece) {
                    if count == 0 {
                        *has_ended = true;
                        break;
                    }
                    bytes.extend_from_slice(&piece[..count]);
                }
                while let Some((length, rest)) = bytes.split_first_chunk() {
                    let length = u32::from_be_bytes(*length) as usize;
                    let Some(frame) = rest.get(..length) else { break };
                    hand_out(frame);
                    bytes.drain(..4 + length);
                }
            }
        }
    }
}

/// One guest's place at the hub.
pub struct Plug {
    hub: Hub,
    address: EthernetAddress,
}

impl Device for Plug {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        self.hub.pump();
        let mut inner = self.hub.0.borrow_mut();
        let (_, queue) = inner.guests.iter_mut().find(|(address, _)| *address == self.address)?;
        let frame = queue.pop_front()?;
        drop(inner);
        Some((Received(frame), Sending(&self.hub)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&self.hub))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

pub struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub struct Sending<'a>(&'a Hub);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        self.0.send(&frame);
        result
    }
}
