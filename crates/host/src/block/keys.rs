//! Which devices are one thing under several names.
//!
//! Called by `read` once all is read, and asked by `lineage` and `uses`. Two paths of a multipath disk hold the same bytes,
//! and so do partition 2 of the one, partition 2 of the other, and partition 2 that kpartx made of their common volume.
//! Each gets the same key. A loop device is what it is attached to, and the partitions that the kernel finds through it are
//! those of that. Loop devices on one thing count as one whatever their offsets, and so do all partitions of one that begins
//! elsewhere: that is more careful than exact, and two guests on two ranges of one file are no case worth a mistake.

use std::collections::{BTreeMap, BTreeSet};

use hpvm_model::FileIdentity;

use super::device::{Device, DeviceNumber, Identifier, Kind, Mapping};
use super::lead::Store;

/// Loop devices on loop devices and partitions of partitions end somewhere, also in a hostile tree.
const NESTING_MAX: usize = 256;

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
    AttachedTo(FileIdentity),
    Number(DeviceNumber),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    key: BTreeMap<DeviceNumber, Key>,
    devices: BTreeMap<Key, Vec<DeviceNumber>>,
    /// Loop devices, and parts of them.
    attached: BTreeSet<DeviceNumber>,
}

impl Keys {
    pub(super) fn new(devices: &BTreeMap<DeviceNumber, Device>) -> Self {
        let mut keys = Self::default();
        for number in devices.keys() {
            let (key, is_attached) = key(devices, *number);
            if is_attached {
                keys.attached.insert(*number);
            }
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

    /// Whether it is a loop device on something, or a part of one, however far below.
    pub(super) fn is_attached(&self, store: Store) -> bool {
        matches!(store, Store::Device(number) if self.attached.contains(&number))
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

/// The key, and whether a loop device leads to it.
fn key(devices: &BTreeMap<DeviceNumber, Device>, number: DeviceNumber) -> (Key, bool) {
    let (mut partitions, mut is_attached) = (Vec::new(), false);
    let mut at = number;
    for _ in 0..NESTING_MAX {
        let Some(device) = devices.get(&at) else { break };
        if let Some((of, partition)) = part(device) {
            partitions.push(partition);
            at = of;
        } else if let Kind::Loop { backing: Some(backing) } = device.kind {
            is_attached = true;
            if !has_table_of(devices, device, backing) {
                partitions.clear();
            }
            match backing {
                Store::Device(below) => at = below,
                Store::File(file) => {
                    return (Key { whole: Whole::AttachedTo(file), partitions }, true);
                }
            }
        } else if device.is_multipath()
            && !partitions.is_empty()
            && let Some(path) = device.slaves.first()
        {
            at = *path;
        } else {
            break;
        }
    }
    (Key { whole: whole(devices, at), partitions }, is_attached)
}

/// Whether a loop device begins where that begins which it is attached to, and counts in the same blocks: then the kernel
/// finds the same partitions in both.
fn has_table_of(
    devices: &BTreeMap<DeviceNumber, Device>,
    attached: &Device,
    backing: Store,
) -> bool {
    let has_blocks_of = match backing {
        Store::Device(below) => {
            devices.get(&below).is_none_or(|below| below.block_bytes == attached.block_bytes)
        }
        Store::File(_) => true,
    };
    has_blocks_of && !matches!(attached.identifier, Some(Identifier::Attached { offset: 1.., .. }))
}

/// What a device is a part of, and which.
pub(super) fn part(device: &Device) -> Option<(DeviceNumber, u32)> {
    match device.kind {
        Kind::Partition { of, number } => Some((of, number)),
        Kind::Mapped { mapping: Mapping::Partition { number }, .. } => {
            Some((*device.slaves.first()?, number))
        }
        _ => None,
    }
}

fn whole(devices: &BTreeMap<DeviceNumber, Device>, number: DeviceNumber) -> Whole {
    let Some(device) = devices.get(&number) else { return Whole::Number(number) };
    if let (Kind::Disk, Some(Identifier::Wwid(wwid))) = (&device.kind, &device.identifier) {
        return Whole::Wwid(wwid.clone());
    }
    let multipath = |holder: &&DeviceNumber| devices.get(holder).is_some_and(Device::is_multipath);
    device.holders.iter().find(multipath).map_or(Whole::Number(number), |of| Whole::PathOf(*of))
}
