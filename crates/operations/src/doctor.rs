//! Looks for leftovers and damage: registry, folders, links, `/run`, operations that nobody finished. Explains each, and
//! repairs it when asked. Every file of ours is named so that its owner can be told, so looking is enough.
//!
//! What may be a guest is never removed: a folder that says what guest it is and that nobody removed on purpose is made known
//! to the registry again. What another command is making at this moment is left alone: a repair looks again while it keeps
//! the registry, or the guest, from being changed.

mod found;
mod guests;
mod places;
mod provisions;
mod rebuild;
mod room;
mod switches;

use std::path::{Path, PathBuf};

use hpvm_host::removal;
use hpvm_model::{GuestConfig, SwitchNumber, Vswitch};
use hpvm_registry::{Access, Found, Registry, RemovedGuest, Step, SwitchSelector};

pub use rebuild::{Consent, Doubts, Rebuilding, rebuild, rehearse, why_unfound};

use crate::clone::interrupted;
use crate::folder;
use crate::forgotten::{self, Forgotten};
use crate::network::text;
use crate::network::wire::MadeTap;
use crate::{Actor, Refusal, VmHost, lost_record, supervise};

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
    /// The text of a virtual switch.
    SwitchText(Box<Vswitch>),
    /// A tap that was made for a virtual switch and is its wire no more.
    Tap(SwitchNumber, MadeTap),
    /// A virtual switch that the registry does not know, by its text.
    EnterSwitch(Box<Vswitch>),
    /// A guest that the registry does not know and that may have been removed, by its folder.
    Enter(Box<Found>),
    /// A running guest that nobody supervises.
    Adopt(GuestConfig),
    /// A running guest whose boot record only its worker has.
    MendRecord(GuestConfig),
    /// An operation that nobody will finish.
    Settle(Box<hpvm_registry::RecordedOperation>),
    /// The administrator's to do; the command or the deed.
    Tell(String),
    /// The same, where nothing of the VM Host's own is wrong.
    Note(String),
}

/// Looks at everything; where a registry has lost its log at nothing that would be judged by it.
pub fn examine(host: &VmHost) -> Result<Vec<Finding>, Refusal> {
    let mut findings = room::examine(host);
    if let Some(forgotten) = lost_with_log(host)? {
        // What a rebuild leaves out is for the administrator to read.
        let cure = Cure::Tell("hpvm doctor --rebuild".into());
        findings.push(Finding { text: forgotten.to_string(), cure });
        return Ok(findings);
    }
    for sentence in host.registry.check()? {
        let cure = Cure::Tell("hpvm doctor --rebuild".into());
        findings.push(Finding { text: format!("the registry is damaged: {sentence}"), cure });
    }
    let configs = host.registry.all()?;
    for config in &configs {
        guests::examine(host, config, &mut findings)?;
    }
    findings.extend(guests::missing_stores(host, configs));
    findings.extend(places::examine(host)?);
    switches::examine(host, &mut findings)?;
    operations(host, &mut findings)?;
    provisions::examine(host, &mut findings)?;
    Ok(findings)
}

/// The guests that a registry whose log is empty has forgotten, if it has.
fn lost_with_log(host: &VmHost) -> Result<Option<Forgotten>, Refusal> {
    if !host.registry.has_empty_log() {
        return Ok(None);
    }
    match forgotten::refuse(&host.root, &host.registry) {
        Err(Refusal::RegistryBehind(forgotten)) => {
            Ok(Some(forgotten).filter(|forgotten| !forgotten.may_be_unfinished))
        }
        other => other.map(|()| None),
    }
}

fn operations(host: &VmHost, findings: &mut Vec<Finding>) -> Result<(), Refusal> {
    for recorded in host.registry.unfinished()? {
        if interrupted::was_interrupted(host, &recorded) {
            let text = format!("`{}` was interrupted", recorded.operation.command_line);
            findings.push(Finding { text, cure: Cure::Settle(Box::new(recorded)) });
        }
    }
    Ok(())
}

/// Repairs one finding; gives what was done, or `None` when it is the administrator's to do.
pub fn repair(
    host: &mut VmHost,
    actor: &Actor,
    finding: &Finding,
) -> Result<Option<String>, Refusal> {
    let done = match &finding.cure {
        Cure::Remove(path) => {
            // Whoever makes a guest holds the registry from before its folder has the guest's name until it is known.
            let mut gate = Registry::open(&host.root.db(), Access::ReadWrite)?;
            let _held = gate.change()?;
            if !places::examine(host)?.contains(finding) {
                return Ok(Some(format!("{} is in use by now", path.display())));
            }
            remove(path)?;
            format!("removed {}", path.display())
        }
        Cure::Enter(found) => {
            enter(host, found)?;
            "made it known to the registry".into()
        }
        Cure::Link(config) => {
            let (_busy, config) = host.held(config, actor)?;
            folder::link(&host.root, &config.name, config.uuid)?;
            format!("made the link of '{}'", config.name)
        }
        Cure::Identity(config) => {
            let (_busy, config) = host.held(config, actor)?;
            host.folder(&config).replace_identity(&config)?;
            format!("wrote the identity of '{}'", config.name)
        }
        Cure::SwitchText(switch) => {
            // Nobody changes it while it is written down.
            let selector = SwitchSelector::Number(switch.number);
            let change = host.registry.change()?;
            let Some(switch) = change.vswitch(&selector)? else {
                return Ok(Some(format!("virtual switch '{}' is removed by now", switch.name)));
            };
            text::write(&host.root, &switch)?;
            format!("wrote the text of virtual switch '{}'", switch.name)
        }
        Cure::Tap(switch, tap) => switches::remove(host, *switch, tap)?,
        Cure::EnterSwitch(switch) => {
            let change = host.registry.change()?;
            change.enter_vswitch(switch)?;
            change.commit()?;
            "made it known to the registry".into()
        }
        Cure::Adopt(config) => {
            let _busy = host.busy(config, actor)?;
            supervise::adopt(host, config, supervise::TO_LOOK)?;
            format!("took '{}' over", config.name)
        }
        Cure::MendRecord(config) => {
            lost_record::mend(host, actor, config)?;
            format!("wrote the boot record of '{}' again", config.name)
        }
        Cure::Settle(recorded) => {
            interrupted::settle(host, recorded)?;
            "brought it to its end, or took back what it had made".into()
        }
        Cure::Tell(_) | Cure::Note(_) => return Ok(None),
    };
    Step::DoctorCleaned.reached();
    Ok(Some(done))
}

/// Leaves the record of repairs, which failed if one of them did. They are done, whether or not that can be written down.
pub fn record(host: &mut VmHost, actor: &Actor, failed: Option<&Refusal>) {
    let operation = match failed {
        Some(refusal) => actor.failed(None, refusal),
        None => actor.done(None, None),
    };
    let _ = host.registry.record(&operation);
}

/// As a rebuild does it, for one guest.
fn enter(host: &mut VmHost, found: &Found) -> Result<(), Refusal> {
    let change = host.registry.change()?;
    match found {
        Found::Guest(config, identities) => change.insert(config, identities)?,
        Found::Removed(RemovedGuest { config, keep_until, .. }, identities) => {
            change.insert(config, identities)?;
            change.remove(config.number, *keep_until)?;
        }
    }
    Ok(change.commit()?)
}

fn remove(path: &Path) -> Result<(), Refusal> {
    let is_folder = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let removed = if is_folder { removal::folder(path) } else { removal::file(path) };
    removed.map_err(Refusal::file("remove", path))
}
