//! What a change of configuration comes to, field by field: applied now, at the next start, or refused and why. Printed by
//! a dry run and kept in the record of the operation.

use std::collections::BTreeSet;

use hpvm_model::{
    GuestConfig, Memory, Nic, PciSlot, Problem, Severity, StorageAddress, StorageDevice, Vcpus,
};

use crate::hotplug::{Place, Planned, When};
use crate::record::{DeviceChange, Machine, Pending};
use crate::request::{NicRequest, Request};

/// When a field's new value counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Now,
    /// At the guest's next reset, or its next start when that comes first, and why not now.
    NextReset(String),
    /// When the guest does what it was asked for, at its next reset at the latest, and since when it was asked.
    Asked(String),
    /// At the next start, and why not now.
    NextStart(String),
    /// Not at all, and why.
    Refused(String),
}

impl Effect {
    /// Why not now, or not at all; nothing where it is now.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Effect::Now => "",
            Effect::NextReset(reason)
            | Effect::Asked(reason)
            | Effect::NextStart(reason)
            | Effect::Refused(reason) => reason,
        }
    }
}

/// One field that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldChange {
    pub field: String,
    pub from: String,
    pub to: String,
    pub effect: Effect,
}

const NONE: &str = "-";
/// Why a field of [`fixed`] waits.
const FIXED: &str = "the running guest keeps what it was started with";
const IN_FIRMWARE: &str = "the guest is in its firmware, which lets nothing go";

