//! Which devices are one thing under several names.
//!
//! Called by `read` once all is read, and asked by `lineage` and `uses`. Two paths of a multipath disk hold the same bytes,
//! and so do partition 2 of the one, partition 2 of the other, and partition 2 that kpartx made of their common volume.
//! Each gets the same key. Loop devices on one file count as one thing whatever their offsets: that is more careful than
//! exact, and two guests on two ranges of one file are no case worth a mistake.

use std::collections::BTreeMap;

use super::device::{Device, DeviceNumber, Identifier, Kind, Mapping};
use super::lead::Store;

/// Partitions of partitions end somewhere, also in a hostile tree.
const NESTING_MAX: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    whole: Whole,
    /// The numbers that lead from the whole to the partition, last first.
    partitions: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Whole {
    Wwid(String),
    /// A path of this multipath volume.
    PathOf(DeviceNumber),
    AttachedTo(Store),
    Number(DeviceNumber),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    key: BTreeMap<DeviceNumber, Key>,
    devices: BTreeMap<Key, Vec<DeviceNumber>>,
}

impl Keys {
    pub(super) fn new(devices: &BTreeMap<DeviceNumber, Device>) -> Self {
        let mut keys = Self::default();
        for number in devices.keys() {
            let key = key(devices, *number);
            keys.key.insert(*number, key.clone());
            keys.devices.entry(key).or_default().push(*number);
        }
        keys
    }

    /// A partition by its place: which disk, and which one there. The same for each of its names.
    pub(super) fn place(&self, number: DeviceNumber) -> Option<(&Whole, &[u32])> {
        let Key { whole, partitions } = self.key.get(&number)?;
        (!partitions.is_empty()).then_some((whole, partitions.as_slice()))
    }

    /// Whether it is a loop device on something, or a part of one.
    pub(super) fn is_attached(&self, number: DeviceNumber) -> bool {
        self.key.get(&number).is_some_and(|key| matches!(key.whole, Whole::AttachedTo(_)))
    }

    /// All names of this thing, itself among them.
    pub(super) fn faces(&self, store: Store) -> Vec<Store> {
        let Store::Device(number) = store else { return vec![store] };
        let devices = self.key.get(&number).and_then(|key| self.devices.get(key));
        match devices {
            Some(devices) => devices.iter().map(|number| Store::Device(*number)).collect(),
            None => vec![store],
        }
    }
}

fn key(devices: &BTreeMap<DeviceNumber, Device>, number: DeviceNumber) -> Key {
    let mut partitions = Vec::new();
    let mut whole = number;
    while let Some((of, partition)) = devices.get(&whole).and_then(|device| part(devices, device))
        && partitions.len() < NESTING_MAX
    {
        partitions.push(partition);
        whole = of;
    }
    Key { whole: self::whole(devices, whole), partitions }
}

/// What a device is a part of, and which.
pub(super) fn part(
    devices: &BTreeMap<DeviceNumber, Device>,
    device: &Device,
) -> Option<(DeviceNumber, u32)> {
    match &device.kind {
        Kind::Partition { of, number } => Some((*of, *number)),
        Kind::Mapped { mapping: Mapping::Partition { number }, .. } => {
            let of = device.slaves.first()?;
            let paths = devices.get(of).filter(|of| of.is_multipath()).map(|of| &of.slaves);
            Some((*paths.and_then(|paths| paths.first()).unwrap_or(of), *number))
        }
        _ => None,
    }
}

fn whole(devices: &BTreeMap<DeviceNumber, Device>, number: DeviceNumber) -> Whole {
    let Some(device) = devices.get(&number) else { return Whole::Number(number) };
    match (&device.kind, &device.identifier) {
        (Kind::Disk, Some(Identifier::Wwid(wwid))) => return Whole::Wwid(wwid.clone()),
        (Kind::Loop { backing: Some(store) }, _) => return Whole::AttachedTo(*store),
        _ => {}
    }
    let multipath = |holder: &&DeviceNumber| devices.get(holder).is_some_and(Device::is_multipath);
    device.holders.iter().find(multipath).map_or(Whole::Number(number), |of| Whole::PathOf(*of))
}
