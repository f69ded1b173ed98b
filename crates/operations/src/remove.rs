//! Takes a guest away, brings it back, and clears what has been kept long enough. A removed guest keeps its folder, number
//! and uuid until it is purged; its name is free at once. What the administrator named as backing store is touched by
//! none of this.

use std::collections::BTreeSet;
use std::time::Duration;

use hpvm_host::lock::Busy;
use hpvm_host::{Root, identity, signals};
use hpvm_model::{GuestConfig, GuestName, GuestUuid, Problem, StoreRole};
use hpvm_plan::judge::{Purpose, problems};
use hpvm_registry::{Change, Registry, RemovedGuest, Sharer, Step};
use jiff::{Timestamp, ToSpan};

use crate::folder::{self, Folder};
use crate::{Actor, Mode, Refusal, VmHost, devdb, lost, stores, supervise};

/// What becomes of the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// For as long as hpvmconf says (HPVMKEEPREMOVED).
    AsConfigured,
    Nothing,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Removed {
    /// Until when the guest can be brought back; `None`: it is gone.
    pub kept_until: Option<Timestamp>,
    /// Warnings: what others need of what it had.
    pub problems: Vec<Problem>,
}

/// Removes a guest that is off. Of one whose folder is gone there is nothing to keep.
pub fn remove(
    host: &mut VmHost,
    actor: &Actor,
    config: &GuestConfig,
    keep: Keep,
    mode: Mode,
) -> Result<Removed, Refusal> {
    let removed = attempt(host, actor, config, keep, mode);
    host.record_failure_in(mode, actor, config, removed)
}

fn attempt(
    host: &mut VmHost,
    actor: &Actor,
    config: &GuestConfig,
    keep: Keep,
    mode: Mode,
) -> Result<Removed, Refusal> {
    let (_busy, has_folder) = match host.busy_in(mode, config, actor) {
        Ok(busy) => (busy, true),
        Err(Refusal::NoFolder { .. }) => (None, false),
        Err(refusal) => return Err(refusal),
    };
    let config = host.guest_numbered(config.number)?;
    if host.presence(config.number).is_on() {
        return Err(Refusal::Running(config.name));
    }
    if !has_folder {
        lost::refuse_without_folder(host, &config)?;
    }
    if keep == Keep::Nothing {
        unless_needed(&host.registry, &host.root, &config)?;
    }
    lost::refuse(host, &config)?;
    let days = match keep {
        Keep::AsConfigured if has_folder => host.conf.keep_removed_days()?,
        Keep::AsConfigured | Keep::Nothing => 0,
    };
    let until = Timestamp::now() + (i64::from(days) * 24).hours();
    let problems = Vec::from_iter(built_on(host, &config)?);
    if mode == Mode::DryRun {
        return Ok(Removed { kept_until: (days > 0).then_some(until), problems });
    }
    // A purged guest's number may be another's as soon as the registry says so.
    supervise::forget(host, config.number)?;
    let root = host.root.clone();
    let change = host.begin()?;
    change.remove(config.number, until)?;
    let kept_until = match days {
        0 => match purge(&change, &root, &config) {
            // Nobody said that it must go now: its time comes when nobody needs it.
            Err(Refusal::Needed { .. }) if keep == Keep::AsConfigured => Some(until),
            purged => purged.map(|()| None)?,
        },
        _ => Some(until),
    };
    change.record(&actor.done(Some(&config), None))?;
    change.commit()?;
    Step::RemoveCommitted.reached();
    folder::unlink(&host.root, &config.name, config.uuid)
        .map_err(Refusal::file("remove the link", host.root.guest_link(config.name.as_str())))?;
    Step::RemoveUnlinked.reached();
    if kept_until.is_none() {
        remove_folder(host, config.uuid)?;
    }
    Ok(Removed { kept_until, problems })
}

/// With the guest goes what keeps its disks in mind, while linked clones may need them.
fn built_on(host: &VmHost, config: &GuestConfig) -> Result<Option<Problem>, Refusal> {
    let (mut bases, mut clones) = (BTreeSet::new(), BTreeSet::new());
    let disks = config.storage.iter().filter_map(|device| device.backing.store());
    for (path, found) in stores::found(disks) {
        let Some(identity) = found.ok().as_ref().and_then(identity::of_store) else { continue };
        let sharers = host.registry.sharers(&identity, Some(config.number))?;
        for over in sharers.into_iter().filter(|sharer| sharer.role == StoreRole::Layer) {
            bases.insert(path.clone());
            clones.insert(over.guest.to_string());
        }
    }
    let quoted = |names: BTreeSet<String>| format!("'{}'", Vec::from_iter(names).join("', '"));
    Ok((!clones.is_empty()).then(|| {
        let text = format!(
            "linked clones are built on what it has, so that must stay as it is: {} under {}",
            quoted(bases),
            quoted(clones)
        );
        Problem::warning(config.name.as_str(), text)
    }))
}

/// Removes what is left of a removed guest, for good.
pub fn purge_removed(
    host: &mut VmHost,
    actor: &Actor,
    removed: &RemovedGuest,
    mode: Mode,
) -> Result<(), Refusal> {
    let purged = match mode {
        Mode::Apply => purge_kept(host, actor, removed),
        Mode::DryRun => unless_needed(&host.registry, &host.root, &removed.config),
    };
    host.record_failure_in(mode, actor, &removed.config, purged)
}

