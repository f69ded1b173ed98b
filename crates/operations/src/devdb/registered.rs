//! What the device database says of the stores of one guest, and what a guest that got a device leaves there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use hpvm_host::answers;
use hpvm_model::{
    Bytes, Choice, EntryId, EntryType, GuestConfig, Likeness, Origin, StorageDevice, StoreIdentity,
};
use hpvm_plan::drives;
use hpvm_plan::facts::{FileFact, HostFacts, NotToChoose, OtherNames, Registered, Restriction};
use hpvm_registry::{Change, Entry, Keys, Registry};

use super::presets::Presets;
use super::restriction::{allows, restriction};
use super::trail::Trail;
use crate::stores::Stores;
use crate::stores::inodes::Inodes;
use crate::stores::way::Namesakes;
use crate::{Refusal, VmHost};

/// By path, for each of the stores. `own` is the guest as the registry has it, if it has.
pub(crate) fn registered(
    host: &VmHost,
    own: Option<&GuestConfig>,
    stores: &Stores,
) -> Result<BTreeMap<String, Registered>, Refusal> {
    if stores.files.is_empty() {
        return Ok(BTreeMap::new());
    }
    let looked_at;
    let presets = match &stores.presets {
        Some(presets) => presets,
        None => {
            looked_at = Presets::of(&host.root);
            &looked_at
        }
    };
    let trails: Vec<(&String, Trail)> =
        stores.files.keys().map(|path| (path, Trail::of(path, stores))).collect();
    let restricting = restricting(&host.registry, trails.iter().map(|(_, trail)| trail))?;
    let known = |(path, trail): (&String, Trail)| {
        let restriction = restriction(&trail, &restricting, presets);
        let mut known = of_store(&host.registry, own, path, &trail, restriction)?;
        known.found = trail.identity.clone().or_else(|| stores.file_identity(path));
        if is_shrunk_file(&known) {
            // What is written down may be younger than the look: `hpvmdevmgmt -S` may have extended the file in between.
            known.found = file_identity_of(path);
        }
        if let (Some(namesakes), Restriction::None) = (&trail.namesakes, &known.restriction) {
            known.other_names = other_names(&host.registry, presets, namesakes)?;
        }
        if let Some(FileFact::Folder(_)) = stores.files.get(path) {
            let images = stores.namesakes(path);
            let names = &trail.own.paths;
            known.not_to_choose = not_to_choose(&host.registry, presets, names, images)?;
            let is_given = known.restriction == Restriction::None && known.not_to_choose.is_none();
            if let Some(image) = images.first().filter(|_| is_given) {
                known.other_names = other_names(&host.registry, presets, image)?;
            }
        }
        Ok((path.clone(), known))
    };
    trails.into_iter().map(known).collect()
}

fn is_shrunk_file(known: &Registered) -> bool {
    let found = known.found.as_ref().filter(|found| found.is_of_file());
    known
        .kept
        .as_ref()
        .zip(found)
        .is_some_and(|(kept, found)| kept.compare(found) == Likeness::Shrunk)
}

/// The file a path leads to now.
pub(super) fn file_identity_of(path: &str) -> Option<StoreIdentity> {
    Stores::look_at([path]).file_identity(path)
}

/// Whether guests may have what a trail leads to.
pub(super) fn restriction_of(
    registry: &Registry,
    trail: &Trail,
    presets: &Presets,
) -> Result<Restriction, Refusal> {
    Ok(restriction(trail, &restricting(registry, [trail])?, presets))
}

fn of_store(
    registry: &Registry,
    own: Option<&GuestConfig>,
    path: &str,
    trail: &Trail,
    restriction: Restriction,
) -> Result<Registered, Refusal> {
    let entries = registry.entries_by(EntryType::Guest, &trail.own_keys(path))?;
    let is = |choice: fn(&Entry) -> Choice| match entries.iter().any(|e| choice(e) == Choice::Yes) {
        true => Choice::Yes,
        false => Choice::No,
    };
    Ok(Registered {
        restriction,
        not_to_choose: None,
        other_names: None,
        share: is(|entry| entry.attributes.share),
        read_only: is(|entry| entry.attributes.read_only),
        usage: entries.iter().find_map(|entry| entry.attributes.usage),
        kept: kept(registry, own, path, &entries)?,
        found: None,
    })
}

/// The restricted folders in which a file may have one of its names.
fn other_names(
    registry: &Registry,
    presets: &Presets,
    Namesakes { names, file }: &Namesakes,
) -> Result<Option<OtherNames>, Refusal> {
    let by_hand: Vec<String> =
        registry.restricted_by_hand()?.into_iter().map(|entry| entry.real_path).collect();
    let device = file.identity.device;
    let inodes = Inodes::at(by_hand.iter().map(String::as_str));
    let is_beside = |path: &String| {
        inodes.of(path).is_some_and(|found| found.device == device && found != file.identity)
    };
    let mut folders: Vec<String> = by_hand.iter().filter(|path| is_beside(path)).cloned().collect();
    for preset in presets.on(device) {
        let id = EntryId::new(EntryType::Restricted, &preset);
        let entry = id.ok().map(|id| registry.entry(&id, &preset)).transpose()?.flatten();
        if !entry.is_some_and(|entry| allows(&entry)) {
            folders.push(preset);
        }
    }
    folders.sort();
    // What lies in another of them is looked through with that.
    folders.dedup_by(|later, earlier| Path::new(later).starts_with(earlier));
    Ok((!folders.is_empty()).then(|| OtherNames {
        names: *names,
        file: file.path.clone(),
        folders,
    }))
}

