//! Virtual switches over what the kernels of small machines lack: bonds and VLAN interfaces. The library's own tests; and whole
//! switches, where somebody talks for a guest while the links below change, and while the units of systemd come and go.

use super::Turn;
use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![; long:
    wires_over_every_kind_of_interface,
    switches_over_bonds_and_vlans_outlive_their_parts,
    a_switch_comes_with_the_boot_and_outlives_units,
];

/// What the library's own tests say where the kernel has it all. Settles 31, 109, 118, 119: a bond one of whose parts fails, a
/// VLAN interface as the wire, and the VM Host in a VLAN with a guest, with nothing turned off. The kernel leaves checksums
/// open and segments long on its way to the guest, whose stack takes neither and looks at each checksum.
fn wires_over_every_kind_of_interface() {
    let mut host = Turn::take();
    let told = host.ok("modprobe -a dummy veth bonding 8021q bridge tun
         /opt/guest-host/bin/wires-* --test-threads 1 2>&1");
    assert!(told.contains(" 0 failed; 0 ignored;"), "{told}");
    for kind in ["bond", "vlan"] {
        assert!(told.contains(&format!("[{kind}]")), "{told}");
    }
}

/// A guest has a NIC on a bond, on a VLAN interface, in VLAN 7 of a plain interface, and in VLAN 8 of a tap. A talker speaks for
/// it, on one after another: in the guest-host no guest gets beyond its firmware.
const FOUR_SWITCHES: &str = "
    room; plugged part0; plugged part1; plugged trunk0 5; plugged plain0 7; up trunk0; up plain0
    vlan() { ip link add link $1 name $1.$2 type vlan id $2; up $1.$2; }
    wire_of() { hpvmnet -M | grep ^$1:; }
    bond bond0; vlan trunk0 5
    hpvmnet -c -S sw1 -n bond0; hpvmnet -c -S sw2 -n trunk0.5; hpvmnet -c -S sw3 -n plain0; hpvmnet -c -S sw4 --wire tap:host0
    for number in 1 2 3 4; do hpvmnet -S sw$number -b; done
    hpvmnet -S sw3 -u portid:1:vlanid:7; hpvmnet -S sw4 -u portid:1:vlanid:8
    nic() { echo -a network:lan:1,$1,0x56a10000000$1:vswitch:sw$1:portid:1; }
    hpvmcreate -P talks -r 64M $(nic 1) $(nic 2) $(nic 3) $(nic 4)
    configured HPVMQEMU=$no_machine; hpvmstart -P talks >/dev/null
";

/// Of what is listed, hpvmnet takes what is said to be a wire, and refuses the rest for the reason that is said.
const LISTED: &str = r#"
    hpvmnet --interfaces >/run/interfaces
    for wanted in 'part0 nic .* - - part0 is a part of bond0; use bond0' 'bond0 bond up .* bond0 sw1' \
        'trunk0.5 vlan up .* trunk0.5 sw2' 'host0 tap .* - sw4 host0 is the wire of virtual switch .sw4., .*' 'lo loopback .* - - .*'; do
        tr --squeeze-repeats ' ' </run/interfaces | sed 's/^part0 veth/part0 nic/' | grep -qx "$wanted"
    done
    tail -n +3 /run/interfaces | while read -r name kind link mtu speed mac wire switches why; do
        case $wire in
        -) asked="-n $name"; [ $kind = tap ] && asked="--wire tap:$name"
            said=$(hpvmnet -c -S new $asked --dry-run 2>&1) && { echo "$name is taken"; exit 1; }
            case $said in *"$why") ;; *) echo "$name: $said"; exit 1 ;; esac ;;
        tap:*) hpvmnet -c -S new --wire $wire --dry-run ;;
        *) hpvmnet -c -S new -n $wire --dry-run ;;
        esac
    done
"#;

