//! DHCP for the guests (RFC 2131, RFC 2132): an address, the gateway, the name server and the MTU.
//!
//! libslirp has a server too, which knows 16 guests and forgets them when it ends. Pure but for the leases: frame in, frame
//! out. It does not know the sockets they come from.

use std::net::Ipv4Addr;
use std::time::Instant;

use hpvm_model::{MacAddress, NatSubnet};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress, EthernetFrame,
    EthernetProtocol, EthernetRepr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket,
    UdpRepr,
};

use crate::leases::{LEASE, Leases};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const OPTION_NAME_SERVER: u8 = 6;
const OPTION_MTU: u8 = 26;
/// Clients expect no shorter message (RFC 1542, section 2.1).
const MESSAGE_BYTES_MIN: usize = 300;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Server {
    pub(crate) subnet: NatSubnet,
    pub(crate) mtu: u16,
}

/// What a guest is told.
enum Answer {
    Offer(Ipv4Addr),
    Acknowledge(Ipv4Addr),
    /// It has an address of its own and asks for the rest.
    Inform,
    Refuse,
}

impl Server {
    /// The answer to a guest's frame, if it is a message that wants one.
    pub(crate) fn answer(
        &self,
        frame: &[u8],
        leases: &mut Leases,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        let packet = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
        let checksums = ChecksumCapabilities::default();
        let ip = Ipv4Repr::parse(&packet, &checksums).ok()?;
        let udp = UdpPacket::new_checked(packet.payload()).ok()?;
        UdpRepr::parse(&udp, &ip.src_addr.into(), &ip.dst_addr.into(), &checksums).ok()?;
        let message = DhcpPacket::new_checked(udp.payload()).ok()?;
        let asked = DhcpRepr::parse(&message).ok()?;
        // Whose frame it is, is what the switch answers for: nobody asks for, or gives back, what another card has.
        if asked.client_hardware_address != ethernet.src_addr() {
            return None;
        }
        let answer = self.decide(&asked, leases, now)?;
        self.write(&asked, &answer)
    }

    fn decide(&self, asked: &DhcpRepr, leases: &mut Leases, now: Instant) -> Option<Answer> {
        let mac = MacAddress::new(asked.client_hardware_address.0);
        match asked.message_type {
            DhcpMessageType::Discover => {
                leases.offer(mac, asked.requested_ip, now).map(Answer::Offer)
            }
            DhcpMessageType::Request => {
                // It chose another server's offer.
                if asked.server_identifier.is_some_and(|server| server != self.subnet.gateway()) {
                    leases.release(mac);
                    return None;
                }
                let wanted = asked.requested_ip.unwrap_or(asked.client_ip);
                Some(match leases.take(mac, wanted, now) {
                    true => Answer::Acknowledge(wanted),
                    false => Answer::Refuse,
                })
            }
            DhcpMessageType::Inform => Some(Answer::Inform),
            DhcpMessageType::Release | DhcpMessageType::Decline => {
                leases.release(mac);
                None
            }
            _ => None,
        }
    }

    fn write(&self, asked: &DhcpRepr, answer: &Answer) -> Option<Vec<u8>> {
        let (message_type, address) = match answer {
            Answer::Offer(address) => (DhcpMessageType::Offer, Some(*address)),
            Answer::Acknowledge(address) => (DhcpMessageType::Ack, Some(*address)),
            Answer::Inform => (DhcpMessageType::Ack, None),
            Answer::Refuse => (DhcpMessageType::Nak, None),
        };
        let tells = !matches!(answer, Answer::Refuse);
        let gateway = self.subnet.gateway();
        let lease_s = address.and(u32::try_from(LEASE.as_secs()).ok());
        let name_server = self.subnet.name_server().octets();
        let mtu = self.mtu.to_be_bytes();
        let options = [
            DhcpOption { kind: OPTION_NAME_SERVER, data: &name_server },
            DhcpOption { kind: OPTION_MTU, data: &mtu },
        ];
        self.wrap(&DhcpRepr {
            message_type,
            transaction_id: asked.transaction_id,
            secs: 0,
            client_hardware_address: asked.client_hardware_address,
            client_ip: if tells { asked.client_ip } else { Ipv4Addr::UNSPECIFIED },
            your_ip: address.unwrap_or(Ipv4Addr::UNSPECIFIED),
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: tells.then_some(gateway),
            subnet_mask: tells.then(|| self.subnet.mask()),
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: asked.broadcast,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(gateway),
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: lease_s,
            renew_duration: lease_s.map(|lease| lease / 2),
            rebind_duration: lease_s.map(|lease| lease / 8 * 7),
            additional_options: if tells { &options } else { &[] },
        })
    }

