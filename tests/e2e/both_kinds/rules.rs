//! What the administrator has of a port: a capture, a VLAN, and a guest that keeps to its address.

use std::fs;
use std::path::Path;

use hpvm_testkit::vm_host::VmHost;
use hpvm_testkit::wait::wait_until;

use super::transfer::between_guests;
use super::{AVIO, BOUND, BothKinds, FIRST, Guest, HOST, PINGS, VIO, told};
use crate::started::Started;

/// The addresses that the guests give themselves.
const OTHERS: [&str; 2] = ["02:11:22:33:44:54", "02:11:22:33:44:55"];

/// A ping of the VM Host, in a capture of the guest's port.
pub(super) fn a_capture_has_what_passes(host: &VmHost, avio: &mut Guest) {
    let file = host.path("port2.pcap");
    let line = ["hpvmnet", "-S", "sw1", "-p", "2", "--capture", &file.to_string_lossy()];
    let capture = Started::of(host, &line);
    let bytes = || fs::metadata(&file).map_or(0, |file| file.len());
    wait_until(BOUND, "the capture has begun", || bytes() > 0);
    assert!(avio.reaches(FIRST, HOST, PINGS), "{}", host.ok(&["hpvmnet", "-S", "sw1", "-A"]));
    let mac = mac_of(host, "avio");
    let passed = |file: &Path| {
        let frames = frames_of(&fs::read(file).expect("a capture"));
        let is_echo = |frame: &&Vec<u8>, kind| {
            frame.len() >= 35 && frame[12..14] == [8, 0] && frame[23] == 1 && frame[34] == kind
        };
        let out = frames.iter().any(|f| is_echo(&f, 8) && f[6..12] == mac);
        out && frames.iter().any(|f| is_echo(&f, 0) && f[..6] == mac)
    };
    wait_until(BOUND, "the file has the question and the answer", || passed(&file));
    capture.end_by_ctrl_c();
    assert!(passed(&file), "it is whole at the end");
    let length = bytes();
    assert!(avio.reaches(FIRST, HOST, PINGS));
    assert_eq!(bytes(), length, "a capture that has ended grows no more");
}

/// The frames of a capture (pcap-savefile(5)): each record whole, none longer than it was, in the order of time.
fn frames_of(pcap: &[u8]) -> Vec<Vec<u8>> {
    let word =
        |at: usize| pcap.get(at..at + 4).map(|w| u32::from_ne_bytes(w.try_into().expect("4")));
    assert_eq!(word(0), Some(0xa1b2_c3d4), "microseconds");
    assert_eq!(word(4), Some(2 | 4 << 16), "version 2.4");
    assert_eq!(word(20), Some(1), "Ethernet");
    let snap_bytes = word(16).expect("a whole head");
    let (mut at, mut time, mut frames) = (24, (0, 0), Vec::new());
    // The switch writes a batch's records in one piece, and a reader between two writes sees whole ones.
    while at < pcap.len() {
        let field = |number: usize| word(at + 4 * number).expect("a whole head of a record");
        let (now, kept, octets) = ((field(0), field(1)), field(2), field(3));
        assert!(now >= time && now.1 < 1_000_000, "{now:?} after {time:?}");
        assert_eq!(kept, octets.min(snap_bytes));
        let end = at + 16 + kept as usize;
        frames.push(pcap.get(at + 16..end).expect("a whole record").to_vec());
        (at, time) = (end, now);
    }
    frames
}

fn mac_of(host: &VmHost, guest: &str) -> Vec<u8> {
    let shown = host.ok(&["hpvmstatus", "-P", guest]);
    let nic = shown.lines().find(|line| line.starts_with("vswitch")).expect("a NIC");
    let mac = nic.split_whitespace().next_back().expect("its address");
    mac.split('-').map(|byte| u8::from_str_radix(byte, 16).expect("a byte")).collect()
}

pub(super) fn vlans_part(host: &VmHost, guests: &mut BothKinds) {
    let BothKinds { vio, avio } = guests;
    let vlan = |port: u32, vlan: &str| {
        host.ok(&["hpvmnet", "-S", "sw1", "-u", &format!("portid:{port}:vlanid:{vlan}")]);
    };
    assert!(avio.reaches(FIRST, VIO, PINGS));
    vlan(AVIO, "10");
    assert!(avio.misses(FIRST, VIO), "one has a VLAN, the other has none");
    assert!(avio.misses(FIRST, HOST), "the VM Host has none");
    vlan(VIO, "20");
    assert!(avio.misses(FIRST, VIO) && vio.misses(FIRST, AVIO), "two VLANs");
    vlan(VIO, "10");
    assert!(avio.reaches(FIRST, VIO, PINGS) && vio.reaches(FIRST, AVIO, PINGS), "one VLAN");
    assert!(vio.misses(FIRST, HOST), "the VM Host is still outside");
    vlan(AVIO, "none");
    vlan(VIO, "none");
    assert!(avio.reaches(FIRST, VIO, PINGS) && avio.reaches(FIRST, HOST, PINGS));
}

