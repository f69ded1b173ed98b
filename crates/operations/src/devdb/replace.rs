//! Gives an entry another name, and with it every guest that has the device by the old one, removed ones that are kept among
//! them: `hpvmdevmgmt -n`. All of it happens, or nothing.

use hpvm_host::durable::Replaced;
use hpvm_host::lock::Busy;
use hpvm_model::entry::Replacement;
use hpvm_model::{EntryId, EntryType, GuestConfig, GuestName, Problem, Severity};
use hpvm_plan::facts::HostFacts;
use hpvm_plan::judge::{Purpose, problems};
use hpvm_registry::{Change, Entry, RemovedGuest, Selector, Step};

pub use super::dependents::Standing;
use super::dependents::{self, Dependent};
use super::entries::{EntryRefused, identity_of};
use super::registered::real_path;
use crate::facts::identities;
use crate::folder::Folder;
use crate::stores::inodes::Inodes;
use crate::{Actor, Mode, Refusal, VmHost};

/// A guest before and after, and what its new configuration was judged by.
struct Moved {
    before: GuestConfig,
    after: GuestConfig,
    facts: HostFacts,
    /// What is to be known of the new name.
    warnings: Vec<Problem>,
    folder: Folder,
    standing: Standing,
    _busy: Busy,
}

/// A guest that has the device by the new name now, and what there is to know of that.
#[derive(Clone, Debug)]
pub struct Renamed {
    pub guest: GuestName,
    pub standing: Standing,
    pub warnings: Vec<Problem>,
}

/// A name that may be replaced.
struct Judged {
    entry: Option<Entry>,
    moved: Vec<Moved>,
}

/// Replaces a name; tells the guests that have the device by the new one now.
pub fn replace(
    host: &mut VmHost,
    actor: &Actor,
    replacement: &Replacement,
    mode: Mode,
) -> Result<Vec<Renamed>, Refusal> {
    let judge = |host: &VmHost| judged(host, actor, replacement);
    let write = |change: Change<'_>, judged: &Judged| {
        write(change, actor, judged.entry.as_ref(), &replacement.new[0], &judged.moved)
    };
    let renamed = |judged: Judged| {
        let guest = |Moved { after, standing, warnings, .. }: Moved| Renamed {
            guest: after.name,
            standing,
            warnings,
        };
        judged.moved.into_iter().map(guest).collect()
    };
    match mode {
        Mode::DryRun => judge(host).map(renamed),
        Mode::Apply => {
            let replaced = host.decide_and_write(judge, write);
            host.record_failure(actor, None, replaced).map(renamed)
        }
    }
}

fn judged(host: &VmHost, actor: &Actor, replacement: &Replacement) -> Result<Judged, Refusal> {
    let Replacement { old, new: names } = replacement;
    let new = &names[0];
    let inodes = Inodes::at(names.iter().chain([old]).map(EntryId::name));
    for name in names {
        if inodes.lack(name.name()) {
            return Err(EntryRefused::NoSuchPath(name.name().to_owned(), name.clone()).into());
        }
        if inodes.of(name.name()) != inodes.of(new.name()) {
            let (one, other) = (new.name().to_owned(), name.name().to_owned());
            return Err(EntryRefused::NotSame(one, other).into());
        }
    }
    let entry = host.registry.entry(old, &real_path(old.name()))?.filter(|e| e.id == *old);
    if host.registry.entry(new, "")?.is_some() && new != old {
        return Err(EntryRefused::Exists { id: new.clone(), known: new.clone() }.into());
    }
    let moved = match old.entry {
        EntryType::Guest => {
            let mut all = moved(host, actor, old, new)?;
            if inodes.of(old.name()) != inodes.of(new.name()) {
                refuse_anothers(host, old, new, &all)?;
            }
            all.extend(moved_of_removed(host, actor, old, new)?);
            all
        }
        EntryType::Restricted => {
            refuse_restricting(host, new)?;
            Vec::new()
        }
        EntryType::Server => Vec::new(),
    };
    if entry.is_none() && moved.is_empty() {
        return Err(EntryRefused::Missing(old.clone()).into());
    }
    Ok(Judged { entry, moved })
}

/// What is said of the old device, and what is built on it, is nothing of a disk that others have. Only images are everybody's.
fn refuse_anothers(
    host: &VmHost,
    old: &EntryId,
    new: &EntryId,
    moved: &[Moved],
) -> Result<(), Refusal> {
    let mut dependents = dependents::of(host, new.name())?;
    dependents.retain(|d| {
        !d.device.is_shared_freely() && moved.iter().all(|moved| moved.before.name != d.guest)
    });
    match dependents.is_empty() {
        true => Ok(()),
        false => {
            let (old, new) = (old.clone(), new.clone());
            Err(EntryRefused::Anothers { old, new, dependents }.into())
        }
    }
}

