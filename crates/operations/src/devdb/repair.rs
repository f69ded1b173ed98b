//! Finds what does not agree: entries without their device, devices that are not what they were, guests with what is
//! restricted by now. `hpvmdevmgmt -r` prints it as a script to be read first. `-I` repairs none of it: it writes down by
//! what the guests' devices are known, and forgets what no device needs.

use std::collections::BTreeSet;

use hpvm_model::{
    Backing, EntryId, EntryType, GuestConfig, GuestName, Likeness, Origin, StorageDevice,
};
use hpvm_plan::facts::{FileFact, HostFacts, Restriction};
use hpvm_registry::{Change, Entry, Step};

use super::dependents::{self, Dependent, told};
use crate::stores::inodes::Inodes;
use crate::{Actor, Mode, Refusal, VmHost};

/// One thing that does not agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    pub text: String,
    pub command: Vec<String>,
    pub decision: Decision,
}

/// Whether the command may run as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Safe,
    /// Only the administrator knows whether it is right.
    Administrators,
}

/// Everything that does not agree, now.
pub fn flaws(host: &VmHost) -> Result<Vec<Flaw>, Refusal> {
    let mut flaws = Vec::new();
    let mut told_of = BTreeSet::new();
    let entries = host.registry.entries()?;
    let inodes = Inodes::at(entries.iter().map(|entry| entry.id.name()));
    for entry in &entries {
        let name = entry.id.name();
        if entry.id.entry == EntryType::Server || !inodes.lack(name) {
            continue;
        }
        let dependents = match entry.id.entry {
            EntryType::Guest => dependents::of(host, name)?,
            _ => Vec::new(),
        };
        let (command, decision) = way_out(entry, &dependents);
        let users = match dependents.is_empty() {
            true => String::new(),
            false => format!("; {}", told(&dependents)),
        };
        // That came with the guests' devices, of which it is told.
        let is_theirs = entry.origin == Origin::Guest && !entry.attributes.are_worth_keeping();
        if is_theirs && !dependents.is_empty() {
            continue;
        }
        flaws.push(Flaw { text: format!("{} leads nowhere{users}", entry.id), command, decision });
        told_of.extend(dependents.into_iter().map(|dependent| dependent.store.path));
    }
    for config in host.registry.all()? {
        flaws.extend(flaws_of(host, &config, &told_of)?);
    }
    Ok(flaws)
}

/// What an administrator added, or said of it, is his to take back.
fn way_out(entry: &Entry, dependents: &[Dependent]) -> (Vec<String>, Decision) {
    let delete = words(&["hpvmdevmgmt", "-d", &entry.id.to_string()]);
    let is_said = entry.attributes.are_worth_keeping();
    match entry.origin {
        Origin::Host | Origin::Signature if !is_said => {
            (words(&["hpvmhostrdev", "-u"]), Decision::Safe)
        }
        Origin::Guest if !is_said && dependents.is_empty() => (delete, Decision::Safe),
        _ => (delete, Decision::Administrators),
    }
}

/// `told_of` are paths that lead nowhere and have an entry, which was told.
fn flaws_of(
    host: &VmHost,
    config: &GuestConfig,
    told_of: &BTreeSet<String>,
) -> Result<Vec<Flaw>, Refusal> {
    let facts = host.facts(config, None)?;
    let mut flaws = Vec::new();
    for (device, backing) in stores(config) {
        let (guest, path) = (&config.name, &*backing.path);
        let is_missing = facts.files.get(path) == Some(&FileFact::Missing);
        if is_missing && !device.is_place_holder() && !told_of.contains(path) {
            let remove = words(&["hpvmmodify", "-P", guest.as_str(), "-d", &device.to_string()]);
            let (text, command) = match device.backing == *backing {
                true => (format!("guest '{guest}' has '{path}', which leads nowhere"), remove),
                false => under(guest, path),
            };
            flaws.push(Flaw { text, command, decision: Decision::Administrators });
        }
        let Some(known) = facts.registered.get(path) else { continue };
        if let Some(kept) = &known.kept
            && let Some(found) = known.found_behind(device.kind, backing.storage)
            && matches!(kept.compare(found), Likeness::Other | Likeness::Shrunk)
        {
            let text = format!("'{path}' of guest '{guest}' was {kept} and is {found}");
            let entry = EntryId::new(EntryType::Guest, path);
            let accept = entry.map(|entry| format!("{entry}:attr:IDENTIFIER=ACCEPT"));
            let command = words(&["hpvmdevmgmt", "-m", &accept.unwrap_or_default()]);
            flaws.push(Flaw { text, command, decision: Decision::Administrators });
        }
        if is_withheld(&facts, path) {
            let text = format!("guest '{guest}' {}", withheld(path));
            let command = words(&["hpvmmodify", "-P", guest.as_str(), "-d", &device.to_string()]);
            flaws.push(Flaw { text, command, decision: Decision::Administrators });
        }
    }
    Ok(flaws)
}

