//! Compares the longest packet that a switch's wire carries with what the guests that run on it take it to be; without a wire
//! the guests are compared with each other, also when one starts or gets a NIC there. Beside a wire the judge compares those.

use hpvm_model::{GuestConfig, InterfaceName, Nic, Problem, Vswitch};
use hpvm_plan::judge::packets;
use hpvm_plan::record::AttachedNic;

use super::{runner, wire};
use crate::{Refusal, VmHost};

/// A NIC on the switch, and the running guest whose it is.
type Running<'a> = (&'a GuestConfig, &'a AttachedNic);

/// The NICs whose guests take another size than the wire has now, which was changed or cannot be told to them; without a wire,
/// another than the least.
pub(super) fn problems(host: &VmHost, switch: &Vswitch) -> Result<Vec<Problem>, Refusal> {
    let machines = host.machines_of(runner::guests_on(host, switch.number))?;
    let on_it: Vec<Running<'_>> = machines
        .iter()
        .flat_map(|(config, machine)| machine.nics.iter().map(move |attached| (config, attached)))
        .filter(|(_, attached)| attached.switch == switch.number)
        .collect();
    Ok(match wire::carried(&switch.wire) {
        Some(carried) => beside_the_wire(switch, carried, &on_it),
        None => beside_each_other(switch, &on_it),
    })
}

/// The same for the switches without a wire to which NICs of a guest that runs now came. A NIC that comes from another switch
/// keeps the size that its guest was told there.
pub(crate) fn of_comers(host: &VmHost, before: &[Nic], after: &[Nic]) -> Vec<Problem> {
    let comes = |switch: &Vswitch| {
        after.iter().any(|nic| nic.vswitch == switch.name && !before.contains(nic))
    };
    let is_meant = |switch: &&Vswitch| comes(switch) && wire::carried(&switch.wire).is_none();
    // The guest runs, and does not fail for what cannot be looked at.
    let switches = host.registry.vswitches().unwrap_or_default();
    switches
        .iter()
        .filter(is_meant)
        .flat_map(|switch| problems(host, switch).unwrap_or_default())
        .collect()
}

fn beside_the_wire(switch: &Vswitch, carried: u32, on_it: &[Running<'_>]) -> Vec<Problem> {
    let told = on_it.iter().filter_map(|(config, attached)| {
        let in_guest = attached.mtu_in_guest();
        packets::beside_the_wire(&switch.name, carried, &config.name, &attached.nic, in_guest)
    });
    let subject = switch.wire.interface().map_or(switch.name.as_str(), InterfaceName::as_str);
    told.map(|text| Problem::warning(subject, text)).collect()
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
