//! What there is in the device database: `hpvmdevmgmt -l`. Devices of guests without an entry of their own are listed too,
//! and two names of one device are one line.

use std::collections::{BTreeMap, BTreeSet};

use hpvm_model::entry::{AttributeName, EntryTypes, Filter, Listing};
use hpvm_model::{Bytes, Choice, EntryId, EntryType, FileIdentity, Origin, StoreIdentity};
use hpvm_plan::facts::{BlockFact, BlockKind, Content, FileFact, Peripheral};
use hpvm_registry::Entry;

use super::dependents::{self, Dependent};
use super::entries::{EntryRefused, own_name};
use super::presets::Presets;
use super::trail::Trail;
use crate::stores::Stores;
use crate::stores::inodes::Inodes;
use crate::{Refusal, VmHost};

/// One line of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub id: EntryId,
    /// Other names of the same device.
    pub aliases: Vec<String>,
    /// In the order they are printed.
    pub attributes: Vec<(&'static str, String)>,
    /// Guests, each once.
    pub dependents: Vec<String>,
    pub identity: Option<StoreIdentity>,
    /// Of the device, or of the file as it is now; `None` of an image, which says itself what its disk has, and where nobody
    /// answers.
    pub size: Option<Bytes>,
    /// Why hpvmhostrdev made it.
    pub reason: Option<String>,
}

/// The lines that are asked for, in order of type and name.
pub fn list(host: &VmHost, listing: &Listing) -> Result<Vec<Line>, Refusal> {
    let wants =
        |of| matches!(listing.types, EntryTypes::All) || listing.types == EntryTypes::One(of);
    let entries = host.registry.entries()?;
    let mut lines = Vec::new();
    if wants(EntryType::Guest) {
        lines.extend(devices(host, &entries)?);
    }
    if wants(EntryType::Restricted) {
        lines.extend(restrictions(host, &entries));
    }
    if wants(EntryType::Server) {
        lines.extend(servers(&entries));
    }
    lines.retain(|line| line.passes(&listing.filter));
    if lines.is_empty() {
        mistaken(host, &listing.filter)?;
    }
    lines.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(lines)
}

/// A list without a line is an answer to who asks which ones there are, and none to who asks for one by its name.
fn mistaken(host: &VmHost, filter: &Filter) -> Result<(), Refusal> {
    match filter {
        Filter::Name(name) => Err(EntryRefused::NoName(name.clone()).into()),
        Filter::Dependent(guest)
            if !host.registry.all()?.iter().any(|config| config.name.as_str() == guest) =>
        {
            Err(EntryRefused::NoGuest(guest.clone()).into())
        }
        _ => Ok(()),
    }
}

impl Line {
    /// Of what has no more to it.
    fn bare(id: EntryId, attributes: Vec<(&'static str, String)>) -> Line {
        let (aliases, dependents) = (Vec::new(), Vec::new());
        Line { id, aliases, attributes, dependents, identity: None, size: None, reason: None }
    }

    fn passes(&self, filter: &Filter) -> bool {
        match filter {
            Filter::None => true,
            Filter::Name(name) => self.id.name() == name || self.aliases.contains(name),
            Filter::Dependent(guest) => self.dependents.contains(guest),
            Filter::Attribute { name, value } => {
                self.attributes.iter().any(|(known, is)| known == name && is == value)
            }
        }
    }
}

/// Devices that are one thing, by all their names.
#[derive(Default)]
struct Group<'a> {
    names: BTreeSet<&'a str>,
    entries: Vec<&'a Entry>,
    dependents: Vec<&'a Dependent>,
    /// Of a folder that has an entry: drives whose users choose from it.
    choosing: Vec<&'a Dependent>,
}

/// By what names of devices are joined: where they lead, or the name itself where that is nowhere.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Same<'a> {
    File(FileIdentity),
    Name(&'a str),
}

fn same<'a>(path: &'a str, inodes: &Inodes) -> Same<'a> {
    inodes.of(path).map_or(Same::Name(path), Same::File)
}

