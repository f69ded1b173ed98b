//! Which disks of a guest its entries keep it from writing, for those who look. A running guest has what it was started with;
//! this is what its next start makes of it.

use std::collections::{BTreeMap, BTreeSet};

use hpvm_model::{DeviceKind, EntryType, GuestConfig, StorageAddress};
use hpvm_registry::{Entry, Keys, Registry};

use crate::{Refusal, stores};

/// What the database says of some guests' disks, asked once for all of them.
pub(crate) struct ReadOnly {
    entries: Vec<Entry>,
    /// Where the disks' paths lead, if an entry says READONLY=YES at all and their file systems answer.
    real_paths: BTreeMap<String, Option<String>>,
}

impl ReadOnly {
    pub(crate) fn of(registry: &Registry, configs: &[GuestConfig]) -> Result<ReadOnly, Refusal> {
        let entries = registry.read_only_entries()?;
        let looked_at = if entries.is_empty() { &[] } else { configs };
        let paths = looked_at.iter().flat_map(disks).map(|(_, path)| path.to_owned()).collect();
        Ok(ReadOnly { real_paths: stores::real_paths(&paths), entries })
    }

    /// Where the guest has a disk that it will only read.
    pub(crate) fn disks(
        &self,
        registry: &Registry,
        config: &GuestConfig,
    ) -> Result<BTreeSet<StorageAddress>, Refusal> {
        let mut found = BTreeSet::new();
        if self.entries.is_empty() {
            return Ok(found);
        }
        for (address, path) in disks(config) {
            let real_path = self.real_paths.get(path).cloned().flatten();
            let paths = real_path.into_iter().chain([path.to_owned()]).collect();
            let keys = Keys { paths, ..Keys::default() };
            let own = registry.entries_by(EntryType::Guest, &keys)?;
            let is_it = |entry: &Entry| {
                let same_device = |own: &Entry| {
                    let known_by = identifier(own);
                    own.id == entry.id || known_by.is_some() && known_by == identifier(entry)
                };
                own.iter().any(same_device)
            };
            if self.entries.iter().any(is_it) {
                found.insert(address);
            }
        }
        Ok(found)
    }
}

fn disks(config: &GuestConfig) -> impl Iterator<Item = (StorageAddress, &str)> {
    let disks = config.storage.iter().filter(|device| device.kind == DeviceKind::Disk);
    disks.filter_map(|disk| Some((disk.address, disk.backing.store()?)))
}

fn identifier(entry: &Entry) -> Option<&str> {
    entry.identity.as_ref()?.unique_identifier()
}
