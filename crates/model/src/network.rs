//! Virtual switches and what is plugged into them: MAC addresses, VLANs, ports and the rules a port keeps.

mod mac;
mod nic;
mod port;
mod switch;
mod vlan;

pub use mac::{MacAddress, MacError};
pub use nic::{Nic, NicStatement, NicStatementError};
pub use port::{NicKind, PortError, PortNumber, PortRules, Rate, SpoofGuard};
pub use switch::{
    Forward, InterfaceName, SwitchError, SwitchName, SwitchNumber, SwitchState, Transport, Vswitch,
    Wire,
};
pub use vlan::{PortVlan, VlanError, VlanId, VlanSet};
