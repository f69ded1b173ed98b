//! Stores that come to a running guest which has them at another place still.

use hpvm_model::{GuestName, Problem};

use super::{Planned, When};
use crate::facts::HostFacts;
use crate::record::{Access, Attached, DeviceChange, Machine, Sharing};

/// What is wrong with changes by which a store would come that the guest has elsewhere, from where it does not leave before: QEMU
/// opens no store twice that is written, and would say so only when what the store was to replace has left. A shared disk it does
/// open again. That two stores share bytes it never says, so the one has to have left before the other is asked for.
#[must_use]
pub fn held_elsewhere(
    guest: &GuestName,
    machine: &Machine,
    planned: &[Planned],
    facts: &HostFacts,
) -> Vec<Problem> {
    let told = planned.iter().filter_map(|planned| match &planned.when {
        When::Now(change) | When::NextReset { told: Some(change), .. } => Some(change),
        When::NextReset { told: None, .. } | When::NextStart(_) => None,
    });
    let comes = told.flat_map(DeviceChange::media);
    comes
        .filter_map(|comer| {
            let is_held = |has: &&Attached| {
                let leaves = has.identity == comer.identity && leaves_now(has, planned);
                is_same(has, comer, facts) && !leaves
            };
            machine.held().find(is_held).map(|has| still_there(guest, comer, has))
        })
        .collect()
}

fn is_same(has: &Attached, comer: &Attached, facts: &HostFacts) -> bool {
    let stores = has.identity.zip(comer.identity);
    stores.is_some_and(|(has, comes)| facts.overlap(has, comes))
        && has.device.address != comer.device.address
        && (has.access, comer.access) != (Access::ReadOnly, Access::ReadOnly)
        && (has.sharing, comer.sharing) != (Sharing::Reserved, Sharing::Reserved)
}

fn leaves_now(has: &Attached, planned: &[Planned]) -> bool {
    let at = has.device.address;
    planned.iter().any(|planned| match &planned.when {
        When::Now(DeviceChange::DetachAdapter { slot }) => *slot == at.slot,
        When::Now(DeviceChange::Detach { address, .. } | DeviceChange::TakeBack { address }) => {
            *address == at
        }
        When::Now(DeviceChange::Medium { attached, .. }) => attached.device.address == at,
        _ => false,
    })
}

fn still_there(guest: &GuestName, comer: &Attached, has: &Attached) -> Problem {
    let (path, at) = (&comer.device.backing.path, has.device.address);
    let text = format!(
        "'{path}' is the running guest's at {at} until it has left from there; `hpvmstatus -P {guest}` shows what it waits for"
    );
    Problem::error(path, text)
}
