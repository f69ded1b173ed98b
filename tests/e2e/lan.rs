//! What the LAN behind a virtual switch carries, and what the guests on it take it to carry. In a network of the test's own.

use hpvm_netlab::{apart, ip, pair};
use hpvm_testkit::vm_host::{Engine, Outcome, VmHost};

use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![packet_sizes_are_compared];

fn packet_sizes_are_compared() {
    apart(compared);
}

/// Settles 127: who starts is compared with the wire, or with the others, who runs when the switch is booted anew or gets
/// another wire, and who gets a NIC meanwhile.
fn compared() {
    let host = VmHost::new(Engine::Real);
    pair("lan0", "far0");
    ip("link set lan0 mtu 9000");
    host.ok(&["hpvmnet", "-c", "-S", "sw1", "-n", "lan0"]);
    host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
    let nics = ["network:lan:0,1:vswitch:sw1", "network:avio_lan:0,2:vswitch:sw1"];
    host.ok(&["hpvmcreate", "-P", "one", "-r", "512M", "-a", nics[0], "-a", nics[1]]);
    let started = host.run(&["hpvmstart", "-P", "one"]);
    assert!(started.status.success(), "{started}");
    let emulated = "carries packets of 9000 bytes, and guest one takes 1500 for its NIC at 0,1;";
    assert!(started.stderr.contains(emulated), "{started}");
    assert!(!started.stderr.contains("NIC at 0,2"), "an AVIO NIC tells its guest: {started}");

    let booted = || host.run(&["hpvmnet", "-S", "sw1", "-b"]);
    assert!(booted().stderr.contains(emulated), "{}", booted());
    ip("link set lan0 mtu 1500");
    let avio = "carries packets of 1500 bytes, and guest one takes 9000 for its NIC at 0,2;";
    let told = booted();
    assert!(told.status.success() && told.stderr.contains(avio), "{told}");
    assert!(!told.stderr.contains("NIC at 0,1"), "{told}");
    running_it_is_compared_too(&host);
}

/// Of a NIC that comes to the running guest, and of one that goes to another switch, which keeps the size it was told.
fn running_it_is_compared_too(host: &VmHost) {
    ip("link set lan0 mtu 9000");
    host.ok(&["hpvmnet", "-c", "-S", "sw2"]);
    let changed = |option: &str, nic: &str| {
        let changed = host.run(&["hpvmmodify", "-P", "one", option, nic]);
        assert!(changed.status.success(), "{changed}");
        changed.stderr
    };
    let added = changed("-a", "network:lan:0,4:vswitch:sw1");
    let words = "carries packets of 9000 bytes, and guest one takes 1500 for its NIC at 0,4;";
    assert!(added.contains(words) && added.lines().count() == 1, "{added}");
    assert_eq!(changed("-a", "network:avio_lan:0,5:vswitch:sw1"), "");
    let moved = changed("-m", "network:avio_lan:0,5:vswitch:sw2");
    assert!(moved.contains("'sw2' is halted, so the NIC at 0,5 has no link"), "{moved}");
    assert!(!moved.contains("packets"), "it is alone there: {moved}");
    who_starts_without_a_wire_is_compared(host);
    without_a_wire_guests_are_compared(&changed, &|| host.run(&["hpvmnet", "-S", "sw2", "-b"]));
    another_wire_is_compared(host, &changed);
}

fn who_starts_without_a_wire_is_compared(host: &VmHost) {
    host.ok(&["hpvmcreate", "-P", "two", "-r", "64M", "-a", "network:lan:0,1:vswitch:sw2"]);
    let started = host.run(&["hpvmstart", "-P", "two"]);
    let words = "on virtual switch 'sw2' guest one takes packets of 9000 bytes for its NIC at 0,5, \
                 and guest two no more than 1500 for its at 0,1; set MTU 1500 in guest one";
    assert!(started.status.success() && started.stderr.contains(words), "{started}");
    assert_eq!(started.stderr.matches("packets").count(), 1, "{started}");
    host.ok(&["hpvmstop", "-P", "two", "-h", "-F"]);
}

/// One that takes 1500 bytes comes to one that was told 9000 elsewhere.
fn without_a_wire_guests_are_compared(
    changed: &dyn Fn(&str, &str) -> String,
    booted: &dyn Fn() -> Outcome,
) {
    let words = "on virtual switch 'sw2' guest one takes packets of 9000 bytes for its NIC at 0,5, \
                 and guest one no more than 1500 for its at 0,6; set MTU 1500 in guest one";
    let came = changed("-a", "network:lan:0,6:vswitch:sw2");
    assert!(came.contains(words) && came.matches("packets").count() == 1, "{came}");
    let told = booted();
    assert!(told.status.success() && told.stderr.contains(words), "{told}");
    changed("-m", "network:avio_lan:0,5:vswitch:sw1");
    assert_eq!(booted().stderr, "", "who is left is of one size");
}

/// NAT among them, which carries what Ethernet does.
fn another_wire_is_compared(host: &VmHost, changed: &dyn Fn(&str, &str) -> String) {
    let words = |switch: &str, nic: &str| {
        format!(
            "the LAN of virtual switch '{switch}' carries packets of 1500 bytes, and guest one takes 9000 for its NIC at {nic}; set MTU 1500 in the guest\n"
        )
    };
    let is_told = |told: &str, switch: &str, nics: &[&str]| {
        let all = nics.iter().all(|nic| told.contains(&words(switch, nic)));
        assert!(all && told.matches("packets").count() == nics.len(), "{told}");
    };
    pair("lan1", "far1");
    for wire in [["-n", "lan1"], ["--wire", "nat"]] {
        let given = host.run(&["hpvmnet", "-C", "-S", "sw1", wire[0], wire[1]]);
        assert!(given.status.success(), "{given}");
        is_told(&given.stderr, "sw1", &["0,2", "0,5"]);
    }
    let back = host.run(&["hpvmnet", "-C", "-S", "sw1", "-n", "lan0"]);
    assert!(back.status.success() && !back.stderr.contains("NIC at 0,2"), "{back}");
    assert_eq!(host.run(&["hpvmnet", "-C", "-S", "sw2", "--wire", "nat"]).stderr, "");
    is_told(&changed("-m", "network:avio_lan:0,5:vswitch:sw2"), "sw2", &["0,5"]);
}
