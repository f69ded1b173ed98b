//! Work that a sender left to be done reaches a receiver done, or left to it, by what it agreed to: between all kinds of
//! port, in VLANs and without, with every checksum verified by the receiver.

use std::os::unix::net::{UnixDatagram, UnixStream};

use hpvm_model::{PortRules, PortVlan, VlanId};
use hpvm_vswitch::{OffloadHeader, WireOptions};

use crate::counting::{Datagrams, Tags, from_wire};
use crate::guest::{Driver, Guest, LINUX, PATIENCE};
use crate::net::{BROADCAST, Net, Vio, frame, mac, open_rules};
use crate::segment::{Ip, Segment, Transport, Verified, fold, sum, verified};

const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO: u64 = 1 << 7 | 1 << 8 | 1 << 9;
/// What a driver sends undone.
const SENDS_UNDONE: u64 = 1 | 1 << 11 | 1 << 12 | 1 << 13;
const SEGMENT_BYTES: u16 = 1000;
const VLAN: u16 = 10;
const PRIORITY: u16 = 0xa000;

/// What a switch of the table has at its wire.
const WIRES: [Wire; 3] = [Wire::Interface(Tags::Beside), Wire::Interface(Tags::Within), Wire::Nat];
/// AVIO as Linux drives it, without long segments, without any of it; VIO; the wire.
const PARTIES: [u16; 5] = [1, 2, 3, 4, 5];

#[derive(Clone, Copy, Debug)]
enum Wire {
    Interface(Tags),
    /// A process that does NAT: nothing may be left to it.
    Nat,
}

/// Which of the ports' frames have tags. In a VLAN those of the wire have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vlans {
    None,
    Ports,
    Trunks,
    OddTrunks,
    EvenTrunks,
}

impl Vlans {
    const ALL: [Vlans; 5] =
        [Vlans::None, Vlans::Ports, Vlans::Trunks, Vlans::OddTrunks, Vlans::EvenTrunks];

    fn has_tags(self, number: u16) -> bool {
        match self {
            Vlans::None => false,
            Vlans::Trunks => true,
            _ if number == 5 => true,
            Vlans::Ports => false,
            Vlans::OddTrunks => number % 2 == 1,
            Vlans::EvenTrunks => number.is_multiple_of(2),
        }
    }

    fn rules(self, number: u16) -> PortRules {
        let vlan = match self {
            Vlans::None => PortVlan::None,
            _ if self.has_tags(number) => {
                PortVlan::Trunk(VLAN.to_string().parse().expect("a list"))
            }
            _ => PortVlan::Untagged(VlanId::new(VLAN).expect("a VLAN")),
        };
        PortRules { vlan, ..open_rules() }
    }
}

/// One of those who send to each other.
struct Party {
    end: End,
    mac: [u8; 6],
    has_tags: bool,
}

enum End {
    Avio(Box<Guest>),
    Stream(Vio),
    Interface(UnixDatagram),
}

impl Party {
    fn at(net: &Net, number: u16, wire: Wire, vlans: Vlans) -> Party {
        let avio = |features: u64| {
            let driver = Driver { features, ..Driver::LINUX };
            End::Avio(Box::new(net.avio(number, vlans.rules(number), driver)))
        };
        let end = match number {
            1 => avio(LINUX),
            2 => avio(LINUX & !GUEST_TSO),
            3 => avio(LINUX & !(GUEST_TSO | GUEST_CSUM | SENDS_UNDONE)),
            4 => End::Stream(net.vio(number, vlans.rules(number))),
            _ => match wire {
                Wire::Interface(tags) => End::Interface(Datagrams::attach_with(net, tags)),
                Wire::Nat => End::Stream(nat(net)),
            },
        };
        Party { end, mac: mac(number), has_tags: vlans.has_tags(number) }
    }

    fn sends_undone(&self) -> bool {
        match &self.end {
            End::Avio(guest) => guest.driver.features & SENDS_UNDONE != 0,
            End::Stream(_) => false,
            End::Interface(_) => true,
        }
    }

    /// Whether what is sent so arrives as it was sent.
    fn takes(&self, header: &OffloadHeader) -> bool {
        let taken = match &self.end {
            End::Avio(guest) => guest.driver.features,
            End::Stream(_) => 0,
            End::Interface(_) => u64::MAX,
        };
        let fits = header.gso_type == OffloadHeader::GSO_NONE || taken & GUEST_TSO != 0;
        header.flags == 0 || taken & GUEST_CSUM != 0 && fits
    }

    /// Sends a frame that is told of without a tag, with one if it has to have one.
    fn send(&mut self, header: OffloadHeader, frame: &[u8]) {
        let (mut header, mut frame) = (header, frame.to_vec());
        if self.has_tags {
            let [high, low] = (PRIORITY | VLAN).to_be_bytes();
            frame.splice(12..12, [0x81, 0x00, high, low]);
            header = moved(header, 4);
        }
        match &mut self.end {
            End::Avio(guest) => guest.send_with(&header.to_bytes(), &frame),
            End::Stream(stream) => stream.send(&frame),
            End::Interface(far) => {
                let sent = far.send(&[&header.to_bytes(), &frame[..]].concat());
                sent.expect("the wire takes it");
            }
        }
    }

    /// A frame, told of without the tag that it must have, or must not.
    fn receive(&mut self) -> (OffloadHeader, Vec<u8>) {
        let (header, mut frame) = match &mut self.end {
            End::Avio(guest) => {
                let received = guest.receive();
                (OffloadHeader::from_bytes(received.header), received.frame)
            }
            End::Stream(stream) => (OffloadHeader::default(), stream.receive()),
            End::Interface(far) => from_wire(far),
        };
        assert_eq!(frame[12..14] == [0x81, 0x00], self.has_tags, "{frame:x?}");
        if !self.has_tags {
            return (header, frame);
        }
        let tag: Vec<u8> = frame.drain(12..16).collect();
        assert_eq!(u16::from_be_bytes([tag[2], tag[3]]) & 0x0fff, VLAN);
        (moved(header, -4), frame)
    }

