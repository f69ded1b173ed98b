//! What an AVIO guest leaves to be done, a kernel finishes, and what a kernel leaves, the guest's driver gets or the switch
//! finishes: over a packet socket and a tap, with TCP and UDP of the kernel's own at the other end, over IPv4 and IPv6.
//!
//! The guest is a driver of rings and as much of TCP (RFC 9293) as one connection without losses needs.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::Instant;

use hpvm_host::nic;
use hpvm_model::{MacAddress, NicKind, PortRules, PortVlan, VlanId};
use hpvm_netlab::{ip, mac, pair};
use hpvm_vswitch::{GuestMemory, OffloadHeader, PacketWire, TapWire, Wire};
use nix::libc;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, open};

use crate::guest::{Driver, Guest, LINUX, PATIENCE};
use crate::packets::socket;
use crate::segment::{Ip, Segment, Transport, Verified, fill_checksum, verified};
use crate::switched::{OnePort, bonded, tagged};

/// As much as one long segment takes, and as a kernel takes before it has answered.
const DATA_BYTES: usize = 60_000;
const SEGMENT_BYTES: u16 = 1000;
const DATAGRAM_BYTES: usize = 1001;
const TCP: u8 = 6;
const UDP: u8 = 17;
const CSUM: u64 = 1 << 0;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO: u64 = 1 << 7 | 1 << 8 | 1 << 9;
const HOST_TSO: u64 = 1 << 11 | 1 << 12 | 1 << 13;
/// With everything, without long segments towards it, and with nothing.
const DRIVERS: [u64; 3] =
    [LINUX, LINUX & !GUEST_TSO, LINUX & !(CSUM | GUEST_CSUM | GUEST_TSO | HOST_TSO)];
const SYN: u8 = 2;
const ACK: u8 = 16;

/// A kernel that takes what is undone, and leaves it.
pub(crate) fn between_kernel_and_guest() {
    for (number, features) in (0..).zip(DRIVERS) {
        let (near, far) = (format!("und{number}"), format!("kern{number}"));
        pair(&near, &far);
        talk_long(PacketWire::new(socket(&near)), &far, number, features);
        let name = format!("host{number}");
        let tap = TapWire::new(nic::wire::tap(&name).expect("root of this network may"));
        talk_long(tap, &name, 10 + number, features);
    }
}

/// The same over a VLAN interface of the VM Host, and in the VLAN of the guest's port, with another machine and with the host.
pub(crate) fn in_vlans() {
    for (number, features) in (0..).zip(DRIVERS) {
        let (near, far) = (format!("vn{number}"), format!("vf{number}"));
        pair(&near, &far);
        let wire = PacketWire::new(socket(&tagged(&near, 5)));
        talk_long(wire, &tagged(&far, 5), 30 + number, features);
        let (near, far) = (format!("pn{number}"), format!("pf{number}"));
        pair(&near, &far);
        let wire = PacketWire::new(socket(&near));
        talk_in_vlan(wire, &tagged(&far, 6), 40 + number, features, untagged(6));
        let name = format!("hv{number}");
        let tap = TapWire::new(nic::wire::tap(&name).expect("root of this network may"));
        talk_in_vlan(tap, &tagged(&name, 7), 50 + number, features, untagged(7));
    }
}

/// The same over a bond.
pub(crate) fn over_bonds() {
    for (number, features) in (0..).zip(DRIVERS) {
        let (bond, room, _) = bonded(&format!("u{number}"));
        talk_long(PacketWire::new(socket(&bond)), &room, 60 + number, features);
    }
}

/// Long segments come where the guest's driver takes them.
fn talk_long(wire: impl Wire + 'static, interface: &str, number: u8, features: u64) {
    talk_in_vlan(wire, interface, number, features, PortVlan::None);
}

fn talk_in_vlan(
    wire: impl Wire + 'static,
    interface: &str,
    number: u8,
    features: u64,
    vlan: PortVlan,
) {
    for long in talk(wire, interface, number, features, vlan) {
        assert_eq!(long > 0, features & GUEST_TSO != 0, "{long} long segments at {features:#x}");
    }
}

fn untagged(vlan: u16) -> PortVlan {
    PortVlan::Untagged(VlanId::new(vlan).expect("a VLAN"))
}

