//! Storage adapters, and the devices on them, each with its medium.

use hpvm_model::{Accelerator, AdapterKind, AvioService, DeviceKind, PciSlot, StorageDevice};

use super::property::properties_text;
use super::{
    Descriptor, Handle, Line, Property, Role, Value, adapter_at, adapter_id, boot_order,
    descriptors, device_id, json, layer_properties, node_id, node_properties, port_id,
};
use crate::guest_path::{self, Function};
use crate::record::{Attached, BootRecord, Sharing};

/// The thread of the AVIO adapters: there from the start, for those plugged in later too.
const AVIO_THREAD: &str = "avio";

/// An emulated processor needs the time that the thread would look for requests in vain: without that a request of 16, each handed
/// over by itself, took 27% less processor time than VIO's instead of 21%, at the same rate (TCG, 1 Dec 2026).
pub(super) fn avio_thread(accelerator: Accelerator) -> String {
    let polling = match accelerator {
        Accelerator::Kvm => "",
        Accelerator::Tcg => ",poll-max-ns=0",
    };
    format!("iothread,id={AVIO_THREAD}{polling}")
}

pub(super) fn devices(line: &mut Line, record: &BootRecord) {
    let fds = descriptors(record);
    let mut adapters: Vec<PciSlot> = Vec::new();
    for attached in record.storage.iter().filter(|a| !a.device.is_place_holder()) {
        let device = &attached.device;
        if !adapters.contains(&device.address.slot) {
            adapters.push(device.address.slot);
            let devices = record.storage.iter().map(|attached| &attached.device);
            for adapter in adapters_of(device.address.slot, device.adapter, devices, record) {
                line.option("-device", properties_text(&adapter));
            }
        }
        let fd = fds
            .iter()
            .find(|d| d.role == Role::Medium(device.address))
            .map(|descriptor| descriptor.number);
        if let Some(fd) = fd {
            for place in (0..attached.layers.len()).rev() {
                layer(line, attached, place, &fds);
            }
            if !device.kind.is_attached() {
                line.option("-add-fd", format!("fd={fd},set={fd}"));
            }
            line.option("-blockdev", node_text(attached, fd));
        }
        line.option("-device", device_text(attached));
    }
}

/// A layer has a node of its own, made before the one above it.
fn layer(line: &mut Line, attached: &Attached, place: usize, fds: &[Descriptor]) {
    let role = Role::Layer(attached.device.address, place);
    let Some(fd) = fds.iter().find(|d| d.role == role).map(|d| d.number) else { return };
    line.option("-add-fd", format!("fd={fd},set={fd}"));
    let properties = layer_properties(attached, place, i64::from(fd));
    line.option("-blockdev", blockdev_text(properties));
}

fn node_text(attached: &Attached, number: i32) -> String {
    let name = node_id(attached.device.address, 0);
    let handle = Handle { set: number.into(), number: number.into() };
    blockdev_text(node_properties(attached, &name, handle))
}

fn blockdev_text(properties: Vec<Property>) -> String {
    // Of an image the one below it is told, or that there is none, which only JSON can say.
    match properties.iter().any(|(key, _)| *key == "backing") {
        true => json(&Value::Group(properties)).to_string(),
        false => properties_text(&properties),
    }
}

fn device_text(attached: &Attached) -> String {
    let node = node_id(attached.device.address, 0);
    let node = attached.device.backing.store().map(|_| node.as_str());
    properties_text(&device_properties(attached, node))
}

