//! Compares the longest packet that a switch's wire carries with what the guests that run on it take it to be. A switch that gets
//! a wire or is booted does; a guest that starts is compared with everything else that is known of it.

use hpvm_model::{Problem, Vswitch};

use super::wire;
use crate::{Refusal, VmHost};

/// The NICs whose guests take another size than the wire has now: the wire was changed, or they cannot be told.
pub(super) fn problems(host: &VmHost, switch: &Vswitch) -> Result<Vec<Problem>, Refusal> {
    let interface = switch.wire.interface().and_then(wire::interface);
    let Some(interface) = interface else { return Ok(Vec::new()) };
    let carried = interface.mtu_bytes;
    let mut problems = Vec::new();
    for (config, machine) in host.machines()? {
        let on_it = machine.nics.iter().filter(|attached| attached.switch == switch.number);
        for attached in on_it.filter(|attached| u32::from(attached.mtu_in_guest()) != carried) {
            let text = format!(
                "the LAN of virtual switch '{}' carries packets of {carried} bytes, and guest {} takes {} for its NIC at {}; set MTU {carried} in the guest",
                switch.name,
                config.name,
                attached.mtu_in_guest(),
                attached.nic.slot
            );
            problems.push(Problem::warning(interface.name.as_str(), text));
        }
    }
    Ok(problems)
}