/// The wire's interface takes nothing undone, so the kernel finishes; the one at the other end of the cable says of nothing
/// that it was looked at, so the kernel there verifies each checksum.
pub(crate) fn finished_on_the_way() {
    for (number, features) in (0..).zip(DRIVERS) {
        let names = [format!("here{number}"), format!("there{number}")];
        let ends = [plain_tap(&names[0]), plain_tap(&names[1])];
        for name in &names {
            ip(&format!("link set {name} up"));
        }
        thread::spawn(move || cable(&ends));
        let wire = PacketWire::new(socket(&names[0]));
        let long = talk(wire, &names[1], 20 + number, features, PortVlan::None);
        assert_eq!(long, [0, 0], "what comes is finished");
    }
}

/// A tap of which the kernel knows that it can do nothing by itself.
fn plain_tap(name: &str) -> OwnedFd {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tap = open("/dev/net/tun", flags, Mode::empty()).expect("the device of taps");
    let mut letters = [0; libc::IFNAMSIZ];
    for (letter, byte) in letters.iter_mut().zip(name.bytes()) {
        *letter = byte.cast_signed();
    }
    let ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
    let mut request =
        libc::ifreq { ifr_name: letters, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags } };
    // SAFETY: the kernel reads and writes one request.
    let made = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(made, 0, "root of this network may");
    tap
}

/// Carries frames both ways until the program ends.
fn cable(ends: &[OwnedFd; 2]) {
    let mut frame = vec![0; 70_000];
    loop {
        let mut readable = ends.each_ref().map(|end| PollFd::new(end, PollFlags::IN));
        poll(&mut readable, None).expect("polled");
        for [from, to] in [[&ends[0], &ends[1]], [&ends[1], &ends[0]]] {
            while let Ok(bytes) = rustix::io::read(from, &mut frame) {
                rustix::io::write(to, &frame[..bytes]).expect("the cable's end takes it");
            }
        }
    }
}

/// Data go to the kernel behind `interface` and come back as they went. Returns how many long segments came over IPv4 and over
/// IPv6.
fn talk(
    wire: impl Wire + 'static,
    interface: &str,
    number: u8,
    features: u64,
    vlan: PortVlan,
) -> [u32; 2] {
    let kernel = Ipv4Addr::new(198, 18, number, 1);
    let [own6, kernel6] =
        [9, 1].map(|last| Ipv6Addr::new(0xfd00, 0, 0, number.into(), 0, 0, 0, last));
    ip(&format!("address add {kernel}/24 dev {interface}"));
    ip(&format!("address add {kernel6}/64 dev {interface} nodad"));
    let own = MacAddress::new(mac(1).0);
    let address = own.with_dashes().replace('-', ":");
    for neighbour in [format!("198.18.{number}.9"), own6.to_string()] {
        ip(&format!("neighbour add {neighbour} lladdr {address} dev {interface}"));
    }
    let address = nic::named(interface).expect("told").expect("there").mac;
    let to = address.expect("Ethernet").bytes();
    let rules = PortRules { vlan, ..PortRules::default() };
    let switch = OnePort::start(wire, NicKind::AvioLan, GuestMemory::Sealed, rules);
    let mut guest = Guest::connect(&switch.place, Driver { features, ..Driver::LINUX });
    let data: Vec<u8> = (0..DATA_BYTES).map(|at| (at * 7 % 251) as u8).collect();
    let families = [
        (Ip::V4([[198, 18, number, 9], kernel.octets()]), IpAddr::V4(kernel)),
        (Ip::V6([own6.octets(), kernel6.octets()]), IpAddr::V6(kernel6)),
    ];
    families.map(|(ip, kernel)| {
        let (next, came, long_segments) = (0, 0, 0);
        let guest = &mut guest;
        let ports = [50_000, echo(kernel)];
        let mut connection = Connection { guest, to, ip, ports, next, came, long_segments };
        assert!(connection.echoed(&data) == data, "the bytes came back as they went, {ip:?}");
        let long = connection.long_segments;
        connection.ports[1] = echo_datagram(kernel);
        let datagram = &data[..DATAGRAM_BYTES];
        connection.transmit(Transport::Udp, datagram);
        assert!(connection.receive(UDP).data == datagram, "it came back as it went, {ip:?}");
        long
    })
}

