//! Adds, changes and deletes entries: `hpvmdevmgmt -a`, `-m`, `-d`. What is written, with its record, is
//! what was decided upon: see `VmHost::decide_and_write`.

use std::path::Path;

use hpvm_host::reservations::{self, Keeps};
use hpvm_model::entry::{AttributeName, Deletion, Setting};
use hpvm_model::{
    AdapterKind, Choice, DeviceKind, EntryId, EntryType, Likeness, Origin, StorageDevice,
    StorageType, StoreIdentity, quoted,
};
use hpvm_plan::facts::{FileFact, Reservations, Restriction};
use hpvm_plan::judge::registered::ONE_PATH_OF_SEVERAL;
use hpvm_registry::{Change, Entry, Step};

use super::carry_out;
use super::dependents::{self, Dependent, told};
use super::presets::Presets;
use super::registered::{file_identity_of, real_path, restriction_of};
use super::trail::Trail;
use crate::stores::Stores;
use crate::stores::inodes::Inodes;
use crate::{Actor, Mode, Refusal, VmHost};

/// Why an entry stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum EntryRefused {
    #[error("there is no entry {0}; `hpvmdevmgmt -l {type}` lists those there are", r#type = .0.entry.as_str())]
    Missing(EntryId),
    #[error("no entry has the name '{0}'; `hpvmdevmgmt -l all` lists those there are")]
    NoName(String),
    #[error("there is no guest '{0}' on which entries could depend; `hpvmstatus` lists the guests")]
    NoGuest(String),
    #[error("{0} is this VM Host itself, which is listed without an entry and is not deleted")]
    OwnServer(EntryId),
    #[error("{id} is there already{}", known_as(.id, .known))]
    Exists { id: EntryId, known: EntryId },
    #[error("'{0}' does not exist, so nobody can tell what {1} would be about")]
    NoSuchPath(String, EntryId),
    #[error("{id} cannot be restricted while guests use it or what lies below it: {}", told(.dependents))]
    InUse { id: EntryId, dependents: Vec<Dependent> },
    #[error("{id} has dependents, which go by `hpvmmodify -P GUEST -d STATEMENT`: {}", told(.dependents))]
    HasDependents { id: EntryId, dependents: Vec<Dependent> },
    #[error("'{path}' is restricted or used by this VM Host and is no device for guests: {why}")]
    NotForGuests { path: String, why: String },
    #[error("'{path}' is a {what}, which is nothing that a guest's device could have behind it")]
    NoDevice { path: String, what: &'static str },
    #[error("this VM Host uses {id} now, and it stays restricted until it does not: {uses}")]
    HostUses { id: EntryId, uses: String },
    #[error(
        "{} is restricted without an entry, since it is this VM Host's own; `hpvmdevmgmt -m {} --reason TEXT` would give it away", .0, giving_away(.0)
    )]
    Preset(EntryId),
    #[error("'{path}' cannot be marked SHARE=YES: {why}")]
    Share { path: String, why: String },
    #[error("'{path}' cannot be kept for a {}: {}", .usage.as_str(), told(.dependents))]
    Usage { path: String, usage: DeviceKind, dependents: Vec<Dependent> },
    #[error(
        "ALLOW=GUEST gives guests what this VM Host uses itself, or forbade; say why with --reason"
    )]
    ReasonMissing,
    #[error(
        "'{0}' has no identity that could be accepted: a block device has one, and a disk in a raw file since a guest was started with it"
    )]
    NoIdentity(String),
    #[error(
        "dependents follow from the guests' devices and are not deleted here; what there is{}",
        if .0.is_empty() { ": none".to_owned() } else { format!(", and how it goes: {}", commands(.0)) }
    )]
    DependentsFollow(Vec<Dependent>),
    #[error("{id} cannot be replaced while guests that have it run; stop them first with `hpvmstop -P GUEST -g`: {}", told(.dependents))]
    Running { id: EntryId, dependents: Vec<Dependent> },
    #[error(
        "{new} cannot take the place of {old}, since it is another guest's already: {}; name another device, or take it from there first: {}",
        told(.dependents), commands(.dependents)
    )]
    Anothers { old: EntryId, new: EntryId, dependents: Vec<Dependent> },
    #[error("'{0}' and '{1}' do not lead to the same device, so one is no other name of the other")]
    NotSame(String, String),
}

