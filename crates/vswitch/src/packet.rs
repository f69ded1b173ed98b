//! Where things are in a frame: Ethernet, one tag, IPv4 or IPv6 with its extension headers, and what follows. Pure; reads
//! only the bytes it is given, so what lies beyond them is not seen.

use crate::frame::ETHERNET_BYTES;
use crate::vlan::TAG_BYTES;

pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const ARP: u16 = 0x0806;
pub(crate) const IPV6: u16 = 0x86dd;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
const IPV6_BYTES: usize = 40;

/// Whether a tag follows: a customer's, a provider's (IEEE 802.1Q, 9.5), or one as it was before there was a standard.
pub(crate) fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, 0x8100 | 0x88a8 | 0x9100)
}

/// What follows Ethernet's header and the tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) ethertype: u16,
    /// Where it begins.
    pub(crate) start: usize,
}

/// What IP carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transport {
    pub(crate) protocol: u8,
    pub(crate) start: usize,
    /// A later fragment begins with none of the protocol's header.
    pub(crate) later_fragment: bool,
}

pub(crate) fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

pub(crate) fn network(frame: &[u8]) -> Option<Network> {
    match word(frame, 12)? {
        0x8100 => Some(Network { ethertype: word(frame, 16)?, start: ETHERNET_BYTES + TAG_BYTES }),
        ethertype => Some(Network { ethertype, start: ETHERNET_BYTES }),
    }
}

/// What an IPv4 packet carries (RFC 791).
pub(crate) fn ipv4(frame: &[u8], start: usize) -> Option<Transport> {
    let first = *frame.get(start)?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < 20 {
        return None;
    }
    Some(Transport {
        protocol: *frame.get(start + 9)?,
        start: start + header,
        later_fragment: word(frame, start + 6)? & 0x1fff != 0,
    })
}

/// What an IPv6 packet carries behind its extension headers (RFC 8200, 4), as far as they are within the bytes.
pub(crate) fn ipv6(frame: &[u8], start: usize) -> Option<Transport> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    if *frame.get(start)? >> 4 != 6 {
        return None;
    }
    let mut protocol = *frame.get(start + 6)?;
    let mut at = start + IPV6_BYTES;
    let mut later_fragment = false;
    // Each header has at least eight bytes, so the bytes end the walk.
    loop {
        let units = || frame.get(at + 1).map(|units| usize::from(*units));
        let bytes = match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION => 8 * (units()? + 1),
            AUTHENTICATION => 4 * (units()? + 2),
            FRAGMENT => {
                later_fragment |= word(frame, at + 2)? & 0xfff8 != 0;
                8
            }
            _ => return Some(Transport { protocol, start: at, later_fragment }),
        };
        protocol = *frame.get(at)?;
        at += bytes;
    }
}

/// What a frame carries over IP.
pub(crate) fn transport(frame: &[u8]) -> Option<(Network, Transport)> {
    let network = network(frame)?;
    let transport = match network.ethertype {
        IPV4 => ipv4(frame, network.start)?,
        IPV6 => ipv6(frame, network.start)?,
        _ => return None,
    };
    Some((network, transport))
}
