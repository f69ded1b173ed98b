//! Addresses by DHCP.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use hpvm_model::NatSubnet;
use hpvm_nat::Settings;
use hpvm_netlab::{Guest, Hub, Told};

use crate::nat::Nat;

pub(crate) fn told() {
    for subnet in ["10.0.2.0/24", "192.168.64.0/20"] {
        let subnet: NatSubnet = subnet.parse().expect("a network");
        let nat = Nat::start(Settings { subnet, ..Settings::default() });
        let hub = Hub::new(nat.connect());
        let told = Guest::new(&hub, 1).boot();
        let wanted = Told {
            address: subnet.guest(0).expect("a place"),
            prefix: u8::try_from(subnet.mask().to_bits().count_ones()).expect("a length"),
            router: Some(subnet.gateway()),
            name_servers: vec![subnet.name_server()],
        };
        assert_eq!(told, wanted);
        let leases = nat.status().leases;
        assert_eq!(leases.len(), 1);
        assert_eq!(leases[0].mac.to_string(), "0x56a100000001");
        assert_eq!(leases[0].address, told.address);
    }
}

pub(crate) fn many() {
    let nat = Nat::start(Settings::default());
    let hub = Hub::new(nat.connect());
    let addresses: BTreeSet<Ipv4Addr> =
        (1..=40).map(|number| Guest::new(&hub, number).boot().address).collect();
    assert_eq!(addresses.len(), 40);
    assert_eq!(nat.status().leases.len(), 40);
}

pub(crate) fn successor() {
    let mut nat = Nat::start(Settings::default());
    let hub = Hub::new(nat.connect());
    let mut quiet = Guest::booted(&hub, 1);
    let asking = Guest::new(&hub, 2).boot();
    nat.replace();
    hub.reconnect(nat.connect());
    // A guest that was there before is seen as soon as it uses its address.
    quiet.resolve(NatSubnet::default().name_server(), "seen.example");
    let newcomer = Guest::new(&hub, 3).boot();
    assert_eq!(asking.address, Ipv4Addr::new(10, 0, 2, 16));
    assert_ne!(newcomer.address, Ipv4Addr::new(10, 0, 2, 15), "the quiet guest has it");
}
