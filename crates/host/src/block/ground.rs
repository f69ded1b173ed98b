//! What a store stands on, as far as that is somebody else's by another name: the file or device under a loop device, the paths
//! of a multipath volume, and every other name of what a volume was made of.
//!
//! Called by `uses`. Pure; each store is visited once.

use std::collections::BTreeSet;

use super::device::{Device, Kind, Mapping};
use super::expected::{Expected, Purpose};
use super::lead::Store;
use super::uses::Fact;
use super::{Blocks, keys};

/// Where a store's bytes can be found by other names. What its volumes were made of is not among these: the kernel keeps that
/// for them, and what else lies there they share.
pub(super) struct Ground {
    /// Files under loop devices, paths of multipath volumes, and what has the same bytes as something that was made a volume of.
    pub(super) doors: Vec<Store>,
    /// What one of these is a part of.
    pub(super) wholes: Vec<Store>,
}

/// How much of something has to do with a store that lies on it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Extent {
    All,
    /// A partition of it, or anything that lies on one of its partitions.
    Part,
}

impl Blocks {
    /// What some faces of a store stand on, where its bytes can be found by other names.
    pub(super) fn ground(&self, faces: &[Store]) -> Ground {
        let mut kept = BTreeSet::new();
        let mut reached = BTreeSet::new();
        let mut todo: Vec<(Store, Extent)> =
            faces.iter().map(|face| (*face, Extent::All)).collect();
        while let Some((store, extent)) = todo.pop() {
            if !reached.insert((store, extent)) {
                continue;
            }
            let Store::Device(number) = store else { continue };
            let Some(device) = self.devices.get(&number) else { continue };
            if let Some((whole, _)) = keys::part(device) {
                if kept.contains(&store) {
                    kept.insert(Store::Device(whole));
                }
                todo.extend(self.wholes(store).into_iter().map(|whole| (whole, Extent::Part)));
            } else if let Kind::Loop { backing } = device.kind {
                let faces = backing.into_iter().flat_map(|backing| self.keys.faces(backing));
                todo.extend(faces.map(|face| (face, extent)));
            } else {
                let (slaves, extent) = match device.is_multipath() {
                    true => (self.under(store), extent),
                    false => {
                        let slaves = self.under(store);
                        kept.extend(slaves.iter().flat_map(|slave| self.kept_by(device, *slave)));
                        (slaves, Extent::All)
                    }
                };
                let faces = slaves.into_iter().flat_map(|slave| self.keys.faces(slave));
                todo.extend(faces.map(|face| (face, extent)));
            }
        }
        let found = |wanted| {
            let found = reached.iter().filter(move |(_, extent)| *extent == wanted);
            found.map(|(store, _)| *store).filter(|store| !kept.contains(store))
        };
        let doors: Vec<Store> = found(Extent::All).filter(|store| !faces.contains(store)).collect();
        let wholes = found(Extent::Part).filter(|store| !faces.contains(store)).collect();
        Ground { doors, wholes }
    }

    /// What a volume has for itself when it is made of this: with the encrypted volume goes the file that is to be opened as
    /// one, and a loop device on what does not answer is nobody's.
    fn kept_by(&self, volume: &Device, slave: Store) -> Vec<Store> {
        let Store::Device(number) = slave else { return Vec::new() };
        if self.silent.contains(&number) {
            return Vec::new();
        }
        let mut kept = vec![slave];
        if let Kind::Mapped { mapping: Mapping::Encrypted, .. } = volume.kind
            && let Some(Device { kind: Kind::Loop { backing: Some(file) }, .. }) =
                self.devices.get(&number)
            && let Some(Fact::Expected(Expected { purpose: Purpose::Open(_), .. })) =
                self.fact(*file)
        {
            kept.push(*file);
        }
        kept
    }
}