/// Properties of the `device_add` of each adapter that these devices need at a slot: one, and a second function of it for
/// emulated targets that it has no port for. To a running guest the last comes first: the first function announces both.
#[must_use]
pub fn adapters_of<'a>(
    slot: PciSlot,
    kind: AdapterKind,
    devices: impl IntoIterator<Item = &'a StorageDevice>,
    record: &BootRecord,
) -> Vec<Vec<Property>> {
    let here = devices.into_iter().filter(|device| device.address.slot == slot);
    let needs_second = here
        .map(|device| guest_path::place(kind, device.address.target).0)
        .any(|function| function == Function::Second);
    let mut first = adapter_properties(slot, kind, record);
    if !needs_second {
        return vec![first];
    }
    first.push(("addr", Value::text("0x0.0")));
    first.push(("multifunction", Value::Flag(true)));
    // One driver serves both: the first one's firmware brings it.
    let second = vec![
        ("driver", first[0].1.clone()),
        ("id", Value::text(adapter_at(slot, Function::Second))),
        ("bus", Value::text(port_id(slot))),
        ("addr", Value::text("0x0.1")),
    ];
    vec![first, second]
}

fn adapter_properties(slot: PciSlot, kind: AdapterKind, record: &BootRecord) -> Vec<Property> {
    let driver = match kind {
        AdapterKind::Scsi => "mptsas1068",
        AdapterKind::AvioStor => "virtio-scsi-pci",
    };
    let mut properties = vec![
        ("driver", Value::text(driver)),
        ("id", Value::text(adapter_id(slot))),
        ("bus", Value::text(port_id(slot))),
    ];
    match (kind, &record.option_rom, record.avio_service) {
        (AdapterKind::Scsi, Some(rom), _) => {
            properties.push(("romfile", Value::text(rom.path.clone())));
        }
        (AdapterKind::AvioStor, _, AvioService::Processor) => {
            properties.push(("ioeventfd", Value::Flag(false)));
        }
        (AdapterKind::AvioStor, _, AvioService::Thread) => {
            properties.push(("iothread", Value::text(AVIO_THREAD)));
        }
        (AdapterKind::Scsi, None, _) | (AdapterKind::AvioStor, _, AvioService::MainLoop) => {}
    }
    properties
}

/// Properties of the SCSI device at an address.
#[must_use]
pub fn device_properties(attached: &Attached, node: Option<&str>) -> Vec<Property> {
    let device = &attached.device;
    let driver = match (device.kind, attached.sharing) {
        (DeviceKind::Disk, Sharing::Alone | Sharing::WithHost) => "scsi-hd",
        (DeviceKind::Disk, Sharing::Reserved) => "scsi-block",
        (DeviceKind::Dvd, _) => "scsi-cd",
        (DeviceKind::Tape | DeviceKind::Changer | DeviceKind::Burner, _) => "scsi-generic",
    };
    let (function, target) = guest_path::place(device.adapter, device.address.target);
    let mut properties = vec![
        ("driver", Value::text(driver)),
        ("id", Value::text(device_id(device.address))),
        ("bus", Value::text(format!("{}.0", adapter_at(device.address.slot, function)))),
        ("scsi-id", Value::Number(target.into())),
        ("lun", Value::Number(0)),
    ];
    if let Some(naa) = guest_path::naa(device, attached.sharing) {
        properties.extend(identity_properties(device, naa));
    }
    if attached.sharing == Sharing::Reserved {
        // Other engines write to it too.
        properties.push(("share-rw", Value::Flag(true)));
    }
    if driver == "scsi-hd" {
        // A write that is to be kept at once is asked for by one command, instead of a write and a flush.
        properties.push(("dpofua", Value::Flag(true)));
    }
    if let Some(node) = node {
        properties.push(("drive", Value::text(node)));
    }
    properties.push(("bootindex", Value::Number(boot_order::of_device(device.address))));
    properties
}

/// What a virtual device answers to an inquiry, which tells nothing of the backing store.
fn identity_properties(device: &StorageDevice, naa: u64) -> [Property; 4] {
    let is_dvd = device.kind == DeviceKind::Dvd;
    let product = if is_dvd { "Virtual DVD" } else { "Virtual Disk" };
    [
        ("vendor", Value::text("HP")),
        ("product", Value::text(product)),
        ("serial", Value::text(device.id.to_string())),
        ("wwn", Value::Number(naa)),
    ]
}