    /// What arrives of a frame, however it was sent: verified here, or left to be done as it was left.
    fn take(&mut self, sent: &OffloadHeader, frame: &[u8], bytes: usize) -> Vec<u8> {
        if self.takes(sent) {
            assert_eq!(self.receive(), (*sent, frame.to_vec()), "as it was sent");
            return frame[frame.len() - bytes..].to_vec();
        }
        let longest = if sent.segment_size > 0 { usize::from(SEGMENT_BYTES) } else { bytes };
        let mut data = Vec::new();
        while data.len() < bytes {
            let (header, piece) = self.receive();
            assert_eq!(header, OffloadHeader::default());
            let Verified { data: piece, transport } = verified(&piece);
            if let Transport::Tcp { sequence, .. } = transport {
                assert_eq!(sequence as usize, data.len());
            }
            assert!(!piece.is_empty() && piece.len() <= longest);
            data.extend(piece);
        }
        data
    }
}

fn nat(net: &Net) -> Vio {
    let (near, socket) = UnixStream::pair().expect("a pair of sockets");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    net.switch.attach_wire(WireOptions::Stream(near)).expect("a wire");
    Vio { socket }
}

/// The header of the same frame with so many bytes more behind its addresses.
fn moved(header: OffloadHeader, bytes: i16) -> OffloadHeader {
    let needs_checksum = header.flags & OffloadHeader::NEEDS_CHECKSUM != 0;
    let is_long = header.gso_type != OffloadHeader::GSO_NONE;
    let by = |word: u16, moves: bool| word.wrapping_add_signed(if moves { bytes } else { 0 });
    OffloadHeader {
        checksum_start: by(header.checksum_start, needs_checksum),
        header_length: by(header.header_length, is_long),
        ..header
    }
}

/// Everybody at a switch, and known to it.
fn everybody(net: &Net, wire: Wire, vlans: Vlans) -> Vec<Party> {
    let mut parties: Vec<Party> =
        PARTIES.map(|number| Party::at(net, number, wire, vlans)).into_iter().collect();
    for sender in 0..parties.len() {
        let hello = frame(BROADCAST, parties[sender].mac, 60, sender as u8);
        parties[sender].send(OffloadHeader::default(), &hello);
        for (_, hearer) in parties.iter_mut().enumerate().filter(|(index, _)| *index != sender) {
            assert_eq!(hearer.receive(), (OffloadHeader::default(), hello.clone()));
        }
    }
    parties
}

/// What each sends to each: short, just one segment, one byte more, as long as can be.
fn segments() -> Vec<(Ip, Transport, Vec<u8>)> {
    const TCP: Transport = Transport::Tcp { sequence: 0, acknowledged: 0, flags: 0x18 };
    let ips = [Ip::V4([[10, 0, 0, 1], [10, 0, 0, 2]]), Ip::V6([[0xfd; 16], [0xfe; 16]])];
    let data = |bytes: usize| (0..bytes).map(|at| (at * 7 % 251) as u8).collect::<Vec<u8>>();
    let mut segments = Vec::new();
    for ip in ips {
        segments.extend([1, 1000, 1001, 65_000].map(|bytes| (ip, TCP, data(bytes))));
        segments.extend([1, 1472].map(|bytes| (ip, Transport::Udp, data(bytes))));
        segments.push((ip, Transport::Udp, summing_to_zero(ip, data(40))));
    }
    segments
}

/// Changes data so that UDP's checksum, which may not be zero, would be.
fn summing_to_zero(ip: Ip, mut data: Vec<u8>) -> Vec<u8> {
    data[..2].fill(0);
    let (header, frame) = segment(ip, Transport::Udp, [mac(2), mac(1)], &data).unfinished(1);
    let missing = 0xffff - fold(sum(&frame[usize::from(header.checksum_start)..]));
    data[..2].copy_from_slice(&missing.to_be_bytes());
    data
}

fn segment(ip: Ip, transport: Transport, [to, from]: [[u8; 6]; 2], data: &[u8]) -> Segment<'_> {
    Segment { to, from, ip, transport, ports: [80, 81], data }
}

/// Offloads are negotiated with each guest, and hold in VLANs. Settles 120.
#[test]
fn what_was_left_undone_arrives_done_or_as_agreed() {
    let segments = segments();
    for (wire, vlans) in WIRES.into_iter().flat_map(|wire| Vlans::ALL.map(|vlans| (wire, vlans))) {
        let net = Net::new();
        let mut parties = everybody(&net, wire, vlans);
        for (from, to) in PARTIES.into_iter().flat_map(|from| PARTIES.map(|to| (from, to))) {
            if from == to {
                continue;
            }
            let [sender, receiver] = [from, to].map(|number| usize::from(number) - 1);
            for (ip, transport, data) in &segments {
                let segment = segment(*ip, *transport, [mac(to), mac(from)], data);
                let (header, frame) = if parties[sender].sends_undone() {
                    segment.unfinished(SEGMENT_BYTES)
                } else {
                    (OffloadHeader::default(), segment.finished())
                };
                parties[sender].send(header, &frame);
                let arrived = parties[receiver].take(&header, &frame, data.len());
                let told = format!("{wire:?}, {vlans:?}, {from} to {to}, {ip:?}, {transport:?}");
                assert!(arrived == *data, "{told}, {} bytes", data.len());
            }
        }
    }
}
