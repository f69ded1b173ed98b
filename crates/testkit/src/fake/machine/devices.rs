//! Root ports, adapters and NICs, disks, drives and the agent's port: plugging, unplugging, trays and media.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Answer, Arguments, Later, Machine, Refusal, done};
use crate::fake::behaviour::{Agent, Delete};

#[derive(Debug)]
pub(super) struct Device {
    id: String,
    driver: String,
    kind: Kind,
    bus: String,
    target: Option<i64>,
    /// The medium.
    pub node: Option<String>,
    tray: Tray,
    /// The socket behind a serial port.
    chardev: Option<String>,
    /// What a NIC sends over.
    netdev: Option<String>,
    /// PCI device and function, where given.
    place: Option<String>,
    /// The guest was asked to let it go.
    is_leaving: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Port,
    Adapter,
    Disk,
    Drive,
    SerialAdapter,
    SerialPort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tray {
    None,
    Open,
    Closed,
}

const DRIVERS: &[(&str, Kind)] = &[
    ("pcie-root-port", Kind::Port),
    ("virtio-scsi-pci", Kind::Adapter),
    ("mptsas1068", Kind::Adapter),
    ("virtio-net-pci", Kind::Adapter),
    ("e1000", Kind::Adapter),
    ("scsi-hd", Kind::Disk),
    ("scsi-cd", Kind::Drive),
    ("scsi-generic", Kind::Disk),
    ("virtio-serial-pci", Kind::SerialAdapter),
    ("virtserialport", Kind::SerialPort),
];

/// A SCSI device goes without the guest being asked, as soon as QEMU's main loop comes round.
const SCSI_GONE: Duration = Duration::from_millis(1);

impl Machine {
    pub(super) fn add_device(&mut self, arguments: &Arguments) -> Answer {
        let driver = arguments.text("driver")?;
        let Some((_, kind)) = DRIVERS.iter().find(|(name, _)| *name == driver) else {
            return Err(Refusal::generic(format!("'{driver}' is not a valid device model name")));
        };
        let bus = arguments.optional_text("bus").unwrap_or("pcie.0");
        if !self.has_bus(bus) {
            return Err(Refusal::generic(format!("Bus '{bus}' not found")));
        }
        let id = arguments.optional_text("id").unwrap_or_default();
        if self.device(id).is_ok() {
            return Err(Refusal::generic(format!("Duplicate device ID '{id}'")));
        }
        let target = arguments.number("scsi-id");
        let node = arguments.optional_text("drive").map(str::to_owned);
        let place = arguments.optional_text("addr").map(str::to_owned);
        let netdev = arguments.optional_text("netdev").map(str::to_owned);
        self.check_netdev(driver, netdev.as_deref())?;
        self.check_place(driver, *kind, bus, target, function(place.as_deref()))?;
        self.check_medium(driver, *kind, node.as_deref())?;
        let chardev = arguments.optional_text("chardev").map(str::to_owned);
        if let Some(unknown) = chardev.as_ref().filter(|id| !self.chardevs.contains(id)) {
            let text = format!("Property '{driver}.chardev' can't find value '{unknown}'");
            return Err(Refusal::generic(text));
        }
        self.devices.push(Device {
            id: id.to_owned(),
            driver: driver.to_owned(),
            kind: *kind,
            bus: bus.to_owned(),
            target,
            node,
            tray: if *kind == Kind::Drive { Tray::Closed } else { Tray::None },
            chardev,
            netdev,
            place,
            is_leaving: false,
        });
        done()
    }

    pub(super) fn delete_device(&mut self, arguments: &Arguments) -> Answer {
        let id = arguments.text("id")?.to_owned();
        let os_runs = self.os_runs;
        let device = self.device_mut(&id)?;
        let kind = device.kind;
        let was_asked = std::mem::replace(&mut device.is_leaving, true);
        // QEMU asks a guest again, which may have an operating system by now.
        if was_asked && kind != Kind::Adapter {
            return done();
        }
        match (kind, os_runs, self.behaviour.delete) {
            (Kind::Disk | Kind::Drive, ..) => self.after(SCSI_GONE, Later::DeviceGone { id }),
            (_, true, Delete::After(delay)) => self.after(delay, Later::DeviceGone { id }),
            // Nobody reacts; the next reset takes it away.
            (_, false, _) | (_, _, Delete::Never) => {}
        }
        done()
    }

