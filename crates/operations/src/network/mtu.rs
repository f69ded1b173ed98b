//! Compares the longest packet that a switch's wire carries with what the guests that run on it take it to be; without a wire
//! the guests are compared with each other. A switch that gets a wire or is booted does; a guest that starts, or gets a NIC, is
//! compared with everything else that is known of it.

use hpvm_host::nic::Nic;
use hpvm_model::{GuestConfig, Problem, Vswitch};
use hpvm_plan::record::AttachedNic;

use super::wire;
use crate::{Refusal, VmHost};

/// A NIC on the switch, and the running guest whose it is.
type Running<'a> = (&'a GuestConfig, &'a AttachedNic);

/// The NICs whose guests take another size than the wire has now, which was changed or cannot be told to them; without a wire,
/// another than the least.
pub(super) fn problems(host: &VmHost, switch: &Vswitch) -> Result<Vec<Problem>, Refusal> {
    let machines = host.machines()?;
    let on_it: Vec<Running<'_>> = machines
        .iter()
        .flat_map(|(config, machine)| machine.nics.iter().map(move |attached| (config, attached)))
        .filter(|(_, attached)| attached.switch == switch.number)
        .collect();
    Ok(match switch.wire.interface().and_then(wire::interface) {
        Some(interface) => beside_the_wire(switch, &interface, &on_it),
        None => beside_each_other(switch, &on_it),
    })
}

/// The same for the switches without a wire to which NICs of a running guest came. A NIC that comes from another switch keeps the
/// size that its guest was told there.
pub(crate) fn of_comers(host: &VmHost, before: &GuestConfig, after: &GuestConfig) -> Vec<Problem> {
    let comes = |switch: &Vswitch| {
        let mut nics = after.nics.iter().filter(|nic| !before.nics.contains(nic));
        nics.any(|nic| nic.vswitch == switch.name)
    };
    let is_meant = |switch: &&Vswitch| {
        switch.wire.interface().and_then(wire::interface).is_none() && comes(switch)
    };
    // The change is made, and does not fail for what cannot be looked at.
    let switches = host.registry.vswitches().unwrap_or_default();
    switches
        .iter()
        .filter(is_meant)
        .flat_map(|switch| problems(host, switch).unwrap_or_default())
        .collect()
}

fn beside_the_wire(switch: &Vswitch, interface: &Nic, on_it: &[Running<'_>]) -> Vec<Problem> {
    let carried = interface.mtu_bytes;
    let others = on_it.iter().filter(|(_, nic)| u32::from(nic.mtu_in_guest()) != carried);
    let told = others.map(|(config, attached)| {
        let text = format!(
            "the LAN of virtual switch '{}' carries packets of {carried} bytes, and guest {} takes {} for its NIC at {}; set MTU {carried} in the guest",
            switch.name,
            config.name,
            attached.mtu_in_guest(),
            attached.nic.slot
        );
        Problem::warning(interface.name.as_str(), text)
    });
    told.collect()
}

fn beside_each_other(switch: &Vswitch, on_it: &[Running<'_>]) -> Vec<Problem> {
    let Some((holder, smallest)) = on_it.iter().min_by_key(|(_, nic)| nic.mtu_in_guest()) else {
        return Vec::new();
    };
    let least = smallest.mtu_in_guest();
    let others = on_it.iter().filter(|(_, nic)| nic.mtu_in_guest() != least);
    let told = others.map(|(config, attached)| {
        let text = format!(
            "on virtual switch '{}' guest {} takes packets of {} bytes for its NIC at {}, and guest {} no more than {least} for its at {}; set MTU {least} in guest {}",
            switch.name,
            config.name,
            attached.mtu_in_guest(),
            attached.nic.slot,
            holder.name,
            smallest.nic.slot,
            config.name,
        );
        Problem::warning(switch.name.as_str(), text)
    });
    told.collect()
}
