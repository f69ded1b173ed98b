//! Virtual switches and what is plugged into them: MAC addresses, VLANs, ports and the rules a port keeps.

mod forward;
mod lan_boot;
mod mac;
mod nic;
mod port;
mod port_change;
mod subnet;
mod switch;
mod vlan;

pub use forward::{Forward, ForwardError, Transport};
pub use lan_boot::{BootFile, BootProfile, LanBoot, LanBootError};
pub use mac::{MacAddress, MacError};
pub use nic::{Nic, NicStatement, NicStatementError};
pub use port::{Isolation, NicKind, PortError, PortNumber, PortRules, Rate, SpoofGuard};
pub use port_change::{PortChange, PortChangeError, PortRule};
pub use subnet::{NatSubnet, SubnetError};
pub use switch::{
    InterfaceName, SwitchError, SwitchName, SwitchNumber, SwitchState, Vswitch, Wire, WireNow,
};
pub use vlan::{PortVlan, VlanError, VlanId, VlanSet};