    /// Devices whose removal a reset completes.
    pub(super) fn leaving(&self) -> Vec<String> {
        let leaving = self.devices.iter().filter(|device| device.is_leaving);
        leaving.map(|device| device.id.clone()).collect()
    }

    /// The guest lets go of a device and of what hangs on it.
    pub(super) fn let_go(&mut self, id: &str) {
        let Ok(device) = self.device(id) else { return };
        let (kind, driver, port) = (device.kind, device.driver.clone(), device.bus.clone());
        let bus = format!("{id}.0");
        let hanging = self.devices.iter().filter(|device| device.bus == bus || device.bus == id);
        for below in hanging.map(|device| device.id.clone()).collect::<Vec<_>>() {
            self.let_go(&below);
        }
        let path = format!("/machine/peripheral/{id}");
        if kind == Kind::Adapter && driver.starts_with("virtio") {
            let inner = json!({ "path": format!("{path}/virtio-backend") });
            self.event("DEVICE_DELETED", Some(inner));
        }
        let functions = |device: &&Device| {
            kind == Kind::Adapter && device.kind == kind && device.bus == port && port != "pcie.0"
        };
        let others: Vec<String> =
            self.devices.iter().filter(functions).map(|device| device.id.clone()).collect();
        self.devices.retain(|device| device.id != id);
        self.event("DEVICE_DELETED", Some(json!({ "device": id, "path": path })));
        // The slot is switched off as a whole.
        for other in others.into_iter().filter(|other| other != id) {
            match self.behaviour.second {
                Duration::ZERO => self.let_go(&other),
                delay => self.after(delay, Later::DeviceGone { id: other }),
            }
        }
    }

    pub(super) fn open_tray(&mut self, arguments: &Arguments) -> Answer {
        let id = self.drive(arguments)?;
        self.move_tray(&id, Tray::Open)?;
        done()
    }

    pub(super) fn close_tray(&mut self, arguments: &Arguments) -> Answer {
        let id = self.drive(arguments)?;
        self.move_tray(&id, Tray::Closed)?;
        done()
    }

    pub(super) fn remove_medium(&mut self, arguments: &Arguments) -> Answer {
        let id = self.drive(arguments)?;
        self.needs_open_tray(&id)?;
        self.take_medium_out(&id)?;
        done()
    }

    pub(super) fn insert_medium(&mut self, arguments: &Arguments) -> Answer {
        let id = self.drive(arguments)?;
        let node = arguments.text("node-name")?.to_owned();
        if self.node(&node).is_none() {
            return Err(Refusal::generic(format!("Node '{node}' not found")));
        }
        if self.is_in_use(&node) {
            return Err(Refusal::generic(format!("Node '{node}' is already in use")));
        }
        let device = self.device_mut(&id)?;
        if device.tray != Tray::Open {
            return Err(Refusal::generic("Tray of the device is not open"));
        }
        if device.node.is_some() {
            return Err(Refusal::generic(format!("There already is a medium in device '{id}'")));
        }
        device.node = Some(node);
        done()
    }

    pub(super) fn change_medium(&mut self, arguments: &Arguments) -> Answer {
        let id = self.drive(arguments)?;
        let node = self.add_nameless_node(arguments.text("filename")?, true)?;
        self.move_tray(&id, Tray::Open)?;
        self.take_medium_out(&id)?;
        self.device_mut(&id)?.node = Some(node);
        self.move_tray(&id, Tray::Closed)?;
        done()
    }

    pub(super) fn eject(&mut self, arguments: &Arguments) -> Answer {
        let id = self.drive(arguments)?;
        self.move_tray(&id, Tray::Open)?;
        self.take_medium_out(&id)?;
        done()
    }

