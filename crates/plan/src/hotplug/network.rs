//! NICs of a running guest: which come and go now. A NIC that only changes its switch or port stays as it is: its socket is
//! handed to the other, and the guest sees its link go and come.

use hpvm_model::{GuestConfig, Nic};

use super::{Place, Planned, When};
use crate::facts::HostFacts;
use crate::record::{AttachedNic, DeviceChange, Machine};

/// All NICs in which machine and configuration differ, those that go first.
pub(super) fn plan(machine: &Machine, config: &GuestConfig, facts: &HostFacts) -> Vec<Planned> {
    let going = machine.nics.iter().filter_map(|attached| {
        let when = going(machine, config, facts, attached)?;
        Some(Planned { place: Place::Nic(attached.nic.slot), when })
    });
    let coming = config.nics.iter().filter(|nic| machine.nic_in(nic.slot).is_none());
    let coming = coming.map(|nic| Planned {
        place: Place::Nic(nic.slot),
        when: match why_not_now(machine, config, nic) {
            Some(reason) => When::NextStart(reason),
            None => When::Now(DeviceChange::PlugNic { attached: facts.network.attach(nic) }),
        },
    });
    going.chain(coming).collect()
}

/// What becomes of a NIC of the machine; `None` when it stays as it is.
fn going(
    machine: &Machine,
    config: &GuestConfig,
    facts: &HostFacts,
    attached: &AttachedNic,
) -> Option<When> {
    let slot = attached.nic.slot;
    if machine.is_nic_leaving(slot) {
        let text = "the guest was asked to let it go and has not done so yet";
        return (config.nic_in(slot) != Some(&attached.nic)).then(|| When::NextStart(text.into()));
    }
    match config.nic_in(slot) {
        Some(wanted) if *wanted == attached.nic => None,
        Some(wanted) if is_same_card(wanted, &attached.nic) => {
            let moved = facts.network.attach(wanted);
            // What the guest was given with the card it keeps.
            let AttachedNic { features, mtu, boot, .. } = *attached;
            let moved = AttachedNic { features, mtu, boot, ..moved };
            Some(When::Now(DeviceChange::MoveNic { attached: moved }))
        }
        Some(_) => Some(When::NextStart(format!("what replaces the NIC at {slot} comes with it"))),
        None => Some(When::Now(DeviceChange::UnplugNic { slot })),
    }
}

fn is_same_card(one: &Nic, other: &Nic) -> bool {
    (one.kind, one.slot, one.mac) == (other.kind, other.slot, other.mac)
}

fn why_not_now(machine: &Machine, config: &GuestConfig, nic: &Nic) -> Option<String> {
    let slot = nic.slot;
    if !machine.base.ports.contains(&slot) {
        return Some(format!("the running guest has no port at {slot}"));
    }
    let is_taken = machine.storage.iter().any(|a| a.device.address.slot == slot);
    // What is in the slot now may be on its way out, but the guest is asked first.
    (is_taken && config.adapter_in(slot).is_none())
        .then(|| format!("{slot} is in use by the running guest"))
}
