//! The QEMU command line of a boot record. Every file and socket comes as a descriptor, so that nothing depends on where it
//! lies; which descriptor is which is decided here once, for the line and for the one who opens them.

pub mod network;
mod reservations;

use hpvm_model::{
    Accelerator, AdapterKind, DeviceKind, PciSlot, StorageAddress, StorageDevice, StorageType,
};

pub use reservations::{RESERVATION_MANAGER, reservation_manager, shares_disks};

use crate::guest_path::{self, Function};
use crate::record::{
    Access, AgentChannel, Attached, AttachedLayer, AvioService, BootRecord, Cache, Sharing,
};

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

/// The arguments after the program's name.
#[must_use]
pub fn arguments(record: &BootRecord) -> Vec<String> {
    let mut line = Line::default();
    machine(&mut line, record);
    firmware(&mut line);
    line.option(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    monitors(&mut line);
    console(&mut line);
    if record.agent == AgentChannel::Present {
        agent(&mut line);
    }
    for slot in &record.ports {
        line.option("-device", root_port(*slot));
    }
    if record.avio_service == AvioService::Thread {
        line.option("-object", format!("iothread,id={AVIO_THREAD}"));
    }
    if let (true, Some(socket)) = (shares_disks(&record.storage), &record.reservations) {
        line.option("-object", properties_text(&reservation_manager(socket)));
    }
    let disks = storage(&mut line, record);
    network::nics(&mut line, record, disks + 1);
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

fn machine(line: &mut Line, record: &BootRecord) {
    let mib = record.memory.bytes().as_mib();
    let cpu = match record.accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "qemu64",
    };
    line.option("-name", format!("guest={},process=hpvm-{}", record.name, record.number));
    line.flag("-nodefaults");
    line.flag("-no-user-config");
    line.option("-display", "none");
    line.option(
        "-machine",
        format!(
            "{},usb=off,vmport=off,memory-backend=ram0,pflash0=firmware-code,pflash1=nvram",
            record.machine_type
        ),
    );
    match descriptors(record).iter().find(|descriptor| descriptor.role == Role::Kvm) {
        Some(Descriptor { number, .. }) => {
            line.option("-add-fd", format!("fd={number},set={number},opaque=kvm"));
            line.option("-accel", format!("kvm,device=/dev/fdset/{number}"));
        }
        None => line.option("-accel", "tcg,thread=multi"),
    }
    line.option("-cpu", cpu);
    line.option("-smp", record.vcpus.to_string());
    line.option("-m", format!("{mib}M"));
    line.option("-object", format!("memory-backend-memfd,id=ram0,size={mib}M,share=on"));
    line.option("-uuid", record.uuid.to_string());
    line.option(
        "-smbios",
        format!(
            "type=1,manufacturer=hpvm,product=server Integrity Virtual Machine,serial={},uuid={}",
            record.serial_number, record.uuid
        ),
    );
    line.option("-rtc", "base=utc");
    // A guest that suspends itself would look hung from outside.
    line.option("-global", "ICH9-LPC.disable_s3=1");
    line.option("-global", "ICH9-LPC.disable_s4=1");
}

/// The agent's channel, where there is one, follows the fixed ones.
fn number_of(role: &Role) -> i32 {
    let index = FIXED_ROLES.iter().position(|fixed| fixed == role).unwrap_or(FIXED_ROLES.len());
    FIRST_DESCRIPTOR + i32::try_from(index).unwrap_or_default()
}

/// The block node of the firmware variables.
pub const NVRAM_NODE: &str = "nvram";

fn firmware(line: &mut Line) {
    let code = number_of(&Role::FirmwareCode);
    line.option("-add-fd", format!("fd={code},set={code},opaque=firmware-code"));
    line.option(
        "-blockdev",
        format!("driver=file,node-name=firmware-code,filename=/dev/fdset/{code},read-only=on,auto-read-only=off"),
    );
    let nvram = number_of(&Role::Nvram);
    line.option("-add-fd", format!("fd={nvram},set={nvram},opaque=nvram"));
    line.option(
        "-blockdev",
        format!("driver=file,node-name={NVRAM_NODE},filename=/dev/fdset/{nvram}"),
    );
}

fn monitors(line: &mut Line) {
    for (id, role) in [("monitor", Role::Monitor), ("rescue", Role::Rescue)] {
        let fd = number_of(&role);
        line.option("-chardev", format!("socket,id={id},fd={fd},server=on,wait=off"));
        line.option("-mon", format!("chardev={id},mode=control"));
    }
}

fn console(line: &mut Line) {
    let (serial, log) = (number_of(&Role::Serial), number_of(&Role::ConsoleLog));
    line.option("-add-fd", format!("fd={log},set={log},opaque=console-log"));
    line.option(
        "-chardev",
        format!(
            "socket,id=console,fd={serial},server=on,wait=off,logfile=/dev/fdset/{log},logappend=on"
        ),
    );
    line.option("-serial", "chardev:console");
}

/// Chardev, adapter and port of the guest agent, as QEMU knows them.
pub const AGENT_CHARDEV: &str = "agent";
const AGENT_ADAPTER: &str = "agent-adapter";
/// The name in events of the port being opened and closed by the guest.
pub const AGENT_PORT: &str = "agent-port";

/// The place of the agent's adapter on the root bus, for ever: the root ports have 0x8 to 0xe, the chipset 0 and 0x1f.
const AGENT_PCI_DEVICE: u8 = 0x10;

/// A guest finds the port by its name, which agents of all systems look for. Port 0 would be a console's.
fn agent(line: &mut Line) {
    let fd = number_of(&Role::Agent);
    line.option("-chardev", format!("socket,id={AGENT_CHARDEV},fd={fd},server=on,wait=off"));
    line.option(
        "-device",
        format!(
            "virtio-serial-pci,id={AGENT_ADAPTER},bus=pcie.0,addr={AGENT_PCI_DEVICE:#x},disable-legacy=on,max_ports=4"
        ),
    );
    line.option(
        "-device",
        format!(
            "virtserialport,id={AGENT_PORT},bus={AGENT_ADAPTER}.0,nr=1,chardev={AGENT_CHARDEV},name=org.qemu.guest_agent.0"
        ),
    );
}

/// So 56 ports take seven slots of the root bus.
fn root_port(slot: PciSlot) -> String {
    let chassis = chassis(slot);
    let (pci_device, function) = guest_path::port(slot);
    let multifunction = if function == 0 { ",multifunction=on" } else { "" };
    format!(
        "pcie-root-port,id={},bus=pcie.0,addr={pci_device:#x}.{function},chassis={chassis},port={chassis}{multifunction}",
        port_id(slot)
    )
}

fn chassis(slot: PciSlot) -> u8 {
    8 * slot.bus() + slot.device() + 1
}

/// Returns how many devices the firmware tries to boot from, by their numbers from 1.
fn storage(line: &mut Line, record: &BootRecord) -> usize {
    let fds = descriptors(record);
    let mut adapters: Vec<PciSlot> = Vec::new();
    let mut boot_index = 0;
    for attached in record.storage.iter().filter(|a| !a.device.is_place_holder()) {
        boot_index += 1;
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
        line.option("-device", device_text(attached, Some(boot_index)));
    }
    boot_index
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

/// A value as QMP wants it.
#[must_use]
pub fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Text(text) => text.as_str().into(),
        Value::Number(number) => (*number).into(),
        Value::Flag(flag) => (*flag).into(),
        Value::Null => serde_json::Value::Null,
        Value::Group(inner) => {
            inner.iter().map(|(key, value)| ((*key).to_owned(), json(value))).collect()
        }
    }
}