/// The registry forgets it first: a folder without a guest is found by `hpvm doctor`, a guest without its folder would be broken.
fn purge_kept(host: &mut VmHost, actor: &Actor, removed: &RemovedGuest) -> Result<(), Refusal> {
    let _at_it = at_it(host, actor, &removed.config);
    let root = host.root.clone();
    let change = host.begin()?;
    purge(&change, &root, &removed.config)?;
    change.record(&actor.done(Some(&removed.config), None))?;
    change.commit()?;
    Step::PurgeCommitted.reached();
    remove_folder(host, removed.config.uuid)
}

/// Tells whoever looks that somebody is at a guest that is kept. Its state is the registry's to keep: where this cannot be told,
/// nothing else is wrong.
fn at_it(host: &VmHost, actor: &Actor, config: &GuestConfig) -> Option<Busy> {
    host.busy_within(config, actor, Duration::ZERO).ok()
}

fn purge(change: &Change<'_>, root: &Root, config: &GuestConfig) -> Result<(), Refusal> {
    unless_needed(change, root, config)?;
    change.purge(config.number)?;
    devdb::forget_unused(change, config)
}

/// Refuses while it is needed.
fn unless_needed(registry: &Registry, root: &Root, config: &GuestConfig) -> Result<(), Refusal> {
    match needed_by(registry, root, config)?.into_iter().next() {
        Some(by) => Err(Refusal::Needed { name: config.name.clone(), by: by.guest }),
        None => Ok(()),
    }
}

/// Other guests, existing or kept, of which a disk lies over an image in this guest's folder, or is one.
pub(crate) fn needed_by(
    registry: &Registry,
    root: &Root,
    config: &GuestConfig,
) -> Result<Vec<Sharer>, Refusal> {
    let folder = Folder::of(root, config.uuid);
    let mut needed_by = Vec::new();
    for entry in std::fs::read_dir(folder.path()).into_iter().flatten().flatten() {
        let metadata = entry.metadata().map_err(Refusal::file("look at", entry.path()))?;
        let Some(identity) = identity::of_store(&metadata) else { continue };
        needed_by.extend(registry.sharers(&identity, Some(config.number))?);
    }
    Ok(needed_by)
}

fn remove_folder(host: &VmHost, uuid: GuestUuid) -> Result<(), Refusal> {
    let folder = Folder::of(&host.root, uuid);
    folder.remove().map_err(Refusal::file("remove", folder.path()))?;
    Step::PurgeRemoved.reached();
    Ok(())
}

/// What became of a removed guest whose time was over.
pub type Cleared = (GuestName, Result<(), Refusal>);

/// Purges every removed guest whose time is over, or until it is interrupted: the rest is the next command's. One that cannot be
/// purged keeps no other. Called by hpvmremove and `hpvm autostart`.
pub fn purge_due(host: &mut VmHost, actor: &Actor) -> Result<Vec<Cleared>, Refusal> {
    let due = host.registry.due(Timestamp::now())?;
    let mut cleared = Vec::new();
    for removed in due {
        if signals::interrupted().is_some() {
            break;
        }
        match purge_kept(host, actor, &removed) {
            // Its time comes when nobody needs it.
            Err(Refusal::Needed { .. }) => {}
            // What could not go is told by the command, and tried again by the next.
            purged => cleared.push((removed.config.name, purged)),
        }
    }
    Ok(cleared)
}

/// A guest that is back.
#[derive(Clone, Debug)]
pub struct Undeleted {
    pub config: GuestConfig,
    /// Warnings: what others did with what it had is for them to settle.
    pub problems: Vec<Problem>,
}

/// Brings a removed guest back, with number and uuid, under its old name or another.
pub fn undelete(
    host: &mut VmHost,
    actor: &Actor,
    removed: &RemovedGuest,
    new_name: Option<&GuestName>,
    mode: Mode,
) -> Result<Undeleted, Refusal> {
    let result = bring_back(host, actor, removed, new_name, mode);
    host.record_failure_in(mode, actor, &removed.config, result)
}

fn bring_back(
    host: &mut VmHost,
    actor: &Actor,
    removed: &RemovedGuest,
    new_name: Option<&GuestName>,
    mode: Mode,
) -> Result<Undeleted, Refusal> {
    let name = new_name.unwrap_or(&removed.config.name).clone();
    let _at_it = at_it(host, actor, &removed.config);
    let root = host.root.clone();
    let config = GuestConfig { name: name.clone(), ..removed.config.clone() };
    let facts = host.facts_of_kept(&config)?;
    let problems = problems(&config, &facts, Purpose::Change { before: Some(&config) });
    // From here on nobody else can take the name.
    let change = host.begin()?;
    if let Some(number) = change.number_of(&name)? {
        return Err(Refusal::NameTakenSince { name, number });
    }
    let folder = Folder::of(&root, config.uuid);
    if !folder.path().is_dir() {
        return Err(Refusal::NoKeptFolder { number: config.number, path: folder.path().into() });
    }
    if mode == Mode::DryRun {
        return Ok(Undeleted { config, problems });
    }
    folder::link(&root, &config.name, config.uuid)?;
    Step::UndeleteLinked.reached();
    let brought = change
        .undelete(config.number, new_name)
        .and_then(|()| change.record(&actor.done(None, Some(&config))))
        .and_then(|_| change.commit());
    if let Err(error) = brought {
        // What cannot be taken back now is found by `hpvm doctor`; this error is the one to tell.
        let _ = folder::unlink(&root, &config.name, config.uuid);
        return Err(error.into());
    }
    Step::UndeleteCommitted.reached();
    host.folder(&config).replace_identity(&config)?;
    Ok(Undeleted { config, problems })
}
