//! Looks for leftovers and damage: registry, folders, links, `/run`, operations that nobody finished. Explains each, and
//! repairs it when asked. Every file of ours is named so that its owner can be told, so looking is enough.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hpvm_host::process;
use hpvm_model::{GuestConfig, GuestNumber, GuestUuid};
use hpvm_registry::{Found, Outcome, Rebuilt, Step, portable};

use crate::folder::{self, Folder, IDENTITY};
use crate::presence::{Presence, Supervision};
use crate::{Actor, Refusal, VmHost, facts, supervise};

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is and why it should not be so.
    pub text: String,
    pub cure: Cure,
}

/// What a repair does about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cure {
    /// A folder or file of ours that belongs to nothing.
    Remove(PathBuf),
    /// A link that is missing or leads elsewhere.
    Link(GuestConfig),
    /// The text a lost registry is rebuilt from.
    Identity(GuestConfig),
    /// A running guest that nobody supervises.
    Adopt(GuestConfig),
    /// An operation that nobody will finish.
    Settle(Box<hpvm_registry::RecordedOperation>),
    /// The administrator's to do; the command or the deed.
    Tell(String),
}

/// Looks at everything.
pub fn examine(host: &VmHost) -> Result<Vec<Finding>, Refusal> {
    let mut findings = Vec::new();
    for sentence in host.registry.check()? {
        let cure = Cure::Tell("hpvm doctor --rebuild".into());
        findings.push(Finding { text: format!("the registry is damaged: {sentence}"), cure });
    }
    let guests = host.registry.all()?;
    let kept: Vec<GuestConfig> = host.registry.removed()?.into_iter().map(|r| r.config).collect();
    for config in &guests {
        guest(host, config, &mut findings)?;
    }
    folders(host, &guests, &kept, &mut findings);
    links(host, &guests, &mut findings);
    run_folders(host, &guests, &mut findings);
    operations(host, &mut findings)?;
    provisions(host, &mut findings);
    Ok(findings)
}

fn guest(host: &VmHost, config: &GuestConfig, findings: &mut Vec<Finding>) -> Result<(), Refusal> {
    let folder = host.folder(config);
    let name = &config.name;
    if !folder.path().is_dir() {
        let text = format!("the folder of guest '{name}', {}, is gone", folder.path().display());
        let cure = Cure::Tell(format!("bring {} back from a backup", folder.path().display()));
        findings.push(Finding { text, cure });
        return Ok(());
    }
    let identity = std::fs::read_to_string(folder.file(IDENTITY)).unwrap_or_default();
    if portable::read(&identity).ok().map(without_ports).as_ref()
        != Some(&without_ports(config.clone()))
    {
        let text =
            format!("{} does not say what the registry says", folder.file(IDENTITY).display());
        findings.push(Finding { text, cure: Cure::Identity(config.clone()) });
    }
    let presence = host.presence(config.number);
    if let Presence::On { supervision: Supervision::None, .. } = presence {
        let text = format!("guest '{name}' runs and nobody supervises it");
        findings.push(Finding { text, cure: Cure::Adopt(config.clone()) });
    }
    if !presence.is_on()
        && let Some(damage) = crate::nvram::damage(host, config)
    {
        let text = format!("the firmware variables of guest '{name}' cannot be used: {damage}");
        let cure = Cure::Tell(format!("hpvm nvram -P {name} --restore"));
        findings.push(Finding { text, cure });
    }
    Ok(())
}

/// Ports grow at each start and are not worth rebuilding the text for.
fn without_ports(config: GuestConfig) -> GuestConfig {
    GuestConfig { ports: Vec::new(), ..config }
}

fn folders(
    host: &VmHost,
    guests: &[GuestConfig],
    kept: &[GuestConfig],
    findings: &mut Vec<Finding>,
) {
    let known: Vec<GuestUuid> = guests.iter().chain(kept).map(|config| config.uuid).collect();
    for (name, path) in entries(&host.root.uuids()) {
        let is_ours = name.parse::<GuestUuid>().is_ok_and(|uuid| known.contains(&uuid));
        if !is_ours {
            let text = format!(
                "{} belongs to no guest: its creation or removal was interrupted",
                path.display()
            );
            findings.push(Finding { text, cure: Cure::Remove(path) });
        }
    }
}

fn links(host: &VmHost, guests: &[GuestConfig], findings: &mut Vec<Finding>) {
    let mut wanted: BTreeMap<&str, &GuestConfig> =
        guests.iter().map(|config| (config.name.as_str(), config)).collect();
    for (name, path) in entries(&host.root.guests()) {
        match wanted.remove(name.as_str()) {
            Some(config) if leads_to(&path, config.uuid) => {}
            Some(config) => {
                let text = format!("{} does not lead to the guest's folder", path.display());
                findings.push(Finding { text, cure: Cure::Link(config.clone()) });
            }
            None => {
                let text = format!("{} is the name of no guest", path.display());
                findings.push(Finding { text, cure: Cure::Remove(path) });
            }
        }
    }
    for config in wanted.into_values() {
        let link = host.root.guest_link(config.name.as_str());
        let text = format!("the link {} is missing", link.display());
        findings.push(Finding { text, cure: Cure::Link(config.clone()) });
    }
}

