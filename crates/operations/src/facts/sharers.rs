//! Who else has a guest's stores: other guests, by what they run with or are configured with.

use std::collections::BTreeMap;

use hpvm_model::{
    DeviceKind, GuestConfig, GuestName, GuestNumber, StorageAddress, StorageDevice, StoreRole,
    is_shared_freely,
};
use hpvm_plan::facts::{FileFact, FileIdentity, Kept, Sharer, Standing, Tenancy};
use hpvm_plan::record::{self, Sharing};
use hpvm_registry::Selector;

use crate::stores::Stores;
use crate::stores::inodes::Inodes;
use crate::{Refusal, VmHost, remove};

impl VmHost {
    /// Other guests that have one of these stores, or one that overlaps it, by our store. Images of dvds are shared freely, and
    /// have nobody but guests that run and write to them: who is configured with one may be every guest there is.
    pub(super) fn sharers(
        &self,
        config: &GuestConfig,
        own: Option<GuestNumber>,
        stores: &Stores,
    ) -> Result<BTreeMap<FileIdentity, Vec<Sharer>>, Refusal> {
        let mut claims = BTreeMap::new();
        let (exclusive, images) = (stores.exclusive(config), stores.images(config));
        if exclusive.is_empty() && images.is_empty() {
            return Ok(claims);
        }
        let held = self.held_by_running(own)?;
        for (identity, related) in images {
            let seen = related.iter().filter_map(|store| held.get(store)).flatten();
            let writers: Vec<Sharer> =
                seen.map(|h| h.by(PathToDisk::Other)).filter(Sharer::writes).collect();
            if !writers.is_empty() {
                claims.insert(identity, writers);
            }
        }
        for (identity, related) in exclusive {
            let way = |store: &FileIdentity| {
                if *store == identity { PathToDisk::Same } else { PathToDisk::Other }
            };
            let as_seen =
                |store| held.get(store).into_iter().flatten().map(move |h| h.by(way(store)));
            let mut sharers: Vec<Sharer> = related.iter().flat_map(as_seen).collect();
            for store in &related {
                for other in self.registry.sharers_and_kept(store, own)? {
                    let is_known = sharers.iter().any(|known| is_of(known, &other));
                    if is_shared_freely(other.kind, other.storage) || is_known {
                        continue;
                    }
                    if let Some(standing) = self.standing(&other, *store)? {
                        sharers.push(configured(other, standing, way(store)));
                    }
                }
            }
            if !sharers.is_empty() {
                claims.insert(identity, sharers);
            }
        }
        self.add_those_at_paths(config, own, stores, &mut claims)?;
        Ok(claims)
    }

    /// Who is configured with what lies at our paths, though it is another file than when that was written down.
    fn add_those_at_paths(
        &self,
        config: &GuestConfig,
        own: Option<GuestNumber>,
        stores: &Stores,
        claims: &mut BTreeMap<FileIdentity, Vec<Sharer>>,
    ) -> Result<(), Refusal> {
        let exclusive = config.storage.iter().filter(|device| !device.is_shared_freely());
        for path in exclusive.flat_map(StorageDevice::stores) {
            let Some(identity) = stores.files.get(path).and_then(FileFact::identity) else {
                continue;
            };
            for name in stores.names(path) {
                for other in self.registry.sharers_and_kept_at(&name, own)? {
                    let mut known = claims.get(&identity).into_iter().flatten();
                    let is_known = known.any(|known| is_of(known, &other));
                    if is_shared_freely(other.kind, other.storage) || is_known {
                        continue;
                    }
                    if let Some(standing) = self.standing(&other, identity)? {
                        let sharer = configured(other, standing, PathToDisk::Same);
                        claims.entry(identity).or_default().push(sharer);
                    }
                }
            }
        }
        Ok(())
    }

    /// `None`: its disk is another file by now; that of a removed guest may be none, too.
    fn standing(
        &self,
        sharer: &hpvm_registry::Sharer,
        store: FileIdentity,
    ) -> Result<Option<Standing>, Refusal> {
        let has_now = |config: &GuestConfig| {
            let device = config.device_at(sharer.address)?;
            device.backing.store().and_then(Inodes::one)
        };
        if !sharer.removed {
            let has = self.registry.guest(&Selector::Number(sharer.number))?;
            let has_another = has.as_ref().and_then(has_now).is_some_and(|now| now != store);
            let is_its = sharer.role == StoreRole::Layer || !has_another;
            return Ok(is_its.then_some(Standing::Present));
        }
        let Some(kept) = self.registry.removed_guest(sharer.number)? else { return Ok(None) };
        if sharer.role == StoreRole::Store && has_now(&kept.config) != Some(store) {
            return Ok(None);
        }
        let needed_by = remove::needed_by(&self.registry, &self.root, &kept.config)?;
        let needed_by = needed_by.into_iter().map(|by| by.number).collect();
        Ok(Some(Standing::Removed(Kept { number: sharer.number, needed_by })))
    }

