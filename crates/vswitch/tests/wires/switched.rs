//! A whole switch between a guest with an emulated card and the kernel. The kernel leaves checksums open and segments long,
//! the guest's stack takes neither: what comes through was finished on the way.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use hpvm_host::nic;
use hpvm_model::{MacAddress, NicKind, PortNumber, PortRules};
use hpvm_netlab::{Guest, Hub, ip, mac, pair};
use hpvm_vswitch::{
    Clock, GuestMemory, Options, PacketWire, PortOptions, Switch, SwitchState, TapWire, Wire,
    WireOptions,
};

use crate::packets::socket;

/// A switch with one port, at which guest 1 is plugged in.
struct Setup {
    switch: Switch,
    guest: Guest,
    _folder: tempfile::TempDir,
}

fn set_up(wire: Box<dyn Wire>, address: Ipv4Addr) -> Setup {
    let options = Options { name: "sw".into(), state: SwitchState::Up, clock: Clock::Monotonic };
    let (switch, _events) = Switch::start(options).expect("a switch");
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().join("port");
    let port = PortOptions {
        kind: NicKind::Lan,
        listener: UnixListener::bind(&place).expect("a socket"),
        mac: MacAddress::new(mac(1).0),
        features: None,
        memory: GuestMemory::Trusted,
        rules: PortRules::default(),
    };
    switch.add_port(PortNumber::new(1).expect("a port"), port).expect("a port");
    switch.attach_wire(WireOptions::Device(wire)).expect("a wire");
    let hub = Hub::new(UnixStream::connect(place).expect("the port listens"));
    let mut guest = Guest::new(&hub, 1);
    guest.use_address(address, 24, None);
    Setup { switch, guest, _folder: folder }
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
    let bytes: Vec<u8> = (0..1u32 << 20).map(|at| (at % 251) as u8).collect();
    let connection = setup.guest.connect(server).expect("the kernel answers");
    assert!(setup.guest.echoed(connection, &bytes) == bytes, "the bytes came back as they went");
    let counters = setup.switch.wire_counters();
    let segments = bytes.len() as u64 / 1460;
    let frames = counters.out_unicast_local;
    assert!(frames < segments, "the kernel's segments came cut already: {counters:?}");
}

pub(crate) fn over_an_interface() {
    pair("wire0", "wire1");
    ip("address add 192.0.2.1/24 dev wire1");
    let wire = PacketWire::new(socket("wire0"));
    let mut setup = set_up(Box::new(wire), Ipv4Addr::new(192, 0, 2, 9));
    talk(&mut setup, server(Ipv4Addr::new(192, 0, 2, 1)));
}

pub(crate) fn over_a_tap() {
    let tap = TapWire::new(nic::wire::tap("talk0").expect("root of this network may"));
    ip("address add 198.51.100.1/24 dev talk0");
    let mut setup = set_up(Box::new(tap), Ipv4Addr::new(198, 51, 100, 9));
    talk(&mut setup, server(Ipv4Addr::new(198, 51, 100, 1)));
}
