//! What a virtual switch is to its guests while it is halted, killed, and replaced under them by another version of the program,
//! which can do more or less.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Instant;

use hpvm_netlab::{Pinger, ip};
use hpvm_testkit::vm_host::VmHost;
use hpvm_testkit::wait::wait_until;
use rustix::process::Signal;
use serde_json::Value;

use super::replacing::traffic_goes_on;
use super::streams::streams_go_on;
use super::transfer::with_the_host;
use super::{AVIO, BOUND, BothKinds, FIRST, Guest, HOST, VIO, told};
use crate::guest_processes::{Process, process};

/// Segmentation over IPv6, both ways: what the older version has not (virtio 1.2, 5.1.3).
const NEW_FEATURES: u64 = 1 << 8 | 1 << 12;
/// VHOST_F_LOG_ALL: the switch says which pages it wrote, without which no guest moves to another VM Host.
const LOGS_ALL: u64 = 1 << 26;
/// Of the port that is given what only the newer version has.
const NEW_PORT: u32 = 3;
const NEW_PORT_NETWORK: u32 = 5;

#[derive(Clone, Copy, Debug)]
pub(super) enum Version {
    Older,
    Newer,
}

/// Of the AVIO guest, from a switch whose process runs since the other guest came, so it has what that process has.
pub(super) fn features_at_first(host: &VmHost) -> u64 {
    let given = features(host, 2, AVIO);
    assert_eq!(given & (NEW_FEATURES | LOGS_ALL), LOGS_ALL, "{given:#x}");
    given
}

/// Settles 76, 122, 123: both kinds talk always, a switch that was halted, replaced or killed under its guests needs nothing done
/// in them, and a guest booted meanwhile has its NIC. Features stay what they were at the first connect.
pub(super) fn outlive_their_switch(host: &VmHost, guests: &mut BothKinds, given: u64) {
    the_wire_becomes_a_tap(host, guests);
    both_are_served(host, guests);
    traffic_goes_on(host, guests, given);
    streams_go_on(host, guests);
    guests.talk(host);
    a_port_waits_for_the_version_it_needs(host, &mut guests.vio);
    what_another_version_wrote_is_kept(host);
    guests.talk(host);
    guests_boot_while_nobody_is_there(host, guests);
    assert_eq!(features(host, 2, AVIO), given, "the guest's driver may take no other than before");
    // The guests are to change the addresses that were given by hand.
    ip("neighbour flush dev hpvmtap1 nud permanent");
}

/// Of the running guests' switch, with the VM Host behind it.
fn the_wire_becomes_a_tap(host: &VmHost, guests: &mut BothKinds) {
    ip("link del br0");
    host.ok(&["hpvmnet", "-S", "sw1", "-C", "--wire", "tap:hpvmtap1"]);
    for network in [FIRST, NEW_PORT_NETWORK] {
        ip(&format!("address add 10.{network}.0.{HOST}/24 dev hpvmtap1"));
    }
    for guest in guests.each() {
        guest.wait_for_carrier("eth0", "1");
        // The VM Host is behind another card of its own.
        guest.run("ip neigh flush dev eth0");
    }
}

pub(super) fn install(host: &VmHost, version: Version) {
    let arguments = match version {
        Version::Older => format!("without:{NEW_FEATURES:x}"),
        Version::Newer => String::new(),
    };
    host.replace_program("hpvmnetd", &arguments);
}

/// What a switch is to be, as its process keeps it.
fn ports(host: &VmHost, switch: u32) -> Value {
    let path = host.path(&format!("run/hpvm/net/{switch}/ports"));
    let text = fs::read_to_string(path).expect("the ports");
    serde_json::from_str(&text).expect("JSON")
}

/// The features that a port of a switch is offered.
pub(super) fn features(host: &VmHost, switch: u32, port: u32) -> u64 {
    let ports = ports(host, switch);
    let mut plugs = ports["ports"].as_array().expect("ports").iter();
    let plug = plugs.find(|plug| plug["port"] == port).expect("the port");
    plug["features"].as_u64().expect("of an AVIO port")
}

/// The process of a switch, by its number.
pub(super) fn switch_process(host: &VmHost, number: u32) -> Process {
    let folder = fs::canonicalize(host.path(&format!("run/hpvm/net/{number}"))).expect("it runs");
    let holds = |pid: i32| {
        let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        links.filter_map(|link| fs::read_link(link.path()).ok()).any(|target| target == folder)
    };
    let all = host.processes().into_iter().filter(|(_, name)| name == "hpvmnetd");
    let (pid, _) = all.into_iter().find(|(pid, _)| holds(*pid)).expect("it runs");
    Process::open(pid)
}

