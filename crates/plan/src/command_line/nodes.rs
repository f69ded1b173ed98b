//! Block nodes: what is behind the descriptor of a medium or of a layer, and the format it is read in.

use hpvm_model::{DeviceKind, StorageDevice, StorageType};

use super::{Property, RESERVATION_MANAGER, Value, layer_id};
use crate::record::{Access, Attached, AttachedLayer, Cache, Sharing};

/// A descriptor as QEMU knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle {
    /// The set it is in.
    pub set: i64,
    /// Its number in QEMU.
    pub number: i64,
}

/// Properties of the block node behind a device's medium: the store itself, or the format that is read from it.
#[must_use]
pub fn node_properties(attached: &Attached, node: &str, handle: Handle) -> Vec<Property> {
    let device = &attached.device;
    let is_writable_disk = device.kind == DeviceKind::Disk && attached.access == Access::ReadWrite;
    let mut common = vec![("node-name", Value::text(node))];
    if is_writable_disk {
        common.push(("discard", Value::text("unmap")));
    }
    if attached.access == Access::ReadOnly {
        common.push(("read-only", Value::Flag(true)));
    }
    let store = match device.kind.is_attached() {
        true => generic_properties(handle.number),
        false => store_properties(driver_of(device), attached.cache, handle.set),
    };
    if attached.sharing == Sharing::Reserved {
        common.push(("pr-manager", Value::text(RESERVATION_MANAGER)));
    }
    let below = (!attached.layers.is_empty()).then(|| layer_id(device.address, 0));
    format_properties(device.backing.storage, common, below, store)
}

/// Properties of the node of a layer, which is only read.
#[must_use]
pub fn layer_properties(attached: &Attached, place: usize, fdset: i64) -> Vec<Property> {
    let AttachedLayer { backing, cache, .. } = &attached.layers[place];
    let address = attached.device.address;
    let common = vec![
        ("node-name", Value::text(layer_id(address, place))),
        ("read-only", Value::Flag(true)),
        ("auto-read-only", Value::Flag(false)),
    ];
    let below = (place + 1 < attached.layers.len()).then(|| layer_id(address, place + 1));
    let store = store_properties(driver_of_store(backing.storage), *cache, fdset);
    format_properties(backing.storage, common, below, store)
}

pub(crate) fn format_properties(
    storage: StorageType,
    common: Vec<Property>,
    below: Option<String>,
    store: Vec<Property>,
) -> Vec<Property> {
    if storage == StorageType::Qcow2 {
        let mut format = vec![("driver", Value::text("qcow2"))];
        format.extend(common);
        // Without this QEMU follows whatever path the image names as the one below it.
        format.push(("backing", below.map_or(Value::Null, Value::text)));
        format.push(("file", Value::Group(store)));
        return format;
    }
    let mut properties = store;
    properties.splice(1..1, common);
    properties
}

/// The protocol layer: the file or device behind a descriptor.
pub(crate) fn store_properties(driver: &'static str, cache: Cache, fdset: i64) -> Vec<Property> {
    let mut properties = vec![
        ("driver", Value::text(driver)),
        ("filename", Value::text(format!("/dev/fdset/{fdset}"))),
    ];
    if cache == Cache::Direct {
        properties.push(("cache", Value::Group(vec![("direct", Value::Flag(true))])));
        properties.push(("aio", Value::text("io_uring")));
    }
    properties
}

/// The generic node of a SCSI device. QEMU tells it from other files by looking at the path, at which a set's name has
/// nothing; so it opens by this one what the descriptor leads to.
fn generic_properties(number: i64) -> Vec<Property> {
    let path = format!("/proc/self/fd/{number}");
    vec![("driver", Value::text("host_device")), ("filename", Value::text(path))]
}

/// A drive of the VM Host is asked what is in it whenever the guest asks; any other store is there.
fn driver_of(device: &StorageDevice) -> &'static str {
    match (device.kind, device.backing.storage) {
        (DeviceKind::Dvd, StorageType::Disk) => "host_cdrom",
        (_, storage) => driver_of_store(storage),
    }
}

pub(crate) fn driver_of_store(storage: StorageType) -> &'static str {
    match storage {
        StorageType::Disk | StorageType::Lv | StorageType::Attach => "host_device",
        StorageType::File | StorageType::Qcow2 | StorageType::Null => "file",
    }
}
