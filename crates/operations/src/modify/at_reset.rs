//! What of a change waits for the running guest's reset, disks that leave and disks that come: its worker is told when the
//! configuration is kept, so that nothing is done at a reset that nobody wants any more. What it was not told, since this command
//! died before, waits for the next start, or until it is asked for again; what is only to come, until the next change of the guest.

use hpvm_model::{GuestConfig, Problem, StorageAddress};
use hpvm_plan::difference::{self, Effect};
use hpvm_plan::hotplug::{Planned, When};
use hpvm_plan::record::{Consent, DeviceChange, Due, Machine};
use hpvm_registry::Step;

use super::Modified;
use super::ask::ask_guest;
use crate::Refusal;
use crate::vm_host::VmHost;

/// Tells the worker what was planned so, and what turned out to have to wait, each with the reason.
pub(super) fn note(
    host: &VmHost,
    modified: &mut Modified,
    running: Option<&Machine>,
    planned: &[Planned],
    waits: Vec<(DeviceChange, String)>,
) {
    let mut told: Vec<DeviceChange> = planned.iter().filter_map(told).collect();
    let after = modified.after.clone();
    for (change, reason) in waits {
        for change in later(host, &after, change) {
            for address in places(&change) {
                show(modified, address, &Effect::NextReset(reason.clone()));
            }
            if !is_known(running, &change) && !told.contains(&change) {
                told.push(change);
            }
        }
    }
    if told.is_empty() {
        return;
    }
    let places: Vec<StorageAddress> = told.iter().flat_map(places).collect();
    match tell(host, &after, told) {
        Ok(()) => Step::ModifyNoted.reached(),
        Err(refusal) => {
            // A disk must not leave at the reset when nothing takes its place then.
            let back: Vec<DeviceChange> =
                places.iter().map(|address| DeviceChange::TakeBack { address: *address }).collect();
            let _ = ask_guest(host, &after, &back, Due::Now);
            let why = format!("the running guest could not be told: {}", reason(&refusal));
            let mut is_shown = false;
            for address in places {
                is_shown |= show(modified, address, &Effect::NextStart(why.clone()));
            }
            if !is_shown {
                modified.problems.push(Problem::warning(after.name.as_str(), why));
            }
        }
    }
}

/// Tells the worker again what waited before a change that failed, and waits no more.
pub(super) fn note_again(host: &VmHost, config: &GuestConfig, before: &Machine) {
    let Some(machine) = host.machine(config) else { return };
    let lost = machine.waits_no_more(before);
    if !lost.is_empty() {
        // What cannot be told waits for the next start and is shown so; the refusal that led here is the one to tell.
        let _ = tell(host, config, lost);
    }
}

/// What comes is told before what it takes the place of: cut off between the two, nothing leaves.
fn tell(
    host: &VmHost,
    config: &GuestConfig,
    mut changes: Vec<DeviceChange>,
) -> Result<(), Refusal> {
    changes.sort_by_key(|change| !matches!(change, DeviceChange::Attach { .. }));
    ask_guest(host, config, &changes, Due::NextReset).map(drop)
}

fn told(planned: &Planned) -> Option<DeviceChange> {
    match &planned.when {
        When::NextReset { told, .. } => told.clone(),
        When::Now(_) | When::NextStart(_) => None,
    }
}

/// At the reset nobody needs to be asked. What was to go with its adapter goes alone then.
fn later(host: &VmHost, config: &GuestConfig, change: DeviceChange) -> Vec<DeviceChange> {
    let leaves = |address| DeviceChange::Detach { address, consent: Consent::Given };
    match change {
        DeviceChange::Detach { address, .. } => vec![leaves(address)],
        DeviceChange::DetachAdapter { slot } => {
            let machine = host.machine(config);
            let devices = machine.iter().flat_map(|machine| machine.devices_in(slot));
            let unwanted = devices.map(|attached| &attached.device).filter(|device| {
                config.device_at(device.address).is_none_or(|wanted| wanted != *device)
            });
            unwanted.map(|device| leaves(device.address)).collect()
        }
        change @ DeviceChange::Attach { .. } => vec![change],
        _ => Vec::new(),
    }
}

/// A removal that waits already, since when it was asked first.
fn is_known(running: Option<&Machine>, change: &DeviceChange) -> bool {
    match change {
        DeviceChange::Detach { address, .. } => running.is_some_and(|machine| {
            machine.leaves_at_reset(*address) && machine.comes_at_reset(*address).is_none()
        }),
        _ => false,
    }
}

fn places(change: &DeviceChange) -> Vec<StorageAddress> {
    match change {
        DeviceChange::Attach { devices, .. } => {
            devices.iter().map(|attached| attached.device.address).collect()
        }
        change => change.address().into_iter().collect(),
    }
}

/// Gives whether there is a row that shows it.
fn show(modified: &mut Modified, address: StorageAddress, effect: &Effect) -> bool {
    let field = difference::device_field(address);
    let mut is_shown = false;
    for change in modified.fields.iter_mut().filter(|change| change.field == field) {
        change.effect = effect.clone();
        is_shown = true;
    }
    is_shown
}

/// Without what a refusal says of the change as a whole: the configuration is kept by now.
fn reason(refusal: &Refusal) -> String {
    match refusal {
        Refusal::NotTaken(error) => error.clone(),
        Refusal::Interrupted { .. } => "the command was interrupted".to_owned(),
        Refusal::Late { seconds, .. } => format!("it did not take it within {seconds} s"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Left;

    #[test]
    fn a_change_that_is_kept_is_not_said_to_be_none() {
        for refusal in [
            Refusal::NotTaken("the bus is full".into()),
            Refusal::Late { seconds: 120, left: Left::AsItWas },
        ] {
            assert!(refusal.to_string().contains("nothing was changed"), "{refusal}");
            let reason = reason(&refusal);
            assert!(!reason.contains("nothing was changed"), "{reason}");
        }
    }
}