    pub(super) fn query_block(&self) -> Value {
        let flash = self.flash.iter().enumerate().map(|(index, node)| {
            let mut device = json!({
                "device": "", "locked": false, "removable": false,
                "qdev": format!("/machine/system.flash{index}"), "type": "unknown",
            });
            self.put_medium(&mut device, Some(node));
            device
        });
        let drives = self.block_devices().map(|drive| {
            let mut device = json!({
                "io-status": "ok", "device": "", "locked": false,
                "removable": drive.kind == Kind::Drive, "qdev": drive.id, "type": "unknown",
            });
            if drive.kind == Kind::Drive {
                device["tray_open"] = (drive.tray == Tray::Open).into();
            }
            self.put_medium(&mut device, drive.node.as_ref());
            device
        });
        flash.chain(drives).collect()
    }

    pub(super) fn query_blockstats(&self) -> Value {
        let flash = self.flash.iter().enumerate().map(|(index, node)| {
            let qdev = format!("/machine/system.flash{index}");
            json!({ "device": "", "stats": counters(None), "node-name": node, "qdev": qdev })
        });
        let idle = self.behaviour.idle;
        let drives = self.block_devices().map(|drive| {
            let mut entry = json!({ "device": "", "stats": counters(idle), "qdev": drive.id });
            if let Some(node) = &drive.node {
                entry["node-name"] = node.as_str().into();
            }
            entry
        });
        flash.chain(drives).collect()
    }

    pub(super) fn query_pci(&self) -> Value {
        let on_bus = |bus: &str| -> Vec<&Device> {
            self.devices.iter().filter(|device| device.bus == bus).collect()
        };
        let (serial, ports): (Vec<&Device>, Vec<&Device>) =
            on_bus("pcie.0").into_iter().partition(|device| device.kind == Kind::SerialAdapter);
        let ports = ports.into_iter().enumerate().map(|(index, port)| {
            let below = on_bus(&port.id).into_iter().map(|d| pci_device(1, 0, &d.id, 0x0100));
            let mut device = pci_device(0, 64 + index, &port.id, 0x0604);
            device["pci_bridge"] = json!({ "bus": {}, "devices": below.collect::<Vec<_>>() });
            device
        });
        // It stands behind all ports.
        let serial = serial.iter().map(|d| pci_device(0, d.slot() * 8, &d.id, 0x0780));
        let ports = ports.chain(serial);
        json!([{ "bus": 0, "devices": ports.collect::<Vec<_>>() }])
    }

    pub(super) fn query_chardev(&self) -> Value {
        let chardevs = self.chardevs.iter().map(|id| {
            let is_agents = self.agent_port().is_some_and(|(_, chardev)| chardev == id);
            let open = !is_agents || self.agent_listens();
            json!({ "label": id, "filename": "disconnected:unix:", "frontend-open": open })
        });
        chardevs.collect()
    }

    /// The serial port and the socket behind it.
    pub(super) fn agent_port(&self) -> Option<(&str, &str)> {
        let port = self.devices.iter().find(|device| device.kind == Kind::SerialPort)?;
        Some((&port.id, port.chardev.as_deref()?))
    }

    pub(super) fn agent_listens(&self) -> bool {
        self.os_runs && self.behaviour.agent != Agent::None
    }

    pub(super) fn qom_list(&self, arguments: &Arguments) -> Answer {
        let path = arguments.text("path")?;
        let own = json!({ "name": "type", "type": "string" });
        if path == "/machine/peripheral" {
            let children = self.devices.iter().map(
                |device| json!({ "name": device.id, "type": format!("child<{}>", device.driver) }),
            );
            return Ok(std::iter::once(own).chain(children).collect());
        }
        self.at_path(path)?;
        Ok(json!([own, { "name": "realized", "type": "bool" }]))
    }

