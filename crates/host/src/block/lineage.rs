//! What lies under a store, what lies on it, and whether two stores share bytes.
//!
//! Called by `uses`, and by whoever compares the stores of two guests. Pure. A hostile or half-read tree may have cycles
//! and chains of any depth: each store is visited once, and nothing recurses.

use std::collections::BTreeSet;

use super::device::Kind;
use super::lead::Store;
use super::{Blocks, DeviceNumber, keys};

/// Everything a store hangs together with, itself left out. Its other names are on both sides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    pub under: BTreeSet<Store>,
    pub over: BTreeSet<Store>,
}

impl Blocks {
    /// All that lies under and on a store, however far away.
    #[must_use]
    pub fn lineage(&self, store: Store) -> Lineage {
        let faces = self.keys.faces(store);
        let mut lineage = Lineage {
            under: self.closure(&faces, Self::under),
            over: self.closure(&faces, Self::over),
        };
        lineage.under.remove(&store);
        lineage.over.remove(&store);
        lineage
    }

    /// What a store lies on, without what files lie on: a file is not its file system's disk, which may well be the VM Host's.
    /// Loop devices are among these where it lies on them itself: one that is beside it may have but a part of the bytes.
    #[must_use]
    pub fn bearers(&self, store: Store) -> BTreeSet<Store> {
        let mut own = BTreeSet::new();
        let mut todo = vec![store];
        while let Some(over) = todo.pop() {
            todo.extend(self.under(over).into_iter().filter(|under| own.insert(*under)));
        }
        let mut bearers = self.under_by_all_names(store);
        bearers.retain(|bearer| own.contains(bearer) || !self.keys.is_attached(*bearer));
        bearers
    }

    fn under_by_all_names(&self, store: Store) -> BTreeSet<Store> {
        let mut under = self.lineage(store).under;
        let is_file = |store: &Store| matches!(store, Store::File(_));
        let files: Vec<Store> = under.iter().copied().chain([store]).filter(is_file).collect();
        for below in files.into_iter().flat_map(|file| self.lineage(file).under) {
            under.remove(&below);
        }
        under
    }

    /// What else leads to bytes of a store by way of a loop device: what lies under it, other loop devices on that, loop
    /// devices on the store itself, and parts of them. Who locks one of these has locked none of the others.
    #[must_use]
    pub fn loop_doubles(&self, store: Store) -> BTreeSet<Store> {
        let mut doubles = self.under_by_all_names(store);
        doubles.extend(self.closure(&self.keys.faces(store), Self::over));
        doubles.remove(&store);
        if !self.keys.is_attached(store) {
            let leads_through =
                |double: &Store| matches!(double, Store::File(_)) || self.keys.is_attached(*double);
            doubles.retain(leads_through);
        }
        doubles
    }

    /// A store by all its names, with all that lies under and on it. Who has the store for himself has all these.
    #[must_use]
    pub fn related(&self, store: Store) -> BTreeSet<Store> {
        let faces = self.keys.faces(store);
        let mut related = self.closure(&faces, Self::under);
        related.extend(self.closure(&faces, Self::over));
        related
    }

    /// Whether two stores are one thing, or one lies under the other: then they must not go to two guests. Two volumes of
    /// one group, two partitions of one disk and two files of one file system do not overlap.
    #[must_use]
    pub fn overlap(&self, one: Store, other: Store) -> bool {
        let (one, other) = (self.keys.faces(one), self.keys.faces(other));
        let lies_on = |over: &[Store], under: &[Store]| {
            let below = self.closure(over, Self::under);
            under.iter().any(|store| below.contains(store))
        };
        lies_on(&one, &other) || lies_on(&other, &one)
    }

    /// What a store lies directly on.
    pub(super) fn under(&self, store: Store) -> Vec<Store> {
        let devices = |numbers: &[DeviceNumber]| {
            numbers.iter().map(|number| Store::Device(*number)).collect::<Vec<_>>()
        };
        let number = match store {
            Store::File(identity) => {
                return self.files.get(&identity).map(|on| devices(on)).unwrap_or_default();
            }
            Store::Device(number) => number,
        };
        let Some(device) = self.devices.get(&number) else { return Vec::new() };
        let mut under = devices(&device.slaves);
        match &device.kind {
            Kind::Partition { of, .. } => under.push(Store::Device(*of)),
            Kind::Loop { backing } => under.extend(backing),
            _ => {}
        }
        under
    }

    /// What lies directly on a store, as far as it was read: what vanished meanwhile lies nowhere.
    pub(super) fn over(&self, store: Store) -> Vec<Store> {
        let mut over = self.named_over(store);
        over.retain(|store| match store {
            Store::Device(number) => self.devices.contains_key(number),
            Store::File(_) => true,
        });
        over
    }

    /// What sysfs names as lying directly on a store.
    pub(super) fn named_over(&self, store: Store) -> Vec<Store> {
        let mut over: Vec<&DeviceNumber> = Vec::new();
        if let Store::Device(number) = store
            && let Some(device) = self.devices.get(&number)
        {
            over.extend(device.partitions.iter().chain(&device.holders));
        }
        over.extend(self.loops_on(store));
        over.into_iter().map(|number| Store::Device(*number)).collect()
    }

    /// What a partition is a part of: its disk, and for one that kpartx made the volume and that volume's paths.
    pub(super) fn wholes(&self, store: Store) -> Vec<Store> {
        let Store::Device(number) = store else { return Vec::new() };
        let Some(device) = self.devices.get(&number) else { return Vec::new() };
        let Some((whole, _)) = keys::part(device) else { return Vec::new() };
        let mut wholes = self.keys.faces(Store::Device(whole));
        if let Some(volume) = self.devices.get(&whole).filter(|device| device.is_multipath()) {
            wholes.extend(volume.slaves.iter().map(|path| Store::Device(*path)));
        }
        wholes
    }

    /// The starts and all that `step` reaches from them, other names of the same things included.
    pub(super) fn closure(
        &self,
        starts: &[Store],
        step: impl Fn(&Self, Store) -> Vec<Store>,
    ) -> BTreeSet<Store> {
        let mut reached: BTreeSet<Store> = starts.iter().copied().collect();
        let mut todo = starts.to_vec();
        while let Some(store) = todo.pop() {
            for next in step(self, store) {
                todo.extend(self.keys.faces(next).into_iter().filter(|face| reached.insert(*face)));
            }
        }
        reached
    }
}
