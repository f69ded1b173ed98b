//! TCP and UDP over IP as a sender leaves them undone, and as a receiver that trusts nobody verifies them. Both programs of
//! tests use it; it knows nothing of ports.

use hpvm_vswitch::OffloadHeader;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ETHERNET_BYTES: usize = 14;
/// `OffloadHeader::checksum_offset` of a UDP datagram.
const UDP_CHECKSUM: u16 = 6;

/// Addresses: whose it is, and whom it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ip {
    V4([[u8; 4]; 2]),
    V6([[u8; 16]; 2]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp { sequence: u32, acknowledged: u32, flags: u8 },
    Udp,
}

/// What is to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) to: [u8; 6],
    pub(crate) from: [u8; 6],
    pub(crate) ip: Ip,
    pub(crate) transport: Transport,
    /// Whose it is, and whom it is for.
    pub(crate) ports: [u16; 2],
    pub(crate) data: &'a [u8],
}

/// What a receiver found in a frame that is finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verified {
    pub(crate) transport: Transport,
    pub(crate) data: Vec<u8>,
}

impl Segment<'_> {
    /// Its checksum is left to be filled in, and of TCP what is longer than `segment_bytes` to be cut.
    pub(crate) fn unfinished(&self, segment_bytes: u16) -> (OffloadHeader, Vec<u8>) {
        let mut frame = [self.to, self.from].concat();
        let (protocol, header) = self.transport_header();
        let length = (header.len() + self.data.len()) as u16;
        match self.ip {
            Ip::V4(addresses) => {
                frame.extend([0x08, 0x00, 0x45, 0]);
                frame.extend((length + 20).to_be_bytes());
                frame.extend([0, 7, 0x40, 0, 64, protocol, 0, 0]);
                frame.extend(addresses.concat());
                let checksum = !fold(sum(&frame[ETHERNET_BYTES..]));
                frame[24..26].copy_from_slice(&checksum.to_be_bytes());
            }
            Ip::V6(addresses) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(length.to_be_bytes());
                frame.extend([protocol, 64]);
                frame.extend(addresses.concat());
            }
        }
        let start = frame.len();
        frame.extend(&header);
        frame.extend(self.data);
        let checksum_offset = if protocol == TCP { 16 } else { UDP_CHECKSUM };
        let at = start + usize::from(checksum_offset);
        let pseudo = fold(pseudo(&frame, start, protocol));
        frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        let long = protocol == TCP && self.data.len() > usize::from(segment_bytes);
        let header = OffloadHeader {
            flags: OffloadHeader::NEEDS_CHECKSUM,
            gso_type: match (long, self.ip) {
                (false, _) => OffloadHeader::GSO_NONE,
                (true, Ip::V4(_)) => OffloadHeader::GSO_TCP_IPV4,
                (true, Ip::V6(_)) => OffloadHeader::GSO_TCP_IPV6,
            },
            header_length: (start + header.len()) as u16,
            segment_size: if long { segment_bytes } else { 0 },
            checksum_start: start as u16,
            checksum_offset,
        };
        (header, frame)
    }

    /// Whole, however long it is.
    pub(crate) fn finished(&self) -> Vec<u8> {
        let (header, mut frame) = self.unfinished(u16::MAX);
        fill_checksum(&header, &mut frame);
        frame
    }

    fn transport_header(&self) -> (u8, Vec<u8>) {
        let mut header: Vec<u8> = self.ports.into_iter().flat_map(u16::to_be_bytes).collect();
        match self.transport {
            Transport::Tcp { sequence, acknowledged, flags } => {
                header.extend([sequence, acknowledged].into_iter().flat_map(u32::to_be_bytes));
                header.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
                (TCP, header)
            }
            Transport::Udp => {
                header.extend((8 + self.data.len() as u16).to_be_bytes());
                header.extend([0, 0]);
                (UDP, header)
            }
        }
    }
}

/// Does what is left to be done for the checksum.
pub(crate) fn fill_checksum(header: &OffloadHeader, frame: &mut [u8]) {
    let start = usize::from(header.checksum_start);
    let at = start + usize::from(header.checksum_offset);
    let checksum = match !fold(sum(&frame[start..])) {
        // It would say that there is none (RFC 768).
        0 if header.checksum_offset == UDP_CHECKSUM => 0xffff,
        checksum => checksum,
    };
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// What a frame without a tag carries, with all its checksums and lengths verified.
pub(crate) fn verified(frame: &[u8]) -> Verified {
    let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let (start, protocol) = match word(12) {
        0x0800 => {
            let start = ETHERNET_BYTES + 4 * usize::from(frame[14] & 0x0f);
            assert_eq!(fold(sum(&frame[14..start])), 0xffff, "IPv4's checksum");
            assert_eq!(usize::from(word(16)), frame.len() - 14, "IPv4's length");
            (start, frame[23])
        }
        0x86dd => {
            assert_eq!(usize::from(word(18)), frame.len() - 54, "IPv6's length");
            (54, frame[20])
        }
        other => panic!("{other:#x} is not IP"),
    };
    let whole = pseudo(frame, start, protocol) + sum(&frame[start..]);
    assert_eq!(fold(whole), 0xffff, "the checksum of protocol {protocol}");
    let number = |at: usize| {
        u32::from_be_bytes(frame[start + at..start + at + 4].try_into().expect("four bytes"))
    };
    let (transport, header_bytes) = match protocol {
        TCP => {
            let flags = frame[start + 13];
            let transport = Transport::Tcp { sequence: number(4), acknowledged: number(8), flags };
            (transport, 4 * usize::from(frame[start + 12] >> 4))
        }
        UDP => {
            assert_ne!(word(start + 6), 0, "UDP has its checksum");
            assert_eq!(usize::from(word(start + 4)), frame.len() - start, "UDP's length");
            (Transport::Udp, 8)
        }
        other => panic!("protocol {other}"),
    };
    Verified { transport, data: frame[start + header_bytes..].to_vec() }
}

/// The Internet checksum's sum of words (RFC 1071).
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(2);
    let odd = words.remainder().first().map_or(0, |last| u64::from(*last) << 8);
    words.map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u64>() + odd
}

pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pseudo(frame: &[u8], start: usize, protocol: u8) -> u64 {
    let addresses = if frame[12] == 0x08 { 26..34 } else { 22..54 };
    sum(&frame[addresses]) + u64::from(protocol) + (frame.len() - start) as u64
}