    pub(super) fn qom_get(&self, arguments: &Arguments) -> Answer {
        let device = self.at_path(arguments.text("path")?)?;
        match arguments.text("property")? {
            "type" => Ok(device.driver.as_str().into()),
            "realized" => Ok(true.into()),
            other => {
                let text = format!("Property '{}.{other}' not found", device.driver);
                Err(Refusal::generic(text))
            }
        }
    }

    fn device(&self, id: &str) -> Result<&Device, Refusal> {
        self.devices.iter().find(|device| device.id == id).ok_or_else(|| Refusal::no_device(id))
    }

    fn device_mut(&mut self, id: &str) -> Result<&mut Device, Refusal> {
        let found = self.devices.iter_mut().find(|device| device.id == id);
        found.ok_or_else(|| Refusal::no_device(id))
    }

    fn at_path(&self, path: &str) -> Result<&Device, Refusal> {
        let id = path.strip_prefix("/machine/peripheral/").unwrap_or(path);
        self.device(id).map_err(|_| Refusal::no_device(path))
    }

    /// Whether the inner half of a virtio adapter of disks is at this path.
    pub(super) fn is_virtio_disk_adapter(&self, path: &str) -> bool {
        let outer = path.strip_suffix("/virtio-backend").and_then(|path| self.at_path(path).ok());
        outer.is_some_and(|adapter| adapter.driver == "virtio-scsi-pci")
    }

    pub(super) fn has_nic(&self, id: &str) -> bool {
        self.device(id).is_ok_and(|device| device.netdev.is_some())
    }

    fn block_devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.iter().filter(|device| matches!(device.kind, Kind::Disk | Kind::Drive))
    }

    fn has_bus(&self, bus: &str) -> bool {
        let owner = |id: &str, kind: Kind| self.device(id).is_ok_and(|device| device.kind == kind);
        bus == "pcie.0"
            || owner(bus, Kind::Port)
            || bus
                .strip_suffix(".0")
                .is_some_and(|id| owner(id, Kind::Adapter) || owner(id, Kind::SerialAdapter))
    }

    fn check_place(
        &self,
        driver: &str,
        kind: Kind,
        bus: &str,
        target: Option<i64>,
        wanted: &str,
    ) -> Result<(), Refusal> {
        let neighbour = self.devices.iter().find(|device| match kind {
            Kind::Port | Kind::SerialAdapter | Kind::SerialPort => false,
            Kind::Adapter => {
                bus != "pcie.0" && device.bus == bus && function(device.place.as_deref()) == wanted
            }
            Kind::Disk | Kind::Drive => device.bus == bus && device.target == target,
        });
        let Some(neighbour) = neighbour else { return Ok(()) };
        let id = &neighbour.id;
        Err(Refusal::generic(match kind {
            Kind::Disk | Kind::Drive => format!("lun already used by '{id}'"),
            _ => format!(
                "PCI: slot 0 function {wanted} already occupied by {}, new func {driver} cannot be exposed to guest.",
                neighbour.driver
            ),
        }))
    }

    fn check_medium(&self, driver: &str, kind: Kind, node: Option<&str>) -> Result<(), Refusal> {
        let Some(name) = node else {
            return match kind {
                Kind::Disk => Err(Refusal::generic("drive property not set")),
                _ => Ok(()),
            };
        };
        if self.node(name).is_none() {
            let text = format!("Property '{driver}.drive' can't find value '{name}'");
            return Err(Refusal::generic(text));
        }
        if self.is_in_use(name) {
            let text = format!("Property '{driver}.drive' can't take value '{name}', it's in use");
            return Err(Refusal::generic(text));
        }
        Ok(())
    }

    fn check_netdev(&self, driver: &str, netdev: Option<&str>) -> Result<(), Refusal> {
        let Some(id) = netdev else { return Ok(()) };
        let refuse =
            |why: String| Err(Refusal::generic(format!("Property '{driver}.netdev' {why}")));
        if !self.has_netdev(id) {
            return refuse(format!("can't find value '{id}'"));
        }
        match self.devices.iter().any(|device| device.netdev.as_deref() == netdev) {
            true => refuse(format!("can't take value '{id}', it's in use")),
            false => Ok(()),
        }
    }

