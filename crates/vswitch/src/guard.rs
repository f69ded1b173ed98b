//! The spoof guard: whether a guest may send a frame, judged by the addresses it claims as its own. Pure.
//!
//! The MAC address must be the port's. When the port has IP addresses, IPv4's and IPv6's source, ARP's sender and the
//! target of a neighbour advertisement must be among them. A guest that has none yet may ask for one: DHCP, ARP probes and
//! IPv6's duplicate address detection come from the unspecified address. With an IPv6 address goes the link-local one made
//! of the MAC address, without which IPv6 finds no neighbour.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hpvm_model::MacAddress;

use crate::packet::{self, ARP, ICMPV6, IPV4, IPV6, Network, UDP};

const DHCP_SERVER_PORT: u16 = 67;
const ROUTER_SOLICITATION: u8 = 133;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Reports of groups listened to come from the unspecified address until there is another (RFC 3590).
const LISTENER_REPORTS: [u8; 3] = [131, 132, 143];

/// The IP addresses a port may send from; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AddressGuard {
    mac: MacAddress,
    ipv4: Vec<Ipv4Addr>,
    ipv6: Vec<Ipv6Addr>,
}

impl AddressGuard {
    pub(crate) fn new(mac: MacAddress, addresses: &[IpAddr]) -> Option<AddressGuard> {
        let mut guard = AddressGuard { mac, ipv4: Vec::new(), ipv6: Vec::new() };
        for address in addresses {
            match address {
                IpAddr::V4(address) => guard.ipv4.push(*address),
                IpAddr::V6(address) => guard.ipv6.push(*address),
            }
        }
        if !guard.ipv6.is_empty() {
            guard.ipv6.push(link_local(mac));
        }
        (!addresses.is_empty()).then_some(guard)
    }

    /// Whether a frame, of which these are the first bytes, claims no address but the port's.
    pub(crate) fn allows(&self, frame: &[u8]) -> bool {
        let Some(network) = packet::network(frame) else { return false };
        match network.ethertype {
            IPV4 => self.allows_ipv4(frame, network).unwrap_or(false),
            ARP => self.allows_arp(frame, network.start).unwrap_or(false),
            IPV6 => self.allows_ipv6(frame, network).unwrap_or(false),
            // Further tags would hide an address.
            further if packet::is_tag(further) => false,
            _ => true,
        }
    }

    fn allows_ipv4(&self, frame: &[u8], network: Network) -> Option<bool> {
        let source = ipv4_at(frame, network.start + 12)?;
        if source.is_unspecified() {
            let udp = packet::ipv4(frame, network.start)?;
            let to_server = packet::word(frame, udp.start + 2) == Some(DHCP_SERVER_PORT);
            return Some(udp.protocol == UDP && !udp.later_fragment && to_server);
        }
        Some(self.ipv4.contains(&source))
    }

    /// RFC 826, for IPv4 over Ethernet; a probe's sender is unspecified (RFC 5227).
    fn allows_arp(&self, frame: &[u8], start: usize) -> Option<bool> {
        let kind = frame.get(start..start + 6)?;
        if kind != [0, 1, 8, 0, 6, 4] {
            return Some(false);
        }
        let hardware = frame.get(start + 8..start + 14)?;
        let sender = ipv4_at(frame, start + 14)?;
        let own = sender.is_unspecified() || self.ipv4.contains(&sender);
        Some(hardware == self.mac.bytes() && own)
    }

    fn allows_ipv6(&self, frame: &[u8], network: Network) -> Option<bool> {
        let source = ipv6_at(frame, network.start + 8)?;
        let transport = packet::ipv6(frame, network.start)?;
        let message = match transport.protocol {
            ICMPV6 if !transport.later_fragment => Some(*frame.get(transport.start)?),
            _ => None,
        };
        if source.is_unspecified() {
            return Some(message.is_some_and(|kind| {
                kind == NEIGHBOUR_SOLICITATION
                    || kind == ROUTER_SOLICITATION
                    || LISTENER_REPORTS.contains(&kind)
            }));
        }
        let announced = match message {
            Some(NEIGHBOUR_ADVERTISEMENT) => {
                self.ipv6.contains(&ipv6_at(frame, transport.start + 8)?)
            }
            _ => true,
        };
        Some(announced && self.ipv6.contains(&source))
    }
}

