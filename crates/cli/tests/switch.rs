//! Every layout of hpvmnet as text, and NICs in those of hpvmstatus.

use hpvm_cli::switch::{Counting, Ports, blocks, list, machine, macs, xml};
use hpvm_host::nic::Carrier;
use hpvm_model::network::PortChange;
use hpvm_model::{
    MacAddress, NicKind, PciSlot, PortNumber, PortRules, PortVlan, SpoofGuard, SwitchName,
    SwitchNumber, SwitchState, VlanId, Vswitch, Wire,
};
use hpvm_operations::network::nat::{Lease, NatView};
use hpvm_operations::network::view::{PortState, PortView, ShownState, SwitchView, WireView};
use hpvm_vswitchd::protocol::Station;
use hpvm_vswitchd::status::{Counters, Discards, PortLink, PortNow};
use snapbox::{assert_data_eq, str};

fn port(number: u16) -> PortNumber {
    PortNumber::new(number).unwrap()
}

fn mac(text: &str) -> MacAddress {
    text.parse().unwrap()
}

fn switch(number: u32, name: &str) -> Vswitch {
    Vswitch::new(SwitchNumber::new(number).unwrap(), name.parse::<SwitchName>().unwrap())
}

fn localnet() -> SwitchView {
    let switch = Vswitch { state: SwitchState::Up, ..switch(1, "localnet") };
    let wire = WireView::None;
    SwitchView {
        switch,
        state: ShownState::Up,
        mac: None,
        ip: None,
        wire,
        wire_discards: None,
        ports: Vec::new(),
    }
}

/// Of each kind another number, so that none can be shown for another.
const COUNTERS: Counters = Counters {
    in_octets: 32_714,
    in_unicast_wire: 197,
    in_unicast_local: 23,
    in_other_wire: 31,
    in_other_local: 37,
    in_discards: 9,
    out_octets: 19_580,
    out_unicast_wire: 241,
    out_unicast_local: 43,
    out_other: 11,
    out_other_wire: 10,
    out_other_local: 8,
    out_discards: 50,
    discards: Discards {
        no_room: 4,
        rate: 5,
        spoofed: 2,
        vlan: 3,
        malformed: 6,
        halted: 12,
        filtered: 27,
    },
};

/// A port whose guest sends from another address than it was given.
fn port_in_use() -> PortNow {
    PortNow {
        port: port(1),
        guest: "avio_vm".parse().unwrap(),
        number: hpvm_model::GuestNumber::new(4).unwrap(),
        slot: PciSlot::new(0, 1).unwrap(),
        kind: NicKind::AvioLan,
        mac: mac("0x56e9e3096a22"),
        link: PortLink::Started,
        source: Some(mac("0x56e9e3096a23")),
        offered: None,
        acknowledged: None,
        counters: COUNTERS,
    }
}

/// With a wire, a port in use, one that is reserved, one with rules alone.
fn vlan02() -> SwitchView {
    let mut switch = switch(2, "vlan02");
    switch.wire = Wire::Nic("lan3".parse().unwrap());
    switch.state = SwitchState::Up;
    switch.forwards = vec!["tcp:2222:10.0.2.15:22".parse().unwrap()];
    let mut guarded = PortRules { spoof_guard: SpoofGuard::Off, ..PortRules::default() };
    for change in ["portid:9:trunk:10,20-29", "portid:9:rate:1M,none", "portid:9:addr:192.0.2.7"] {
        change.parse::<PortChange>().unwrap().apply(&mut guarded);
    }
    let vlan = PortVlan::Untagged(VlanId::new(120).unwrap());
    let view = |number, state| PortView {
        port: port(number),
        state,
        adaptor: None,
        rules: PortRules::default(),
        reserved: Vec::new(),
        active: None,
        now: None,
    };
    let ports = vec![
        PortView {
            adaptor: Some(NicKind::AvioLan),
            reserved: vec!["avio_vm".parse().unwrap(), "other".parse().unwrap()],
            active: Some("avio_vm".parse().unwrap()),
            now: Some(port_in_use()),
            ..view(1, PortState::Active)
        },
        PortView {
            adaptor: Some(NicKind::Lan),
            rules: PortRules { vlan, ..PortRules::default() },
            reserved: vec!["guest5".parse().unwrap()],
            ..view(5, PortState::Reserved)
        },
        PortView { rules: guarded, ..view(9, PortState::Free) },
    ];
    let mac = Some(mac("0x0017a4112233"));
    let ip = "192.168.1.12".parse().ok();
    let wire = WireView::Here { carrier: Carrier::Up, mtu_bytes: 9000, speed_mbit: Some(1000) };
    let wire_discards = Some(Discards { no_room: 2, malformed: 1, ..Discards::default() });
    SwitchView { switch, state: ShownState::Up, mac, ip, wire, wire_discards, ports }
}

