//! A second virtual switch, whose wire is on the same LAN as the first one's: guests with a NIC on each, which come while they
//! run. Each reaches the other from either switch, by VLANs too, and no kernel takes an address for somebody else's.

use std::net::Ipv6Addr;
use std::time::Instant;

use hpvm_testkit::vm_host::VmHost;

use super::lans::plug_in;
use super::lives::features;
use super::transfer::{between_guests, with_the_host};
use super::{AVIO, BOUND, BothKinds, FIRST, Guest, HOST, PINGS, VIO, told};

/// The VM Host's own, at the far end of both wires.
pub(super) const HOST_LINK_LOCAL: &str = "fe80::64";
/// Where both guests have their NICs on `sw2`.
pub(super) const SECOND: u32 = 8;
/// From the AVIO guest's NIC on `sw1` to the other's on `sw2`.
const CROSSING: u32 = 7;
/// From the AVIO guest's NIC on `sw2` to the other's on `sw1`.
const CROSSING_BACK: u32 = 6;
/// Where a NIC of `sw2` is while it is on `sw1`.
const MOVED: u32 = 9;
const FILE_MIB: u32 = 2;
/// Of an IPv6 address in /proc/net/if_inet6: nobody else was found to have it, and nobody is asked any more (IFA_F_PERMANENT
/// alone; if_addr.h).
const SETTLED: &str = "80";

pub(super) fn two_switches_are_one_lan(host: &VmHost, guests: &mut BothKinds) {
    second_nics_come(host, guests);
    let BothKinds { vio, avio } = guests;
    let told = || ["sw1", "sw2"].map(|switch| host.ok(&["hpvmnet", "-S", switch, "-A"])).concat();
    for network in [SECOND, CROSSING, CROSSING_BACK] {
        assert!(avio.reaches(network, VIO, PINGS), "{network}: {}", told());
        assert!(vio.reaches(network, AVIO, PINGS), "{network}: {}", told());
    }
    between_guests(avio, vio, CROSSING, FILE_MIB);
    between_guests(vio, avio, CROSSING_BACK, FILE_MIB);
    for guest in [&mut *avio, &mut *vio] {
        with_the_host(guest, FIRST);
        with_the_host(guest, SECOND);
    }
    addresses_are_nobody_elses(guests);
    vlans_reach_across(host, guests);
    running_nics_move(host, guests);
}

fn second_nics_come(host: &VmHost, guests: &mut BothKinds) {
    plug_in(1);
    hpvm_netlab::ip(&format!("address add 10.{SECOND}.0.{HOST}/24 dev br0"));
    host.ok(&["hpvmnet", "-c", "-S", "sw2", "-n", "wire1"]);
    host.ok(&["hpvmnet", "-S", "sw2", "-b"]);
    for (guest, kind, port) in [("vio", "lan", VIO), ("avio", "avio_lan", AVIO)] {
        let nic = format!("network:{kind}:0,2:vswitch:sw2:portid:{port}");
        host.ok(&["hpvmmodify", "-P", guest, "-a", &nic]);
    }
    let BothKinds { vio, avio } = guests;
    for network in [SECOND, CROSSING] {
        vio.address("eth1", network);
    }
    vio.address("eth0", CROSSING_BACK);
    for network in [SECOND, CROSSING_BACK] {
        avio.address("eth1", network);
    }
    avio.address("eth0", CROSSING);
    guests.each().into_iter().for_each(|guest| guest.wait_for_carrier("eth1", "1"));
}

/// To the other switch and back, under the drivers' hands: what they acknowledged once is all they get.
fn running_nics_move(host: &VmHost, guests: &mut BothKinds) {
    let given = features(host, 3, AVIO);
    let BothKinds { vio, avio } = guests;
    for (guest, name, kind, port) in [(avio, "avio", "avio_lan", AVIO), (vio, "vio", "lan", VIO)] {
        for (switch, number, port) in [("sw1", 2, MOVED), ("sw2", 3, port)] {
            let nic = format!("network:{kind}:0,2:vswitch:{switch}:portid:{port}");
            host.ok(&["hpvmmodify", "-P", name, "-m", &nic]);
            guest.wait_for_carrier("eth1", "1");
            assert!(guest.reaches(SECOND, HOST, PINGS), "{name} on {switch}: {}", told(host));
            with_the_host(guest, SECOND);
            if name == "avio" {
                assert_eq!(features(host, number, port), given);
            }
        }
    }
}

/// A tag goes over the LAN, so that both switches know whose frame it is.
fn vlans_reach_across(host: &VmHost, guests: &mut BothKinds) {
    let BothKinds { vio, avio } = guests;
    let vlan = |switch: &str, port: u32, vlan: &str| {
        host.ok(&["hpvmnet", "-S", switch, "-u", &format!("portid:{port}:vlanid:{vlan}")]);
    };
    vlan("sw1", AVIO, "10");
    assert!(avio.misses(CROSSING, VIO), "one has a VLAN, the other has none");
    vlan("sw2", VIO, "20");
    assert!(avio.misses(CROSSING, VIO) && vio.misses(CROSSING, AVIO), "two VLANs");
    vlan("sw2", VIO, "10");
    assert!(avio.reaches(CROSSING, VIO, PINGS) && vio.reaches(CROSSING, AVIO, PINGS), "one VLAN");
    between_guests(avio, vio, CROSSING, 1);
    between_guests(vio, avio, CROSSING, 1);
    assert!(avio.misses(FIRST, HOST), "the VM Host is outside");
    assert!(vio.reaches(FIRST, HOST, PINGS), "the other port of the guest is not");
    vlan("sw1", AVIO, "none");
    vlan("sw2", VIO, "none");
    assert!(avio.reaches(CROSSING, VIO, PINGS));
}

/// Settles 69: a frame that came back would tell a kernel that asks for its own address that another has it (RFC 4862, 5.4).
fn addresses_are_nobody_elses(guests: &mut BothKinds) {
    let settled = |guest: &mut Guest| {
        let deadline = Instant::now() + BOUND;
        loop {
            let all = addresses(guest);
            if all.len() == 2 && all.iter().all(|address| address.flags == SETTLED) {
                return all;
            }
            assert!(Instant::now() < deadline, "{all:?}\n{}", guest.run("dmesg | tail"));
        }
    };
    let [vio, avio] = guests.each().map(settled);
    for (guest, others) in [(&mut guests.vio, &avio), (&mut guests.avio, &vio)] {
        for own in ["eth0", "eth1"] {
            for other in others.iter().map(|other| other.address.to_string()) {
                assert!(pings6(guest, &other, own), "{other} from {own}");
            }
            assert!(pings6(guest, HOST_LINK_LOCAL, own), "the VM Host from {own}");
        }
    }
}

fn pings6(guest: &mut Guest, address: &str, interface: &str) -> bool {
    guest.pings("-6 -W 1", &format!("{address}%{interface}"), PINGS)
}

/// An address that a kernel gave itself.
#[derive(Debug)]
struct LinkLocal {
    address: Ipv6Addr,
    flags: String,
}

/// Of the interfaces eth0 and eth1, as far as they have one.
fn addresses(guest: &mut Guest) -> Vec<LinkLocal> {
    let text = guest.run("grep eth /proc/net/if_inet6");
    let read = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let bits = u128::from_str_radix(words.first()?, 16).ok()?;
        Some(LinkLocal { address: bits.into(), flags: (*words.get(4)?).to_owned() })
    };
    text.lines().filter_map(read).collect()
}