/// All fields but the devices.
fn scalars(config: &GuestConfig) -> [(&'static str, String); 8] {
    let [vcpus, memory] = fixed(config.vcpus, config.memory);
    [
        ("name", config.name.to_string()),
        ("label", config.label.to_string()),
        ("os_type", config.os.to_string()),
        vcpus,
        memory,
        ("entitlement", config.entitlement.to_string()),
        ("start_attr", config.auto_start.to_string()),
        ("runnable_status", config.runnable.to_string()),
    ]
}

/// Those of them that a guest keeps as long as it runs; all others count at once.
fn fixed(vcpus: Vcpus, memory: Memory) -> [(&'static str, String); 2] {
    [("vcpus", vcpus.to_string()), ("memory", memory.to_string())]
}

fn kept_by(machine: &Machine) -> [(&'static str, String); 2] {
    fixed(machine.base.vcpus, machine.base.memory)
}

/// All fields in which `after` differs from `before`. `running` is the machine the guest runs on, `planned` what
/// [`crate::hotplug::plan`] made of its devices.
#[must_use]
pub fn fields(
    before: &GuestConfig,
    after: &GuestConfig,
    running: Option<(&Machine, &[Planned])>,
) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    let kept: Vec<_> = running.into_iter().flat_map(|(machine, _)| kept_by(machine)).collect();
    for ((field, from), (_, to)) in scalars(before).into_iter().zip(scalars(after)) {
        if from != to {
            let is_kept = |(name, value): &(&str, String)| *name == field && *value != to;
            let effect = match kept.iter().any(is_kept) {
                true => Effect::NextStart(FIXED.into()),
                false => Effect::Now,
            };
            changes.push(FieldChange { field: field.into(), from, to, effect });
        }
    }
    let is_kept = |device: &StorageDevice, other: &GuestConfig| {
        other.device_at(device.address).is_some_and(|d| d == device)
    };
    for device in before.storage.iter().filter(|d| !is_kept(d, after)) {
        let to = after.device_at(device.address);
        changes.push(device_change(Some(device), to, running));
    }
    for device in after.storage.iter().filter(|d| before.device_at(d.address).is_none()) {
        changes.push(device_change(None, Some(device), running));
    }
    for nic in before.nics.iter().filter(|nic| after.nic_in(nic.slot) != Some(nic)) {
        changes.push(nic_change(Some(nic), after.nic_in(nic.slot), running));
    }
    for nic in after.nics.iter().filter(|nic| before.nic_in(nic.slot).is_none()) {
        changes.push(nic_change(None, Some(nic), running));
    }
    changes
}

/// The fields of devices that left the configuration before, or were exchanged in it, and are to leave the running guest now,
/// being asked for once more.
#[must_use]
pub fn again(
    addresses: &BTreeSet<StorageAddress>,
    config: &GuestConfig,
    machine: &Machine,
    planned: &[Planned],
) -> Vec<FieldChange> {
    let devices = addresses.iter().filter_map(|address| machine.device_at(*address));
    let has_and_is_to_have =
        devices.map(|attached| (&attached.device, config.device_at(attached.device.address)));
    has_and_is_to_have
        .filter(|(has, wanted)| *wanted != Some(has))
        .map(|(has, wanted)| device_change(Some(has), wanted, Some((machine, planned))))
        .collect()
}

/// All fields of a guest that is to be created.
#[must_use]
pub fn created(config: &GuestConfig) -> Vec<FieldChange> {
    let scalar = |(field, to): (&str, String)| FieldChange {
        field: field.into(),
        from: NONE.into(),
        to,
        effect: Effect::Now,
    };
    let mut changes: Vec<FieldChange> = scalars(config).into_iter().map(scalar).collect();
    changes.extend(config.storage.iter().map(|device| device_change(None, Some(device), None)));
    changes.extend(config.nics.iter().map(|nic| nic_change(None, Some(nic), None)));
    changes
}

/// Marks the fields that the errors among the problems are about. The first error about nothing that changes is a field of
/// its own, so that a refused change never looks like one that goes through.
#[must_use]
pub fn with_refusals(mut changes: Vec<FieldChange>, problems: &[Problem]) -> Vec<FieldChange> {
    for problem in problems.iter().filter(|p| p.severity == Severity::Error) {
        let refused = Effect::Refused(problem.text.clone());
        let is_about = |change: &FieldChange| {
            change.field == problem.item
                || change.to == problem.item
                || change.to.ends_with(&format!(":{}", problem.item))
                // A switch that is not there, which a NIC names.
                || format!("{}:", change.to).contains(&format!(":vswitch:{}:", problem.item))
        };
        let mut about = changes.iter_mut().filter(|change| is_about(change)).peekable();
        if about.peek().is_some() {
            about.for_each(|change| change.effect = refused.clone());
        } else {
            let (field, from, to) = (problem.item.clone(), NONE.into(), NONE.into());
            changes.push(FieldChange { field, from, to, effect: refused });
        }
    }
    changes
}

/// The same of a guest in its firmware: what it is to be asked for now, it does at its next reset.
#[must_use]
pub fn in_firmware(
    mut changes: Vec<FieldChange>,
    machine: &Machine,
    planned: &[Planned],
) -> Vec<FieldChange> {
    let let_go = |planned: &Planned| match &planned.when {
        When::Now(DeviceChange::DetachAdapter { slot }) => machine
            .devices_in(*slot)
            .map(|attached| device_field(attached.device.address))
            .collect(),
        When::Now(DeviceChange::UnplugNic { slot }) => vec![Place::Nic(*slot).to_string()],
        _ => Vec::new(),
    };
    let let_go: BTreeSet<String> = planned.iter().flat_map(let_go).collect();
    for change in changes.iter_mut().filter(|change| change.effect == Effect::Now) {
        if let_go.contains(&change.field) {
            change.effect = Effect::Asked(IN_FIRMWARE.to_owned());
        }
    }
    changes
}

/// The same without MAC addresses that were drawn for the change: made again, it draws others. What is left of a statement is
/// one that has an address drawn.
#[must_use]
pub fn without_drawn(
    mut changes: Vec<FieldChange>,
    before: Option<&GuestConfig>,
    after: &GuestConfig,
    request: &Request,
) -> Vec<FieldChange> {
    let had: BTreeSet<_> = before.iter().flat_map(|config| &config.nics).map(|n| n.mac).collect();
    let given: BTreeSet<_> = request.nics.iter().filter_map(NicRequest::mac).collect();
    let drawn = |nic: &&Nic| !had.contains(&nic.mac) && !given.contains(&nic.mac);
    for nic in after.nics.iter().filter(drawn) {
        let whole = nic.to_string();
        for change in changes.iter_mut().filter(|change| change.to == whole) {
            change.to = nic.without_mac();
        }
    }
    changes
}

/// The name of the field that is the device at an address.
#[must_use]
pub fn device_field(address: StorageAddress) -> String {
    Place::Storage(address).to_string()
}

fn device_change(
    from: Option<&StorageDevice>,
    to: Option<&StorageDevice>,
    running: Option<(&Machine, &[Planned])>,
) -> FieldChange {
    let shown = |d: Option<&StorageDevice>| d.map_or(NONE.to_owned(), ToString::to_string);
    let address = to.or(from).map(|d| d.address);
    let effect = address.map_or(Effect::Now, |at| effect(Place::Storage(at), running));
    FieldChange {
        field: address.map_or("storage".into(), device_field),
        from: shown(from),
        to: shown(to),
        effect,
    }
}

fn nic_change(
    from: Option<&Nic>,
    to: Option<&Nic>,
    running: Option<(&Machine, &[Planned])>,
) -> FieldChange {
    let shown = |nic: Option<&Nic>| nic.map_or(NONE.to_owned(), ToString::to_string);
    let place = to.or(from).map(|nic| Place::Nic(nic.slot));
    FieldChange {
        field: place.map_or("network".into(), |place| place.to_string()),
        from: shown(from),
        to: shown(to),
        effect: place.map_or(Effect::Now, |place| effect(place, running)),
    }
}

fn effect(place: Place, running: Option<(&Machine, &[Planned])>) -> Effect {
    let waits = |planned: &Planned| match &planned.when {
        _ if planned.place != place => None,
        When::Now(_) => None,
        When::NextReset { why, .. } => Some(Effect::NextReset(why.clone())),
        When::NextStart(reason) => Some(Effect::NextStart(reason.clone())),
    };
    let waiting = running.and_then(|(_, planned)| planned.iter().find_map(waits));
    waiting.unwrap_or(Effect::Now)
}

/// What waits for the next start, or for a reset before it: where the configuration differs from the machine that runs.
#[must_use]
pub fn waiting(config: &GuestConfig, machine: &Machine) -> Vec<FieldChange> {
    let mut waits = Vec::new();
    let mut field = |field: &str, from: String, to: String, effect: Effect| {
        if from != to {
            waits.push(FieldChange { field: field.into(), from, to, effect });
        }
    };
    let wanted = fixed(config.vcpus, config.memory);
    for ((name, has), (_, wanted)) in kept_by(machine).into_iter().zip(wanted) {
        field(name, has, wanted, Effect::NextStart(FIXED.to_owned()));
    }
    for attached in &machine.storage {
        let address = attached.device.address;
        let to = config.device_at(address);
        let shown = to.map_or(NONE.to_owned(), ToString::to_string);
        field(
            &device_field(address),
            attached.device.to_string(),
            shown,
            waits_for(machine, attached.device.address),
        );
    }
    for device in config.storage.iter().filter(|d| machine.device_at(d.address).is_none()) {
        field(
            &device_field(device.address),
            NONE.to_owned(),
            device.to_string(),
            waits_for(machine, device.address),
        );
    }
    for attached in machine.nics.iter().filter(|a| config.nic_in(a.nic.slot) != Some(&a.nic)) {
        let slot = attached.nic.slot;
        let to = config.nic_in(slot).map_or(NONE.to_owned(), ToString::to_string);
        let effect = nic_waits_for(machine, slot);
        field(&Place::Nic(slot).to_string(), attached.nic.to_string(), to, effect);
    }
    for nic in config.nics.iter().filter(|nic| machine.nic_in(nic.slot).is_none()) {
        let effect = nic_waits_for(machine, nic.slot);
        field(&Place::Nic(nic.slot).to_string(), NONE.to_owned(), nic.to_string(), effect);
    }
    waits
}

fn nic_waits_for(machine: &Machine, slot: PciSlot) -> Effect {
    let is_about = |change: &DeviceChange| match change {
        DeviceChange::UnplugNic { slot: s } => *s == slot,
        DeviceChange::PlugNic { attached } => attached.nic.slot == slot,
        _ => false,
    };
    asked_since(machine.pending.iter().find(|p| is_about(&p.change)))
}

fn waits_for(machine: &Machine, address: StorageAddress) -> Effect {
    // An exchange may have been told over a removal that waited already.
    if let Some(waits) = machine.waiting_at(address).last() {
        return Effect::NextReset(format!(
            "waits for the guest's next reset since {}",
            waits.since
        ));
    }
    let asked = machine.pending.iter().find(|pending| match &pending.change {
        DeviceChange::DetachAdapter { slot } => *slot == address.slot,
        change => change.is_at(address),
    });
    asked_since(asked)
}

fn asked_since(asked: Option<&Pending>) -> Effect {
    match asked {
        Some(pending) => Effect::Asked(format!("asked of the guest since {}", pending.since)),
        None => Effect::NextStart("waits for the next start".into()),
    }
}
