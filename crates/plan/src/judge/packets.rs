//! What is told of a guest that takes its LAN to carry longer or shorter packets than the wire does. Called by `problems` of a
//! configuration, and by those who boot a switch under running guests or give it a wire.

use hpvm_model::{GuestName, Nic, NicKind, SwitchName};

/// `None` when the two are one.
#[must_use]
pub fn beside_the_wire(
    switch: &SwitchName,
    carried_bytes: u32,
    guest: &GuestName,
    nic: &Nic,
    in_guest_bytes: u16,
) -> Option<String> {
    if u32::from(in_guest_bytes) == carried_bytes {
        return None;
    }
    let way_out = match nic.kind {
        NicKind::Lan => ", or give it an avio_lan NIC, which tells it",
        // It was told, and is told no more while it runs.
        NicKind::AvioLan => "",
    };
    Some(format!(
        "the LAN of virtual switch '{switch}' carries packets of {carried_bytes} bytes, and guest {guest} takes {in_guest_bytes} for its NIC at {}; set MTU {carried_bytes} in the guest{way_out}",
        nic.slot
    ))
}