fn refuse_restricting(host: &VmHost, id: &EntryId) -> Result<(), Refusal> {
    let dependents = dependents::concerned(host, id.name())?;
    match dependents.is_empty() {
        true => Ok(()),
        false => Err(EntryRefused::InUse { id: id.clone(), dependents }.into()),
    }
}

/// The guests that have the old name, each ours to change; none of them may run.
fn moved(
    host: &VmHost,
    actor: &Actor,
    old: &EntryId,
    new: &EntryId,
) -> Result<Vec<Moved>, Refusal> {
    let mut dependents = dependents::all(host)?;
    dependents.retain(|d| d.store.path == old.name());
    dependents.dedup_by(|a, b| a.guest == b.guest);
    let mut moved = Vec::new();
    let mut running: Vec<Dependent> = Vec::new();
    for dependent in dependents {
        let config = host.guest(&Selector::Name(dependent.guest.clone()))?;
        let (busy, before) = host.held(&config, actor)?;
        if host.presence(before.number).is_on() {
            running.push(dependent);
            continue;
        }
        let after = renamed(&before, old, new);
        let facts = host.facts(&after, Some(&before))?;
        let mut found = problems(&after, &facts, Purpose::Change { before: Some(&before) });
        if found.iter().any(|problem| problem.severity == Severity::Error) {
            return Err(Refusal::Problems(found));
        }
        found.retain(|problem| problem.item == new.name());
        let (folder, standing, warnings) = (host.folder(&after), Standing::Present, found);
        moved.push(Moved { folder, standing, before, after, facts, warnings, _busy: busy });
    }
    match running.is_empty() {
        true => Ok(moved),
        false => Err(EntryRefused::Running { id: old.clone(), dependents: running }.into()),
    }
}

/// The kept guests that have it: nobody judges them before they are brought back.
fn moved_of_removed(
    host: &VmHost,
    actor: &Actor,
    old: &EntryId,
    new: &EntryId,
) -> Result<Vec<Moved>, Refusal> {
    let mut moved = Vec::new();
    for RemovedGuest { config: before, .. } in host.registry.removed()? {
        let after = renamed(&before, old, new);
        if after == before {
            continue;
        }
        let busy = host.busy(&before, actor)?;
        let facts = host.facts(&after, None)?;
        let standing = Standing::Removed { number: before.number };
        let (folder, warnings) = (host.folder(&after), Vec::new());
        moved.push(Moved { folder, standing, before, after, facts, warnings, _busy: busy });
    }
    Ok(moved)
}

fn renamed(config: &GuestConfig, old: &EntryId, new: &EntryId) -> GuestConfig {
    let mut after = config.clone();
    let devices = after.storage.iter_mut();
    let named = devices.flat_map(|d| std::iter::once(&mut d.backing).chain(&mut d.layers));
    for backing in named.filter(|backing| backing.path == old.name()) {
        new.name().clone_into(&mut backing.path);
    }
    after
}

fn write(
    change: Change<'_>,
    actor: &Actor,
    entry: Option<&Entry>,
    new: &EntryId,
    moved: &[Moved],
) -> Result<(), Refusal> {
    // What was written beside the registry goes back to what it was unless it is kept.
    let mut written = Vec::new();
    for moved in moved {
        written.push(moved.folder.exchange_identity(&moved.after)?);
        let files = identities(&moved.facts);
        match moved.standing {
            Standing::Present => change.update(&moved.after, &files)?,
            Standing::Removed { .. } => change.update_removed(&moved.after, &files)?,
        }
        change.record(&actor.done(Some(&moved.before), Some(&moved.after)))?;
    }
    if let Some(old) = entry {
        change.delete_entry(&old.id)?;
        let entry = Entry {
            id: new.clone(),
            real_path: real_path(new.name()),
            file: Inodes::one(new.name()),
            // To name another device is to accept it.
            identity: identity_of(new.name()),
            ..old.clone()
        };
        change.put_entry(&entry)?;
    }
    // What a removed guest had is anybody's.
    for moved in moved.iter().filter(|moved| moved.standing == Standing::Present) {
        super::keep_identities(&change, &moved.after, &moved.facts, super::Keeping::FilesToo)?;
    }
    if moved.is_empty() {
        change.record(&actor.done(None, None))?;
    }
    change.commit()?;
    written.into_iter().for_each(Replaced::keep);
    Step::DevmgmtCommitted.reached();
    for moved in moved {
        // The texts are for people; the next change writes them again.
        let _ = moved.folder.write_texts(&moved.after, None);
    }
    Ok(())
}
