//! `hpvmnet --interfaces`: the VM Host's network interfaces, as a table and as JSON, and which can be the wire of a switch.

use hpvm_host::nic::NicKind;
use hpvm_operations::network::interfaces::InterfaceView;
use serde::Serialize;

use super::link;
use crate::table::Table;

/// Grows when a reader of older documents would misread a newer one.
const FORMAT: u32 = 1;
const NOTHING: &str = "-";

/// One line an interface. Only the last field, which says why one cannot be a wire, has blanks.
#[must_use]
pub fn table(interfaces: &[InterfaceView]) -> String {
    let mut table = Table::new([
        "Interface",
        "Kind",
        "Link",
        "MTU",
        "Mbit/s",
        "MAC Address",
        "Wire",
        "Switches",
        "Why not",
    ]);
    for InterfaceView { nic, speed_mbit, wire, switches } in interfaces {
        let or_nothing = |text: Option<String>| text.unwrap_or_else(|| NOTHING.to_owned());
        let switches: Vec<&str> = switches.iter().map(|name| name.as_str()).collect();
        table.row([
            &nic.name,
            kind(&nic.kind),
            link(nic.carrier),
            &nic.mtu_bytes.to_string(),
            &or_nothing(speed_mbit.map(|speed| speed.to_string())),
            &or_nothing(nic.mac.map(|mac| mac.to_string())),
            &or_nothing(wire.as_ref().ok().map(ToString::to_string)),
            &or_nothing((!switches.is_empty()).then(|| switches.join(","))),
            &wire.as_ref().err().map(ToString::to_string).unwrap_or_default(),
        ]);
    }
    table.render()
}

pub fn json(interfaces: &[InterfaceView]) -> Result<String, serde_json::Error> {
    let interfaces = interfaces.iter().map(Interface::from).collect();
    let document = Interfaces { format: FORMAT, interfaces };
    serde_json::to_string_pretty(&document).map(|text| text + "\n")
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Interfaces {
    format: u32,
    /// In the kernel's order.
    interfaces: Vec<Interface>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Interface {
    name: String,
    /// `nic`, `bond`, `vlan`, `bridge`, `tap`, `veth`, `loopback`, or the kernel's word for any other.
    kind: String,
    /// Of a VLAN interface.
    vlan: Option<u16>,
    /// The interface that a VLAN interface stands on.
    stands_on: Option<String>,
    /// The bond or bridge it is a part of.
    part_of: Option<String>,
    /// `up`, `down` without a link, or `off` when nobody set it up.
    link: String,
    mtu_bytes: u32,
    /// In million bits a second; absent when nobody knows.
    speed_mbit: Option<u32>,
    mac_address: Option<String>,
    /// With the lengths of their networks' prefixes.
    ip_addresses: Vec<String>,
    /// What a switch has as its wire with it: its name for -n, or `tap:NAME` for --wire; absent when it cannot be one.
    wire: Option<String>,
    why_not: Option<String>,
    /// The switches that have it, in order of number.
    vswitches: Vec<String>,
}

impl From<&InterfaceView> for Interface {
    fn from(view: &InterfaceView) -> Interface {
        let InterfaceView { nic, speed_mbit, wire, switches } = view;
        let vlan = match nic.kind {
            NicKind::Vlan(id) => Some(id),
            _ => None,
        };
        let address = |(address, prefix)| format!("{address}/{prefix}");
        Interface {
            name: nic.name.clone(),
            kind: kind(&nic.kind).to_owned(),
            vlan,
            stands_on: nic.lower.clone(),
            part_of: nic.master.clone(),
            link: link(nic.carrier).to_owned(),
            mtu_bytes: nic.mtu_bytes,
            speed_mbit: *speed_mbit,
            mac_address: nic.mac.map(|mac| mac.to_string()),
            ip_addresses: nic.addresses.iter().copied().map(address).collect(),
            wire: wire.as_ref().ok().map(ToString::to_string),
            why_not: wire.as_ref().err().map(ToString::to_string),
            vswitches: switches.iter().map(ToString::to_string).collect(),
        }
    }
}

fn kind(kind: &NicKind) -> &str {
    match kind {
        NicKind::Physical => "nic",
        NicKind::Bond => "bond",
        NicKind::Vlan(_) => "vlan",
        NicKind::Bridge => "bridge",
        NicKind::Tap => "tap",
        NicKind::Veth => "veth",
        NicKind::Loopback => "loopback",
        NicKind::Other(kind) => kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_only_grows() {
        crate::schema::keep("interfaces.json", &schemars::schema_for!(Interfaces));
    }
}
