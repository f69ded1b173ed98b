//! A whole switch between a guest with an emulated card and the kernel. The kernel leaves checksums open and segments long,
//! the guest's stack takes neither: what comes through was finished on the way.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use hpvm_host::nic;
use hpvm_model::{MacAddress, NicKind, PortNumber, PortRules, PortVlan, SwitchState, VlanId};
use hpvm_netlab::{Guest, Hub, ip, mac, pair, wait_until_up};
use hpvm_vswitch::{
    Beginning, Clock, GuestMemory, OffloadHeader, Offloads, Options, PacketWire, PortOptions,
    Switch, TapWire, Wire, WireFrame, WireOptions, WireSlot,
};

use nix::libc;

use crate::packets::socket;

/// A switch with one port, at which guest 1 is plugged in.
struct Setup {
    /// How many frames came from the wire that hold more than one segment.
    long_segments: Arc<AtomicU64>,
    guest: Guest,
    _switch: OnePort,
}

/// A switch with a wire and one port.
pub(crate) struct OnePort {
    /// Where the port listens.
    pub(crate) place: PathBuf,
    _switch: Switch,
    _folder: tempfile::TempDir,
}

impl OnePort {
    pub(crate) fn start(
        wire: impl Wire + 'static,
        kind: NicKind,
        memory: GuestMemory,
        rules: PortRules,
    ) -> OnePort {
        let options = Options {
            name: "sw".into(),
            state: SwitchState::Up,
            clock: Clock::Monotonic,
            beginning: Beginning::AtOnce,
        };
        let (switch, _events) = Switch::start(options).expect("a switch");
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("port");
        let port = PortOptions {
            kind,
            listener: UnixListener::bind(&place).expect("a socket"),
            mac: MacAddress::new(mac(1).0),
            features: None,
            memory,
            rules,
        };
        switch.add_port(PortNumber::new(1).expect("a port"), port).expect("a port");
        switch.attach_wire(WireOptions::Device(Box::new(wire))).expect("a wire");
        OnePort { place, _switch: switch, _folder: folder }
    }
}

/// A wire, and what came over it.
struct Watched<W> {
    wire: W,
    long_segments: Arc<AtomicU64>,
}

impl<W: Wire> Wire for Watched<W> {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.wire.descriptor()
    }

    fn offloads(&self) -> Offloads {
        self.wire.offloads()
    }

    fn receive(&mut self, slots: &mut [WireSlot]) -> io::Result<usize> {
        let count = self.wire.receive(slots)?;
        let is_long = |slot: &&WireSlot| {
            let header = slot.filled().first_chunk().copied().map(OffloadHeader::from_bytes);
            header.is_some_and(|header| header.gso_type != OffloadHeader::GSO_NONE)
        };
        let long = slots[..count].iter().filter(is_long).count();
        self.long_segments.fetch_add(long as u64, Ordering::Relaxed);
        Ok(count)
    }

    fn send(&mut self, frames: &[WireFrame<'_>]) -> io::Result<usize> {
        self.wire.send(frames)
    }
}

fn set_up(wire: impl Wire + 'static, address: Ipv4Addr) -> Setup {
    set_up_with(wire, address, PortRules::default())
}

fn set_up_with(wire: impl Wire + 'static, address: Ipv4Addr, rules: PortRules) -> Setup {
    let long_segments = Arc::new(AtomicU64::new(0));
    let wire = Watched { wire, long_segments: Arc::clone(&long_segments) };
    let switch = OnePort::start(wire, NicKind::Lan, GuestMemory::Trusted, rules);
    let hub = Hub::new(UnixStream::connect(&switch.place).expect("the port listens"));
    let mut guest = Guest::new(&hub, 1);
    guest.use_address(address, 24, None);
    Setup { long_segments, guest, _switch: switch }
}

/// Sends back what it gets, and in between much at once, so that segments grow long.
fn server(address: Ipv4Addr) -> SocketAddrV4 {
    let listener = TcpListener::bind((address, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a guest");
        let mut piece = vec![0; 256 * 1024];
        while let Ok(count @ 1..) = stream.read(&mut piece) {
            stream.write_all(&piece[..count]).expect("sent");
        }
    });
    SocketAddrV4::new(address, port)
}

fn talk(setup: &mut Setup, server: SocketAddrV4) {
    let bytes: Vec<u8> = (0..1u32 << 18).map(|at| (at % 251) as u8).collect();
    let connection = setup.guest.connect(server).expect("the kernel answers");
    assert!(setup.guest.echoed(connection, &bytes) == bytes, "the bytes came back as they went");
    assert!(
        setup.long_segments.load(Ordering::Relaxed) > 0,
        "the kernel's segments came cut already"
    );
}

pub(crate) fn over_an_interface() {
    pair("wire0", "wire1");
    ip("address add 192.0.2.1/24 dev wire1");
    let wire = PacketWire::new(socket("wire0"));
    let mut setup = set_up(wire, Ipv4Addr::new(192, 0, 2, 9));
    talk(&mut setup, server(Ipv4Addr::new(192, 0, 2, 1)));
}

pub(crate) fn over_a_tap() {
    let tap = TapWire::new(nic::wire::tap("talk0").expect("root of this network may"));
    ip("address add 198.51.100.1/24 dev talk0");
    let mut setup = set_up(tap, Ipv4Addr::new(198, 51, 100, 9));
    talk(&mut setup, server(Ipv4Addr::new(198, 51, 100, 1)));
}

