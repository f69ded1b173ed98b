//! The interfaces of a real server, recorded in the guest-host by `record_nics`: a bond of two, a VLAN interface on it, a
//! bridge with a tap, a pair.

use std::fs;
use std::path::Path;

use hpvm_host::nic::{self, Carrier, Nic, NicKind, Recording, Unfit};

fn server() -> Vec<Nic> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/trees/nics");
    let read = |name| fs::read(folder.join(name)).expect("the recording");
    nic::read(&Recording { links: read("links"), addresses: read("addresses") })
}

fn named<'a>(nics: &'a [Nic], name: &str) -> &'a Nic {
    nics.iter().find(|nic| nic.name == name).unwrap_or_else(|| panic!("no {name} in {nics:#?}"))
}

/// Aggregates and VLAN interfaces stand in the one list, and can be a wire.
#[test]
fn every_kind_of_interface_is_told_from_the_others() {
    let nics = server();
    for (name, kind) in [
        ("lo", NicKind::Loopback),
        ("bond7", NicKind::Bond),
        ("bond7.42", NicKind::Vlan(42)),
        ("bridge3", NicKind::Bridge),
        ("tap5", NicKind::Tap),
        ("tun6", NicKind::Other("tun".to_owned())),
        ("pair0", NicKind::Veth),
        ("member0", NicKind::Other("dummy".to_owned())),
    ] {
        assert_eq!(named(&nics, name).kind, kind, "{name}");
    }
    let cards = nics.iter().filter(|nic| nic.kind == NicKind::Physical).count();
    assert!(cards <= 1, "a server of the guest-host has one card at most: {nics:#?}");
}

#[test]
fn what_an_interface_stands_on_and_is_part_of_is_told() {
    let nics = server();
    let vlan = named(&nics, "bond7.42");
    assert_eq!(vlan.lower.as_deref(), Some("bond7"));
    assert_eq!((vlan.mtu_bytes, vlan.carrier), (1500, Carrier::Up));
    assert!(vlan.addresses.contains(&("192.0.2.7".parse().expect("an address"), 24)));
    assert_eq!(named(&nics, "bond7").mtu_bytes, 9000);
    assert_eq!(named(&nics, "member0").master.as_deref(), Some("bond7"));
    assert_eq!(named(&nics, "bridge3").carrier, Carrier::Off);
    assert_eq!(named(&nics, "pair0").lower, None, "the other end is not below it");
}

#[test]
fn what_can_be_a_wire_is_told() {
    let nics = server();
    for name in ["bond7", "bond7.42", "bridge3", "pair0"] {
        assert_eq!(named(&nics, name).fit_for_wire(), Ok(()), "{name}");
    }
    for (name, reason) in [
        ("lo", "lo is this machine's loopback"),
        ("member1", "member1 is a part of bond7; use bond7"),
        ("tap5", "tap5 is a tap; use --wire tap:tap5"),
        ("tun6", "tun6 is no Ethernet interface"),
    ] {
        let unfit: Unfit = named(&nics, name).fit_for_wire().expect_err(name);
        assert_eq!(unfit.to_string(), reason);
    }
}

#[test]
fn what_can_be_a_tap_is_told() {
    let nics = server();
    assert_eq!(named(&nics, "tap5").fit_for_tap(), Ok(()));
    for (name, reason) in [
        ("lo", "lo is this machine's loopback"),
        ("bond7", "bond7 is no tap; name one that is, or give an interface by -n"),
        ("tun6", "tun6 is no tap; name one that is, or give an interface by -n"),
    ] {
        let unfit: Unfit = named(&nics, name).fit_for_tap().expect_err(name);
        assert_eq!(unfit.to_string(), reason);
    }
}

/// The kernel is trusted, but a message that is cut short must not end a command.
#[test]
fn no_cut_makes_the_reader_panic() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/trees/nics");
    let links = fs::read(folder.join("links")).expect("the recording");
    for length in 0..links.len() {
        let cut = Recording { links: links[..length].to_vec(), addresses: Vec::new() };
        assert!(nic::read(&cut).len() <= server().len());
    }
}
