//! Virtual switches and what is plugged into them: MAC addresses, VLANs, ports and the rules a port keeps.

mod mac;
mod port;
mod vlan;

pub use mac::{MacAddress, MacError};
pub use port::{NicKind, PortError, PortNumber, PortRules, Rate, SpoofGuard};
pub use vlan::{PortVlan, VlanError, VlanId, VlanSet};