fn devices(host: &VmHost, entries: &[Entry]) -> Result<Vec<Line>, Refusal> {
    let dependents = dependents::all(host)?;
    let inodes = dependents::inodes(&dependents, entries.iter().map(|entry| entry.id.name()));
    let mut groups: BTreeMap<Same<'_>, Group<'_>> = BTreeMap::new();
    for dependent in &dependents {
        let path = dependent.store.path.as_str();
        let group = groups.entry(same(path, &inodes)).or_default();
        group.names.insert(path);
        group.dependents.push(dependent);
    }
    for entry in entries.iter().filter(|entry| entry.id.entry == EntryType::Guest) {
        let group = groups.entry(same(entry.id.name(), &inodes)).or_default();
        group.entries.push(entry);
        // What is in a drive comes and goes; the folder it is chosen from stays its own.
        let choosing = dependents::of_folder(&dependents, entry.id.name(), &inodes);
        group.choosing.extend(choosing);
    }
    groups.retain(|_, group| group.is_of_use());
    let paths: BTreeSet<&str> = groups.values().flat_map(Group::all_names).collect();
    let stores = Stores::look_at(paths);
    Ok(groups.values().filter_map(|group| group.line(&stores)).collect())
}

impl<'a> Group<'a> {
    /// What came with a guest that was removed waits unseen for whether the guest comes back.
    fn is_of_use(&self) -> bool {
        let speaks =
            |entry: &&Entry| entry.origin != Origin::Guest || entry.attributes.are_worth_keeping();
        !self.dependents.is_empty() || !self.choosing.is_empty() || self.entries.iter().any(speaks)
    }

    fn all_names(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.entries.iter().map(|entry| entry.id.name()).chain(self.names.iter().copied())
    }

    /// An entry by hand names the device, then any entry, then the first name in order.
    fn line(&self, stores: &Stores) -> Option<Line> {
        let by_hand = self.entries.iter().find(|entry| entry.origin == Origin::Hand);
        let entry = by_hand.or(self.entries.first());
        let name = entry.map(|entry| entry.id.name()).or(self.names.first().copied())?;
        let aliases: BTreeSet<&str> = self.all_names().filter(|other| *other != name).collect();
        let is = |choice: fn(&Entry) -> Choice| {
            self.entries.iter().any(|entry| choice(entry) == Choice::Yes)
        };
        let is_image = !self.dependents.is_empty()
            && self.dependents.iter().all(|dependent| dependent.device.is_shared_freely());
        let mut attributes = found(EntryType::Guest, name, stores);
        attributes.push(yes_or_no(AttributeName::Share, is(|e| e.attributes.share) || is_image));
        for (name, choice) in [
            (AttributeName::ReadOnly, is(|e| e.attributes.read_only)),
            (AttributeName::Preserve, is(|e| e.attributes.preserve)),
        ] {
            attributes.extend(choice.then(|| yes_or_no(name, true)));
        }
        let usage = self.entries.iter().find_map(|entry| entry.attributes.usage);
        attributes.extend(
            usage.map(|kind| (AttributeName::Usage.as_str(), kind.as_str().to_ascii_uppercase())),
        );
        let kept = self.entries.iter().find_map(|entry| entry.identity.clone());
        let guests: BTreeSet<&str> =
            self.dependents.iter().chain(&self.choosing).map(|d| d.guest.as_str()).collect();
        let identity = kept.or_else(|| Trail::of(name, stores).identity);
        Some(Line {
            id: EntryId::new(EntryType::Guest, name).ok()?,
            aliases: aliases.into_iter().map(str::to_owned).collect(),
            attributes,
            dependents: guests.into_iter().map(str::to_owned).collect(),
            size: size(identity.as_ref(), name, stores),
            identity,
            reason: None,
        })
    }
}

fn yes_or_no(name: AttributeName, is: bool) -> (&'static str, String) {
    let choice = if is { Choice::Yes } else { Choice::No };
    (name.as_str(), choice.as_str().to_owned())
}

/// What every entry of a path has: its type, whether the path is there, and what it is.
fn found(of: EntryType, path: &str, stores: &Stores) -> Vec<(&'static str, String)> {
    let fact = stores.files.get(path).unwrap_or(&FileFact::Missing);
    let exists = if matches!(fact, FileFact::Missing) { "NO" } else { "YES" };
    vec![
        ("CONFIG", of.as_str().to_owned()),
        ("EXIST", exists.to_owned()),
        ("DEVTYPE", kind(fact).to_owned()),
    ]
}

