//! What a network is to guests of both kinds: a wire that comes and goes, rules, load, a second virtual switch, long packets and
//! NAT. On a LAN of the test's own: a bridge that the VM Host has an address on, and the wires of both switches are ports of.

use std::fs;

use hpvm_netlab::{ip, wait_until_up};
use hpvm_testkit::vm_host::VmHost;
use hpvm_testkit::wait::wait_until;

use super::{BOUND, BothKinds, FIRST, HOST, PINGS, across, jumbo, load, make, nat, rules, told};

/// What the wires carry. The guests' first NICs, which were made while there was no wire, take 1500.
const LONG: u32 = 9000;

/// Settles 17, 70, 117, 126.
pub(super) fn use_lans(host: &VmHost, guests: &mut BothKinds) {
    the_wire_goes_and_comes(host, guests);
    rules::a_capture_has_what_passes(host, &mut guests.avio);
    rules::vlans_part(host, guests);
    rules::trunks_carry_vlans(host, guests);
    load::whole_frames_pass_and_nothing_hangs(guests);
    across::two_switches_are_one_lan(host, guests);
    jumbo::long_packets_pass(host, guests);
    nat::guests_reach_the_world(host, guests);
    nics_go(host, guests);
}

/// Guests start all the same, one while the switch is halted and one while its interface is missing.
pub(super) fn start_without_wire(host: &VmHost) -> BothKinds {
    let made = host.run(&["hpvmnet", "-c", "-S", "sw1", "-n", "wire0"]);
    assert!(made.stderr.contains("has no wire until there is"), "{made}");
    make(host);
    let start = |name| {
        let started = host.run(&["hpvmstart", "-P", name]);
        assert!(started.status.success(), "{started}");
        started.stderr
    };
    let warned = start("vio");
    assert!(warned.contains("virtual switch 'sw1' is halted"), "{warned}");
    host.run(&["hpvmnet", "-S", "sw1", "-b"]);
    let warned = start("avio");
    assert!(warned.contains("virtual switch 'sw1' has no wire now"), "{warned}");
    BothKinds::at_their_shells(host)
}

/// The guests have a link when the switch has a wire.
fn the_wire_goes_and_comes(host: &VmHost, guests: &mut BothKinds) {
    ip("link add br0 type bridge mcast_snooping 0");
    ip(&format!("address add 10.{FIRST}.0.{HOST}/24 dev br0"));
    ip(&format!("address add {}/64 dev br0 nodad", across::HOST_LINK_LOCAL));
    ip("link set br0 up");
    for round in 0..2 {
        guests.each().into_iter().for_each(|guest| guest.wait_for_carrier("eth0", "0"));
        plug_in(0);
        for guest in guests.each() {
            guest.wait_for_carrier("eth0", "1");
            assert!(guest.reaches(FIRST, HOST, PINGS), "{}", told(host));
        }
        if round == 0 {
            ip("link del wire0");
        }
    }
    guests.talk(host);
}

/// Connects a wire with the bridge.
pub(super) fn plug_in(number: u32) {
    ip(&format!("link add wire{number} mtu {LONG} type veth peer name far{number} mtu {LONG}"));
    ip(&format!("link set far{number} master br0 up"));
    ip(&format!("link set wire{number} up"));
    wait_until_up(&format!("wire{number}"));
}

/// The second NICs are taken away, and with the last the process of their switch ends.
fn nics_go(host: &VmHost, guests: &mut BothKinds) {
    for (guest, kind) in [("avio", "avio_lan"), ("vio", "lan")] {
        host.ok(&["hpvmmodify", "-P", guest, "-d", &format!("network:{kind}:0,2")]);
    }
    guests.each().into_iter().for_each(|guest| guest.wait_for_interfaces(1));
    let switches = || host.processes().iter().filter(|(_, name)| name == "hpvmnetd").count();
    wait_until(BOUND, "the process of sw2 has ended", || switches() == 1);
    assert!(!fs::exists(host.path("run/hpvm/net/3/status")).expect("told"));
    let refusal = host.refused(&["hpvmnet", "-S", "sw1", "-d", "-F"]);
    assert!(refusal.contains("guests run on virtual switch 'sw1'"), "{refusal}");
}

/// Another switch under the same card, and the card that is to replace it at the next start.
pub(super) fn a_nic_moves_to_another_switch(host: &VmHost) {
    let ports = || host.ok(&["hpvmnet", "-S", "localnet"]);
    host.ok(&["hpvmmodify", "-P", "vio", "-m", "network:lan:0,1:vswitch:localnet"]);
    assert!(ports().contains("            vio\n"), "{}", ports());
    let modified =
        host.run(&["hpvmmodify", "-P", "vio", "-m", "network:avio_lan:0,1:vswitch:localnet"]);
    assert!(modified.stderr.contains("network 0,1: waits for the next start"), "{modified}");
    assert!(
        ports().contains(" lan      none     1            vio\n"),
        "what runs is shown: {}",
        ports()
    );
}
