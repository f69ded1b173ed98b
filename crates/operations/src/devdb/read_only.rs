//! Which disks of a guest its entries keep it from writing, for those who look. A running guest has what it was started with;
//! this is what its next start makes of it.

use std::collections::BTreeSet;

use hpvm_model::{DeviceKind, EntryType, GuestConfig, StorageAddress};
use hpvm_registry::{Entry, Keys, Registry};

use crate::Refusal;
use crate::stores::inodes::Inodes;

/// Where the guest has a disk that it will only read. Costs one question where no entry says READONLY=YES.
pub(crate) fn disks(
    registry: &Registry,
    config: &GuestConfig,
) -> Result<BTreeSet<StorageAddress>, Refusal> {
    let read_only = registry.read_only_entries()?;
    let mut found = BTreeSet::new();
    if read_only.is_empty() {
        return Ok(found);
    }
    let disks = || config.storage.iter().filter(|device| device.kind == DeviceKind::Disk);
    let paths = || disks().filter_map(|device| device.backing.store());
    let inodes = Inodes::at(paths());
    for disk in disks() {
        let Some(path) = disk.backing.store() else { continue };
        let file = inodes.of(path);
        let keys = Keys {
            paths: BTreeSet::from([path.to_owned()]),
            files: file.into_iter().collect(),
            ..Keys::default()
        };
        let own = registry.entries_by(EntryType::Guest, &keys)?;
        let is_it = |entry: &Entry| {
            let same_device = |own: &Entry| {
                let known_by = identifier(own);
                own.id == entry.id || known_by.is_some() && known_by == identifier(entry)
            };
            own.iter().any(same_device)
        };
        if read_only.iter().any(is_it) {
            found.insert(disk.address);
        }
    }
    Ok(found)
}

fn identifier(entry: &Entry) -> Option<&String> {
    entry.identity.as_ref()?.identifier.as_ref()
}