fn known_as(id: &EntryId, known: &EntryId) -> String {
    if id == known { String::new() } else { format!(", as {known}") }
}

fn giving_away(id: &EntryId) -> String {
    quoted(&format!("{id}:attr:ALLOW=GUEST"))
}

fn commands(dependents: &[Dependent]) -> String {
    let command =
        |d: &Dependent| format!("`hpvmmodify -P {} -d {}`", d.guest, quoted(&d.device.to_string()));
    dependents.iter().map(command).collect::<Vec<_>>().join(", ")
}

/// What became of one entry, or would become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    pub before: Option<Entry>,
    pub after: Option<Entry>,
}

impl Changed {
    /// Whether another device is accepted than the one that is known; the first of an entry is.
    #[must_use]
    pub fn accepts_another(&self) -> bool {
        let identity = |entry: &Option<Entry>| entry.as_ref()?.identity.clone();
        match (identity(&self.before), identity(&self.after)) {
            (Some(kept), Some(found)) => kept.compare(&found) != Likeness::Same,
            _ => true,
        }
    }
}

/// Adds an entry made by hand.
pub fn add(host: &mut VmHost, actor: &Actor, id: &EntryId, mode: Mode) -> Result<Changed, Refusal> {
    carry_out(host, actor, mode, write, |host| added(host, id))
}

/// Deletes an entry or an attribute.
pub fn delete(
    host: &mut VmHost,
    actor: &Actor,
    deletion: &Deletion,
    mode: Mode,
) -> Result<Changed, Refusal> {
    carry_out(host, actor, mode, write, |host| match deletion {
        Deletion::Entry(id) => deleted(host, id),
        Deletion::Attribute(id, name) => cleared(host, id, *name),
        Deletion::Dependent { entry, dependent } => {
            if !host.registry.all()?.iter().any(|config| config.name.as_str() == dependent) {
                return Err(EntryRefused::NoGuest(dependent.clone()).into());
            }
            let mut follow = dependents::all(host)?;
            follow.retain(|d| d.guest.as_str() == dependent);
            follow.retain(|d| entry.as_ref().is_none_or(|path| d.store.path == *path));
            follow.dedup_by(|a, b| (&a.guest, &a.device) == (&b.guest, &b.device));
            Err(EntryRefused::DependentsFollow(follow).into())
        }
    })
}

/// Changes an attribute.
pub fn set(
    host: &mut VmHost,
    actor: &Actor,
    id: &EntryId,
    setting: Setting,
    mode: Mode,
) -> Result<Changed, Refusal> {
    carry_out(host, actor, mode, write, |host| settled(host, actor, id, setting))
}

fn write(change: Change<'_>, actor: &Actor, changed: &Changed) -> Result<(), Refusal> {
    match (&changed.before, &changed.after) {
        (_, Some(entry)) => change.put_entry(entry)?,
        (Some(entry), None) => change.delete_entry(&entry.id)?,
        (None, None) => {}
    }
    change.record(&actor.done(None, None))?;
    change.commit()?;
    Step::DevmgmtCommitted.reached();
    Ok(())
}

fn added(host: &VmHost, id: &EntryId) -> Result<Changed, Refusal> {
    let path = id.name();
    let real = real_path(path);
    let before = host.registry.entry(id, &real)?;
    if let Some(known) = before.as_ref().filter(|known| known.origin == Origin::Hand) {
        let (id, known) = (id.clone(), known.id.clone());
        return Err(EntryRefused::Exists { id, known }.into());
    }
    match id.entry {
        EntryType::Server => {}
        EntryType::Guest => fit_for_guests(host, id)?,
        EntryType::Restricted => {
            require_path(id)?;
            let dependents = dependents::concerned(host, path)?;
            if !dependents.is_empty() {
                return Err(EntryRefused::InUse { id: id.clone(), dependents }.into());
            }
        }
    }
    let entry = match before.clone() {
        // It came by itself; from now on it is the administrator's.
        Some(entry) => Entry { origin: Origin::Hand, ..entry },
        None => Entry { real_path: real, ..fresh(id) },
    };
    Ok(Changed { before, after: Some(entry) })
}

/// An entry by hand, with by what its device or folder is known again.
fn fresh(id: &EntryId) -> Entry {
    let entry = Entry::by_hand(id.clone(), real_path(id.name()));
    if id.entry == EntryType::Server {
        return entry;
    }
    let identity = identity_of(id.name());
    Entry { identity, file: Inodes::one(id.name()), ..entry }
}

