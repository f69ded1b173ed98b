//! Guests that the registry does not know, although their folders are there. It has lost its log, where the latest changes are,
//! and what is left is an older registry, or one without guests: by that no guest may be shown, and no number given out, since
//! that of a guest that runs would be among them.
//!
//! Looked for only where the log is empty, or no guest is known; so it costs nothing anywhere else.

use std::path::PathBuf;

use hpvm_host::Root;
use hpvm_host::names::guest_folder;
use hpvm_model::{GuestName, GuestUuid};
use hpvm_registry::{Access, Registry};

use crate::{Refusal, folder};

/// What a registry has forgotten.
#[derive(Debug, thiserror::Error)]
#[error(
    "the registry does not know guest '{guest}'{}, whose folder is there: {}what was in its log, {}-wal, is lost",
    match .others { 0 => String::new(), more => format!(", nor {more} more") },
    if *.may_be_unfinished { "its creation was cut off, or " } else { "" },
    .registry.display()
)]
pub struct Forgotten {
    registry: PathBuf,
    /// The first.
    guest: GuestName,
    others: usize,
    /// It is the only one, has never run, and the registry knows of no other: as well the first one of all, cut off while it was
    /// made. Then nothing older can be meant, and a repair makes it known.
    pub(crate) may_be_unfinished: bool,
}

impl Forgotten {
    pub(crate) fn remedy(&self) -> &'static str {
        match self.may_be_unfinished {
            true => "`hpvm doctor --repair` makes it known",
            false => "`hpvm doctor --rebuild` makes the registry again from the guests' folders",
        }
    }
}

/// Refuses to go on with a registry that has forgotten guests. One in the making has its folder before the registry knows it,
/// and whoever makes it holds the registry: so the registry is held for a second look, where it can be.
pub(crate) fn refuse(root: &Root, registry: &Registry) -> Result<(), Refusal> {
    let Some(forgotten) = look(root, registry)? else { return Ok(()) };
    match Registry::open(&root.db(), Access::ReadWrite) {
        Ok(mut gate) => refuse_held(root, &*gate.change()?),
        Err(_) => Err(Refusal::RegistryBehind(forgotten)),
    }
}

/// The same for who holds the registry.
pub(crate) fn refuse_held(root: &Root, registry: &Registry) -> Result<(), Refusal> {
    look(root, registry)?.map_or(Ok(()), |forgotten| Err(Refusal::RegistryBehind(forgotten)))
}

/// Whether the last change that the registry remembers of this guest is its removal. What failed since changed nothing.
pub(crate) fn was_removed(registry: &Registry, uuid: GuestUuid) -> Result<bool, Refusal> {
    let operations = registry.operations(Some(uuid), usize::MAX)?;
    let mut changes = operations.iter().map(|o| (&o.operation.before, &o.operation.after));
    let last = changes.find(|(before, after)| before.is_some() || after.is_some());
    Ok(matches!(last, Some((Some(_), None))))
}

pub(crate) fn look(root: &Root, registry: &Registry) -> Result<Option<Forgotten>, Refusal> {
    let mut unknown = folder::all(root);
    if unknown.is_empty() {
        return Ok(None);
    }
    let (known, removed) = (registry.list()?, registry.removed()?);
    for guest in &known {
        unknown.remove(&guest.uuid);
    }
    for removed in &removed {
        unknown.remove(&removed.config.uuid);
    }
    let mut has_any_run = false;
    let mut guests = Vec::new();
    for folder in unknown.into_values() {
        let said = folder.may_be_whole().then(|| folder.identity()).flatten();
        if let Some(config) = said
            && !was_removed(registry, config.uuid)?
        {
            has_any_run |= folder.file(guest_folder::BOOT_RECORD).exists();
            guests.push((config.number, config.name));
        }
    }
    guests.sort();
    let mut guests = guests.into_iter();
    Ok(guests.next().map(|(_, guest)| {
        let (registry, others) = (registry.path().to_owned(), guests.len());
        let is_only_one = others == 0 && known.is_empty() && removed.is_empty();
        Forgotten { registry, guest, others, may_be_unfinished: is_only_one && !has_any_run }
    }))
}
