//! What guests of a test are plugged into: hands each frame of a stream socket to the guest it is for. On the stream each
//! frame is behind its length in 4 bytes, big endian, as QEMU's `-netdev stream` has it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetAddress;

#[derive(Clone)]
pub struct Hub(Rc<RefCell<Inner>>);

struct Inner {
    stream: UnixStream,
    bytes: Vec<u8>,
    has_ended: bool,
    guests: Vec<(EthernetAddress, VecDeque<Vec<u8>>)>,
}

impl Hub {
    pub fn new(stream: UnixStream) -> Hub {
        stream.set_nonblocking(true).expect("a socket");
        let (bytes, guests) = (Vec::new(), Vec::new());
        Hub(Rc::new(RefCell::new(Inner { stream, bytes, has_ended: false, guests })))
    }

    /// Goes on over another connection; what was under way is lost.
    pub fn reconnect(&self, stream: UnixStream) {
        stream.set_nonblocking(true).expect("a socket");
        let mut inner = self.0.borrow_mut();
        (inner.stream, inner.has_ended) = (stream, false);
        inner.bytes.clear();
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
        let mut message = u32::try_from(frame.len()).expect("short").to_be_bytes().to_vec();
        message.extend_from_slice(frame);
        self.send_raw(&message);
    }

    /// Sends bytes as they are. A connection that is gone takes them all.
    pub fn send_raw(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let written = self.0.borrow_mut().stream.write(bytes);
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
            match self.0.borrow_mut().stream.read(&mut piece) {
                Ok(0) => return true,
                // What was on its way before.
                Ok(_) => {}
                Err(error) => return error.kind() == ErrorKind::ConnectionReset,
            }
        }
    }

    fn wait(&self, events: PollFlags, at_most: Duration) {
        let inner = self.0.borrow();
        let at_most = Timespec::try_from(at_most).expect("a time");
        poll(&mut [PollFd::new(&inner.stream, events)], Some(&at_most)).expect("polled");
    }

    fn pump(&self) {
        let mut inner = self.0.borrow_mut();
        let Inner { stream, bytes, has_ended, guests } = &mut *inner;
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
            let to = EthernetAddress::from_bytes(&frame[..6]);
            for (address, queue) in &mut *guests {
                if to == *address || !to.is_unicast() {
                    queue.push_back(frame.to_vec());
                }
            }
            bytes.drain(..4 + length);
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
