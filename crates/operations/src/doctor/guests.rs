//! Guests that the registry knows: whether each still has what it needs, and whether somebody looks after one that runs.

use hpvm_host::lock;
use hpvm_host::names::guest_folder;
use hpvm_model::{GuestConfig, GuestUuid, StorageDevice};
use hpvm_registry::Selector;

use super::{Cure, Finding};
use crate::displaced::displaced_files;
use crate::lost_record::Loss;
use crate::presence::{Attention, Presence, Supervision};
use crate::{Refusal, VmHost, console_media, lost, lost_record, stores};

pub(super) fn examine(host: &VmHost, uuid: GuestUuid) -> Result<Vec<Finding>, Refusal> {
    let mut findings = Vec::new();
    let Some(config) = &host.registry.guest(&Selector::Uuid(uuid))? else { return Ok(findings) };
    let folder = host.folder(config);
    let is_being_changed = folder.is_being_changed();
    let name = &config.name;
    if !folder.path().is_dir() {
        let shown = folder.path().display();
        let text = format!("the folder of guest '{name}', {shown}, is gone");
        let cure = match folder.is_missing() && !host.presence(config.number).is_on() {
            true => format!(
                "bring {shown} back from a backup, or remove the guest: hpvmremove -P {name}"
            ),
            false => format!("bring {shown} back from a backup"),
        };
        findings.push(Finding { text, cure: Cure::Tell(cure) });
        return Ok(findings);
    }
    if has_lost_identity(host, config)? {
        let text = format!(
            "{} does not say what the registry says",
            folder.file(guest_folder::IDENTITY).display()
        );
        findings.push(Finding { text, cure: Cure::Identity(config.clone()) });
    }
    let presence = host.presence(config.number);
    if let Presence::On { supervision: Supervision::None, .. } = presence
        && !is_being_changed
    {
        let text = format!("guest '{name}' runs and nobody supervises it");
        findings.push(Finding { text, cure: Cure::Adopt(config.clone()) });
    }
    if let Presence::On { attention: Some(attention @ Attention::NoRecord { .. }), .. } = &presence
    {
        let cure = Cure::Tell(format!("hpvmstop -P {name} -g -F && hpvmstart -P {name}"));
        findings.push(Finding { text: format!("guest '{name}' runs: {attention}"), cure });
    }
    if let Presence::On { attention: Some(Attention::WorkerStopped { pid, .. }), .. } = presence {
        let text = format!("the worker of guest '{name}', process {pid}, is stopped by a signal");
        findings.push(Finding { text, cure: Cure::Tell(format!("kill -CONT {pid}")) });
    }
    let loss = lost_record::look(host, config, &presence);
    findings.extend(loss.map(|loss| lost_record(config, loss)));
    if let Some(pid) = lost::qemu_at_rest(host, config) {
        let text = format!(
            "guest '{name}' runs as process {pid}, and its files in /run are gone or damaged"
        );
        let cure = Cure::Tell(format!("shut it down from within, or: hpvmstop -P {name} -h -F"));
        findings.push(Finding { text, cure });
    }
    if let Some(machine) = host.machine(config) {
        let displaced = displaced_files(host, config, &machine).into_iter();
        findings.extend(displaced.map(|file| Finding {
            text: format!("of guest '{name}': {}", file.cause()),
            cure: Cure::Tell(file.cure()),
        }));
    }
    if !presence.is_on()
        && !is_being_changed
        && let Some(damage) = crate::nvram::damage(host, config)
    {
        let text = format!("the firmware variables of guest '{name}' cannot be used: {damage}");
        let cure = Cure::Tell(format!("hpvm nvram -P {name} --restore"));
        findings.push(Finding { text, cure });
    }
    Ok(findings)
}

/// What guests that are off have as disks and media and is not there. Of stores that do not answer in time nothing is told, nor of
/// guests that were changed or removed since.
pub(super) fn missing_stores(
    host: &VmHost,
    mut configs: Vec<GuestConfig>,
) -> Result<Vec<Finding>, Refusal> {
    configs.retain(|config| !host.presence(config.number).is_on());
    let seen: Vec<GuestConfig> =
        configs.iter().map(|config| console_media::seen(host, config.clone())).collect();
    let devices = seen.iter().flat_map(|config| &config.storage);
    let missing = stores::missing(devices.flat_map(StorageDevice::stores));
    let mut findings = Vec::new();
    for (known, config) in configs.iter().zip(&seen) {
        let lacks = config.storage.iter().flat_map(StorageDevice::stores);
        if !lacks.into_iter().any(|path| missing.contains(path))
            || host.registry.guest(&Selector::Uuid(known.uuid))?.as_ref() != Some(known)
        {
            continue;
        }
        let name = &config.name;
        for device in &config.storage {
            let (kind, address) = (device.kind.as_str(), device.address);
            for path in device.stores().filter(|path| missing.contains(*path)) {
                let text = format!(
                    "guest '{name}' cannot start: '{path}', which its {kind} at {address} needs, does not exist"
                );
                let what = format!("put it back at {path}, or see what `hpvm why {name}` says");
                findings.push(Finding { text, cure: Cure::Note(what) });
            }
        }
    }
    Ok(findings)
}

fn lost_record(config: &GuestConfig, loss: Loss) -> Finding {
    let name = &config.name;
    match loss {
        Loss::Mendable { why } => Finding {
            text: format!(
                "the boot record of guest '{name}', which runs, is lost, and its worker still has it: {why}"
            ),
            cure: Cure::MendRecord(config.clone()),
        },
        Loss::Final { why } => Finding {
            text: format!("the boot record of guest '{name}', which runs, is lost: {why}"),
            cure: Cure::Tell(format!("hpvmstop -P {name} -g -F && hpvmstart -P {name}")),
        },
    }
}

/// Whether the text says something else than the registry, and no command is just changing both.
fn has_lost_identity(host: &VmHost, config: &GuestConfig) -> Result<bool, Refusal> {
    let folder = host.folder(config);
    let said = folder.identity().map(without_ports);
    Ok(said.as_ref() != Some(&without_ports(config.clone()))
        && matches!(lock::owner(&folder.file(guest_folder::BUSY)), Ok(None))
        && host.registry.guest(&Selector::Uuid(config.uuid))?.as_ref() == Some(config))
}

/// Ports grow at each start and are not worth rebuilding the text for.
fn without_ports(config: GuestConfig) -> GuestConfig {
    GuestConfig { ports: Vec::new(), ..config }
}
