//! What hpvmnet prints, as pure functions from views to text; one file a layout. The layouts of A.03.50 are kept to the
//! blank, since scripts cut them by column.
//!
//! Nothing here looks at the machine: `commands/net.rs` gathers, this prints.

pub mod blocks;
pub mod interfaces;
pub mod json;
pub mod list;
pub mod machine;
pub mod macs;
pub mod xml;

use hpvm_host::nic::Carrier;
use hpvm_model::{PortNumber, PortVlan, Wire};
use hpvm_operations::network::nat::NatView;
use hpvm_operations::network::view::{PortView, SwitchView};

/// A.03.50 had no other; its switches took a NIC with others on it.
const MODE: &str = "Shared";
const NOT_THERE: &str = "N/A";

/// Which ports are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    All,
    One(PortNumber),
}

impl Ports {
    fn of(self, switch: &SwitchView) -> impl Iterator<Item = &PortView> {
        let is_meant = move |port: &&PortView| match self {
            Ports::All => true,
            Ports::One(number) => port.port == number,
        };
        switch.ports.iter().filter(is_meant)
    }
}

/// Whether the counters of ports are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    Shown,
    Left,
}

fn wire(switch: &SwitchView) -> String {
    match &switch.switch.wire {
        Wire::None => String::new(),
        wire => wire.to_string(),
    }
}

fn mac(switch: &SwitchView) -> String {
    switch.mac.map_or_else(|| NOT_THERE.to_owned(), |mac| mac.to_string())
}

fn link(carrier: Carrier) -> &'static str {
    match carrier {
        Carrier::Up => "up",
        Carrier::Down => "down",
        Carrier::Off => "off",
    }
}

fn nat(now: &NatView) -> &'static str {
    match now {
        NatView::AtRest => "no guest runs on it",
        NatView::There { .. } => "up",
        NatView::Gone => "missing",
        NatView::Silent => "silent",
        NatView::Unknown => "unknown",
    }
}

fn ip(switch: &SwitchView) -> String {
    match (switch.ip, switch.mac) {
        (Some(ip), _) => ip.to_string(),
        (None, Some(_)) => String::new(),
        (None, None) => NOT_THERE.to_owned(),
    }
}

/// As a table has room for it; a trunk's VLANs stand in the block of the port.
fn vlan_short(port: &PortView) -> String {
    match &port.rules.vlan {
        PortVlan::Trunk(_) => "trunk".to_owned(),
        _ => vlan(port),
    }
}

fn vlan(port: &PortView) -> String {
    match &port.rules.vlan {
        PortVlan::None => "none".to_owned(),
        PortVlan::Untagged(id) => id.to_string(),
        PortVlan::Trunk(set) => format!("trunk {set}"),
    }
}