/// VLANs, and the networks in them. The last is not of the trunk.
const VLANS: [(u32, u32); 3] = [(10, 1), (20, 2), (30, 3)];

/// A guest that tags its frames reaches each VLAN of its trunk and no other, by TCP too, whose segments its NIC leaves to others.
pub(super) fn trunks_carry_vlans(host: &VmHost, guests: &mut BothKinds) {
    let BothKinds { vio, avio } = guests;
    a_trunk_carries_vlans(host, avio, vio);
    a_trunk_carries_vlans(host, vio, avio);
}

fn a_trunk_carries_vlans(host: &VmHost, tagging: &mut Guest, plain: &mut Guest) {
    let rule = |guest: &Guest, rule: &str| {
        host.ok(&["hpvmnet", "-S", "sw1", "-u", &format!("portid:{}:{rule}", guest.number)]);
    };
    rule(tagging, "trunk:10,20");
    tagging.run("modprobe 8021q");
    for (vlan, network) in VLANS {
        tagging.run(&format!("vconfig add eth0 {vlan}"));
        tagging.address(&format!("eth0.{vlan}"), network);
        plain.address("eth0", network);
    }
    let [(first, in_first), (second, in_second), (foreign, in_foreign)] = VLANS;
    rule(plain, &format!("vlanid:{first}"));
    assert!(tagging.reaches(in_first, plain.number, PINGS), "{}", told(host));
    assert!(plain.reaches(in_first, tagging.number, PINGS), "{}", told(host));
    assert!(tagging.misses(in_second, plain.number) && plain.misses(FIRST, tagging.number));
    between_guests(tagging, plain, in_first, 2);
    between_guests(plain, tagging, in_first, 2);
    rule(plain, &format!("vlanid:{second}"));
    assert!(plain.reaches(in_second, tagging.number, PINGS), "{}", told(host));
    assert!(tagging.misses(in_first, plain.number), "it has left");
    rule(plain, &format!("vlanid:{foreign}"));
    assert!(tagging.misses(in_foreign, plain.number), "it is not of the trunk");
    for (vlan, network) in VLANS {
        tagging.run(&format!("vconfig rem eth0.{vlan}"));
        let number = plain.number;
        plain.run(&format!("ip address del 10.{network}.0.{number}/24 dev eth0"));
    }
    for guest in [&*tagging, &*plain] {
        rule(guest, "vlanid:none");
    }
    assert!(tagging.reaches(FIRST, plain.number, PINGS), "{}", told(host));
}

/// Whoever changes a guest's address is not heard until that is allowed, and seen at once.
pub(super) fn changed_addresses_are_refused(host: &VmHost, guests: &mut BothKinds) {
    let BothKinds { vio, avio } = guests;
    for ((guest, name), (other, address)) in
        [(vio, "vio"), (avio, "avio")].into_iter().zip([AVIO, VIO].into_iter().zip(OTHERS))
    {
        a_changed_address_is_refused(host, (guest, name), other, address);
    }
}

fn a_changed_address_is_refused(
    host: &VmHost,
    (guest, name): (&mut Guest, &str),
    other: u32,
    address: &str,
) {
    let number = guest.number;
    let in_use = |line: &[&str]| {
        let shown = host.ok(line);
        let line = shown.lines().find(|line| line.contains("Mac Address in use"));
        line.map(|line| line.rsplit(':').next().unwrap_or_default().trim().to_lowercase())
    };
    let port = number.to_string();
    let of_port = ["hpvmnet", "-S", "sw1", "-p", &port, "-A"];
    let of_guest = ["hpvmstatus", "-P", name, "-V"];
    assert_eq!((in_use(&of_port), in_use(&of_guest)), (None, None), "{name}");
    guest.run(&format!("ifconfig eth0 down; ifconfig eth0 hw ether {address}"));
    guest.run(&format!("ifconfig eth0 10.9.0.{number} netmask 255.255.255.0 up"));
    // An emulated card has its link a while later, and sends nothing before.
    guest.wait_for_carrier("eth0", "1");
    assert!(guest.misses(FIRST, other), "{name}");
    let counted = host.ok(&of_port);
    assert!(!counted.contains("Discards: spoofed            : 0\n"), "{counted}");
    let written =
        |prefix: &str, between: &str| Some(prefix.to_owned() + &address.replace(':', between));
    assert_eq!(in_use(&of_port), written("0x", ""), "{name}");
    assert_eq!(in_use(&of_guest), written("", "-"), "{name}");
    host.ok(&["hpvmnet", "-S", "sw1", "-u", &format!("portid:{number}:spoof:off")]);
    assert!(guest.reaches(FIRST, other, PINGS), "{name}: {}", host.ok(&of_port));
    assert!(guest.reaches(FIRST, HOST, PINGS), "{name}");
}
