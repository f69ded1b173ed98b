//! Decides which frames of guests go outside. Pure: frame in, verdict out.
//!
//! What libslirp gets it turns into connections of the VM Host's own, so this is where a guest is kept from what is not
//! outside: the host's loopback, by whatever address, and the links the host itself stands on.

use std::net::{Ipv4Addr, SocketAddrV4};

use hpvm_model::{MacAddress, NatSubnet};
use hpvm_nat::HostAccess;

use crate::answerable::Answerable;
use crate::packet::{ETHERNET_BYTES, ETHERTYPE_IPV4, Packet, Protocol, Wholeness};

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// For libslirp. With the address that the guest was seen to use, when the frame tells.
    Pass(Option<Seen>),
    /// A message to the DHCP server.
    Dhcp,
    /// Nothing that could go outside.
    Unfit,
    /// To somewhere, or as somebody, that a guest may not.
    Refused,
}

/// A guest uses an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) mac: MacAddress,
    pub(crate) address: Ipv4Addr,
}

const ARP_BYTES: usize = 28;
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const DHCP_SERVER_PORT: u16 = 67;
const NAME_SERVER_PORT: u16 = 53;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate {
    pub(crate) subnet: NatSubnet,
    pub(crate) mtu: u16,
    pub(crate) host_access: HostAccess,
}

impl Gate {
    /// `answerable`: whom a guest may answer although the VM Host is hidden.
    pub(crate) fn judge(&self, frame: &[u8], answerable: &Answerable) -> Verdict {
        let Some((ethernet, bytes)) = frame.split_first_chunk::<ETHERNET_BYTES>() else {
            return Verdict::Unfit;
        };
        match [ethernet[12], ethernet[13]] {
            ETHERTYPE_ARP if bytes.len() >= ARP_BYTES => return Verdict::Pass(None),
            // An Ethernet frame may be longer than its packet by padding alone.
            ETHERTYPE_IPV4 if bytes.len() <= usize::from(self.mtu) + 4 => {}
            _ => return Verdict::Unfit,
        }
        let Some(packet) = Packet::parse(bytes) else { return Verdict::Unfit };
        // Putting pieces together libslirp 4.7 writes over its own memory. Who sends datagrams longer than the MTU is rare.
        if packet.wholeness == Wholeness::Fragment {
            return Verdict::Unfit;
        }
        if self.is_for_dhcp(&packet) {
            return Verdict::Dhcp;
        }
        if !self.is_a_guests(packet.source) {
            return Verdict::Refused;
        }
        match self.judge_destination(&packet, answerable) {
            Verdict::Pass(_) => {
                let mac = MacAddress::new([6, 7, 8, 9, 10, 11].map(|at| ethernet[at]));
                Verdict::Pass(Some(Seen { mac, address: packet.source }))
            }
            other => other,
        }
    }

    fn judge_destination(&self, packet: &Packet, answerable: &Answerable) -> Verdict {
        let to = packet.destination;
        if to == self.subnet.gateway() {
            return pass_if(self.may_reach_gateway(packet, answerable));
        }
        if to == self.subnet.name_server() {
            return pass_if(packet.ports().is_some_and(|(_, port)| port == NAME_SERVER_PORT));
        }
        if to.is_multicast() || to.is_broadcast() {
            return Verdict::Unfit;
        }
        // Guests reach each other through the switch; the kernel takes 0.0.0.0 for its own loopback; and no router passes
        // link-local packets on (RFC 3927, section 2.7), behind which some hosts find their own credentials.
        let first = to.octets()[0];
        let is_not_outside =
            self.subnet.contains(to) || to.is_loopback() || to.is_link_local() || first == 0;
        // 240.0.0.0/4 is nowhere.
        pass_if(!is_not_outside && first < 240)
    }

    /// Behind the gateway's address is the VM Host's loopback. While that is hidden a guest may ask whether the gateway
    /// lives, and answer whoever came in by a forward.
    fn may_reach_gateway(&self, packet: &Packet, answerable: &Answerable) -> bool {
        if self.host_access == HostAccess::Reachable {
            return true;
        }
        match packet.protocol {
            Protocol::Icmp => true,
            Protocol::Tcp => packet.belongs_to_a_connection(),
            Protocol::Udp => packet.ports().is_some_and(|(from, to)| {
                answerable.knows(SocketAddrV4::new(packet.source, from), to)
            }),
            Protocol::Other => false,
        }
    }

    fn is_for_dhcp(&self, packet: &Packet) -> bool {
        let to = packet.destination;
        packet.protocol == Protocol::Udp
            && (to.is_broadcast() || to == self.subnet.gateway())
            && packet.ports().is_some_and(|(_, port)| port == DHCP_SERVER_PORT)
    }

    fn is_a_guests(&self, address: Ipv4Addr) -> bool {
        let subnet = self.subnet;
        let others = [subnet.first(), subnet.broadcast(), subnet.gateway(), subnet.name_server()];
        subnet.contains(address) && !others.contains(&address)
    }
}

