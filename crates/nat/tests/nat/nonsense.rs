//! Frames that a hostile guest could send: whole enough to get past the first look, wrong in one place or many.
//!
//! Half of them belong to connections that really exist: what comes back is looked at, so that sequence numbers fit.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use hpvm_netlab::{Plug, mac};
use smoltcp::phy::{Device, RxToken};

const GUEST: [u8; 4] = [10, 0, 2, 99];
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ETHERNET_BYTES: usize = 14;
/// Few, so that the same connection is met again and again.
const PORTS: u16 = 8;
const FIRST_PORT: u16 = 40_000;

/// SplitMix64: good enough to choose, and the same for the same seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len())]
    }

    fn bytes(&mut self, below: usize) -> Vec<u8> {
        let length = self.below(below);
        (0..length).map(|_| self.byte()).collect()
    }
}

/// A guest that means harm.
pub(crate) struct Hostile {
    random: Random,
    server: SocketAddrV4,
    /// By the guest's port: the next sequence number of the server, and the one it waits for.
    connections: HashMap<u16, (u32, u32)>,
}

impl Hostile {
    pub(crate) fn new(seed: u64, server: SocketAddrV4) -> Hostile {
        Hostile { random: Random(seed), server, connections: HashMap::new() }
    }

    /// Looks at what came back.
    pub(crate) fn hear(&mut self, plug: &mut Plug) {
        while let Some((received, _)) = plug.receive(smoltcp::time::Instant::now()) {
            received.consume(|frame| self.note(frame));
        }
    }