fn device_text(attached: &Attached, boot_index: Option<usize>) -> String {
    let node = node_id(attached.device.address, 0);
    let node = attached.device.backing.store().map(|_| node.as_str());
    properties_text(&device_properties(attached, node, boot_index))
}

/// A QEMU property: the same list is printed on the command line and sent by QMP, so that a device plugged in later is the
/// one a start would have made.
pub type Property = (&'static str, Value);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(u64),
    Flag(bool),
    Group(Vec<Property>),
    Null,
}

impl Value {
    pub(crate) fn text(text: impl Into<String>) -> Value {
        Value::Text(text.into())
    }
}

/// The thread of the AVIO adapters: there from the start, for those plugged in later too.
const AVIO_THREAD: &str = "avio";

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

/// Properties of the SCSI device at an address.
#[must_use]
pub fn device_properties(
    attached: &Attached,
    node: Option<&str>,
    boot_index: Option<usize>,
) -> Vec<Property> {
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
    if let Some(index) = boot_index {
        properties.push(("bootindex", Value::Number(index as u64)));
    }
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

/// `driver,key=value,…` as -device wants it and `driver=driver,key=value,…` as -blockdev does. Commas in values are doubled;
/// what is grouped has its group's name before it.
fn properties_text(properties: &[Property]) -> String {
    let mut parts = Vec::with_capacity(properties.len());
    flatten("", properties, &mut parts);
    let is_device = properties.iter().any(|(key, _)| *key == "id");
    if is_device && let Some(driver) = parts.first_mut() {
        let name = driver.trim_start_matches("driver=").trim_start_matches("qom-type=");
        *driver = name.to_owned();
    }
    parts.join(",")
}

fn flatten(group: &str, properties: &[Property], parts: &mut Vec<String>) {
    for (key, value) in properties {
        let value = match value {
            Value::Text(text) => text.replace(',', ",,"),
            Value::Number(number) if *key == "wwn" => format!("{number:#x}"),
            Value::Number(number) => number.to_string(),
            Value::Flag(flag) => (if *flag { "on" } else { "off" }).into(),
            Value::Group(inner) => {
                flatten(&format!("{group}{key}."), inner, parts);
                continue;
            }
            // Has no form in this notation; who needs it writes JSON.
            Value::Null => continue,
        };
        parts.push(format!("{group}{key}={value}"));
    }
}

#[must_use]
pub fn port_id(slot: PciSlot) -> String {
    format!("port-{}-{}", slot.bus(), slot.device())
}

/// The adapter with which all that is at a slot comes and goes.
#[must_use]
pub fn adapter_id(slot: PciSlot) -> String {
    adapter_at(slot, Function::First)
}

#[must_use]
pub fn adapter_at(slot: PciSlot, function: Function) -> String {
    let second = if function == Function::Second { "-second" } else { "" };
    format!("adapter-{}-{}{second}", slot.bus(), slot.device())
}

#[must_use]
pub fn device_id(address: StorageAddress) -> String {
    format!("device-{}-{}-{}", address.slot.bus(), address.slot.device(), address.target)
}

/// The block node of a medium: that of the start has journal number 0, later ones the number of their change, since a
/// medium on its way out still has its name.
#[must_use]
pub fn node_id(address: StorageAddress, journal_seq: u64) -> String {
    let StorageAddress { slot, target } = address;
    let place = format!("medium-{}-{}-{target}", slot.bus(), slot.device());
    if journal_seq == 0 { place } else { format!("{place}-{journal_seq}") }
}

/// The block node of a layer under the medium of a device, which never gets another one with layers while it is there.
#[must_use]
pub fn layer_id(address: StorageAddress, place: usize) -> String {
    format!("{}-layer{place}", node_id(address, 0))
}