fn ipv4_at(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(four.into())
}

fn ipv6_at(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    let sixteen: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(sixteen.into())
}

/// The address a station makes of its MAC address (RFC 4291, appendix A).
fn link_local(mac: MacAddress) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.bytes();
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&[0xfe, 0x80]);
    bytes[8..].copy_from_slice(&[a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OWN4: [u8; 4] = [10, 0, 0, 1];

    fn guard() -> AddressGuard {
        let addresses = [IpAddr::from(OWN4), "fd00::1".parse().expect("an address")];
        AddressGuard::new(MacAddress::new(MAC), &addresses).expect("not empty")
    }

    fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend(MAC);
        frame.extend(ethertype.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn ipv4(source: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet.extend(source);
        packet.extend([10, 0, 0, 2]);
        packet.extend(payload);
        ethernet(IPV4, &packet)
    }

    fn ipv6(source: &str, next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 255];
        packet.extend(source.parse::<Ipv6Addr>().expect("an address").octets());
        packet.extend("ff02::1".parse::<Ipv6Addr>().expect("an address").octets());
        packet.extend(payload);
        ethernet(IPV6, &packet)
    }

    fn arp(hardware: [u8; 6], sender: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
        packet.extend(hardware);
        packet.extend(sender);
        packet.extend([0; 10]);
        ethernet(ARP, &packet)
    }

    fn neighbour(kind: u8, target: &str) -> Vec<u8> {
        let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        message.extend(target.parse::<Ipv6Addr>().expect("an address").octets());
        message
    }

    #[test]
    fn what_is_its_own_passes() {
        let dhcp = [0, 68, 0, 67, 0, 0, 0, 0];
        for (what, frame) in [
            ("IPv4", ipv4(OWN4, 6, &[])),
            ("DHCP", ipv4([0; 4], UDP, &dhcp)),
            ("ARP", arp(MAC, OWN4)),
            ("an ARP probe", arp(MAC, [0; 4])),
            ("IPv6", ipv6("fd00::1", 6, &[])),
            ("link-local IPv6", ipv6("fe80::ff:fe00:1", 6, &[])),
            ("address detection", ipv6("::", ICMPV6, &neighbour(135, "fd00::1"))),
            ("an advertisement", ipv6("fd00::1", ICMPV6, &neighbour(136, "fd00::1"))),
            ("a report behind an option", ipv6("::", 0, &[ICMPV6, 0, 5, 2, 0, 0, 1, 0, 143, 0])),
            ("another protocol", ethernet(0x88cc, &[])),
        ] {
            assert!(guard().allows(&frame), "{what}");
        }
    }

    #[test]
    fn what_is_somebody_elses_does_not() {
        let mut tagged_twice = ethernet(0x8100, &[0, 5, 0x81, 0, 0, 6, 8, 0]);
        tagged_twice.extend([0; 40]);
        for (what, frame) in [
            ("IPv4", ipv4([10, 0, 0, 9], 6, &[])),
            ("UDP from nowhere", ipv4([0; 4], UDP, &[0, 68, 0, 69])),
            ("ARP", arp(MAC, [10, 0, 0, 9])),
            ("ARP for another station", arp([2, 0, 0, 0, 0, 9], OWN4)),
            ("IPv6", ipv6("fd00::9", 6, &[])),
            ("TCP from nowhere", ipv6("::", 6, &[])),
            ("an advertisement", ipv6("fd00::1", ICMPV6, &neighbour(136, "fd00::9"))),
            ("one behind an option", {
                let mut payload = vec![ICMPV6, 0, 1, 4, 0, 0, 0, 0];
                payload.extend(neighbour(136, "fd00::9"));
                ipv6("fd00::1", 60, &payload)
            }),
            ("a header that has no end", ipv6("fd00::1", 0, &[ICMPV6, 255])),
            ("two tags", tagged_twice),
            ("half a packet", ethernet(IPV4, &[0x45])),
        ] {
            assert!(!guard().allows(&frame), "{what}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_guard_panic(frame in prop::collection::vec(any::<u8>(), 0..128), kind in 0usize..4) {
            let mut frame = frame;
            if frame.len() > 14 {
                frame[12..14].copy_from_slice(&[IPV4, ARP, IPV6, 0x8100][kind].to_be_bytes());
            }
            guard().allows(&frame);
        }
    }
}