/// What a linked disk is built on is rather somewhere else than gone.
fn under(guest: &GuestName, path: &str) -> (String, Vec<String>) {
    let text = format!(
        "guest '{guest}' builds on '{path}', which leads nowhere; NEW stands for where it is now"
    );
    let entry = EntryId::new(EntryType::Guest, path).map(|entry| format!("{entry}:NEW"));
    (text, words(&["hpvmdevmgmt", "-n", &entry.unwrap_or_default()]))
}

/// What keeps guests from their stores now, each store of a guest for itself.
pub fn withheld_stores(host: &VmHost) -> Result<Vec<(GuestName, String)>, Refusal> {
    let mut all = Vec::new();
    for config in host.registry.all()? {
        let facts = host.facts(&config, None)?;
        let paths: BTreeSet<&str> = stores(&config).map(|(_, backing)| &*backing.path).collect();
        let kept_from = paths.into_iter().filter(|path| is_withheld(&facts, path));
        all.extend(kept_from.map(|path| (config.name.clone(), withheld(path))));
    }
    Ok(all)
}

fn is_withheld(facts: &HostFacts, path: &str) -> bool {
    let Some(known) = facts.registered.get(path) else { return false };
    let is_lifted = matches!(known.restriction, Restriction::Lifted { .. });
    known.restriction.why().is_some() || !is_lifted && facts.used_by_host.contains_key(path)
}

fn withheld(path: &str) -> String {
    format!("has '{path}', which is restricted or used by this VM Host, and cannot start")
}

fn stores(config: &GuestConfig) -> impl Iterator<Item = (&StorageDevice, &Backing)> {
    config.storage.iter().flat_map(|device| device.backings().map(move |b| (device, b)))
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// What an initialisation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Initialised {
    /// Devices whose identity is known now.
    pub known: usize,
    /// Entries that no guest needs any more.
    pub forgotten: usize,
}

/// Brings the entries that come with guests' devices up to date with the guests.
pub fn initialise(host: &mut VmHost, actor: &Actor, mode: Mode) -> Result<Initialised, Refusal> {
    let mut initialised = Initialised::default();
    // The changes are tried in the registry itself.
    if mode == Mode::DryRun && !host.registry.has_file() {
        return Ok(initialised);
    }
    let written = host.decide_and_write(facts_of_all, |change, facts| {
        initialised = update(&change, facts)?;
        if mode == Mode::Apply {
            change.record(&actor.done(None, None))?;
            change.commit()?;
            Step::DevmgmtCommitted.reached();
        }
        Ok(())
    });
    match mode {
        Mode::DryRun => written?,
        Mode::Apply => host.record_failure(actor, None, written)?,
    };
    Ok(initialised)
}

fn facts_of_all(host: &VmHost) -> Result<Vec<(GuestConfig, HostFacts)>, Refusal> {
    let with_facts = |config: GuestConfig| host.facts(&config, None).map(|facts| (config, facts));
    host.registry.all()?.into_iter().map(with_facts).collect()
}

fn update(
    change: &Change<'_>,
    guests: &[(GuestConfig, HostFacts)],
) -> Result<Initialised, Refusal> {
    let names = || -> Result<BTreeSet<String>, Refusal> {
        let with_identity = change.entries()?.into_iter().filter(|e| e.identity.is_some());
        Ok(with_identity.map(|entry| entry.id.to_string()).collect())
    };
    let before = names()?;
    for (config, facts) in guests {
        super::keep_identities(change, config, facts, super::Keeping::FilesToo)?;
    }
    let known = names()?.difference(&before).count();
    Ok(Initialised { known, forgotten: change.delete_unused_entries()? })
}

#[cfg(test)]
mod tests {
    use hpvm_model::{Attributes, Choice};

    use super::*;

    #[test]
    fn what_an_administrator_said_is_not_thrown_away_unread() {
        let said = Attributes { preserve: Choice::Yes, ..Attributes::default() };
        for (origin, attributes, safe) in [
            (Origin::Guest, Attributes::default(), Some("-d")),
            (Origin::Guest, said, None),
            (Origin::Hand, Attributes::default(), None),
            (Origin::Host, Attributes::default(), Some("-u")),
            (Origin::Signature, said, None),
        ] {
            let id = EntryId::new(EntryType::Guest, "/gone").unwrap();
            let entry = Entry { origin, attributes, ..Entry::by_hand(id, "/gone".into()) };
            let (command, decision) = way_out(&entry, &[]);
            assert_eq!(decision == Decision::Safe, safe.is_some(), "{entry:?}");
            assert_eq!(command[1], safe.unwrap_or("-d"), "{entry:?}");
        }
    }
}
