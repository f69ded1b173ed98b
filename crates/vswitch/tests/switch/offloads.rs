//! Work that a sender left to be done reaches a receiver done, or left to it, by what it agreed to: between all kinds of
//! port, with every checksum verified by the receiver.

use std::os::unix::net::UnixDatagram;

use hpvm_vswitch::OffloadHeader;

use crate::counting::{Datagrams, from_wire};
use crate::guest::{Driver, Guest, LINUX};
use crate::net::{Net, Vio, mac, open_rules};

const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO: u64 = 1 << 7 | 1 << 8 | 1 << 9;
const SEGMENT: u16 = 1000;
const TCP_BYTES: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ip {
    V4,
    V6,
}

/// A TCP segment whose checksum, and cutting, are left to be done.
fn unfinished(to: u16, ip: Ip, data: &[u8]) -> (OffloadHeader, Vec<u8>) {
    let mut frame = mac(to).to_vec();
    frame.extend(mac(1));
    let length = (TCP_BYTES + data.len()) as u16;
    match ip {
        Ip::V4 => {
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend((length + 20).to_be_bytes());
            frame.extend([0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let checksum = !fold(sum(&frame[14..34]));
            frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        }
        Ip::V6 => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([6, 64]);
            frame.extend([0xfd; 16]);
            frame.extend([0xfe; 16]);
        }
    }
    let tcp = frame.len();
    frame.extend([0, 80, 0, 81, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    frame.extend(data);
    let pseudo = fold(pseudo(&frame, tcp));
    frame[tcp + 16..tcp + 18].copy_from_slice(&pseudo.to_be_bytes());
    let long = data.len() > usize::from(SEGMENT);
    let header = OffloadHeader {
        flags: OffloadHeader::NEEDS_CHECKSUM,
        gso_type: match (long, ip) {
            (false, _) => OffloadHeader::GSO_NONE,
            (true, Ip::V4) => OffloadHeader::GSO_TCP_IPV4,
            (true, Ip::V6) => OffloadHeader::GSO_TCP_IPV6,
        },
        header_length: (tcp + TCP_BYTES) as u16,
        segment_size: if long { SEGMENT } else { 0 },
        checksum_start: tcp as u16,
        checksum_offset: 16,
    };
    (header, frame)
}

fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)))
        .sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pseudo(frame: &[u8], tcp: usize) -> u64 {
    let addresses = if tcp == 34 { 26..34 } else { 22..54 };
    sum(&frame[addresses]) + 6 + (frame.len() - tcp) as u64
}

/// The TCP data of a frame that is finished, with all its checksums and lengths verified.
fn verified(frame: &[u8]) -> Vec<u8> {
    let tcp = if frame[12..14] == [0x08, 0x00] { 34 } else { 54 };
    if tcp == 34 {
        assert_eq!(fold(sum(&frame[14..34])), 0xffff, "IPv4's checksum");
        let length = u16::from_be_bytes([frame[16], frame[17]]);
        assert_eq!(usize::from(length), frame.len() - 14, "IPv4's length");
    } else {
        let length = u16::from_be_bytes([frame[18], frame[19]]);
        assert_eq!(usize::from(length), frame.len() - tcp, "IPv6's length");
    }
    assert_eq!(fold(pseudo(frame, tcp) + sum(&frame[tcp..])), 0xffff, "TCP's checksum");
    frame[tcp + TCP_BYTES..].to_vec()
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// By the features its driver acknowledges.
    Avio(u64),
    Vio,
    Wire,
}

enum Receiver {
    Avio(Box<Guest>, u64),
    Vio(Vio),
    Wire(UnixDatagram),
}

impl Receiver {
    /// The data of one frame that was sent unfinished, however it arrives.
    fn data(&mut self, sent: &OffloadHeader, frame: &[u8], bytes: usize) -> Vec<u8> {
        let takes_checksum = matches!(self, Receiver::Avio(_, features) if *features & GUEST_CSUM != 0)
            || matches!(self, Receiver::Wire(_));
        let cut = match self {
            Receiver::Avio(_, features) => *features & GUEST_TSO == 0,
            Receiver::Vio(_) => true,
            Receiver::Wire(_) => false,
        };
        if takes_checksum && (!cut || sent.gso_type == OffloadHeader::GSO_NONE) {
            let (header, whole) = self.one();
            assert_eq!((header, &whole[..]), (*sent, frame), "as it was sent");
            return whole[whole.len() - bytes..].to_vec();
        }
        let mut data = Vec::new();
        while data.len() < bytes {
            let (header, piece) = self.one();
            assert_eq!(header, OffloadHeader::default());
            let piece = verified(&piece);
            assert!(piece.len() <= usize::from(SEGMENT));
            data.extend(piece);
        }
        data
    }

    fn one(&mut self) -> (OffloadHeader, Vec<u8>) {
        match self {
            Receiver::Avio(guest, _) => {
                let received = guest.receive();
                (OffloadHeader::from_bytes(received.header), received.frame)
            }
            Receiver::Vio(vio) => (OffloadHeader::default(), vio.receive()),
            Receiver::Wire(far) => from_wire(far),
        }
    }
}

/// Offloads are negotiated with each guest. Settles 120.
#[test]
fn what_was_left_undone_arrives_done_or_as_agreed() {
    let features = [LINUX, LINUX & !GUEST_TSO, LINUX & !(GUEST_TSO | GUEST_CSUM)];
    let kinds = features.map(Kind::Avio).into_iter().chain([Kind::Vio, Kind::Wire]);
    for receiver in kinds {
        let net = Net::new();
        let mut sender = net.avio(1, open_rules(), Driver::LINUX);
        let mut end = match receiver {
            Kind::Vio => Receiver::Vio(net.vio(2, open_rules())),
            Kind::Wire => Receiver::Wire(Datagrams::attach(&net)),
            Kind::Avio(features) => {
                let driver = Driver { features, ..Driver::LINUX };
                Receiver::Avio(Box::new(net.avio(2, open_rules(), driver)), features)
            }
        };
        for ip in [Ip::V4, Ip::V6] {
            for bytes in [1, 100, 999, 1000, 1001, 2000, 40_001, 65_000] {
                let data: Vec<u8> = (0..bytes).map(|at| (at * 7 % 251) as u8).collect();
                let (header, frame) = unfinished(2, ip, &data);
                sender.send_with(&header.to_bytes(), &frame);
                let arrived = end.data(&header, &frame, bytes);
                assert_eq!(arrived, data, "{receiver:?}, {ip:?}, {bytes} bytes");
            }
        }
    }
}