/// Something below a folder, by any of its names, that nobody may put into a drive, or one of these images in it.
fn not_to_choose(
    registry: &Registry,
    presets: &Presets,
    names: &BTreeSet<String>,
    images: &[Namesakes],
) -> Result<Option<NotToChoose>, Refusal> {
    for folder in names {
        let found = not_to_choose_below(registry, presets, folder)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(own_file_in(presets, images))
}

fn own_file_in(presets: &Presets, images: &[Namesakes]) -> Option<NotToChoose> {
    if images.is_empty() {
        return None;
    }
    let files = images.iter().map(|image| image.file.identity).collect();
    let (identity, own) = presets.own_file_among(&files)?;
    let image = images.iter().find(|image| image.file.identity == identity)?;
    let (name, file) = (image.file.path.clone(), own.display().to_string());
    Some(NotToChoose::HostFile { name, file })
}

fn not_to_choose_below(
    registry: &Registry,
    presets: &Presets,
    folder: &str,
) -> Result<Option<NotToChoose>, Refusal> {
    for name in presets.below(folder) {
        let id = EntryId::new(EntryType::Restricted, &name);
        let entry = id.ok().map(|id| registry.entry(&id, &name)).transpose()?.flatten();
        if !entry.is_some_and(|entry| allows(&entry)) {
            return Ok(Some(NotToChoose::Restricted { name }));
        }
    }
    if let Some(name) = registry.restricting_below(folder)? {
        return Ok(Some(NotToChoose::Restricted { name }));
    }
    let other = registry.kept_for_another_below(folder)?;
    Ok(other.map(|(name, usage)| NotToChoose::OtherUse { name, usage }))
}

/// The folders from which users of a guest's console must not choose, since something lies below them that is restricted or
/// kept for another use: of an image that was given by itself, the folder beside it.
pub(crate) fn withheld_folders(
    host: &VmHost,
    config: &GuestConfig,
) -> Result<BTreeSet<String>, Refusal> {
    let folders: BTreeSet<&str> = config.storage.iter().filter_map(drives::folder).collect();
    if folders.is_empty() {
        return Ok(BTreeSet::new());
    }
    let stores = Stores::look_through(folders.iter().copied());
    let (presets, mut withheld) = (Presets::of(&host.root), BTreeSet::new());
    for folder in folders {
        let names = Trail::of(folder, &stores).own.paths;
        if not_to_choose(&host.registry, &presets, &names, stores.namesakes(folder))?.is_some() {
            withheld.insert(folder.to_owned());
        }
    }
    Ok(withheld)
}

/// The rdev entries for some stores. A folder's inode is a hint, which may be another folder's after a boot.
fn restricting<'a>(
    registry: &Registry,
    trails: impl IntoIterator<Item = &'a Trail>,
) -> Result<Vec<Entry>, Refusal> {
    let mut keys = Keys::default();
    trails.into_iter().for_each(|trail| keys.merge(trail.keys()));
    let found = registry.entries_by(EntryType::Restricted, &keys)?;
    let inodes = Inodes::at(found.iter().map(|entry| entry.real_path.as_str()));
    let verified = |mut entry: Entry| {
        entry.file = entry.file.filter(|_| inodes.of(&entry.real_path) == entry.file);
        entry
    };
    Ok(found.into_iter().map(verified).collect())
}

/// The device that a guest got by this name. What no guest has by that name any more is nobody's memory.
fn kept(
    registry: &Registry,
    own: Option<&GuestConfig>,
    path: &str,
    entries: &[Entry],
) -> Result<Option<StoreIdentity>, Refusal> {
    let Some(entry) = entries.iter().find(|entry| entry.id.name() == path) else {
        return Ok(None);
    };
    let is_it = |device: &StorageDevice| device.backings().any(|backing| backing.path == path);
    let is_own = own.is_some_and(|own| own.storage.iter().any(is_it));
    let number = own.map(|own| own.number);
    let is_remembered = is_own
        || entry.origin != Origin::Guest
        || entry.attributes.are_worth_keeping()
        || registry.is_used_by_others(path, number)?;
    Ok(entry.identity.clone().filter(|_| is_remembered))
}

/// Which of a guest's stores are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeping {
    /// Where a guest was just made: nothing was written to its disks, and an entry for each file would take its time.
    BlockDevices,
    FilesToo,
}

