//! Takes what users of the console did with a guest's drives into the guest's configuration. The worker may not write it; so
//! the next command that changes or starts the guest does, and leaves a record of its own for it.

use std::fs::OpenOptions;

use hpvm_engine::record_file;
use hpvm_host::names::guest_folder;
use hpvm_model::{DeviceKind, GuestConfig, Problem, StorageAddress};
use hpvm_plan::drives::{self, TakenOver};
use hpvm_plan::hotplug::Force;
use hpvm_plan::request::{DeviceRequest, Request};

use crate::facts::identities;
use crate::modify::{Modified, modify};
use crate::vm_host::VmHost;
use crate::{Actor, Mode, Refusal};

/// The configuration as the next command will find it, for who only shows it.
pub(crate) fn seen(host: &VmHost, config: GuestConfig) -> GuestConfig {
    // Only a guest with a drive has anything to take over, and its record is read for nothing else.
    if config.storage.iter().all(|device| device.kind != DeviceKind::Dvd) {
        return config;
    }
    let machine = host.boot_record(&config).ok();
    machine
        .and_then(|machine| drives::take_over(&config, &machine))
        .map_or(config, |taken| taken.config)
}

/// The configuration with what was changed at the console, and a warning for each change that is not taken over. The caller has
/// the right to change the guest.
pub(crate) fn take_over(
    host: &mut VmHost,
    actor: &Actor,
    config: GuestConfig,
    mode: Mode,
) -> Result<(GuestConfig, Vec<Problem>), Refusal> {
    let machine = host.boot_record(&config).ok();
    let Some(taken) = machine.and_then(|machine| drives::take_over(&config, &machine)) else {
        return Ok((config, Vec::new()));
    };
    if mode == Mode::DryRun {
        return Ok((taken.config, taken.refused));
    }
    if !taken.reasons.is_empty() {
        keep(host, actor, &config, &taken)?;
    }
    // Without the mark it is taken over again, which only matters once the drive was changed while the guest was off; so a
    // mark that cannot be made ends the command before that.
    mark(host, &config, taken.through_seq)?;
    Ok((taken.config, taken.refused))
}

/// Gives a running guest the drive of the VM Host back that was ejected at the console, as hpvmmodify does. `None`: no drive
/// of the VM Host was ejected there.
pub fn give_back(
    host: &mut VmHost,
    actor: &Actor,
    config: &GuestConfig,
    address: StorageAddress,
) -> Option<Result<Modified, Refusal>> {
    let machine = host.machine(config)?;
    let drive = drives::given_back(&machine.device_at(address)?.device)?;
    let request = Request { devices: vec![DeviceRequest::Modify(drive)], ..Request::default() };
    Some(modify(host, actor, config, &request, Force::No, Mode::Apply))
}

fn keep(
    host: &mut VmHost,
    actor: &Actor,
    before: &GuestConfig,
    taken: &TakenOver,
) -> Result<(), Refusal> {
    let identities = identities(&host.facts(&taken.config, None)?);
    let written = host.folder(before).exchange_identity(&taken.config)?;
    let actor = Actor { reason: Some(taken.reasons.join("; ")), ..actor.clone() };
    let change = host.registry.change()?;
    change.update(&taken.config, &identities)?;
    change.record(&actor.done(Some(before), Some(&taken.config)))?;
    change.commit()?;
    written.keep();
    Ok(())
}

fn mark(host: &VmHost, config: &GuestConfig, through_seq: u64) -> Result<(), Refusal> {
    let path = host.folder(config).file(guest_folder::BOOT_RECORD);
    let record = OpenOptions::new().read(true).append(true).open(&path);
    let at = jiff::Timestamp::now().to_string();
    record
        .and_then(|record| record_file::mark_taken_over(&record, through_seq, &at))
        .map_err(Refusal::file("write", path))
}
