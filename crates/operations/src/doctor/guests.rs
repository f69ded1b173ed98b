//! Guests that the registry knows: whether each still has what it needs, and whether somebody looks after one that runs.

use std::path::Path;
use std::time::{Duration, Instant};

use hpvm_host::lock::{self, pause_for};
use hpvm_host::names::{guest_folder, run_folder};
use hpvm_model::{GuestConfig, GuestName, GuestUuid, StorageDevice};
use hpvm_plan::facts::Lack;
use hpvm_registry::Selector;

use super::{Cure, Finding};
use crate::displaced::displaced_files;
use crate::hanging::{KEEPER, WORKER, stopped_supervisor};
use crate::lost_record::Loss;
use crate::presence::{Attention, Presence, Supervision};
use crate::{Refusal, VmHost, console_media, lost, lost_record, stores};

/// Keeper and worker start each other again within milliseconds; on a busy VM Host that may take longer.
const REPLACED_WITHIN: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);
/// For less than this whoever starts the other has the lock by which that one is known, and loses it with a failure.
const ATTEMPT: Duration = Duration::from_millis(200);

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
    findings.extend(no_lock(name, &folder.file(guest_folder::BUSY)));
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
    if !presence.is_on() && !is_being_changed {
        findings.extend(unusable_variables(host, config));
    }
    Ok(findings)
}

/// What stands in the place of a guest's lock file, and keeps every command from its guest.
fn no_lock(name: &GuestName, path: &Path) -> Option<Finding> {
    let found = path.symlink_metadata().ok()?;
    (!found.is_file()).then(|| {
        let shown = path.display();
        let text = format!(
            "no command can work on guest '{name}': its lock file {shown} is no regular file"
        );
        Finding { text, cure: Cure::Tell(format!("move {shown} away")) }
    })
}

/// Nothing of what another user may not see.
fn unusable_variables(host: &VmHost, config: &GuestConfig) -> Option<Finding> {
    let (name, damage) = (&config.name, crate::nvram::damage(host, config)?);
    let cure = match damage {
        Lack::Forbidden if !host.is_ours() => return None,
        Lack::Forbidden => {
            let nvram = host.folder(config).file(guest_folder::NVRAM);
            format!("give {} to this user", nvram.display())
        }
        Lack::Unfit(_) => format!("hpvm nvram -P {name} --restore"),
    };
    let text = format!("the firmware variables of guest '{name}' cannot be used: {damage}");
    Some(Finding { text, cure: Cure::Tell(cure) })
}

/// Running guests of whose two supervisors one is gone, and has not been started again in time by the other.
pub(super) fn half_supervised(host: &VmHost, configs: &[GuestConfig]) -> Vec<Finding> {
    let until = Instant::now() + REPLACED_WITHIN;
    let alone = |config| Some((config, survivor(host, config)?));
    let mut left: Vec<(&GuestConfig, &str)> = configs.iter().filter_map(alone).collect();
    while !left.is_empty() && Instant::now() < until {
        pause_for(LOOK);
        left.retain_mut(|(config, alone)| {
            let now = survivor(host, config).or_else(|| {
                pause_for(ATTEMPT);
                survivor(host, config)
            });
            *alone = now.unwrap_or(alone);
            now.is_some()
        });
    }
    left.into_iter().map(|(config, survivor)| told_alone(host, config, survivor)).collect()
}

/// Which program of the two lives. Of one that a signal holds its guest's attention tells.
fn survivor(host: &VmHost, config: &GuestConfig) -> Option<&'static str> {
    let survivor =
        match Supervision::at(&host.root.run_dir(config.number.get()).join(run_folder::LOCK)) {
            Ok(Supervision::KeeperAlone) => KEEPER,
            Ok(Supervision::WorkerAlone) => WORKER,
            Ok(Supervision::Full | Supervision::None | Supervision::Unseen) | Err(_) => {
                return None;
            }
        };
    match host.presence(config.number) {
        Presence::On { attention: Some(Attention::WorkerStopped { .. }), .. }
        | Presence::Off { .. } => return None,
        Presence::On { .. } => {}
    }
    (!host.folder(config).is_being_changed()).then_some(survivor)
}

fn told_alone(host: &VmHost, config: &GuestConfig, survivor: &str) -> Finding {
    let name = &config.name;
    let (gone, survives, pause) = match survivor {
        KEEPER => ("worker", "keeper", "10 s"),
        _ => ("keeper", "worker", "second"),
    };
    let text = format!("guest '{name}' runs, and its {gone} is gone");
    let cure = match stopped_supervisor(&host.root.run_dir(config.number.get()), survivor) {
        Some(pid) => format!("let its {survives}, which starts another, go on: kill -CONT {pid}"),
        None => format!(
            "its {survives} tries to start another every {pause}; why that fails is told in {}",
            host.folder(config).file(guest_folder::LOG).display()
        ),
    };
    Finding { text, cure: Cure::Tell(cure) }
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
