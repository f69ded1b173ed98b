//! As much of an IPv4 packet as decides where it may go (RFC 791, section 3.1). Nothing in it is believed but for that.

use std::net::Ipv4Addr;

pub(crate) const ETHERNET_BYTES: usize = 14;
pub(crate) const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const HEAD_BYTES_MIN: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Icmp,
    Tcp,
    Udp,
    Other,
}

/// Whether a packet is whole, which all of its ports and flags depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wholeness {
    Whole,
    Fragment,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet<'a> {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) protocol: Protocol,
    pub(crate) wholeness: Wholeness,
    /// What is behind the head.
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    pub(crate) fn of_frame(frame: &'a [u8]) -> Option<Packet<'a>> {
        let (ethernet, bytes) = frame.split_first_chunk::<ETHERNET_BYTES>()?;
        (ethernet[12..] == ETHERTYPE_IPV4).then(|| Packet::parse(bytes))?
    }

    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Packet<'a>> {
        let head = bytes.first_chunk::<HEAD_BYTES_MIN>()?;
        let head_bytes = usize::from(head[0] & 0x0f) * 4;
        if head[0] >> 4 != 4 || head_bytes < HEAD_BYTES_MIN {
            return None;
        }
        // More fragments, or an offset.
        let is_fragment = u16::from_be_bytes([head[6], head[7]]) & 0x3fff != 0;
        Some(Packet {
            source: Ipv4Addr::new(head[12], head[13], head[14], head[15]),
            destination: Ipv4Addr::new(head[16], head[17], head[18], head[19]),
            protocol: match head[9] {
                1 => Protocol::Icmp,
                6 => Protocol::Tcp,
                17 => Protocol::Udp,
                _ => Protocol::Other,
            },
            wholeness: if is_fragment { Wholeness::Fragment } else { Wholeness::Whole },
            payload: bytes.get(head_bytes..)?,
        })
    }

    /// Of TCP or UDP: from, to. A fragment has none that count.
    pub(crate) fn ports(&self) -> Option<(u16, u16)> {
        let has_ports = matches!(self.protocol, Protocol::Tcp | Protocol::Udp);
        if !has_ports || self.wholeness == Wholeness::Fragment {
            return None;
        }
        let [a, b, c, d] = *self.payload.first_chunk()?;
        Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
    }

    /// Whether this is a TCP segment of a connection that exists, by its flags: not the first of a new one (RFC 9293,
    /// section 3.1).
    pub(crate) fn belongs_to_a_connection(&self) -> bool {
        const FLAGS_AT: usize = 13;
        const FIN: u8 = 0x01;
        const SYN: u8 = 0x02;
        const RST: u8 = 0x04;
        const ACK: u8 = 0x10;
        const URG: u8 = 0x20;
        self.protocol == Protocol::Tcp
            && self.wholeness == Wholeness::Whole
            && self
                .payload
                .get(FLAGS_AT)
                .is_some_and(|flags| flags & (FIN | SYN | RST | ACK | URG) != SYN)
    }
}