/// A part that fails, goes down or is made anew: talk goes on by itself. The room's bridge tells by which of its interfaces it
/// hears whom.
const BOND_UNDER_TALK: &str = "
    talk 1 192.0.2; said tcp bond
    active() { cat /sys/class/net/bond0/bonding/active_slave; }
    first=$(active)
    await heard_at far-$first 56:a1:00:00:00:01
    ip -n room link set far-$first down
    moved() { test \"$(active)\" != $first; }; await moved
    said udp failover; said tcp other-part
    await heard_at far-$(active) 56:a1:00:00:00:01
    ip link set bond0 down; up bond0; said udp up-again
    ip link delete bond0; await without_wire sw1; wire_of sw1
    bond bond0; said udp made-anew; said tcp bond-again
    talk_over; wire_of sw1
";

const VLANS_UNDER_TALK: &str = "
    talk 2 192.0.2; said tcp vlan
    ip link delete trunk0.5; await without_wire sw2; wire_of sw2
    vlan trunk0 5; said udp vlan-anew; said tcp vlan-again
    await heard_at far-trunk0.5 56:a1:00:00:00:02
    talk_over; wire_of sw2
    talk 3 192.0.2; said tcp tagged-by-the-switch
    await heard_at far-plain0.7 56:a1:00:00:00:03
    talk_over
    serve; vlan host0 8; ip address add 198.51.100.1/24 dev host0.8
    talk 4 198.51.100; said tcp with-the-host; talk_over
";

/// A quarter of a MiB went each way, at least once.
const COUNTED: &str = "
    for switch in sw1 sw2 sw3 sw4; do
        hpvmnet -S $switch -A | awk '/bound Octets/ && $NF > 262144 { ways += 1 } END { exit ways != 2 }'
    done
    removed
";

fn switches_over_bonds_and_vlans_outlive_their_parts() {
    let mut host = Turn::take();
    let script = [FOUR_SWITCHES, LISTED, BOND_UNDER_TALK, VLANS_UNDER_TALK, COUNTED].concat();
    let told = host.ok(&script);
    println!("{told}");
    for switch in ["sw1:", "sw2:"] {
        let lines = told.lines().filter(|line| line.starts_with(switch));
        let fields = lines.map(|line| line.split(':').collect::<Vec<&str>>());
        let shown: Vec<(&str, bool)> =
            fields.map(|fields| (fields[2], fields[5] == "0x000000000000")).collect();
        assert_eq!(shown, [("Down", true), ("Up", false)], "{told}");
    }
}

/// `lives UNIT` prints the switch's process, once it and its keeper are seen to be in the unit's group.
const LIVES: &str = r#"
    lives() {
        netd=$(pids_of hpvmnetd)
        test -n "$netd" || return
        for pid in $netd $(awk '$1 == "PPid:" { print $2 }' /proc/$netd/status); do
            grep --quiet --line-regexp "0::/system.slice/$1" /proc/$pid/cgroup || return
        done
        echo $netd
    }
    room; plugged part0; up part0
"#;

/// From a session: guest and switch live with the unit that ends guests, and by nobody else's will.
const STARTED_BY_A_SESSION: &str = "
    configured HPVMQEMU=$no_machine HPVMAUTOSTOP=2
    hpvmnet -c -S sw1 -n part0; hpvmnet -S sw1 -b
    hpvmcreate -P talks -r 64M -B auto -a network:lan:1,1,0x56a100000001:vswitch:sw1
    systemctl enable --quiet hpvm.service; systemctl start hpvm-guests.service
    systemd-run --quiet --wait --pipe --property=PAMName=login --property=User=root --property=StandardInput=null \\
        /opt/hpvm/bin/hpvmstart -P talks >/dev/null
    process=$(lives hpvm-guests.service)
    talk 1 192.0.2; said tcp session
    systemctl restart hpvm-guests.service hpvm.service; systemctl stop hpvm-guests.service; said tcp stopped
    test $(lives hpvm-guests.service) = $process
    systemctl start hpvm-guests.service; talk_over
";

/// The end of the VM Host ended the guest and then its switch, in order; the boot brought both back, before the interface.
const STARTED_BY_A_BOOT: &str = "
    test $(log_of sw1 | grep --count 'no guest has a port on it any more; it ends') = 1
    journalctl --boot --unit hpvm.service --output cat --no-pager
    process=$(lives hpvm.service)
    talk 1 192.0.2; said tcp booted
    systemctl restart hpvm.service; said tcp restarted
    systemctl stop hpvm.service; said tcp stopped
    test $(lives hpvm.service) = $process
    kill -9 $process; said udp replaced; said tcp again
    test $(lives hpvm.service) != $process
    talk_over
    hpvmstop -P talks -h -F >/dev/null
    idle() { test -z \"$(pids_of hpvmnetd)$(pids_of hpvmkeeper)\"; }; await idle
    test -z \"$(systemctl --failed --no-legend)\"
    systemctl disable --quiet --now hpvm.service hpvm-guests.service
    removed
";

/// A switch lives and ends with the guests on it, whatever becomes of the units that started them, and is replaced in the
/// group of its unit when it is killed.
fn a_switch_comes_with_the_boot_and_outlives_units() {
    let mut host = Turn::take();
    println!("{}", host.ok(&[LIVES, STARTED_BY_A_SESSION].concat()));
    host.reboot();
    println!("{}", host.ok(&[LIVES, STARTED_BY_A_BOOT].concat()));
}