    /// Puts a message into UDP, IP and Ethernet. To all stations when the guest asks so, else to the guest's card alone; by
    /// IP always to all, since the guest has no address yet.
    fn wrap(&self, message: &DhcpRepr) -> Option<Vec<u8>> {
        let gateway = self.subnet.gateway();
        let message_bytes = message.buffer_len().max(MESSAGE_BYTES_MIN);
        let udp = UdpRepr { src_port: SERVER_PORT, dst_port: CLIENT_PORT };
        let ip = Ipv4Repr {
            src_addr: gateway,
            dst_addr: Ipv4Addr::BROADCAST,
            next_header: IpProtocol::Udp,
            payload_len: udp.header_len() + message_bytes,
            hop_limit: 64,
        };
        let [a, b, c, d] = gateway.octets();
        let ethernet = EthernetRepr {
            // libslirp's own, so that the gateway has one.
            src_addr: EthernetAddress([0x52, 0x55, a, b, c, d]),
            dst_addr: match message.broadcast || message.message_type == DhcpMessageType::Nak {
                true => EthernetAddress::BROADCAST,
                false => message.client_hardware_address,
            },
            ethertype: EthernetProtocol::Ipv4,
        };
        let mut bytes = vec![0; ethernet.buffer_len() + ip.buffer_len() + ip.payload_len];
        let checksums = ChecksumCapabilities::default();
        let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
        ethernet.emit(&mut frame);
        let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet, &checksums);
        let mut written = Ok(());
        udp.emit(
            &mut UdpPacket::new_unchecked(packet.payload_mut()),
            &IpAddress::Ipv4(ip.src_addr),
            &IpAddress::Ipv4(ip.dst_addr),
            message_bytes,
            |payload| written = message.emit(&mut DhcpPacket::new_unchecked(payload)),
            &checksums,
        );
        written.ok().map(|()| bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn server() -> Server {
        Server { subnet: NatSubnet::default(), mtu: 1500 }
    }

    /// A message about one card in a frame of another's.
    fn message(
        message_type: DhcpMessageType,
        card: EthernetAddress,
        from: EthernetAddress,
    ) -> Vec<u8> {
        let message = DhcpRepr {
            message_type,
            transaction_id: 7,
            secs: 0,
            client_hardware_address: card,
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: false,
            requested_ip: None,
            client_identifier: None,
            server_identifier: None,
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        };
        let mut frame = server().wrap(&message).expect("it has room");
        EthernetFrame::new_unchecked(&mut frame[..]).set_src_addr(from);
        frame
    }

    #[test]
    fn nobody_speaks_for_another_card() {
        let [own, other] = [1, 2].map(|last| EthernetAddress([2, 0, 0, 0, 0, last]));
        let mut leases = Leases::new(NatSubnet::default());
        let mut say = |message_type, card, from| {
            server().answer(&message(message_type, card, from), &mut leases, Instant::now())
        };
        assert_eq!(say(DhcpMessageType::Discover, other, own), None);
        assert!(say(DhcpMessageType::Discover, own, own).is_some());
        assert_eq!(say(DhcpMessageType::Release, own, other), None);
        let held: Vec<_> = leases.all().map(|(mac, _)| mac.bytes()).collect();
        assert_eq!(held, [own.0]);
    }

    proptest! {
        /// What a guest sends can be anything.
        #[test]
        fn no_frame_makes_the_server_panic(
            mut frame in prop::collection::vec(any::<u8>(), 0..700),
            looks_right: bool,
        ) {
            if looks_right && frame.len() > 45 {
                frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
                frame[23] = 17;
                frame[36..38].copy_from_slice(&[0, 67]);
            }
            let server = server();
            let _ = server.answer(&frame, &mut Leases::new(server.subnet), Instant::now());
        }
    }
}