#[test]
fn a_list_has_the_columns_of_a_03_50() {
    assert_data_eq!(
        list::render(&[localnet(), vlan02()]),
        str![[r#"
Name     Number State   Mode      NamePPA  MAC Address    IP Address
======== ====== ======= ========= ======== ============== ===============
localnet      1 Up      Shared             N/A            N/A
vlan02        2 Up      Shared    lan3     0x0017a4112233 192.168.1.12

"#]]
    );
}

#[test]
fn one_switch_has_a_line_for_each_port() {
    assert_data_eq!(
        list::one(&vlan02(), Ports::All),
        str![[r#"
Name     Number State   Mode      NamePPA  MAC Address    IP Address
======== ====== ======= ========= ======== ============== ===============
vlan02        2 Up      Shared    lan3     0x0017a4112233 192.168.1.12

[Port Configuration Details]
Port    Port         Port     Untagged Number of    Active VM
Number  State        Adaptor  VLANID   Reserved VMs
======= ============ ======== ======== ============ ============
1       Active       avio_lan none     2            avio_vm
5       Reserved     lan      120      1
9       Free                  trunk    0

"#]]
    );
}

/// Whatever is long, nothing is cut and each value stands under its heading.
#[test]
fn a_long_value_widens_its_column() {
    let mut view = vlan02();
    view.switch.name = "switch-of-the-test-laboratory".parse().unwrap();
    view.switch.wire = Wire::Tap("hpvmtap1".parse().unwrap());
    view.ports[0].active = Some("guest-of-the-test-laboratory".parse().unwrap());
    assert_data_eq!(
        list::render(&[localnet(), view.clone()]),
        str![[r#"
Name                          Number State   Mode      NamePPA      MAC Address    IP Address
============================= ====== ======= ========= ============ ============== ===============
localnet                           1 Up      Shared                 N/A            N/A
switch-of-the-test-laboratory      2 Up      Shared    tap:hpvmtap1 0x0017a4112233 192.168.1.12

"#]]
    );
    let text = list::one(&view, Ports::All);
    let words = |number: usize| -> Vec<&str> {
        text.lines().nth(number).unwrap().split_whitespace().collect()
    };
    let guest = "guest-of-the-test-laboratory";
    assert_eq!(words(8), ["1", "Active", "avio_lan", "none", "2", guest]);
    assert_eq!(words(10), ["9", "Free", "trunk", "0"]);
}

#[test]
fn a_port_s_counters_have_the_keys_of_a_03_50() {
    assert_data_eq!(
        blocks::one(&vlan02(), Ports::One(port(1)), Counting::Shown),
        str![[r#"
Vswitch Name                     : vlan02
Max Number of Ports              : 512
Port Number                      : 1
    Port State                   : Active
    Active VM                    : avio_vm
    Untagged VlanId              : none
    Reserved VMs                 : avio_vm,other
    Adaptor                      : avio_lan
    Inbound Octets               : 32714
    Inbound Unicast Pkts (wire)  : 197
    Inbound Unicast Pkts (local) : 23
    Inbound Non-Unicast Pkts (wire)  : 31
    Inbound Non-Unicast Pkts (local) : 37
    Inbound Discards             : 9
    Outbound Octets              : 19580
    Outbound Unicast Pkts (wire) : 241
    Outbound Unicast Pkts (local): 43
    Outbound Non-Unicast Pkts    : 11
    Outbound Discards            : 50
    Discards: no room in guest   : 4
    Discards: beyond rate        : 5
    Discards: spoofed            : 2
    Discards: wrong VLAN         : 3
    Discards: malformed          : 6
    Discards: halted             : 12
    Discards: never forwarded    : 27
    Mac Address                  : 0x56e9e3096a22
    Mac Address in use           : 0x56e9e3096a23

"#]]
    );
}

#[test]
fn a_verbose_switch_shows_wire_and_rules() {
    assert_data_eq!(
        blocks::one(&vlan02(), Ports::All, Counting::Left),
        str![[r#"
Vswitch Name                     : vlan02
Max Number of Ports              : 512
Vswitch Number                   : 2
Vswitch State                    : Up
Wire                             : lan3
Wire Link                        : up, 1000 Mb/s, MTU 9000
MAC Address                      : 0x0017a4112233
IP Address                       : 192.168.1.12
Port Forward                     : tcp:2222:10.0.2.15:22
Port Number                      : 1
    Port State                   : Active
    Active VM                    : avio_vm
    Untagged VlanId              : none
    Reserved VMs                 : avio_vm,other
    Adaptor                      : avio_lan
    Mac Address                  : 0x56e9e3096a22
    Mac Address in use           : 0x56e9e3096a23
Port Number                      : 5
    Port State                   : Reserved
    Active VM                    :
    Untagged VlanId              : 120
    Reserved VMs                 : guest5
    Adaptor                      : lan
Port Number                      : 9
    Port State                   : Free
    Active VM                    :
    Untagged VlanId              : trunk 10,20-29
    Reserved VMs                 :
    Adaptor                      :
    Rate in                      : 1000000 bit/s, burst 65536 bytes
    Spoof guard                  : off
    IP Addresses                 : 192.0.2.7

"#]]
    );
}

/// What does not work is not shown as if it did.
#[test]
fn a_nat_wire_tells_whether_it_is_there() {
    let shown = |now: NatView| {
        let mut view = vlan02();
        view.switch.wire = Wire::Nat;
        view.switch.forwards.push("tcp:8080:10.0.2.15:80".parse().unwrap());
        view.wire = WireView::Nat(now);
        let text = blocks::one(&view, Ports::All, Counting::Left);
        let lines = text
            .lines()
            .filter(|line| ["Wire Link", "Port Forward"].iter().any(|key| line.starts_with(key)));
        let values = lines.map(|line| line.split_once(" : ").unwrap().1.trim().to_owned());
        values.collect::<Vec<_>>()
    };
    let [ssh, web] = ["tcp:2222:10.0.2.15:22", "tcp:8080:10.0.2.15:80"];
    let dead = |forward| format!("{forward} (does not work)");
    let forwards = vec![ssh.parse().unwrap()];
    let there = NatView::There { forwards, leases: Vec::new() };
    assert_eq!(shown(there), ["up", ssh, &dead(web)]);
    assert_eq!(shown(NatView::Gone), ["missing", &dead(ssh), &dead(web)]);
    assert_eq!(shown(NatView::AtRest), ["no guest runs on it", ssh, web]);
}

/// What a port forward leads to.
#[test]
fn a_port_tells_the_address_that_nat_gave_its_guest() {
    let mut view = vlan02();
    view.switch.wire = Wire::Nat;
    let lease =
        |mac_of: &str, address: &str| Lease { mac: mac(mac_of), address: address.parse().unwrap() };
    let leases = vec![lease("0x56e9e3096a99", "10.0.2.16"), lease("0x56e9e3096a22", "10.0.2.15")];
    view.wire = WireView::Nat(NatView::There { forwards: Vec::new(), leases });
    let text = blocks::one(&view, Ports::All, Counting::Left);
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("by DHCP")).collect();
    assert_eq!(lines, ["    IP Address by DHCP           : 10.0.2.15"], "{text}");
}

#[test]
fn programs_get_fields_and_elements() {
    assert_eq!(
        machine::render(&[localnet(), vlan02()]),
        "localnet:1:Up:Shared::N/A:0:0:N/A\nvlan02:2:Up:Shared:lan3:0x0017a4112233:3:1:192.168.1.12\n"
    );
    let xml = xml::render(&[vlan02()]);
    assert!(xml.contains(
        "<port number=\"1\" state=\"Active\" adaptor=\"avio_lan\" vlan=\"none\" active=\"avio_vm\"/>"
    ));
    assert!(xml.contains("<port_forward>tcp:2222:10.0.2.15:22</port_forward>"), "{xml}");
    let rules = "rate_in_bits_per_second=\"1000000\" burst_in_bytes=\"65536\" spoof=\"off\" addr=\"192.0.2.7\"/>";
    assert!(xml.contains(rules), "{xml}");
}

#[test]
fn stations_are_shown_where_they_are() {
    let station = |mac_text, port_number: Option<u16>, age_seconds| Station {
        mac: mac(mac_text),
        vlan: None,
        port: port_number.map(port),
        age_seconds,
    };
    assert_data_eq!(
        macs::render(&[
            station("0x56e9e3096a22", Some(1), None),
            station("0x0017a4112244", None, Some(7)),
        ]),
        str![[r#"
MAC Address    VLAN Port Heard
============== ==== ==== =======
0x56e9e3096a22 none 1    its own
0x0017a4112244 none wire 7 s ago

"#]]
    );
}
