//! What QEMU calls the parts of what is at a guest address. Events and answers name it so, and the next worker finds it by its name.

use hpvm_model::{PciSlot, StorageAddress};

use crate::guest_path::Function;

#[must_use]
pub fn port_id(slot: PciSlot) -> String {
    format!("port-{}-{}", slot.bus(), slot.device())
}

/// The adapter with which all that is at a slot comes and goes.
#[must_use]
pub fn adapter_id(slot: PciSlot) -> String {
    adapter_at(slot, Function::First)
}

#[must_use]
pub fn adapter_at(slot: PciSlot, function: Function) -> String {
    let second = if function == Function::Second { "-second" } else { "" };
    format!("adapter-{}-{}{second}", slot.bus(), slot.device())
}

#[must_use]
pub fn device_id(address: StorageAddress) -> String {
    format!("device-{}-{}-{}", address.slot.bus(), address.slot.device(), address.target)
}

/// The block node of a medium: that of the start has journal number 0, later ones the number of their change, since a
/// medium on its way out still has its name.
#[must_use]
pub fn node_id(address: StorageAddress, journal_seq: u64) -> String {
    let StorageAddress { slot, target } = address;
    let place = format!("medium-{}-{}-{target}", slot.bus(), slot.device());
    if journal_seq == 0 { place } else { format!("{place}-{journal_seq}") }
}

/// The block node of a layer under the medium of a device, which never gets another one with layers while it is there.
#[must_use]
pub fn layer_id(address: StorageAddress, place: usize) -> String {
    format!("{}-layer{place}", node_id(address, 0))
}