/// Sends back what it gets, all of it at once so that segments grow long.
fn echo(address: IpAddr) -> u16 {
    let listener = TcpListener::bind((address, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a guest");
        let mut data = vec![0; DATA_BYTES];
        stream.read_exact(&mut data).expect("all of it comes");
        stream.write_all(&data).expect("sent");
    });
    port
}

/// The same of one datagram.
fn echo_datagram(address: IpAddr) -> u16 {
    let socket = UdpSocket::bind((address, 0)).expect("a port");
    let port = socket.local_addr().expect("bound").port();
    thread::spawn(move || {
        let mut data = [0; DATAGRAM_BYTES];
        let (count, from) = socket.recv_from(&mut data).expect("a guest");
        socket.send_to(&data[..count], from).expect("sent");
    });
    port
}

struct Connection<'a> {
    guest: &'a mut Guest,
    to: [u8; 6],
    ip: Ip,
    ports: [u16; 2],
    /// The sequence number of what is sent next.
    next: u32,
    /// The one of what is to come next.
    came: u32,
    long_segments: u32,
}

impl Connection<'_> {
    fn echoed(&mut self, data: &[u8]) -> Vec<u8> {
        self.send(SYN, &[]);
        let Transport::Tcp { sequence, flags, .. } = self.receive(TCP).transport else {
            panic!("no TCP");
        };
        assert_eq!(flags & (SYN | ACK), SYN | ACK, "the kernel listens");
        self.came = sequence.wrapping_add(1);
        self.send(ACK, &[]);
        let undone = self.guest.driver.features & HOST_TSO != 0;
        let piece_bytes = if undone { DATA_BYTES } else { usize::from(SEGMENT_BYTES) };
        for piece in data.chunks(piece_bytes) {
            self.send(ACK, piece);
        }
        let mut came = Vec::new();
        while came.len() < data.len() {
            let Verified { transport, data } = self.receive(TCP);
            let Transport::Tcp { sequence, .. } = transport else { panic!("no TCP") };
            if sequence == self.came && !data.is_empty() {
                self.came = sequence.wrapping_add(data.len() as u32);
                came.extend(data);
                self.send(ACK, &[]);
            }
        }
        came
    }

    fn send(&mut self, flags: u8, data: &[u8]) {
        let (sequence, acknowledged) = (self.next, self.came);
        self.transmit(Transport::Tcp { sequence, acknowledged, flags }, data);
        self.next = self.next.wrapping_add(data.len() as u32 + u32::from(flags & SYN != 0));
    }

    fn transmit(&mut self, transport: Transport, data: &[u8]) {
        let Connection { to, ip, ports, .. } = *self;
        let segment = Segment { to, from: mac(1).0, ip, transport, ports, data };
        if self.guest.driver.features & CSUM != 0 {
            let (header, frame) = segment.unfinished(SEGMENT_BYTES);
            self.guest.send_with(&header.to_bytes(), &frame);
        } else {
            self.guest.send(&segment.finished());
        }
    }

    /// The next of a protocol between the two ports, verified; what it leaves undone the driver has agreed to.
    fn receive(&mut self, protocol: u8) -> Verified {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let received = self.guest.receive();
            let (header, mut frame) = (OffloadHeader::from_bytes(received.header), received.frame);
            if !self.is_answer(&frame, protocol) {
                continue;
            }
            let features = self.guest.driver.features;
            if header.flags & OffloadHeader::NEEDS_CHECKSUM != 0 {
                assert_ne!(features & GUEST_CSUM, 0, "a checksum is missing");
                fill_checksum(&header, &mut frame);
            }
            if header.gso_type != OffloadHeader::GSO_NONE {
                assert_ne!(features & GUEST_TSO, 0, "a long segment came");
                self.long_segments += 1;
            }
            return verified(&frame);
        }
        panic!("nothing of protocol {protocol} within {PATIENCE:?}");
    }

    fn is_answer(&self, frame: &[u8], protocol: u8) -> bool {
        let (ethertype, protocol_at, ports_at) = match self.ip {
            Ip::V4(_) => ([8, 0], 23, 34),
            Ip::V6(_) => ([0x86, 0xdd], 20, 54),
        };
        let [own, theirs] = self.ports.map(u16::to_be_bytes);
        frame[..6] == mac(1).0
            && frame[12..14] == ethertype
            && frame[protocol_at] == protocol
            && frame.get(ports_at..ports_at + 4) == Some(&[theirs, own].concat())
    }
}
