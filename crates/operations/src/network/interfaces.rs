//! The network interfaces of the VM Host, and which of them can be the wire of a virtual switch: one list for all who choose,
//! with the answer that hpvmnet gives who names one.

use hpvm_host::nic::{self, Nic, NicKind, Unfit};
use hpvm_model::{InterfaceName, SwitchName, Vswitch, Wire};

use super::SwitchRefused;
use crate::{Refusal, VmHost};

/// An interface as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceView {
    pub nic: Nic,
    /// In million bits a second; `None` when nobody knows.
    pub speed_mbit: Option<u32>,
    /// The wire that another switch would have with it.
    pub wire: Result<Wire, Unfit>,
    /// The switches that have it, in order of number.
    pub switches: Vec<SwitchName>,
}

impl VmHost {
    /// All interfaces of the VM Host's network namespace, in the kernel's order.
    pub fn interfaces(&self) -> Result<Vec<InterfaceView>, Refusal> {
        let switches = self.registry.vswitches()?;
        let view = |nic: Nic| {
            let its: Vec<&Vswitch> = switches
                .iter()
                .filter(|switch| {
                    switch.wire.interface().is_some_and(|its| its.as_str() == nic.name)
                })
                .collect();
            InterfaceView {
                speed_mbit: nic::speed_mbit(&nic.name),
                wire: wire(&nic).and_then(|wire| unless_taken(wire, &its)),
                switches: its.iter().map(|switch| switch.name.clone()).collect(),
                nic,
            }
        };
        let all = nic::all().map_err(SwitchRefused::Interfaces)?;
        Ok(all.into_iter().map(view).collect())
    }
}

fn wire(nic: &Nic) -> Result<Wire, Unfit> {
    let is_read_so = |name: &InterfaceName| name.as_str() == nic.name;
    let name = nic.name.parse().ok().filter(is_read_so);
    let name = name.ok_or_else(|| Unfit::Unnamable(nic.name.clone()))?;
    match nic.kind {
        NicKind::Tap => nic.fit_for_tap().map(|()| Wire::Tap(name)),
        _ => nic.fit_for_wire().map(|()| Wire::Nic(name)),
    }
}

/// A tap has one switch, other interfaces any number.
fn unless_taken(wire: Wire, its: &[&Vswitch]) -> Result<Wire, Unfit> {
    match (&wire, its.iter().find(|switch| switch.wire == wire)) {
        (Wire::Tap(tap), Some(switch)) => Err(Unfit::Taken(tap.to_string(), switch.name.clone())),
        _ => Ok(wire),
    }
}
