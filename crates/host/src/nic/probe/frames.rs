//! What a MAC address is sent so that its station answers. Pure.
//!
//! | frame | who answers |
//! | --- | --- |
//! | LLC TEST (IEEE 802.2, 5.4.1.1.2) | stations with all of IEEE 802.2: HP-UX, many network devices |
//! | neighbour solicitation for the address that IPv6 derives from the MAC (RFC 4861; RFC 4291, appendix A) | most with IPv6 |
//! | IPv6 echo request to all nodes, in a frame to this one (RFC 4443, section 4.1) | others with IPv6: they look for us first |
//! | IPv4 echo request to all hosts, in a frame to this one (RFC 1122, section 3.2.2.6) | some of those with IPv4 alone |
//!
//! An answer in any protocol has the station's address as the sender of its frame; more is not looked at.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hpvm_model::{MacAddress, VlanId};

/// As who is asked: the interface's own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender<'a> {
    pub(super) mac: MacAddress,
    pub(super) addresses: &'a [(IpAddr, u8)],
}

/// Frames are not shorter, without their check sum (IEEE 802.3, 3.2.8).
const FRAME_BYTES_MIN: usize = 60;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_HOSTS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);
const ICMPV6: u8 = 58;
const ICMPV6_ECHO: u8 = 128;
const ICMPV6_SOLICITATION: u8 = 135;
const ICMP: u8 = 1;
const ICMP_ECHO: u8 = 8;

/// The frames that ask whether somebody has an address.
pub(super) fn asking(mac: MacAddress, vlan: Option<VlanId>, from: &Sender) -> Vec<Vec<u8>> {
    let own = link_local(from.mac);
    let frame = |to: MacAddress, kind: u16, payload: &[u8]| {
        let mut frame = [to.bytes(), from.mac.bytes()].concat();
        if let Some(vlan) = vlan {
            frame.extend([0x81, 0x00]);
            frame.extend(vlan.number().to_be_bytes());
        }
        frame.extend(kind.to_be_bytes());
        frame.extend(payload);
        frame.resize(frame.len().max(FRAME_BYTES_MIN), 0);
        frame
    };
    let ipv6 = |to: MacAddress, destination, message: Vec<u8>| {
        frame(to, 0x86dd, &ipv6_packet(own, destination, message))
    };
    // To no service in particular, from none: an unnumbered TEST command that wants an answer. A length is its kind.
    let test = [0x00, 0x00, 0xf3];
    let derived = link_local(mac);
    let mut frames = vec![
        frame(mac, 3, &test),
        ipv6(group_of(derived), solicited(derived), solicitation(derived, from.mac)),
        ipv6(mac, ALL_NODES, echo(ICMPV6_ECHO)),
    ];
    let ipv4 = from.addresses.iter().find_map(|(address, _)| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    });
    frames.extend(ipv4.map(|own| frame(mac, 0x0800, &ipv4_packet(own, ALL_HOSTS))));
    frames
}

/// The address that IPv6 makes of a MAC by itself.
fn link_local(mac: MacAddress) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.bytes();
    Ipv6Addr::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 0x02, b, c, 0xff, 0xfe, d, e, f])
}

/// The group of stations in which the owner of an address is (RFC 4291, section 2.7.1).
fn solicited(address: Ipv6Addr) -> Ipv6Addr {
    let [.., d, e, f] = address.octets();
    Ipv6Addr::from_octets([0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0xff, d, e, f])
}

/// The group's MAC address (RFC 2464, section 7).
fn group_of(address: Ipv6Addr) -> MacAddress {
    let [.., d, e, f] = address.octets();
    MacAddress::new([0x33, 0x33, 0xff, d, e, f])
}

/// Who has this address, and tell it to this card. It names a sender, so nobody takes it for a claim to the address.
fn solicitation(wanted: Ipv6Addr, own: MacAddress) -> Vec<u8> {
    let mut message = vec![ICMPV6_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(wanted.octets());
    message.extend([1, 1]);
    message.extend(own.bytes());
    message
}

fn echo(kind: u8) -> Vec<u8> {
    vec![kind, 0, 0, 0, 0x48, 0x50, 0, 1]
}

fn ipv6_packet(source: Ipv6Addr, destination: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX).to_be_bytes();
    let pseudo = [
        &source.octets()[..],
        &destination.octets()[..],
        &[0, 0, length[0], length[1], 0, 0, 0, ICMPV6],
    ];
    let sum = checksum(pseudo.into_iter().chain([&message[..]]));
    message[2..4].copy_from_slice(&sum);
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], ICMPV6, 255];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(message);
    packet
}

fn ipv4_packet(source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    const HEAD_BYTES: u8 = 20;
    let mut message = echo(ICMP_ECHO);
    let sum = checksum([&message[..]]);
    message[2..4].copy_from_slice(&sum);
    let mut packet = vec![0x45, 0, 0, HEAD_BYTES + 8, 0, 0, 0, 0, 1, ICMP, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = checksum([&packet[..]]);
    packet[10..12].copy_from_slice(&sum);
    packet.extend(message);
    packet
}

/// The Internet's check sum (RFC 1071) over parts of even length.
fn checksum<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 2] {
    let words = parts.into_iter().flat_map(|part| part.chunks(2));
    let sum = words.fold(0u32, |sum, word| {
        sum + u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or_default()]))
    });
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!u16::try_from(sum).unwrap_or_default()).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> MacAddress {
        MacAddress::new([0x56, 1, 2, 3, 4, 5])
    }

    fn own() -> MacAddress {
        MacAddress::new([0x52, 0, 0, 0, 0, 1])
    }

    #[test]
    fn the_address_of_ipv6_is_the_one_a_station_makes() {
        assert_eq!(
            link_local(asked()),
            "fe80::5401:2ff:fe03:405".parse::<Ipv6Addr>().expect("one")
        );
        assert_eq!(solicited(link_local(asked())).to_string(), "ff02::1:ff03:405");
        assert_eq!(group_of(link_local(asked())).to_string(), "0x3333ff030405");
    }

    #[test]
    fn a_tag_stands_in_each_frame_of_a_vlan() {
        let addresses = [(IpAddr::from([192, 0, 2, 1]), 24)];
        let from = Sender { mac: own(), addresses: &addresses };
        for vlan in [None, VlanId::new(42)] {
            let frames = asking(asked(), vlan, &from);
            assert_eq!(frames.len(), 4);
            for frame in frames {
                assert!(frame.len() >= FRAME_BYTES_MIN);
                assert_eq!(frame[6..12], own().bytes());
                assert_eq!(frame[12..16] == [0x81, 0, 0, 42], vlan.is_some());
            }
        }
    }

    #[test]
    fn a_packet_with_its_check_sum_sums_up_to_nothing() {
        let packet = ipv4_packet(Ipv4Addr::new(192, 0, 2, 1), ALL_HOSTS);
        assert_eq!(checksum([&packet[..20]]), [0, 0]);
        assert_eq!(checksum([&packet[20..]]), [0, 0]);
    }
}
