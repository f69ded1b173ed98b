//! Connections of guests to the outside, and to what is not outside.

use std::net::{Ipv4Addr, SocketAddrV4};

use hpvm_model::NatSubnet;
use hpvm_nat::{HostAccess, Settings};
use hpvm_netlab::{Guest, Hub};
use smoltcp::socket::tcp;

use crate::nat::Nat;
use crate::world::{FAR, echo_server};

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

pub(crate) fn two_guests() {
    let nat = Nat::start(Settings::default());
    let hub = Hub::new(nat.connect());
    let (mut one, mut other) = (Guest::new(&hub, 1), Guest::new(&hub, 2));
    let addresses = [one.boot().address, other.boot().address];
    assert_eq!(addresses, [Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(10, 0, 2, 16)]);
    let server = echo_server(FAR);
    let bytes = pattern(1 << 20);
    for guest in [&mut one, &mut other] {
        let connection = guest.connect(server).expect("the server answers");
        assert!(guest.echoed(connection, &bytes) == bytes, "the bytes came back as they went");
    }
    let counters = nat.status().counters;
    assert!(counters.frames_out > 1000 && counters.frames_in > 1000, "{counters:?}");
    assert_eq!(counters.frames_out_refused, 0);
}

pub(crate) fn names() {
    let nat = Nat::start(Settings::default());
    let hub = Hub::new(nat.connect());
    let mut guest = Guest::booted(&hub, 1);
    let addresses = guest.resolve(NatSubnet::default().name_server(), "far.example");
    assert_eq!(addresses, [FAR.into()]);
}

pub(crate) fn hidden_host() {
    let local = echo_server(Ipv4Addr::LOCALHOST);
    let by_gateway = SocketAddrV4::new(NatSubnet::default().gateway(), local.port());
    let no_router = SocketAddrV4::new(Ipv4Addr::new(169, 254, 169, 254), 80);
    let nat = Nat::start(Settings::default());
    let mut guest = Guest::booted(&Hub::new(nat.connect()), 1);
    for hidden in [by_gateway, local, no_router] {
        is_never_reached(&nat, &mut guest, hidden);
    }
    let settings = Settings { host_access: HostAccess::Reachable, ..Settings::default() };
    let nat = Nat::start(settings);
    let mut guest = Guest::booted(&Hub::new(nat.connect()), 1);
    let connection = guest.connect(by_gateway).expect("the administrator lets guests in");
    assert_eq!(guest.echoed(connection, b"hello"), b"hello");
    // By its own address loopback is nobody's but the host's all the same.
    for hidden in [local, no_router] {
        is_never_reached(&nat, &mut guest, hidden);
    }
}

/// The frame is counted, and gone.
fn is_never_reached(nat: &Nat, guest: &mut Guest, server: SocketAddrV4) {
    let refused = |nat: &Nat| nat.status().counters.frames_out_refused;
    let before = refused(nat);
    let connection = guest.begin_connect(server);
    guest.until("the frame is refused", |guest| {
        assert_eq!(guest.tcp(connection).state(), tcp::State::SynSent, "{server}");
        (refused(nat) > before).then_some(())
    });
    guest.tcp(connection).abort();
}

pub(crate) fn switch_comes_back() {
    let nat = Nat::start(Settings::default());
    let hub = Hub::new(nat.connect());
    let mut guest = Guest::booted(&hub, 1);
    let connection = guest.connect(echo_server(FAR)).expect("the server answers");
    assert_eq!(guest.echoed(connection, b"before"), b"before");
    hub.reconnect(nat.connect());
    let bytes = pattern(200_000);
    assert!(guest.echoed(connection, &bytes) == bytes, "the connection goes on");
}