/// Writes down what a guest's devices have behind them now, for those of which nothing was written or that have grown.
pub(crate) fn keep_identities(
    change: &Change<'_>,
    config: &GuestConfig,
    facts: &HostFacts,
    keeping: Keeping,
) -> Result<(), Refusal> {
    for (path, found) in to_keep(config, facts) {
        if keeping == Keeping::BlockDevices && found.is_of_file() {
            continue;
        }
        let Ok(id) = EntryId::new(EntryType::Guest, path) else { continue };
        let real_path = real_path(path);
        let entry = change.entry(&id, &real_path)?.filter(|entry| entry.id == id);
        let fresh = Entry { origin: Origin::Guest, ..Entry::by_hand(id, real_path.clone()) };
        let entry = Entry { real_path, ..entry.unwrap_or(fresh) };
        change.put_entry(&Entry { identity: Some(found.clone()), ..entry })?;
    }
    Ok(())
}

/// Whether [`keep_identities`] would write anything.
pub(crate) fn has_to_keep(config: &GuestConfig, facts: &HostFacts) -> bool {
    to_keep(config, facts).next().is_some()
}

fn to_keep<'a>(
    config: &'a GuestConfig,
    facts: &'a HostFacts,
) -> impl Iterator<Item = (&'a str, &'a StoreIdentity)> {
    let behind =
        |device: &'a StorageDevice| device.backings().map(|backing| (device.kind, backing));
    config.storage.iter().flat_map(behind).filter_map(|(kind, backing)| {
        let path = backing.store()?;
        let known = facts.registered.get(path)?;
        let found = known.found_behind(kind, backing.storage)?;
        let is_news = match &known.kept {
            None => true,
            Some(kept) => kept.compare(found) == Likeness::Grown,
        };
        is_news.then_some((path, found))
    })
}

/// Where a file's length was written down, takes the one that we gave it; `None` leaves that to its guest's first start.
pub(crate) fn keep_length(
    change: &Change<'_>,
    path: &str,
    size: Option<Bytes>,
) -> Result<(), Refusal> {
    let Ok(id) = EntryId::new(EntryType::Guest, path) else { return Ok(()) };
    let Some(entry) = change.entry(&id, &real_path(path))? else { return Ok(()) };
    if entry.identity.as_ref().is_some_and(StoreIdentity::is_of_file) {
        change.put_entry(&Entry { identity: size.map(StoreIdentity::of_file), ..entry })?;
    }
    Ok(())
}

/// How long a raw disk's file was when its guest got it, or has been made since; `None`: nobody wrote it down.
pub(crate) fn kept_length(registry: &Registry, path: &str) -> Option<Bytes> {
    let id = EntryId::new(EntryType::Guest, path).ok()?;
    let entry = registry.entry(&id, path).ok()?.filter(|entry| entry.id == id)?;
    entry.identity.filter(StoreIdentity::is_of_file).map(|kept| kept.size)
}

/// Forgets what only the devices that are gone kept alive.
pub(crate) fn forget_unused(change: &Change<'_>, before: &GuestConfig) -> Result<(), Refusal> {
    for backing in before.storage.iter().flat_map(StorageDevice::backings) {
        change.delete_unused_entry(&backing.path)?;
    }
    Ok(())
}

/// Links followed; the path itself where it leads nowhere, or nothing answers.
pub(super) fn real_path(path: &str) -> String {
    let real = answers::about(Path::new(path), |path| fs::canonicalize(path)).and_then(Result::ok);
    real.map_or_else(|| path.to_owned(), |real| real.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use hpvm_host::conf::Conf;
    use hpvm_host::paths::Root;
    use hpvm_registry::Access;

    use super::*;

    #[test]
    fn a_file_that_grew_after_the_look_is_not_smaller_than_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path()).unwrap();
        let conf = Conf::load(&root).unwrap();
        let registry = Registry::open(&root.db(), Access::ReadWrite).unwrap();
        let mut host = VmHost { root, conf, registry, boot_id: String::new() };
        let disk = folder.path().join("disk.img");
        let path = disk.to_str().unwrap();
        let sized = |bytes| fs::File::create(&disk).and_then(|file| file.set_len(bytes)).unwrap();
        let (small, large) = (1 << 20, 2 << 20);

        sized(small);
        let before = Stores::look_at([path]);
        sized(large);
        let identity = Some(StoreIdentity::of_file(Bytes(large)));
        let id = EntryId::new(EntryType::Guest, path).unwrap();
        let change = host.registry.change().unwrap();
        change.put_entry(&Entry { identity, ..Entry::by_hand(id, path.to_owned()) }).unwrap();
        change.commit().unwrap();
        let found = |stores| registered(&host, None, stores).unwrap()[path].found.clone();
        assert_eq!(found(&before), Some(StoreIdentity::of_file(Bytes(large))));

        sized(small);
        let shrunk = Some(StoreIdentity::of_file(Bytes(small)));
        assert_eq!(found(&Stores::look_at([path])), shrunk, "what did shrink is told");
    }
}