/// A bond of two parts that both end at one bridge, as they would at one switch of the machine room. Gives bond, bridge, and
/// the far end of the part in use.
pub(crate) fn bonded(name: &str) -> (String, String, String) {
    let (bond, room) = (format!("{name}team"), format!("{name}room"));
    let parts = [0, 1].map(|part| (format!("{name}part{part}"), format!("{name}far{part}")));
    ip(&format!("link add {bond} type bond mode active-backup miimon 10"));
    ip(&format!("link add {room} type bridge"));
    for (part, far) in &parts {
        pair(part, far);
        ip(&format!("link set {part} down"));
        ip(&format!("link set {part} master {bond}"));
        ip(&format!("link set {far} master {room}"));
    }
    for name in [&bond, &room] {
        ip(&format!("link set {name} up"));
    }
    wait_until_up(&bond);
    let [(_, in_use), _] = parts;
    (bond, room, in_use)
}

/// A VLAN interface that is up.
pub(crate) fn tagged(name: &str, vlan: u16) -> String {
    let tagged = format!("{name}.{vlan}");
    ip(&format!("link add link {name} name {tagged} type vlan id {vlan}"));
    ip(&format!("link set {tagged} up"));
    wait_until_up(&tagged);
    tagged
}

pub(crate) fn over_a_bond() {
    let (bond, room, in_use) = bonded("s");
    ip(&format!("address add 192.0.3.1/24 dev {room}"));
    let mut setup = set_up(PacketWire::new(socket(&bond)), Ipv4Addr::new(192, 0, 3, 9));
    talk(&mut setup, server(Ipv4Addr::new(192, 0, 3, 1)));
    // The part in use fails, and the guest notices nothing.
    ip(&format!("link set {in_use} down"));
    talk(&mut setup, server(Ipv4Addr::new(192, 0, 3, 1)));
}

pub(crate) fn over_a_vlan_interface() {
    pair("trunk0", "trunk1");
    let wire = PacketWire::new(socket(&tagged("trunk0", 5)));
    ip(&format!("address add 192.0.4.1/24 dev {}", tagged("trunk1", 5)));
    let mut setup = set_up(wire, Ipv4Addr::new(192, 0, 4, 9));
    talk(&mut setup, server(Ipv4Addr::new(192, 0, 4, 1)));
}

/// Host and guest in one VLAN, with everything left open that the kernel can leave open.
pub(crate) fn in_a_vlan_of_the_host() {
    let tap = TapWire::new(nic::wire::tap("talk1").expect("root of this network may"));
    ip(&format!("address add 192.0.7.1/24 dev {}", tagged("talk1", 7)));
    let vlan = PortVlan::Untagged(VlanId::new(7).expect("a VLAN"));
    let rules = PortRules { vlan, ..PortRules::default() };
    let mut setup = set_up_with(tap, Ipv4Addr::new(192, 0, 7, 9), rules);
    talk(&mut setup, server(Ipv4Addr::new(192, 0, 7, 1)));
}

/// The switch tags, the kernel at the other end takes the tag off.
pub(crate) fn in_a_vlan() {
    pair("both0", "both1");
    ip(&format!("address add 192.0.6.1/24 dev {}", tagged("both1", 6)));
    let vlan = PortVlan::Untagged(VlanId::new(6).expect("a VLAN"));
    let rules = PortRules { vlan, ..PortRules::default() };
    let wire = PacketWire::new(socket("both0"));
    let mut setup = set_up_with(wire, Ipv4Addr::new(192, 0, 6, 9), rules);
    talk(&mut setup, server(Ipv4Addr::new(192, 0, 6, 1)));
}

/// Several datagrams that a kernel hands over at once come one by one. One that has no words for them (Linux before 6.2) loses
/// them, and them alone.
pub(crate) fn datagrams_at_once() {
    const PIECE_BYTES: usize = 1000;
    let (host, own) = (Ipv4Addr::new(192, 0, 8, 1), Ipv4Addr::new(192, 0, 8, 9));
    pair("dgram0", "dgram1");
    ip(&format!("address add {host}/24 dev dgram1"));
    let mut setup = set_up(PacketWire::new(socket("dgram0")), own);
    let hears = setup.guest.udp_socket(4000);
    let sender = UdpSocket::bind((host, 0)).expect("a port");
    let hear = |guest: &mut Guest| {
        guest.until("a datagram", |guest| {
            let (data, _) = guest.udp(hears).recv().ok()?;
            Some(data.to_vec())
        })
    };
    sender.send_to(b"first", (own, 4000)).expect("sent");
    assert_eq!(hear(&mut setup.guest), b"first");

    send_in_pieces(&sender, PIECE_BYTES);
    let data: Vec<u8> = (0..5500u32).map(|at| (at % 251) as u8).collect();
    sender.send_to(&data, (own, 4000)).expect("sent");
    send_in_pieces(&sender, 0);
    sender.send_to(b"last", (own, 4000)).expect("sent");
    let came: Vec<Vec<u8>> = std::iter::repeat_with(|| hear(&mut setup.guest))
        .take_while(|datagram| datagram != b"last")
        .collect();
    let handed_over = setup.long_segments.load(Ordering::Relaxed) > 0;
    println!("the kernel hands them over at once: {handed_over}");
    let pieces = data.chunks(PIECE_BYTES).map(<[u8]>::to_vec).filter(|_| handed_over);
    assert_eq!(came, pieces.collect::<Vec<_>>());
}

/// Has the kernel cut what is sent from now on (udp(7), UDP_SEGMENT); 0: no more.
fn send_in_pieces(sender: &UdpSocket, bytes: usize) {
    let bytes = bytes as libc::c_int;
    // SAFETY: the option is a number, which outlives the call.
    let set = unsafe {
        libc::setsockopt(
            sender.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}
