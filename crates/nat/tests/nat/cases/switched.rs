//! Behind a whole switch: cards of both kinds at its ports, `hpvmnat` as its wire.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::net::{UnixListener, UnixStream};

use hpvm_model::{MacAddress, NicKind, PortNumber, PortRules, SwitchState};
use hpvm_nat::Settings;
use hpvm_netlab::{Card, FAR, Guest, Hub, mac};
use hpvm_vswitch::{Beginning, Clock, GuestMemory, Options, PortOptions, Switch, WireOptions};

use crate::nat::Nat;
use crate::world::echo_server;

fn plug_in(switch: &Switch, folder: &tempfile::TempDir, number: u8, kind: NicKind) -> Guest {
    let place = folder.path().join(number.to_string());
    let port = PortOptions {
        kind,
        listener: UnixListener::bind(&place).expect("a socket"),
        mac: MacAddress::new(mac(number).0),
        features: None,
        memory: GuestMemory::Sealed,
        rules: PortRules::default(),
    };
    switch.add_port(PortNumber::new(u16::from(number)).expect("a port"), port).expect("a port");
    let hub = match kind {
        NicKind::Lan => Hub::new(UnixStream::connect(place).expect("the port listens")),
        NicKind::AvioLan => Hub::of_card(Card::plug_in(&place).expect("the switch agrees")),
    };
    Guest::new(&hub, number)
}

pub(crate) fn guests() {
    let nat = Nat::start(Settings::default());
    let folder = tempfile::tempdir().expect("a folder");
    let options = Options {
        name: "sw".into(),
        state: SwitchState::Up,
        clock: Clock::Monotonic,
        beginning: Beginning::AtOnce,
    };
    let (switch, _events) = Switch::start(options).expect("a switch");
    switch.attach_wire(WireOptions::Stream(nat.connect())).expect("a wire");
    let mut one = plug_in(&switch, &folder, 1, NicKind::Lan);
    let mut other = plug_in(&switch, &folder, 2, NicKind::AvioLan);
    assert_eq!(one.boot().address, Ipv4Addr::new(10, 0, 2, 15));
    assert_eq!(other.boot().address, Ipv4Addr::new(10, 0, 2, 16));
    let server = echo_server(FAR);
    let bytes: Vec<u8> = (0..300_000u32).map(|at| (at % 251) as u8).collect();
    for guest in [&mut one, &mut other] {
        let connection = guest.connect(server).expect("the server answers");
        assert!(guest.echoed(connection, &bytes) == bytes, "the bytes came back as they went");
    }
    let listening = other.listen(7);
    let asking = one.begin_connect(SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 16), 7));
    one.until("guests reach each other", |one| {
        other.step();
        (one.tcp(asking).may_send() && other.tcp(listening).may_send()).then_some(())
    });
    assert_eq!(nat.status().counters.frames_out_refused, 0, "that stays within the switch");
}
