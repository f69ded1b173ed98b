//! NICs as QEMU is told of them. A `lan` is an e1000 whose frames travel over a stream socket, an `avio_lan` a virtio-net
//! whose rings the switch walks itself (vhost-user). Both sockets are paths, since QEMU connects to them again when the
//! switch's process was replaced; a descriptor would be good once.

use hpvm_model::{MacAddress, NicKind, PciSlot};

use super::{Line, Property, Value, boot_order, port_id, properties_text};
use crate::record::{AttachedNic, BootRecord, NicBoot, OptionRom};

/// Between two tries to connect again, in milliseconds. A switch that comes back is to be heard within 200.
const RECONNECT_MS: u64 = 50;
/// How many buffers a guest may have in each ring of an AVIO NIC: as many as QEMU lets. A guest that has no processor for
/// some milliseconds is sent more than QEMU's 256 in that time.
const RING_SIZE: u64 = 1024;

pub(super) fn nics(line: &mut Line, record: &BootRecord) {
    let mut boot_indices = boot_order::of_nics();
    for attached in &record.nics {
        if attached.nic.kind == NicKind::AvioLan {
            let socket = attached.socket.replace(',', ",,");
            let id = chardev_id(attached.nic.slot);
            line.option(
                "-chardev",
                format!("socket,id={id},path={socket},reconnect-ms={RECONNECT_MS}"),
            );
        }
        // QEMU wants the type first and without its name.
        let netdev = properties_text(&netdev_properties(attached));
        line.option("-netdev", netdev.trim_start_matches("type="));
        let index = match attached.boot {
            NicBoot::AfterDisks => boot_indices.next(),
            NicBoot::No => None,
        };
        let boot = index.map(|index| Boot { index, lan_rom: record.lan_rom.as_ref() });
        line.option("-device", properties_text(&nic_properties(attached, boot)));
    }
}

/// Arguments of `chardev-add`: the socket over which the rings of an AVIO NIC are agreed on.
#[must_use]
pub fn chardev_properties(attached: &AttachedNic) -> Vec<Property> {
    let address = vec![
        ("type", Value::text("unix")),
        ("data", Value::Group(vec![("path", Value::text(attached.socket.clone()))])),
    ];
    let data = vec![
        ("addr", Value::Group(address)),
        ("server", Value::Flag(false)),
        ("reconnect-ms", Value::Number(RECONNECT_MS)),
    ];
    let backend = vec![("type", Value::text("socket")), ("data", Value::Group(data))];
    vec![("id", Value::text(chardev_id(attached.nic.slot))), ("backend", Value::Group(backend))]
}

/// Arguments of `netdev_add`.
#[must_use]
pub fn netdev_properties(attached: &AttachedNic) -> Vec<Property> {
    let slot = attached.nic.slot;
    let id = ("id", Value::text(netdev_id(slot)));
    match attached.nic.kind {
        NicKind::Lan => vec![
            ("type", Value::text("stream")),
            id,
            (
                "addr",
                Value::Group(vec![
                    ("type", Value::text("unix")),
                    ("path", Value::text(attached.socket.clone())),
                ]),
            ),
            ("server", Value::Flag(false)),
            ("reconnect-ms", Value::Number(RECONNECT_MS)),
        ],
        NicKind::AvioLan => vec![
            ("type", Value::text("vhost-user")),
            id,
            ("chardev", Value::text(chardev_id(slot))),
        ],
    }
}

/// How the firmware boots over a NIC.
#[derive(Clone, Copy, Debug)]
pub struct Boot<'a> {
    /// Its place among what is tried.
    pub index: u64,
    /// The firmware's driver of a `lan` NIC; an `avio_lan` has one in the firmware.
    pub lan_rom: Option<&'a OptionRom>,
}

/// Arguments of `device_add`. A NIC over which nothing is booted, as one that is plugged in later, has no option ROM: each
/// costs the firmware time.
#[must_use]
pub fn nic_properties(attached: &AttachedNic, boot: Option<Boot<'_>>) -> Vec<Property> {
    let slot = attached.nic.slot;
    let driver = match attached.nic.kind {
        NicKind::Lan => "e1000",
        NicKind::AvioLan => "virtio-net-pci",
    };
    let mut properties = vec![
        ("driver", Value::text(driver)),
        ("id", Value::text(nic_id(slot))),
        ("bus", Value::text(port_id(slot))),
        ("netdev", Value::text(netdev_id(slot))),
        ("mac", Value::text(with_colons(attached.nic.mac))),
        ("romfile", Value::text(romfile(attached, boot))),
    ];
    if let Some(Boot { index, .. }) = boot {
        properties.push(("bootindex", Value::Number(index)));
    }
    if attached.nic.kind == NicKind::AvioLan {
        properties.push(("rx_queue_size", Value::Number(RING_SIZE)));
        properties.push(("tx_queue_size", Value::Number(RING_SIZE)));
    }
    if let (NicKind::AvioLan, Some(mtu)) = (attached.nic.kind, attached.mtu) {
        properties.push(("host_mtu", Value::Number(mtu.into())));
    }
    properties
}

fn romfile(attached: &AttachedNic, boot: Option<Boot<'_>>) -> String {
    match (attached.nic.kind, boot.and_then(|boot| boot.lan_rom)) {
        (NicKind::Lan, Some(rom)) => rom.path.clone(),
        (NicKind::Lan, None) | (NicKind::AvioLan, _) => String::new(),
    }
}

fn with_colons(mac: MacAddress) -> String {
    mac.bytes().map(|byte| format!("{byte:02x}")).join(":")
}

#[must_use]
pub fn nic_id(slot: PciSlot) -> String {
    format!("nic-{}-{}", slot.bus(), slot.device())
}

#[must_use]
pub fn netdev_id(slot: PciSlot) -> String {
    format!("net-{}-{}", slot.bus(), slot.device())
}

#[must_use]
pub fn chardev_id(slot: PciSlot) -> String {
    format!("rings-{}-{}", slot.bus(), slot.device())
}

/// The slot of the NIC that has this netdev, as events name it.
#[must_use]
pub fn slot_of_netdev(id: &str) -> Option<PciSlot> {
    let (bus, device) = id.strip_prefix("net-")?.split_once('-')?;
    PciSlot::new(bus.parse().ok()?, device.parse().ok()?).ok()
}
