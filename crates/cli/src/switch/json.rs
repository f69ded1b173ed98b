//! `hpvmnet --json`: everything, for programs. The schema in docs/schema only grows; a test sees to it.

use hpvm_model::{Isolation, PortRules, SpoofGuard};
use hpvm_operations::network::nat::NatView;
use hpvm_operations::network::view::{PortView, SwitchView, WireView};
use hpvm_vswitchd::status::{self, PortLink, PortNow};
use serde::Serialize;

use super::{link, nat, vlan, wire};

/// Grows when a reader of older documents would misread a newer one.
const FORMAT: u32 = 1;

/// Of all switches, or of one.
pub fn render(switches: &[SwitchView]) -> Result<String, serde_json::Error> {
    let document =
        Switches { format: FORMAT, vswitches: switches.iter().map(Switch::from).collect() };
    serde_json::to_string_pretty(&document).map(|text| text + "\n")
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Switches {
    format: u32,
    /// In order of number.
    vswitches: Vec<Switch>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Switch {
    name: String,
    number: u32,
    /// As tables print it: Up, Down or Unknown.
    state: String,
    /// Whether the administrator wants it to forward: up or halted.
    wanted: String,
    /// The interface that is its wire, `nat`, `tap:NAME`, or empty.
    wire: String,
    /// Of its interface: `up`, `down` without a link, `off` when nobody set it up, or `missing`. Of NAT: `up`, `silent`
    /// when it does not answer, or `missing`. Absent without either, and where no guest runs on it.
    wire_link: Option<String>,
    wire_mtu_bytes: Option<u32>,
    /// In million bits a second; absent when nobody knows.
    wire_speed_mbit: Option<u32>,
    mac_address: Option<String>,
    ip_address: Option<String>,
    forwards: Vec<String>,
    /// Those of them that do not work, though guests run on the switch.
    forwards_missing: Vec<String>,
    /// Frames that were lost at the wire: by `no_room` those that were to go, by all other reasons those that came. Absent
    /// when the switch does not run.
    wire_discards: Option<Discards>,
    ports: Vec<Port>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Port {
    number: u16,
    /// As tables print it: Active, Down, Reserved or Free.
    state: String,
    /// `lan` or `avio_lan`; absent when no NIC has the port.
    adaptor: Option<String>,
    /// `none`, a VLAN, or `trunk` and a list.
    vlan: String,
    reserved_by: Vec<String>,
    active: Option<String>,
    rules: Rules,
    /// Absent when no running guest has the port, or its switch does not run.
    now: Option<Now>,
    /// What NAT gave the guest at the port by DHCP.
    dhcp_address: Option<String>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Rules {
    rate_in_bits_per_second: Option<u64>,
    burst_in_bytes: Option<u64>,
    rate_out_bits_per_second: Option<u64>,
    burst_out_bytes: Option<u64>,
    spoof_guard: bool,
    addresses: Vec<String>,
    mirror: Option<u16>,
    /// Whether it hears no other port that is isolated, nor is heard by one.
    isolated: bool,
    /// How the guest's firmware boots over its NIC: `dhcp`, or the profile as it was given; absent when it does not.
    lan_boot: Option<String>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Now {
    /// `absent`, `connected`, `started` or `lost`.
    link: String,
    mac_address: String,
    /// The address the guest last sent from.
    mac_address_in_use: Option<String>,
    counters: Counters,
}

/// As the guest sees them: in is what it received.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Counters {
    in_octets: u64,
    in_unicast_wire: u64,
    in_unicast_local: u64,
    in_non_unicast_wire: u64,
    in_non_unicast_local: u64,
    in_discards: u64,
    out_octets: u64,
    out_unicast_wire: u64,
    out_unicast_local: u64,
    out_non_unicast: u64,
    /// Those of them that went beyond the wire.
    out_non_unicast_wire: u64,
    /// Those of them that somebody on the switch was to get; one frame may count in both.
    out_non_unicast_local: u64,
    out_discards: u64,
    discards: Discards,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Discards {
    no_room: u64,
    rate: u64,
    spoofed: u64,
    vlan: u64,
    malformed: u64,
    halted: u64,
    filtered: u64,
}

impl From<&SwitchView> for Switch {
    fn from(view: &SwitchView) -> Switch {
        let switch = &view.switch;
        let (wire_link, wire_mtu_bytes, wire_speed_mbit) = match &view.wire {
            WireView::None | WireView::Nat(NatView::AtRest | NatView::Unknown) => {
                (None, None, None)
            }
            WireView::Nat(now) => (Some(nat(now)), None, None),
            WireView::Missing => (Some("missing"), None, None),
            WireView::Here { carrier, mtu_bytes, speed_mbit } => {
                (Some(link(*carrier)), Some(*mtu_bytes), *speed_mbit)
            }
        };
        Switch {
            name: switch.name.to_string(),
            number: switch.number.get(),
            state: view.state.as_str().to_owned(),
            wanted: switch.state.as_str().to_owned(),
            wire: wire(view),
            wire_link: wire_link.map(str::to_owned),
            wire_mtu_bytes,
            wire_speed_mbit,
            mac_address: view.mac.map(|mac| mac.to_string()),
            ip_address: view.ip.map(|ip| ip.to_string()),
            forwards: switch.forwards.iter().map(ToString::to_string).collect(),
            forwards_missing: view.forwards_missing().map(ToString::to_string).collect(),
            wire_discards: view.wire_discards.as_ref().map(Discards::from),
            ports: view.ports.iter().map(|port| Port::of(view, port)).collect(),
        }
    }
}

impl Port {
    fn of(switch: &SwitchView, view: &PortView) -> Port {
        Port {
            number: view.port.number(),
            state: view.state.as_str().to_owned(),
            adaptor: view.adaptor.map(|kind| kind.as_str().to_owned()),
            vlan: vlan(view),
            reserved_by: view.reserved.iter().map(ToString::to_string).collect(),
            active: view.active.as_ref().map(ToString::to_string),
            rules: Rules::from(&view.rules),
            now: view.now.as_ref().map(Now::from),
            dhcp_address: switch.leased(view).map(|address| address.to_string()),
        }
    }
}

impl From<&PortRules> for Rules {
    fn from(rules: &PortRules) -> Rules {
        Rules {
            rate_in_bits_per_second: rules.rate_in.map(|rate| rate.bits_per_second),
            burst_in_bytes: rules.rate_in.map(|rate| rate.burst_bytes),
            rate_out_bits_per_second: rules.rate_out.map(|rate| rate.bits_per_second),
            burst_out_bytes: rules.rate_out.map(|rate| rate.burst_bytes),
            spoof_guard: rules.spoof_guard == SpoofGuard::On,
            addresses: rules.addresses.iter().map(ToString::to_string).collect(),
            mirror: rules.mirror.map(|port| port.number()),
            isolated: rules.isolation == Isolation::On,
            lan_boot: rules.lan_boot.as_ref().map(ToString::to_string),
        }
    }
}

impl From<&PortNow> for Now {
    fn from(now: &PortNow) -> Now {
        let link = match now.link {
            PortLink::Absent => "absent",
            PortLink::Connected => "connected",
            PortLink::Started => "started",
            PortLink::Lost => "lost",
        };
        Now {
            link: link.to_owned(),
            mac_address: now.mac.to_string(),
            mac_address_in_use: now.source.map(|mac| mac.to_string()),
            counters: Counters::from(&now.counters),
        }
    }
}

impl From<&status::Discards> for Discards {
    fn from(discards: &status::Discards) -> Discards {
        Discards {
            no_room: discards.no_room,
            rate: discards.rate,
            spoofed: discards.spoofed,
            vlan: discards.vlan,
            malformed: discards.malformed,
            halted: discards.halted,
            filtered: discards.filtered,
        }
    }
}

impl From<&status::Counters> for Counters {
    fn from(counted: &status::Counters) -> Counters {
        Counters {
            in_octets: counted.in_octets,
            in_unicast_wire: counted.in_unicast_wire,
            in_unicast_local: counted.in_unicast_local,
            in_non_unicast_wire: counted.in_other_wire,
            in_non_unicast_local: counted.in_other_local,
            in_discards: counted.in_discards,
            out_octets: counted.out_octets,
            out_unicast_wire: counted.out_unicast_wire,
            out_unicast_local: counted.out_unicast_local,
            out_non_unicast: counted.out_other,
            out_non_unicast_wire: counted.out_other_wire,
            out_non_unicast_local: counted.out_other_local,
            out_discards: counted.out_discards,
            discards: Discards::from(&counted.discards),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_only_grows() {
        crate::schema::keep("vswitches.json", &schemars::schema_for!(Switches));
    }
}