/// The device a path leads to now.
pub(super) fn identity_of(path: &str) -> Option<StoreIdentity> {
    Trail::of(path, &Stores::look_at([path])).identity
}

fn require_path(id: &EntryId) -> Result<(), Refusal> {
    match Inodes::at([id.name()]).lack(id.name()) {
        false => Ok(()),
        true => Err(EntryRefused::NoSuchPath(id.name().to_owned(), id.clone()).into()),
    }
}

fn fit_for_guests(host: &VmHost, id: &EntryId) -> Result<(), Refusal> {
    require_path(id)?;
    let path = id.name();
    let stores = Stores::look_at([path]);
    if let Some(FileFact::Special(what)) = stores.files.get(path) {
        return Err(EntryRefused::NoDevice { path: path.to_owned(), what }.into());
    }
    let trail = Trail::of(path, &stores);
    let presets = Presets::of(&host.root);
    let restriction = restriction_of(&host.registry, &trail, &presets)?;
    if let Restriction::Lifted { .. } = restriction {
        return Ok(());
    }
    match restriction.why().or_else(|| stores.used_for(path)) {
        Some(why) => Err(EntryRefused::NotForGuests { path: path.to_owned(), why }.into()),
        None => Ok(()),
    }
}

fn deleted(host: &VmHost, id: &EntryId) -> Result<Changed, Refusal> {
    let before = host.registry.entry(id, &real_path(id.name()))?;
    if id.entry == EntryType::Guest {
        let mut dependents = dependents::of(host, id.name())?;
        let all = dependents::all(host)?;
        dependents.extend(
            dependents::of_folder(&all, id.name(), &dependents::inodes(&all, [id.name()]))
                .into_iter()
                .cloned(),
        );
        if !dependents.is_empty() {
            return Err(EntryRefused::HasDependents { id: id.clone(), dependents }.into());
        }
    }
    let Some(entry) = before else {
        let presets = Presets::of(&host.root).names();
        let is_preset = presets.iter().any(|folder| folder == id.name());
        return Err(match id.entry {
            EntryType::Restricted if is_preset => EntryRefused::Preset(id.clone()),
            EntryType::Server if id.name() == own_name() => EntryRefused::OwnServer(id.clone()),
            _ => EntryRefused::Missing(id.clone()),
        }
        .into());
    };
    if entry.origin.is_automatic() {
        let path = entry.id.name();
        if let Some(uses) = Stores::look_at([path]).used_for(path) {
            return Err(EntryRefused::HostUses { id: id.clone(), uses }.into());
        }
    }
    Ok(Changed { before: Some(entry), after: None })
}

/// The gdev entry beside an rdev entry of the same thing: it stays, and counts for nothing as long as that is there.
pub fn overruled(host: &VmHost, restricted: &EntryId) -> Result<Option<EntryId>, Refusal> {
    let Ok(id) = EntryId::new(EntryType::Guest, restricted.name()) else { return Ok(None) };
    Ok(host.registry.entry(&id, &real_path(id.name()))?.map(|entry| entry.id))
}

/// What this VM Host is called in the list.
pub(super) fn own_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn cleared(host: &VmHost, id: &EntryId, name: AttributeName) -> Result<Changed, Refusal> {
    let before = host.registry.entry(id, &real_path(id.name()))?;
    let before = before.ok_or_else(|| EntryRefused::Missing(id.clone()))?;
    let mut after = before.clone();
    after.attributes.clear(name);
    if name == AttributeName::Identifier {
        after.identity = None;
    }
    let says_nothing = after.origin == Origin::Guest
        && !after.attributes.are_worth_keeping()
        && after.identity.is_none();
    let after = (!says_nothing).then_some(after);
    Ok(Changed { before: Some(before), after })
}