    fn note(&mut self, frame: &[u8]) {
        let segment = &frame[ETHERNET_BYTES.min(frame.len())..];
        if segment.len() < 40 || segment[9] != TCP {
            return;
        }
        let number = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|more| segment[at + more]));
        let port = u16::from_be_bytes([segment[22], segment[23]]);
        let flags = segment[33];
        let length = u32::from(u16::from_be_bytes([segment[2], segment[3]])) - 40;
        let taken = length + u32::from(flags & 0x01) + u32::from(flags >> 1 & 0x01);
        if flags & 0x04 == 0 {
            self.connections.insert(port, (number(24).wrapping_add(taken), number(28)));
        } else {
            self.connections.remove(&port);
        }
    }

    pub(crate) fn frame(&mut self) -> Vec<u8> {
        let protocol = match self.random.below(8) {
            0..4 => TCP,
            4 | 5 => UDP,
            6 => ICMP,
            _ => self.random.byte(),
        };
        let (destination, payload) = match protocol {
            TCP => (self.server.ip().octets(), self.segment()),
            UDP => (self.destination(), self.datagram()),
            _ => (self.destination(), self.random.bytes(100)),
        };
        let mut frame = self.wrap(protocol, destination, payload);
        self.spoil(&mut frame);
        frame
    }

    fn destination(&mut self) -> [u8; 4] {
        let any = Ipv4Addr::from_bits(self.random.next() as u32).octets();
        self.random.pick(&[[10, 0, 2, 2], [10, 0, 2, 3], self.server.ip().octets(), [255; 4], any])
    }

    fn segment(&mut self) -> Vec<u8> {
        let port = FIRST_PORT + self.random.below(usize::from(PORTS)) as u16;
        let known = self.connections.get(&port).copied();
        let (acknowledged, sequence) = known.unwrap_or((0, self.random.next() as u32));
        let flags = match known {
            None => 0x02,
            Some(_) if self.random.one_in(4) => self.random.byte(),
            Some(_) if self.random.one_in(40) => 0x11,
            Some(_) => 0x18,
        };
        let aside = if self.random.one_in(6) { self.random.below(4000) as u32 } else { 0 };
        let options = self.random.bytes(5).len() * 4;
        let offset = match self.random.one_in(30) {
            true => self.random.byte(),
            false => ((5 + options / 4) as u8) << 4,
        };
        let mut segment = port.to_be_bytes().to_vec();
        segment.extend(self.server.port().to_be_bytes());
        segment.extend(sequence.wrapping_add(aside).wrapping_sub(aside / 2).to_be_bytes());
        segment.extend(acknowledged.wrapping_sub(aside / 3).to_be_bytes());
        segment.extend([offset, flags]);
        let window = self.random.pick(&[0u16, 1, 1000, 65_535]);
        segment.extend(window.to_be_bytes());
        segment.extend([0, 0, self.random.byte(), self.random.byte()]);
        let kinds = [0u8, 1, 2, 3, 4, 5, 8, 255];
        for _ in 0..options {
            let byte = self.random.pick(&kinds);
            segment.push(byte);
        }
        if known.is_some() {
            let most = self.random.pick(&[1, 20, 200, 1400]);
            segment.extend(self.random.bytes(most));
        }
        segment
    }

    fn datagram(&mut self) -> Vec<u8> {
        let most = self.random.pick(&[1, 100, 600, 1400]);
        let body = self.random.bytes(most);
        let from = FIRST_PORT + self.random.below(200) as u16;
        let to = self.random.pick(&[67u16, 69, 53, 0, 7, self.server.port()]);
        let length = match self.random.one_in(10) {
            true => self.random.next() as u16,
            false => (body.len() + 8) as u16,
        };
        let mut datagram = from.to_be_bytes().to_vec();
        datagram.extend(to.to_be_bytes());
        datagram.extend(length.to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(body);
        datagram
    }

    /// In IP and Ethernet, with check sums that are right, or what is behind them would not be looked at.
    fn wrap(&mut self, protocol: u8, destination: [u8; 4], mut payload: Vec<u8>) -> Vec<u8> {
        let sum_at = match protocol {
            TCP => 16,
            UDP => 6,
            _ => 2,
        };
        if payload.len() > sum_at + 1 && !self.random.one_in(50) {
            payload[sum_at..sum_at + 2].copy_from_slice(&[0, 0]);
            let length = payload.len() as u16;
            let pseudo = [&GUEST[..], &destination, &[0, protocol], &length.to_be_bytes()].concat();
            let with = if protocol == ICMP { vec![] } else { pseudo };
            let sum = checksum(&with, &payload);
            payload[sum_at..sum_at + 2].copy_from_slice(&sum);
        }
        let options = if self.random.one_in(20) { self.random.below(11) * 4 } else { 0 };
        let head = (5 + options / 4) as u8;
        let length = (20 + options + payload.len()) as u16;
        let mut packet = vec![0x40 | head, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([self.random.byte(), self.random.byte(), 0, 0, 64, protocol, 0, 0]);
        packet.extend(GUEST);
        packet.extend(destination);
        for _ in 0..options {
            let byte = self.random.byte();
            packet.push(byte);
        }
        let sum = checksum(&[], &packet);
        packet[10..12].copy_from_slice(&sum);
        let mut frame = vec![0x52, 0x55, 10, 0, 2, 2];
        frame.extend(mac(9).as_bytes());
        frame.extend([0x08, 0x00]);
        frame.extend(packet);
        frame.extend(payload);
        frame
    }

    /// Now and then something is wrong that no check sum tells of.
    fn spoil(&mut self, frame: &mut Vec<u8>) {
        match self.random.below(100) {
            0 => frame.truncate(self.random.below(frame.len() + 1)),
            1 => frame.extend(self.random.bytes(40)),
            2 => {
                let at = self.random.below(frame.len());
                frame[at] = self.random.byte();
            }
            // ARP, IPv6, or what else there is.
            3 => {
                let kind = self.random.pick(&[[8, 6], [0x86, 0xdd], [0x81, 0]]);
                frame[12..14].copy_from_slice(&kind);
            }
            // A piece of a packet, with a check sum that is right.
            4 | 5 => {
                frame[20] = self.random.byte() & 0x3f;
                frame[21] = self.random.byte();
                frame[24..26].copy_from_slice(&[0, 0]);
                let end = ETHERNET_BYTES + usize::from(frame[14] & 0x0f) * 4;
                let sum = checksum(&[], &frame[ETHERNET_BYTES..end.min(frame.len())]);
                frame[24..26].copy_from_slice(&sum);
            }
            _ => {}
        }
    }
}

/// A datagram of no bytes with nothing wrong in it.
pub(crate) fn datagram(from: u16, to: SocketAddrV4) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, UDP, 0, 0];
    packet.extend(GUEST);
    packet.extend(to.ip().octets());
    let sum = checksum(&[], &packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend(from.to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend([0, 8, 0, 0]);
    let mut frame = vec![0x52, 0x55, 10, 0, 2, 2];
    frame.extend(mac(9).as_bytes());
    frame.extend([0x08, 0x00]);
    frame.extend(packet);
    frame
}

/// The Internet's check sum (RFC 1071) over two parts, the first of even length.
fn checksum(before: &[u8], bytes: &[u8]) -> [u8; 2] {
    let words = before.chunks(2).chain(bytes.chunks(2));
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