fn both_are_served(host: &VmHost, guests: &mut BothKinds) {
    guests.talk(host);
    guests.each().into_iter().for_each(|guest| with_the_host(guest, FIRST));
    let ports = host.ok(&["hpvmnet", "-S", "sw1"]);
    for line in [
        "1       Active       lan      none     1            vio\n",
        "2       Active       avio_lan none     1            avio\n",
    ] {
        assert!(ports.contains(line), "{ports}");
    }
    let counted = host.ok(&["hpvmnet", "-S", "sw1", "-p", "2", "-A"]);
    assert!(!counted.contains("Outbound Unicast Pkts (local): 0\n"), "{counted}");
}

/// A port that was given more than the older version has is down under that one, while the others go on, and comes back with
/// the version that has it.
fn a_port_waits_for_the_version_it_needs(host: &VmHost, vio: &mut Guest) {
    install(host, Version::Newer);
    host.ok(&["hpvmnet", "-S", "sw1", "-r", "-F"]);
    host.ok(&["hpvmmodify", "-P", "vio", "-a", "network:avio_lan:0,2:vswitch:sw1:portid:3"]);
    vio.run("modprobe virtio_net");
    vio.address("eth1", NEW_PORT_NETWORK);
    let guests = [(FIRST, VIO), (FIRST, AVIO), (NEW_PORT_NETWORK, VIO)]
        .map(|(network, number)| Pinger::start(Ipv4Addr::new(10, network as u8, 0, number as u8)));
    await_answer(host, &guests);
    let given = features(host, 2, NEW_PORT);
    assert_eq!(given & NEW_FEATURES, NEW_FEATURES);

    install(host, Version::Older);
    let reset = host.run(&["hpvmnet", "-S", "sw1", "-r", "-F"]);
    assert!(reset.status.success(), "{reset}");
    assert!(reset.stderr.contains("which this version of hpvmnetd has not"), "{reset}");
    vio.wait_for_carrier("eth1", "0");
    let now = await_answer(host, &guests[..2]);
    assert_eq!(guests[2].answered_since(now).map(|at| at - now), None, "{}", told(host));
    let shown = host.ok(&["hpvmnet", "-S", "sw1"]);
    assert!(shown.contains("3       Down         avio_lan none     1            vio\n"), "{shown}");

    install(host, Version::Newer);
    host.ok(&["hpvmnet", "-S", "sw1", "-r", "-F"]);
    vio.wait_for_carrier("eth1", "1");
    await_answer(host, &guests);
    assert_eq!(features(host, 2, NEW_PORT), given);
    drop(guests);
    host.ok(&["hpvmmodify", "-P", "vio", "-d", "network:avio_lan:0,2"]);
    vio.wait_for_interfaces(1);
}

/// Waits until all answer what is asked from now on, which it gives.
fn await_answer(host: &VmHost, guests: &[Pinger]) -> Instant {
    let now = Instant::now();
    let all = || guests.iter().all(|guest| guest.answered_since(now).is_some());
    wait_until(BOUND, &format!("all answer\n{}", told(host)), all);
    now
}

/// A field that another version wrote goes through the hands of this one.
fn what_another_version_wrote_is_kept(host: &VmHost) {
    let path = host.path("run/hpvm/net/2/ports");
    let switch = switch_process(host, 2);
    switch.signal(Signal::STOP);
    let mut known = ports(host, 2);
    known["ports"][0]["rules"]["colour"] = "red".into();
    fs::write(&path, known.to_string()).expect("written");
    switch.kill();
    wait_until(BOUND, "another process runs", || process(host, "hpvmnetd").is_some());
    host.ok(&["hpvmnet", "-S", "sw1", "-u", "portid:1:spoof:off"]);
    let rules = &ports(host, 2)["ports"][0]["rules"];
    assert_eq!([&rules["colour"], &rules["spoof_guard"]], ["red", "off"], "{rules}");
    host.ok(&["hpvmnet", "-S", "sw1", "-u", "portid:1:spoof:on"]);
    let log = fs::read_to_string(host.path("var/opt/hpvm/common/vswitch-2.log")).expect("a log");
    assert!(log.contains("another version of hpvmnetd wrote 'ports.rules.colour'"), "{log}");
}

/// Nobody is left to bring the switch back, and both guests boot meanwhile.
fn guests_boot_while_nobody_is_there(host: &VmHost, guests: &mut BothKinds) {
    // Switch and keeper bring each other back, unless both are stopped before they are killed.
    let switch = switch_process(host, 2);
    let keeper = switch.parent();
    switch.signal(Signal::STOP);
    keeper.signal(Signal::KILL);
    switch.kill();
    for guest in guests.each() {
        guest.console.type_in("reboot -f\n");
    }
    for guest in guests.each() {
        guest.wait_for_boot();
    }
    assert!(guests.vio.misses(FIRST, AVIO));
    host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
    guests.each().into_iter().for_each(|guest| guest.wait_for_carrier("eth0", "1"));
    guests.talk(host);
}