fn leads_to(link: &Path, uuid: GuestUuid) -> bool {
    std::fs::read_link(link).is_ok_and(|target| target == Path::new(&format!("../uuids/{uuid}")))
}

fn run_folders(host: &VmHost, guests: &[GuestConfig], findings: &mut Vec<Finding>) {
    for number in host.run_folders() {
        let is_known = guests.iter().any(|config| config.number.get() == number);
        let path = host.root.run_dir(number);
        if is_known {
            continue;
        }
        let is_on = GuestNumber::new(number).is_some_and(|n| host.presence(n).is_on());
        let (text, cure) = match is_on {
            true => (
                format!("a guest with number {number} runs that the registry does not know"),
                Cure::Tell("hpvm doctor --rebuild".into()),
            ),
            false => (format!("{} belongs to no guest", path.display()), Cure::Remove(path)),
        };
        findings.push(Finding { text, cure });
    }
}

fn operations(host: &VmHost, findings: &mut Vec<Finding>) -> Result<(), Refusal> {
    for recorded in host.registry.unfinished()? {
        if let Outcome::Running(owner) = &recorded.operation.outcome
            && (owner.boot_id != host.boot_id || !process::is_alive(owner.pid, owner.start_time))
        {
            let text = format!("`{}` was interrupted", recorded.operation.command_line);
            findings.push(Finding { text, cure: Cure::Settle(Box::new(recorded)) });
        }
    }
    Ok(())
}

fn provisions(host: &VmHost, findings: &mut Vec<Finding>) {
    if let Err(reason) = host.engine() {
        let cure = Cure::Tell("install qemu-system-x86 10 or set HPVMQEMU in hpvmconf".into());
        findings.push(Finding { text: format!("QEMU cannot be used: {reason}"), cure });
    }
    let firmware = host.conf.firmware();
    if !matches!(facts::file(&firmware), hpvm_plan::facts::FileFact::Regular { .. }) {
        let text = format!("the firmware {} cannot be used", firmware.display());
        let cure = Cure::Tell("install package ovmf or set HPVMFIRMWARE in hpvmconf".into());
        findings.push(Finding { text, cure });
    }
}

fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut entries: Vec<(String, PathBuf)> = entries
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect();
    entries.sort();
    entries
}

/// Repairs one finding; gives what was done, or `None` when it is the administrator's to do.
pub fn repair(
    host: &mut VmHost,
    actor: &Actor,
    finding: &Finding,
) -> Result<Option<String>, Refusal> {
    let done = match &finding.cure {
        Cure::Remove(path) => {
            remove(path)?;
            format!("removed {}", path.display())
        }
        Cure::Link(config) => {
            folder::link(&host.root, &config.name, config.uuid)?;
            format!("made the link of '{}'", config.name)
        }
        Cure::Identity(config) => {
            Folder::of(&host.root, config.uuid).replace_identity(config)?;
            format!("wrote the identity of '{}'", config.name)
        }
        Cure::Adopt(config) => {
            let _busy = host.busy(config, actor)?;
            supervise::adopt(host, config)?;
            format!("took '{}' over", config.name)
        }
        Cure::Settle(recorded) => {
            let outcome = Outcome::Failed("interrupted".into());
            let ended = hpvm_registry::Operation { outcome, ..recorded.operation.clone() };
            host.registry.finish(recorded.id, &ended)?;
            "noted that it was interrupted".into()
        }
        Cure::Tell(_) => return Ok(None),
    };
    Step::DoctorCleaned.reached();
    Ok(Some(done))
}

fn remove(path: &Path) -> Result<(), Refusal> {
    let is_folder = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let removed =
        if is_folder { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Refusal::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Makes a lost or damaged registry anew from the guests' folders. A guest that has no link was removed and is kept.
pub fn rebuild(root: &hpvm_host::Root) -> Result<Rebuilt, Refusal> {
    root.ensure()?;
    let found: Vec<Found> = entries(&root.uuids())
        .into_iter()
        .filter_map(|(_, path)| std::fs::read_to_string(path.join(IDENTITY)).ok())
        .filter_map(|text| portable::read(&text).ok())
        .map(|config| found(root, config))
        .collect();
    Ok(hpvm_registry::rebuild(&root.db(), found)?)
}

fn found(root: &hpvm_host::Root, config: GuestConfig) -> Found {
    if leads_to(&root.guest_link(config.name.as_str()), config.uuid) {
        let files = facts::files(std::iter::once(&config));
        let identities = crate::vm_host::identities_of(&files);
        return Found::Guest(config, identities);
    }
    let now = jiff::Timestamp::now();
    Found::Removed(hpvm_registry::RemovedGuest {
        config,
        removed_at: now,
        keep_until: now + KEEP_FOUND,
    })
}

/// A guest without a link is kept a week from the rebuild on, since nobody knows when it was removed.
const KEEP_FOUND: jiff::SignedDuration = jiff::SignedDuration::from_hours(7 * 24);
