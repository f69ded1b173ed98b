//! Copies of a running guest's disks and firmware variables: which device of the machine has a store, and what the nodes
//! that are written and their jobs are called and made of. The commands ask the first, the engine the rest.

use hpvm_model::{Backing, DeviceKind, FileIdentity, StorageAddress, StorageType};
use serde::{Deserialize, Serialize};

use crate::command_line::{
    Property, Value, driver_of_store, format_properties, layer_id, store_properties,
};
use crate::record::{Access, Attached, Cache, Machine};

/// What a disk is copied to, which comes as a descriptor. An image is laid out before, as large as the disk and with the
/// same layers under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub storage: StorageType,
    pub cache: Cache,
}

/// A disk of the running guest and what it is copied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCopy {
    pub address: StorageAddress,
    pub target: Target,
}

/// The names of all jobs, nodes and descriptors of a copy begin so, and no others.
const PREFIX: &str = "copy-";

/// The job that copies the firmware variables, and the node it writes.
pub const NVRAM_COPY: &str = "copy-nvram";

/// The job that copies a disk, and the node it writes.
#[must_use]
pub fn copy_id(address: StorageAddress) -> String {
    let StorageAddress { slot, target } = address;
    format!("{PREFIX}{}-{}-{target}", slot.bus(), slot.device())
}

/// Whether a job, a node or a descriptor is of a copy.
#[must_use]
pub fn is_of_copy(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The device of the running guest that writes a store. Without one the store stands still, and anybody can copy it.
#[must_use]
pub fn writer<'a>(
    machine: &'a Machine,
    store: &Backing,
    identity: Option<FileIdentity>,
) -> Option<&'a Attached> {
    machine.storage.iter().find(|attached| {
        let device = &attached.device;
        let is_it = device.backing.path == store.path
            || identity.is_some() && attached.identity == identity;
        is_it
            && attached.access == Access::ReadWrite
            && device.kind == DeviceKind::Disk
            && device.backing.store().is_some()
    })
}

/// Properties of the node that a disk of `bytes` is copied to. Of an image what lies under it is the source's own, which is
/// only read. What is no image may be larger than the disk, and QEMU copies to what has the same size only: it sees so much.
#[must_use]
pub fn target_properties(
    source: &Attached,
    target: Target,
    bytes: u64,
    fdset: i64,
) -> Vec<Property> {
    let address = source.device.address;
    let common = vec![
        ("node-name", Value::text(copy_id(address))),
        // What the source has no data for takes no room in the copy either.
        ("discard", Value::text("unmap")),
    ];
    let store = store_properties(driver_of_store(target.storage), target.cache, fdset);
    if target.storage == StorageType::Qcow2 {
        let below = (!source.layers.is_empty()).then(|| layer_id(address, 0));
        return format_properties(target.storage, common, below, store);
    }
    let mut properties = vec![("driver", Value::text("raw"))];
    properties.extend(common);
    properties.extend([("size", Value::Number(bytes)), ("file", Value::Group(store))]);
    properties
}

/// Properties of the node that the firmware variables are copied to.
#[must_use]
pub fn nvram_properties(fdset: i64) -> Vec<Property> {
    let common = vec![("node-name", Value::text(NVRAM_COPY))];
    let store = store_properties(driver_of_store(StorageType::File), Cache::Page, fdset);
    format_properties(StorageType::File, common, None, store)
}

#[cfg(test)]
mod tests {
    use hpvm_model::{AdapterKind, DiskId, StorageDevice};

    use super::*;
    use crate::command_line::json;
    use crate::record::AttachedLayer;

    fn attached(address: &str, storage: StorageType, path: &str) -> Attached {
        let device = StorageDevice {
            kind: DeviceKind::Disk,
            adapter: AdapterKind::AvioStor,
            address: address.parse().expect("an address"),
            backing: Backing::new(storage, path),
            layers: Vec::new(),
            id: DiskId::from_random(7),
        };
        let identity = Some(FileIdentity { device: 1, inode: 2 });
        Attached { identity, cache: Cache::Direct, ..Attached::of(device) }
    }

    fn shown(properties: Vec<Property>) -> String {
        json(&Value::Group(properties)).to_string()
    }

    #[test]
    fn a_target_is_no_larger_than_its_disk_to_the_engine() {
        let disk = attached("0,1,0", StorageType::Lv, "/dev/v/src");
        let target = Target { storage: StorageType::Disk, cache: Cache::Direct };
        let node = shown(target_properties(&disk, target, 512, 9));
        for part in [r#""driver":"raw""#, r#""node-name":"copy-0-1-0""#, r#""size":512"#] {
            assert!(node.contains(part), "{part}: {node}");
        }
        for part in [r#""driver":"host_device""#, r#""/dev/fdset/9""#, r#""direct":true"#] {
            assert!(node.split_once(r#""file":"#).expect("a store").1.contains(part), "{node}");
        }
        assert!(is_of_copy(&copy_id(disk.device.address)) && is_of_copy(NVRAM_COPY));
        assert!(!is_of_copy("medium-0-1-0"));
    }

    #[test]
    fn the_copy_of_an_image_lies_over_what_the_image_lies_over() {
        let mut image = attached("0,1,0", StorageType::Qcow2, "/srv/a.qcow2");
        let target = Target { storage: StorageType::Qcow2, cache: Cache::Page };
        let alone = shown(target_properties(&image, target, 512, 9));
        assert!(alone.contains(r#""backing":null"#) && !alone.contains("size"), "{alone}");
        let backing = Backing::new(StorageType::File, "/srv/base.img");
        image.layers.push(AttachedLayer {
            backing,
            identity: None,
            image_length: None,
            cache: Cache::Page,
        });
        let over = shown(target_properties(&image, target, 512, 9));
        assert!(over.contains(r#""backing":"medium-0-1-0-layer0""#), "{over}");
    }
}
