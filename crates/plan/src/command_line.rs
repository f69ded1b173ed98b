//! The QEMU command line of a boot record. Every file and socket comes as a descriptor, so that nothing depends on where it
//! lies; which descriptor is which is decided here once, for the line and for the one who opens them. What is at guest
//! addresses is also told to a QEMU that runs, from the same lists of properties.

mod boot_order;
mod machine;
mod names;
pub mod network;
mod nodes;
mod property;
mod reservations;
mod storage;

use hpvm_model::{Accelerator, AvioService, StorageAddress};

pub use machine::{AGENT_CHARDEV, AGENT_PORT, NVRAM_NODE};
pub use names::{adapter_at, adapter_id, device_id, layer_id, node_id, port_id};
pub use nodes::{Handle, layer_properties, node_properties};
pub(crate) use nodes::{driver_of_store, format_properties, store_properties};
pub use property::{Property, Value, json};
pub use reservations::{RESERVATION_MANAGER, reservation_manager, shares_disks};
pub use storage::{adapters_of, device_properties};

use self::property::properties_text;
use crate::record::{AgentChannel, BootRecord};

/// What a descriptor handed to QEMU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    FirmwareCode,
    Nvram,
    /// Listening socket of the worker's monitor.
    Monitor,
    /// Listening socket of the second monitor, kept for rescue.
    Rescue,
    /// Listening socket of the serial console.
    Serial,
    /// Where every byte of the console goes, opened for appending.
    ConsoleLog,
    /// Listening socket of the guest agent's channel.
    Agent,
    /// The kernel's virtualization, which the guest's own user may not open.
    Kvm,
    /// What backs the device at an address.
    Medium(StorageAddress),
    /// What lies under it, by its place among the device's layers.
    Layer(StorageAddress, usize),
}

/// A descriptor by its number in QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub number: i32,
    pub role: Role,
}

const FIRST_DESCRIPTOR: i32 = 10;
const FIXED_ROLES: [Role; 6] =
    [Role::FirmwareCode, Role::Nvram, Role::Monitor, Role::Rescue, Role::Serial, Role::ConsoleLog];

/// All descriptors QEMU gets at its start, numbered without gaps.
#[must_use]
pub fn descriptors(record: &BootRecord) -> Vec<Descriptor> {
    let agent = (record.agent == AgentChannel::Present).then_some(Role::Agent);
    let media =
        record.storage.iter().filter(|a| a.device.backing.store().is_some()).flat_map(|a| {
            let address = a.device.address;
            let layers = (0..a.layers.len()).map(move |place| Role::Layer(address, place));
            std::iter::once(Role::Medium(address)).chain(layers)
        });
    let kvm = (record.accelerator == Accelerator::Kvm).then_some(Role::Kvm);
    (FIRST_DESCRIPTOR..)
        .zip(FIXED_ROLES.into_iter().chain(agent).chain(kvm).chain(media))
        .map(|(number, role)| Descriptor { number, role })
        .collect()
}

/// The agent's channel, where there is one, follows the fixed ones.
fn number_of(role: &Role) -> i32 {
    let index = FIXED_ROLES.iter().position(|fixed| fixed == role).unwrap_or(FIXED_ROLES.len());
    FIRST_DESCRIPTOR + i32::try_from(index).unwrap_or_default()
}

/// The arguments after the program's name.
#[must_use]
pub fn arguments(record: &BootRecord) -> Vec<String> {
    let mut line = Line::default();
    machine::base(&mut line, record);
    machine::firmware(&mut line);
    line.option(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    machine::monitors(&mut line);
    machine::console(&mut line);
    if record.agent == AgentChannel::Present {
        machine::agent(&mut line);
    }
    for slot in &record.ports {
        line.option("-device", machine::root_port(*slot));
    }
    if record.avio_service == AvioService::Thread {
        line.option("-object", storage::avio_thread(record.accelerator));
    }
    if let (true, Some(socket)) = (shares_disks(&record.storage), &record.reservations) {
        line.option("-object", properties_text(&reservation_manager(socket)));
    }
    storage::devices(&mut line, record);
    network::nics(&mut line, record);
    line.option("-action", "shutdown=pause,panic=pause,reboot=reset");
    line.option("-msg", "timestamp=on");
    line.0
}

#[derive(Default)]
struct Line(Vec<String>);

impl Line {
    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }
}