fn settled(
    host: &VmHost,
    actor: &Actor,
    id: &EntryId,
    setting: Setting,
) -> Result<Changed, Refusal> {
    let path = id.name();
    let before = host.registry.entry(id, &real_path(path))?;
    let dependents = match id.entry {
        EntryType::Guest => dependents::of(host, path)?,
        EntryType::Restricted | EntryType::Server => Vec::new(),
    };
    let is_known = before.is_some() || !dependents.is_empty();
    if !is_known && setting != Setting::AllowGuests {
        return Err(EntryRefused::Missing(id.clone()).into());
    }
    let mut after = match before.clone() {
        Some(entry) => entry,
        None => fresh_for(id, setting)?,
    };
    match setting {
        Setting::Share(Choice::Yes) => shareable(path, &dependents)?,
        Setting::Usage(usage) => {
            let choosing = dependents::choosing(host, path)?;
            usable(path, usage, &[dependents, choosing].concat())?;
        }
        Setting::AllowGuests if actor.reason.as_deref().unwrap_or_default().trim().is_empty() => {
            return Err(EntryRefused::ReasonMissing.into());
        }
        Setting::AcceptIdentifier => {
            // A file's length alone is nothing to accept; that it is another than before is.
            let of_file = || before.as_ref()?.identity.as_ref().and(file_identity_of(path));
            let found = identity_of(path).or_else(of_file);
            let found = found.ok_or_else(|| EntryRefused::NoIdentity(path.to_owned()))?;
            after.identity = Some(found);
        }
        _ => {}
    }
    after.attributes.set(setting);
    Ok(Changed { before, after: Some(after) })
}

/// The entry for something that guests have already, or that is to be given to them.
fn fresh_for(id: &EntryId, setting: Setting) -> Result<Entry, Refusal> {
    if setting == Setting::AllowGuests {
        require_path(id)?;
        return Ok(fresh(id));
    }
    Ok(Entry { origin: Origin::Guest, ..fresh(id) })
}

/// Two guests that write to one store spoil it for both, unless they keep each other from it.
fn shareable(path: &str, dependents: &[Dependent]) -> Result<(), Refusal> {
    let refused = |why: String| {
        let path = path.to_owned();
        Err(EntryRefused::Share { path, why }.into())
    };
    let stores = Stores::look_at([path]);
    let fact = stores.files.get(path).unwrap_or(&FileFact::Missing);
    let keeps_reservations = match fact {
        FileFact::Block(block) => block.reservations,
        _ => Reservations::Never,
    };
    let is_fit = |device: &StorageDevice| match keeps_reservations {
        Reservations::Hold => can_be_shared_disk(device),
        _ => device.is_shared_freely(),
    };
    let spoilt: Vec<Dependent> =
        dependents.iter().filter(|dependent| !is_fit(&dependent.device)).cloned().collect();
    if !spoilt.is_empty() {
        let rule = match keeps_reservations {
            Reservations::Hold => {
                format!("a shared disk is disk:avio_stor::disk:{path} to each of its guests")
            }
            _ => "of files and devices such as this only images of dvds are shared".to_owned(),
        };
        return refused(format!("{rule}, and {}", told(&spoilt)));
    }
    match (fact, keeps_reservations) {
        (FileFact::Regular { .. } | FileFact::Folder(_) | FileFact::Missing, _) => Ok(()),
        (FileFact::Generic { .. }, _) => refused(
            "tapes, changers and burners take the commands of one guest alone".into(),
        ),
        (_, Reservations::Hold) => match reservations::asked(Path::new(path)) {
            Ok(Keeps::Reservations) => Ok(()),
            Ok(Keeps::None) => refused(
                "the disk keeps no persistent reservations, by which the guests that write to it keep each other from it".into(),
            ),
            Err(error) => refused(format!(
                "the disk could not be asked whether it keeps persistent reservations: {error}"
            )),
        },
        (_, Reservations::HoldOnOnePath) => refused(ONE_PATH_OF_SEVERAL.into()),
        (FileFact::Block(_), Reservations::Never) => refused(
            "several guests may write to a whole SCSI disk, which keeps reservations, and this is none".into(),
        ),
        _ => refused("it is neither an image nor a folder of images".into()),
    }
}

fn can_be_shared_disk(device: &StorageDevice) -> bool {
    let StorageDevice { kind, adapter, backing, .. } = device;
    (*kind, *adapter, backing.storage)
        == (DeviceKind::Disk, AdapterKind::AvioStor, StorageType::Disk)
}

fn usable(path: &str, usage: DeviceKind, dependents: &[Dependent]) -> Result<(), Refusal> {
    let others: Vec<Dependent> =
        dependents.iter().filter(|d| d.device.kind != usage).cloned().collect();
    match others.is_empty() {
        true => Ok(()),
        false => {
            let path = path.to_owned();
            Err(EntryRefused::Usage { path, usage, dependents: others }.into())
        }
    }
}
