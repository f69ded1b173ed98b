//! Packets longer than Ethernet's 1500 bytes: an AVIO guest is told what the wire carries, and uses it. An emulated card is told
//! nothing, and the switch judges no card: it delivers, and a card whose guest takes less discards the frame and counts it.

use hpvm_testkit::vm_host::VmHost;
use hpvm_testkit::wait::wait_until;

use super::across::SECOND;
use super::{BOUND, BothKinds, Guest, HOST, PINGS, VIO};

/// With the headers of ICMP and IPv4 a packet of 9000 bytes.
const LONG_PING: u32 = 8972;

pub(super) fn long_packets_pass(host: &VmHost, guests: &mut BothKinds) {
    let BothKinds { vio, avio } = guests;
    assert_eq!(mtus(avio), "1500 9000", "the first came while there was no wire");
    assert_eq!(mtus(vio), "1500 1500");
    assert!(reaches(avio, HOST, PINGS), "{}", host.ok(&["hpvmnet", "-S", "sw2", "-A"]));

    let discarded = |guest: &mut Guest| {
        let count = guest.run("cat /sys/class/net/eth1/statistics/rx_length_errors");
        count.parse::<u64>().expect("a number")
    };
    let before = discarded(vio);
    assert!(!reaches(avio, VIO, 2), "the card takes 1500 bytes");
    // Its driver asks the card for its counts every other second.
    wait_until(BOUND, "the card has counted them", || discarded(vio) >= before + 2);
    assert!(avio.reaches(SECOND, VIO, PINGS), "and goes on with what it takes");
    vio.run("ip link set eth1 mtu 9000");
    assert!(reaches(avio, VIO, PINGS), "{}", vio.run("dmesg | tail"));
}

/// By a packet that is too long for 1500 and is not cut.
fn reaches(guest: &mut Guest, station: u32, questions: u32) -> bool {
    let options = format!("-s {LONG_PING} -W 1");
    guest.pings(&options, &format!("10.{SECOND}.0.{station}"), questions)
}

/// Of both interfaces.
fn mtus(guest: &mut Guest) -> String {
    guest.run("echo $(cat /sys/class/net/eth0/mtu /sys/class/net/eth1/mtu)")
}
