//! `hpvmnet -V`, `-S name -p N` and `-A`: ports as blocks of key and value, with the counters of A.03.50. What we count
//! beside those stands behind them.

use std::fmt::Write as _;

use hpvm_model::network::Rate;
use hpvm_model::{Forward, GuestName, Isolation, PortNumber, SpoofGuard};
use hpvm_operations::network::view::{PortView, SwitchView, WireView};
use hpvm_vswitchd::status::{Counters, Discards};

use super::{Counting, Ports, ip, mac, vlan, wire};

/// All of some switches, one after the other.
#[must_use]
pub fn all(switches: &[SwitchView], ports: Ports, counting: Counting) -> String {
    let blocks = switches.iter().map(|switch| one(switch, ports, counting));
    blocks.collect::<Vec<_>>().join("\n")
}

#[must_use]
pub fn one(switch: &SwitchView, ports: Ports, counting: Counting) -> String {
    let mut text = format!(
        "Vswitch Name                     : {}\n\
         Max Number of Ports              : {}\n",
        switch.switch.name,
        PortNumber::MAX
    );
    if ports == Ports::All {
        let lines = [
            ("Vswitch Number                   ", switch.switch.number.to_string()),
            ("Vswitch State                    ", switch.state.as_str().to_owned()),
            ("Wire                             ", or_none(wire(switch))),
            ("Wire Link                        ", link(&switch.wire)),
            ("MAC Address                      ", mac(switch)),
            ("IP Address                       ", or_none(ip(switch))),
        ];
        push(&mut text, lines);
        let forwards = switch.switch.forwards.iter();
        push(
            &mut text,
            forwards.map(|f| ("Port Forward                     ", forward(switch, f))),
        );
        if counting == Counting::Shown {
            push(&mut text, lost_at_wire(&switch.wire_discards.unwrap_or_default()));
        }
    }
    for port in ports.of(switch) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "Port Number                      : {}", port.port);
        push(&mut text, facts(port));
        if counting == Counting::Shown {
            let counted = port.now.as_ref().map(|now| now.counters).unwrap_or_default();
            push(&mut text, counters(&counted));
        }
        push(&mut text, addresses(switch, port));
        push(&mut text, rules(port));
    }
    text
}

fn push(text: &mut String, lines: impl IntoIterator<Item = (&'static str, String)>) {
    for (key, value) in lines {
        let _ = writeln!(text, "{}", format!("{key}: {value}").trim_end());
    }
}

/// One that does not work says so.
fn forward(switch: &SwitchView, forward: &Forward) -> String {
    match switch.forwards_missing().any(|missing| missing == forward) {
        true => format!("{forward} (does not work)"),
        false => forward.to_string(),
    }
}

/// How what is behind the wire is, in words.
fn link(wire: &WireView) -> String {
    match wire {
        WireView::None => "none".to_owned(),
        WireView::Nat(now) => super::nat(now).to_owned(),
        WireView::Missing => "missing".to_owned(),
        WireView::Here { carrier, mtu_bytes, speed_mbit } => {
            let speed = speed_mbit.map_or_else(String::new, |mbit| format!(", {mbit} Mb/s"));
            format!("{}{speed}, MTU {mtu_bytes}", super::link(*carrier))
        }
    }
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".into() } else { text }
}

/// As A.03.50 has them.
fn facts(port: &PortView) -> [(&'static str, String); 5] {
    let names: Vec<&str> = port.reserved.iter().map(GuestName::as_str).collect();
    [
        ("    Port State                   ", port.state.as_str().to_owned()),
        (
            "    Active VM                    ",
            port.active.as_ref().map(ToString::to_string).unwrap_or_default(),
        ),
        ("    Untagged VlanId              ", vlan(port)),
        ("    Reserved VMs                 ", names.join(",")),
        (
            "    Adaptor                      ",
            port.adaptor.map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
        ),
    ]
}

fn addresses(switch: &SwitchView, port: &PortView) -> Vec<(&'static str, String)> {
    let mut addresses = Vec::new();
    if let Some(now) = &port.now {
        addresses.push(("    Mac Address                  ", now.mac.to_string()));
        let other = now.source.filter(|source| *source != now.mac);
        addresses.extend(other.map(|mac| ("    Mac Address in use           ", mac.to_string())));
    }
    let leased = switch.leased(port).map(|ip| ip.to_string());
    addresses.extend(leased.map(|ip| ("    IP Address by DHCP           ", ip)));
    addresses
}

/// Frames that came, and that were to go: what is beyond the wire counts as a guest, whose way out leads in here.
fn lost_at_wire(discards: &Discards) -> [(&'static str, String); 2] {
    [
        ("Inbound Discards at the Wire     ", discards.outbound().to_string()),
        ("Outbound Discards at the Wire    ", discards.inbound().to_string()),
    ]
}

/// Those that differ from what every port has.
fn rules(port: &PortView) -> Vec<(&'static str, String)> {
    let rate = |rate: Rate| {
        let Rate { bits_per_second, burst_bytes } = rate;
        format!("{bits_per_second} bit/s, burst {burst_bytes} bytes")
    };
    let mut rules = Vec::new();
    rules.extend(port.rules.rate_in.map(|r| ("    Rate in                      ", rate(r))));
    rules.extend(port.rules.rate_out.map(|r| ("    Rate out                     ", rate(r))));
    if port.rules.spoof_guard == SpoofGuard::Off {
        rules.push(("    Spoof guard                  ", "off".to_owned()));
    }
    if !port.rules.addresses.is_empty() {
        let addresses: Vec<String> = port.rules.addresses.iter().map(ToString::to_string).collect();
        rules.push(("    IP Addresses                 ", addresses.join(",")));
    }
    if port.rules.isolation == Isolation::On {
        rules.push(("    Isolated                     ", "on".to_owned()));
    }
    rules.extend(
        port.rules
            .lan_boot
            .as_ref()
            .map(|boot| ("    Boots over LAN               ", boot.to_string())),
    );
    rules.extend(port.rules.mirror.map(|to| ("    Mirrored to port             ", to.to_string())));
    rules
}

/// The keys of A.03.50 with its own spacing, then the reasons of discards.
fn counters(counted: &Counters) -> [(&'static str, String); 18] {
    let discards = &counted.discards;
    [
        ("    Inbound Octets               ", counted.in_octets),
        ("    Inbound Unicast Pkts (wire)  ", counted.in_unicast_wire),
        ("    Inbound Unicast Pkts (local) ", counted.in_unicast_local),
        ("    Inbound Non-Unicast Pkts (wire)  ", counted.in_other_wire),
        ("    Inbound Non-Unicast Pkts (local) ", counted.in_other_local),
        ("    Inbound Discards             ", counted.in_discards),
        ("    Outbound Octets              ", counted.out_octets),
        ("    Outbound Unicast Pkts (wire) ", counted.out_unicast_wire),
        ("    Outbound Unicast Pkts (local)", counted.out_unicast_local),
        ("    Outbound Non-Unicast Pkts    ", counted.out_other),
        ("    Outbound Discards            ", counted.out_discards),
        ("    Discards: no room in guest   ", discards.no_room),
        ("    Discards: beyond rate        ", discards.rate),
        ("    Discards: spoofed            ", discards.spoofed),
        ("    Discards: wrong VLAN         ", discards.vlan),
        ("    Discards: malformed          ", discards.malformed),
        ("    Discards: halted             ", discards.halted),
        ("    Discards: never forwarded    ", discards.filtered),
    ]
    .map(|(key, count)| (key, count.to_string()))
}