    /// The stores that running guests have, whatever their configuration says by now: a disk that was taken
    /// away is theirs until the guest lets it go.
    fn held_by_running(
        &self,
        own: Option<GuestNumber>,
    ) -> Result<BTreeMap<FileIdentity, Vec<Holder>>, Refusal> {
        let mut found: BTreeMap<FileIdentity, Vec<Holder>> = BTreeMap::new();
        let numbers = self.run_folders().into_iter().filter_map(GuestNumber::new);
        for number in numbers.filter(|number| Some(*number) != own) {
            let Some(other) = self.registry.guest(&Selector::Number(number))? else { continue };
            if !self.presence(number).is_on() {
                continue;
            }
            for Held { identity, address, role, access, sharing } in self.held_by(&other) {
                let holder = Holder { guest: other.name.clone(), address, role, access, sharing };
                found.entry(identity).or_default().push(holder);
            }
        }
        Ok(found)
    }

    /// Of a guest whose boot record cannot be used, what is configured is the nearest to what it has.
    fn held_by(&self, running: &GuestConfig) -> Vec<Held> {
        match self.boot_record(running) {
            Ok(machine) => machine
                .held()
                .flat_map(|attached| {
                    let layers = attached.layers.iter().map(|l| (l.identity, StoreRole::Layer));
                    let stores = std::iter::once((attached.identity, StoreRole::Store));
                    let (address, sharing) = (attached.device.address, attached.sharing);
                    let held = move |(identity, role): (Option<FileIdentity>, StoreRole)| {
                        let access = access(role, attached.access);
                        Some(Held { identity: identity?, address, role, access, sharing })
                    };
                    stores.chain(layers).filter_map(held)
                })
                .collect(),
            Err(_) => {
                let inodes = Inodes::at(running.storage.iter().flat_map(StorageDevice::stores));
                let identity = |path: &str| inodes.of(path);
                running
                    .storage
                    .iter()
                    .flat_map(|device| {
                        let layers =
                            device.layers.iter().map(|l| (l.path.as_str(), StoreRole::Layer));
                        let store = device.backing.store().map(|path| (path, StoreRole::Store));
                        let (address, sharing) = (device.address, Sharing::Alone);
                        let own = match device.kind {
                            DeviceKind::Dvd => record::Access::ReadOnly,
                            _ => record::Access::ReadWrite,
                        };
                        let held = move |(path, role)| {
                            let (identity, access) = (identity(path)?, access(role, own));
                            Some(Held { identity, address, role, access, sharing })
                        };
                        store.into_iter().chain(layers).filter_map(held)
                    })
                    .collect()
            }
        }
    }
}

/// What a guest does with a store in this role, of a device with which it may do so much.
fn access(role: StoreRole, of_device: record::Access) -> record::Access {
    match role {
        StoreRole::Layer => record::Access::ReadOnly,
        StoreRole::Store => of_device,
    }
}

/// A store that a running guest has.
struct Held {
    identity: FileIdentity,
    address: StorageAddress,
    role: StoreRole,
    access: record::Access,
    sharing: Sharing,
}

/// The running guest that has a store.
struct Holder {
    guest: GuestName,
    address: StorageAddress,
    role: StoreRole,
    access: record::Access,
    sharing: Sharing,
}

/// Whether another guest's path to a disk is ours.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PathToDisk {
    Same,
    Other,
}

impl PathToDisk {
    fn tenancy(self, sharing: Sharing) -> Tenancy {
        match (sharing, self) {
            (Sharing::Alone | Sharing::WithHost, _) => Tenancy::Alone,
            (Sharing::Reserved, PathToDisk::Same) => Tenancy::SharedBySamePath,
            (Sharing::Reserved, PathToDisk::Other) => Tenancy::SharedByOtherPath,
        }
    }
}

impl Holder {
    fn by(&self, way: PathToDisk) -> Sharer {
        Sharer {
            guest: self.guest.clone(),
            address: self.address,
            held_for: Some(self.access),
            role: self.role,
            standing: Standing::Present,
            tenancy: way.tenancy(self.sharing),
        }
    }
}

/// A guest of that name may be there beside others that had it and were removed.
fn is_of(known: &Sharer, other: &hpvm_registry::Sharer) -> bool {
    let is_the_guest = match &known.standing {
        Standing::Removed(kept) => kept.number == other.number,
        Standing::Present => known.guest == other.guest && !other.removed,
    };
    is_the_guest && known.role == other.role
}

fn configured(other: hpvm_registry::Sharer, standing: Standing, way: PathToDisk) -> Sharer {
    let sharing = Sharing::to_come(other.kind, other.storage);
    Sharer {
        guest: other.guest,
        address: other.address,
        held_for: None,
        role: other.role,
        standing,
        tenancy: way.tenancy(sharing),
    }
}