    /// The removable drive a command names.
    fn drive(&self, arguments: &Arguments) -> Result<String, Refusal> {
        let id = arguments.text("id")?;
        match self.device(id)?.kind {
            Kind::Drive => Ok(id.to_owned()),
            Kind::Disk => Err(Refusal::generic(format!("Device '{id}' is not removable"))),
            Kind::Port | Kind::Adapter | Kind::SerialAdapter | Kind::SerialPort => {
                Err(Refusal::generic(format!("Device '{id}' is not a block device")))
            }
        }
    }

    fn move_tray(&mut self, id: &str, tray: Tray) -> Result<(), Refusal> {
        let device = self.device_mut(id)?;
        if std::mem::replace(&mut device.tray, tray) != tray {
            let data = json!({ "device": "", "tray-open": tray == Tray::Open, "id": id });
            self.event("DEVICE_TRAY_MOVED", Some(data));
        }
        Ok(())
    }

    fn needs_open_tray(&self, id: &str) -> Result<(), Refusal> {
        match self.device(id)?.tray {
            Tray::Open => Ok(()),
            _ => Err(Refusal::generic(format!("Tray of device '{id}' is not open"))),
        }
    }

    /// A node that QEMU made itself goes with its medium.
    fn take_medium_out(&mut self, id: &str) -> Result<(), Refusal> {
        if let Some(name) = self.device_mut(id)?.node.take()
            && name.starts_with('#')
        {
            self.drop_node(&name);
        }
        Ok(())
    }

    fn put_medium(&self, device: &mut Value, node: Option<&String>) {
        if let Some(node) = node.and_then(|name| self.node(name)) {
            device["inserted"] = self.describe(node);
        }
    }
}

impl Device {
    /// The PCI device of its place; 0 when none is given.
    fn slot(&self) -> usize {
        let place = self.place.as_deref().and_then(|place| place.strip_prefix("0x"));
        place.and_then(|place| usize::from_str_radix(place, 16).ok()).unwrap_or_default()
    }
}

/// The function of a place `DEVICE.FUNCTION`; the first where none is said.
fn function(place: Option<&str>) -> &str {
    place.and_then(|place| place.split_once('.')).map_or("0", |(_, function)| function)
}

fn pci_device(bus: u32, slot: usize, id: &str, class: u32) -> Value {
    json!({
        "irq_pin": 1, "bus": bus, "qdev_id": id, "slot": slot / 8, "function": slot % 8,
        "class_info": { "class": class }, "id": { "device": 0, "vendor": 0 }, "regions": [],
    })
}

fn counters(idle: Option<Duration>) -> Value {
    const ZEROES: &[&str] = &[
        "rd_bytes",
        "wr_bytes",
        "unmap_bytes",
        "zone_append_bytes",
        "rd_operations",
        "wr_operations",
        "flush_operations",
        "unmap_operations",
        "zone_append_operations",
        "rd_total_time_ns",
        "wr_total_time_ns",
        "flush_total_time_ns",
        "unmap_total_time_ns",
        "zone_append_total_time_ns",
        "wr_highest_offset",
        "rd_merged",
        "wr_merged",
        "unmap_merged",
        "zone_append_merged",
        "failed_rd_operations",
        "failed_wr_operations",
        "failed_flush_operations",
        "failed_unmap_operations",
        "failed_zone_append_operations",
        "invalid_rd_operations",
        "invalid_wr_operations",
        "invalid_flush_operations",
        "invalid_unmap_operations",
        "invalid_zone_append_operations",
    ];
    let mut stats: Value = ZEROES.iter().map(|name| ((*name).to_owned(), json!(0))).collect();
    stats["account_invalid"] = true.into();
    stats["account_failed"] = true.into();
    stats["timed_stats"] = json!([]);
    if let Some(idle) = idle {
        stats["idle_time_ns"] = u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX).into();
    }
    stats
}