fn pass_if(may: bool) -> Verdict {
    if may { Verdict::Pass(None) } else { Verdict::Refused }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TCP: u8 = 6;
    const UDP: u8 = 17;
    const SYN: u8 = 0x02;
    const SYN_ACK: u8 = 0x12;

    fn gate(host_access: HostAccess) -> Gate {
        Gate { subnet: NatSubnet::default(), mtu: 1500, host_access }
    }

    fn nobody() -> Answerable {
        Answerable::new(NatSubnet::default().gateway())
    }

    fn judge(frame: &[u8]) -> Verdict {
        gate(HostAccess::Hidden).judge(frame, &nobody())
    }

    fn passes(verdict: Verdict) -> bool {
        matches!(verdict, Verdict::Pass(_))
    }

    /// A guest's packet to a port: with these flags, when it is of TCP.
    fn packet(
        source: [u8; 4],
        destination: [u8; 4],
        protocol: u8,
        port: u16,
        flags: u8,
    ) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend([0x56, 1, 2, 3, 4, 5]);
        frame.extend(ETHERTYPE_IPV4);
        frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0]);
        frame.extend(source);
        frame.extend(destination);
        frame.extend([0x30, 0x39]);
        frame.extend(port.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame
    }

    const GUEST: [u8; 4] = [10, 0, 2, 15];
    const GATEWAY: [u8; 4] = [10, 0, 2, 2];

    #[test]
    fn a_guest_reaches_the_world_and_the_name_server() {
        for (destination, port) in
            [([93, 184, 216, 34], 80), ([192, 168, 1, 1], 22), ([10, 0, 2, 3], 53)]
        {
            let seen = Seen {
                mac: MacAddress::new([0x56, 1, 2, 3, 4, 5]),
                address: Ipv4Addr::from_octets(GUEST),
            };
            let verdict = judge(&packet(GUEST, destination, TCP, port, SYN));
            assert_eq!(verdict, Verdict::Pass(Some(seen)), "{destination:?}");
        }
        assert!(!passes(judge(&packet(GUEST, [10, 0, 2, 3], UDP, 22, 0))));
    }

    #[test]
    fn a_guest_reaches_no_address_of_the_host_itself() {
        for destination in [
            GATEWAY,
            [127, 0, 0, 1],
            [127, 9, 9, 9],
            [0, 0, 0, 0],
            [169, 254, 169, 254],
            [10, 0, 2, 77],
            [240, 0, 0, 1],
        ] {
            for protocol in [TCP, UDP, 1, 47] {
                if (destination, protocol) == (GATEWAY, 1) {
                    continue;
                }
                let verdict = judge(&packet(GUEST, destination, protocol, 80, SYN));
                assert_eq!(verdict, Verdict::Refused, "{destination:?} {protocol}");
            }
        }
        let reachable = gate(HostAccess::Reachable);
        for protocol in [TCP, UDP] {
            let frame = packet(GUEST, GATEWAY, protocol, 80, SYN);
            assert!(passes(reachable.judge(&frame, &nobody())));
        }
    }

    #[test]
    fn who_came_in_by_a_forward_is_answered() {
        assert!(passes(judge(&packet(GUEST, GATEWAY, TCP, 40_000, SYN_ACK))));
        let mut answerable = nobody();
        let mut asked = packet(GATEWAY, GUEST, UDP, 12_345, 0);
        asked[34..36].copy_from_slice(&40_000u16.to_be_bytes());
        answerable.note(&asked);
        let answer = |port| {
            gate(HostAccess::Hidden).judge(&packet(GUEST, GATEWAY, UDP, port, 0), &answerable)
        };
        assert!(passes(answer(40_000)));
        assert!(!passes(answer(40_001)));
    }

    #[test]
    fn pieces_of_packets_do_not_slip_through() {
        for destination in [GATEWAY, [93, 184, 216, 34]] {
            for (more, offset) in [(0x20, 0), (0, 1), (0x20, 1)] {
                let mut fragment = packet(GUEST, destination, TCP, 40_000, SYN_ACK);
                fragment[20..22].copy_from_slice(&[more, offset]);
                assert_eq!(judge(&fragment), Verdict::Unfit);
            }
        }
        let mut short = packet(GUEST, GATEWAY, TCP, 40_000, SYN_ACK);
        short.truncate(ETHERNET_BYTES + 20 + 12);
        assert_eq!(judge(&short), Verdict::Refused);
    }

    #[test]
    fn nobody_speaks_as_somebody_who_is_no_guest() {
        for source in [GATEWAY, [10, 0, 2, 3], [10, 0, 2, 255], [192, 168, 1, 1], [0; 4]] {
            let verdict = judge(&packet(source, [93, 184, 216, 34], TCP, 80, SYN));
            assert_eq!(verdict, Verdict::Refused, "{source:?}");
        }
    }

    #[test]
    fn what_is_not_for_outside_is_unfit() {
        for destination in [[224, 0, 0, 251], [255, 255, 255, 255]] {
            assert_eq!(judge(&packet(GUEST, destination, UDP, 5353, 0)), Verdict::Unfit);
        }
        let mut too_long = packet(GUEST, [93, 184, 216, 34], TCP, 80, SYN);
        too_long.resize(ETHERNET_BYTES + 1505, 0);
        assert_eq!(judge(&too_long), Verdict::Unfit);
        let mut ipv6 = packet(GUEST, [93, 184, 216, 34], TCP, 80, SYN);
        ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
        assert_eq!(judge(&ipv6), Verdict::Unfit);
    }

    proptest! {
        /// Whatever else a frame says, it does not reach loopback, and begins no connection to the gateway.
        #[test]
        fn no_frame_passes_to_the_host(
            bytes in prop::collection::vec(any::<u8>(), 0..120),
            last: [u8; 3],
            port: u16,
        ) {
            let mut frame = packet(GUEST, [127, last[0], last[1], last[2]], TCP, port, SYN_ACK);
            frame.extend(&bytes);
            prop_assert!(!passes(judge(&frame)));
            prop_assert!(!passes(judge(&packet(GUEST, GATEWAY, TCP, port, SYN))));
            let _ = judge(&bytes);
        }
    }
}
