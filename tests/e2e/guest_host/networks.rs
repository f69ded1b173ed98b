//! Virtual switches over what the kernels of small machines lack: bonds and VLAN interfaces, with somebody on a port who talks
//! all the while; and switches that come and go with the units of systemd.

use std::time::Duration;

use super::Turn;
use super::units::ok;
use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![
    wires_over_every_kind_of_interface,
    a_switch_over_a_bond_outlives_its_parts,
    a_switch_over_a_vlan_interface,
    host_and_guest_talk_in_a_vlan,
    switches_run_with_the_guests_of_a_boot_and_outlive_the_unit,
];

/// A bond notices within two of its looks at the links that one is gone, ten milliseconds apart, and the switch notices
/// nothing. The rest is for an emulated machine.
const FAILOVER_BOUND: Duration = Duration::from_secs(5);

/// What the library's own tests say where the kernel has it all.
fn wires_over_every_kind_of_interface() {
    let mut host = Turn::take();
    let told = host.ok("modprobe -a dummy veth bonding 8021q bridge tun
         /opt/guest-host/bin/wires-* --test-threads 1 2>&1");
    assert!(told.contains(" 0 failed; 0 ignored;"), "{told}");
    for kind in ["bond", "vlan"] {
        assert!(told.contains(&format!("[{kind}]")), "{told}");
    }
}

/// Settles 31, 109: the kernel has the links below the switch, whatever they are, and one that fails costs no guest its network.
fn a_switch_over_a_bond_outlives_its_parts() {
    let mut host = Turn::take();
    let told = host.ok(
        "room; plugged part0; plugged part1
         bond() {
             ip link add bond0 type bond mode active-backup miimon 10
             ip link set bond0 address 02:00:00:00:00:$1
             for part in part0 part1; do ip link set $part down; ip link set $part master bond0; done
             up bond0
         }
         active() { cat /sys/class/net/bond0/bonding/active_slave; }
         bond 0b; running sw1 -n bond0; talk sw1
         said tcp first
         first=$(active)
         ip -n room link set far-$first down
         moved() { test \"$(active)\" != $first; }; await moved
         said udp failover
         said tcp second
         hpvmnet -S sw1 -V | grep 'Wire Link'
         hpvmnet -M -S sw1
         ip link set bond0 down; up bond0
         said udp up
         ip -n room link set far-$first up
         ip link delete bond0
         await grep --quiet missing /run/hpvm/net/$(number_of sw1)/wire
         hpvmnet -M -S sw1
         bond 0c; said udp another
         hpvmnet -M -S sw1
         said tcp third
         talk_over; log_of sw1",
    );
    println!("{told}");
    let after = |word: &str| {
        let line = told.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
        Duration::from_millis(line.and_then(|ms| ms.parse().ok()).expect("its time"))
    };
    assert!(after("failover") < FAILOVER_BOUND, "{told}");
    let shown: Vec<&str> = told.lines().filter(|line| line.starts_with("sw1:")).collect();
    let macs = ["0x02000000000b", "0x000000000000", "0x02000000000c"];
    for (line, (mac, state)) in shown.iter().zip(macs.iter().zip(["Up", "Down", "Up"])) {
        assert!(line.contains(mac) && line.contains(&format!(":{state}:")), "{line}\n{told}");
    }
    assert_eq!(shown.len(), macs.len());
}

/// Settles 119.
fn a_switch_over_a_vlan_interface() {
    let mut host = Turn::take();
    let told = host.ok("room; ip link add trunk0 type veth peer name far-trunk0 netns room
         ip -n room link set far-trunk0 up
         ip -n room link add link far-trunk0 name there5 type vlan id 5
         ip -n room address del 192.0.2.1/24 dev room0
         ip -n room address add 192.0.2.1/24 dev there5
         ip -n room link set there5 up
         up trunk0; ip link add link trunk0 name trunk0.5 type vlan id 5; up trunk0.5
         running sw1 -n trunk0.5; talk sw1
         said tcp tagged
         ip link delete trunk0.5
         await grep --quiet missing /run/hpvm/net/$(number_of sw1)/wire
         ip link add link trunk0 name trunk0.5 type vlan id 5; up trunk0.5
         said udp again
         said tcp later
         talk_over");
    assert!(told.contains("later "), "{told}");
}

/// Settles 118. The VM Host has a VLAN interface on the switch's tap. Nothing is turned off: the kernel leaves checksums open
/// and segments long on its way to the guest, whose stack takes neither and looks at each checksum, as does the kernel's on
/// the way back.
fn host_and_guest_talk_in_a_vlan() {
    let mut host = Turn::take();
    let told = host.ok("serve; running sw1 --wire tap:host0
         ip link add link host0 name host5 type vlan id 5
         ip address add 192.0.2.1/24 dev host5
         ip link set host5 up
         talk sw1 5
         said tcp tagged
         talk_over; log_of sw1");
    assert!(told.contains("tagged "), "{told}");
}

/// A switch that was booted is so after the next boot of the VM Host, and its process runs as soon as a guest needs it: in the
/// group of the unit, which ends neither that nor its keeper. An interface may come later than the guests.
fn switches_run_with_the_guests_of_a_boot_and_outlive_the_unit() {
    let mut host = Turn::take();
    ok(
        &mut host,
        "hpvmnet -c -S sw1 -n part0 2>/dev/null; hpvmnet -S sw1 -b 2>/dev/null
         hpvmcreate -P web -r 64M -B auto -a network:avio_lan:0,1:vswitch:sw1
         systemctl enable --quiet hpvm.service",
    );
    host.reboot();
    let told = ok(
        &mut host,
        "pid_of_netd() { grep --files-with-matches hpvmnetd /proc/[0-9]*/comm | cut -d/ -f3; }
         state web
         hpvmnet -M -S sw1
         room; plugged part0; up part0
         talk sw1; said tcp late
         hpvmnet -M -S sw1
         pid=$(pid_of_netd); cat /proc/$pid/cgroup /proc/$(awk '$1 == \"PPid:\" { print $2 }' /proc/$pid/status)/cgroup
         systemctl restart hpvm.service
         said udp restarted
         systemctl stop hpvm.service
         said tcp stopped
         test $pid = $(pid_of_netd)
         systemctl disable --quiet hpvm.service
         talk_over",
    );
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines[0], "On (EFI)", "{told}");
    assert!(lines[1].starts_with("sw1:") && lines[1].contains(":Down:"), "{told}");
    assert!(lines[2].starts_with("sw1:") && lines[2].contains(":Up:"), "{told}");
    assert_eq!(lines[3..5], ["0::/system.slice/hpvm.service"; 2], "{told}");
    for word in ["late ", "restarted ", "stopped "] {
        assert!(told.contains(word), "{told}");
    }
}