/// What a device had when its identity was kept, else what the path leads to has now.
fn size(identity: Option<&StoreIdentity>, path: &str, stores: &Stores) -> Option<Bytes> {
    identity.map(|identity| identity.size).or_else(|| match stores.files.get(path)? {
        FileFact::Regular { size, content: Content::Other, .. }
        | FileFact::Block(BlockFact { size, .. }) => Some(*size),
        _ => None,
    })
}

fn kind(fact: &FileFact) -> &'static str {
    match fact {
        FileFact::Regular { .. } => "FILE",
        FileFact::Folder(_) => "DIR",
        FileFact::Block(BlockFact { kind: BlockKind::Volume, .. }) => "LV",
        FileFact::Block(BlockFact { kind: BlockKind::Optical | BlockKind::EmptyDrive, .. }) => {
            "DVD"
        }
        FileFact::Block(_) => "DISK",
        FileFact::Generic { peripheral: Peripheral::Tape, .. } => "TAPE",
        FileFact::Generic { peripheral: Peripheral::Changer, .. } => "CHANGER",
        FileFact::Generic { peripheral: Peripheral::Optical, .. } => "BURNER",
        _ => "UNKNOWN",
    }
}

fn restrictions(host: &VmHost, entries: &[Entry]) -> Vec<Line> {
    let entries: Vec<&Entry> =
        entries.iter().filter(|entry| entry.id.entry == EntryType::Restricted).collect();
    let presets = Presets::of(&host.root).names();
    let is_said = |folder: &&String| entries.iter().any(|entry| entry.id.name() == *folder);
    let presets: Vec<&String> = presets.iter().filter(|folder| !is_said(folder)).collect();
    let names = entries.iter().map(|entry| entry.id.name());
    let stores = Stores::look_at(names.chain(presets.iter().map(|folder| folder.as_str())));
    let mut lines: Vec<Line> = entries.iter().map(|entry| restriction(entry, &stores)).collect();
    lines.extend(presets.iter().filter_map(|folder| {
        let mut attributes = found(EntryType::Restricted, folder, &stores);
        attributes.push(("PRESET", "YES".to_owned()));
        let id = EntryId::new(EntryType::Restricted, folder).ok()?;
        Some(Line::bare(id, attributes))
    }));
    lines
}

fn restriction(entry: &Entry, stores: &Stores) -> Line {
    let mut attributes = found(EntryType::Restricted, entry.id.name(), stores);
    let says = |is: bool, name, value: &str| is.then(|| (name, value.to_owned()));
    let given = &entry.attributes;
    attributes.extend(says(entry.origin.is_automatic(), "AUTORDEV", "YES"));
    attributes.extend(says(given.allow_guests == Choice::Yes, "ALLOW", "GUEST"));
    attributes.extend(says(given.preserve == Choice::Yes, "PRESERVE", "YES"));
    Line {
        size: size(entry.identity.as_ref(), entry.id.name(), stores),
        identity: entry.identity.clone(),
        reason: entry.reason.clone(),
        ..Line::bare(entry.id.clone(), attributes)
    }
}

/// This VM Host, and those that somebody added.
fn servers(entries: &[Entry]) -> Vec<Line> {
    let own = EntryId::new(EntryType::Server, &own_name()).ok();
    let added = entries.iter().map(|entry| entry.id.clone());
    let names: BTreeSet<EntryId> =
        added.filter(|id| id.entry == EntryType::Server).chain(own).collect();
    let line = |id: EntryId| {
        let mut attributes =
            vec![("CONFIG", EntryType::Server.as_str().to_owned()), ("EXIST", "YES".to_owned())];
        let is_kept = |entry: &Entry| entry.id == id && entry.attributes.preserve == Choice::Yes;
        let kept = entries.iter().any(is_kept);
        attributes.extend(kept.then(|| yes_or_no(AttributeName::Preserve, true)));
        Line::bare(id, attributes)
    };
    names.into_iter().map(line).collect()
}
