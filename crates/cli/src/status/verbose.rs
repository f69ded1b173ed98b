//! `hpvmstatus -V`: every field as a line of key and value, and one block a device.

use std::fmt::Write as _;

use hpvm_model::Nic;
use hpvm_plan::guest_path;
use hpvm_plan::record::Access;

use super::{
    CONFIG_LABEL, CONFIG_VERSION, CONSOLE_TYPE, MODEL, Moment, RESERVED_MEMORY, Shown, run,
    sections,
};
use crate::messages::printable;

const SERIAL: [(&str, &str); 4] = [
    ("Guest Device type", "serial"),
    ("Guest Adaptor type", "com1"),
    ("Physical Storage type", "tty"),
    ("Physical device", "console"),
];

/// All guests.
#[must_use]
pub fn all(guests: &[Shown<'_>]) -> String {
    let guests: Vec<String> = guests.iter().map(guest).collect();
    format!("[Virtual Machines]\n{}", guests.join("\n"))
}

/// One guest.
#[must_use]
pub fn one(shown: &Shown<'_>) -> String {
    format!("[Virtual Machine Details]\n{}", guest(shown))
}

fn guest(shown: &Shown<'_>) -> String {
    let mut parts = vec![
        keys(shown),
        sections::ADMINISTRATORS.to_owned(),
        sections::processors(shown),
        storage(shown),
        networks(shown),
        format!("[Misc Interface Details]\n{}", block(&SERIAL.map(|(k, v)| (k, v.to_owned())))),
    ];
    if shown.moment == Moment::Now {
        parts.extend(run::waiting_section(shown.view));
    }
    parts.join("\n")
}

fn keys(shown: &Shown<'_>) -> String {
    let config = &shown.view.config;
    let mut keys = vec![
        ("Virtual Machine Name", config.name.to_string()),
        ("Virtual Machine UUID", config.uuid.to_string()),
        ("Virtual Machine ID", config.number.to_string()),
        ("Virtual Machine Label", config.label.to_string()),
        ("VM's Model Name", MODEL.to_owned()),
        ("VM's Serial Number", config.serial_number.clone()),
        ("VM's Config Version", CONFIG_VERSION.to_owned()),
        ("VM's Config Label", CONFIG_LABEL.to_owned()),
        ("Operating System", config.os.family.to_string()),
        ("OS Version Number", config.os.version.clone().unwrap_or_default()),
        ("State", shown.view.state.to_string()),
        ("Start type", config.auto_start.to_string()),
        ("Console type", CONSOLE_TYPE.to_owned()),
        ("Number of virtual CPUs", shown.vcpus.to_string()),
        ("Entitlement as given", config.entitlement.to_string()),
        ("Number of devices", shown.storage.len().to_string()),
        ("Number of networks", shown.nics.len().to_string()),
        ("Memory", shown.memory.to_string()),
        ("Reserved memory", RESERVED_MEMORY.to_string()),
        ("Runnable status", config.runnable.to_string()),
    ];
    if shown.moment == Moment::Now {
        if let Some(machine) = &shown.view.machine {
            keys.push(("EFI location", machine.base.firmware_code.clone()));
        }
        keys.extend(run::facts(shown.view));
    }
    let mut text = String::new();
    for (key, value) in keys {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", format!("{key:<35}: {}", printable(&value)).trim_end());
    }
    text
}

fn storage(shown: &Shown<'_>) -> String {
    let blocks: Vec<String> = shown
        .storage
        .iter()
        .map(|device| {
            let layers = device.layers.iter().map(|layer| {
                ("Physical layer", format!("{}:{}", layer.storage.as_str(), layer.path))
            });
            let mut lines = vec![
                ("Guest Device type", device.kind.as_str().to_owned()),
                ("Guest Adaptor type", device.adapter.as_str().to_owned()),
                ("Bus", device.address.slot.bus().to_string()),
                ("Device", device.address.slot.device().to_string()),
                ("Function", "0".to_owned()),
                ("Target", device.address.target.to_string()),
                ("Lun", "0".to_owned()),
                ("Physical Storage type", device.backing.storage.as_str().to_owned()),
                ("Physical device", device.backing.path.clone()),
            ];
            lines.extend(layers);
            if shown.access(device) == Access::ReadOnly {
                lines.push(("Physical access", "read-only".to_owned()));
            }
            lines.push(("Disk identity", device.id.to_string()));
            lines.push(("Guest PCI path", guest_path::pci(device.adapter, device.address)));
            lines.push(("EFI path", guest_path::efi(device.adapter, device.address)));
            block(&lines)
        })
        .collect();
    format!("[Storage Interface Details]\n{}", blocks.join("\n"))
}

fn networks(shown: &Shown<'_>) -> String {
    let blocks: Vec<String> = shown.nics.iter().map(|nic| network(shown, nic)).collect();
    format!("[Network Interface Details]\n{}", blocks.join("\n"))
}

fn network(shown: &Shown<'_>, nic: &Nic) -> String {
    let mut lines = vec![
        ("Physical Storage type", "vswitch".to_owned()),
        ("Guest Adaptor type", nic.kind.as_str().to_owned()),
        ("Backing", nic.vswitch.to_string()),
        ("Vswitch Port", nic.port.to_string()),
        ("Bus", nic.slot.bus().to_string()),
        ("Device", nic.slot.device().to_string()),
        ("Function", "0".to_owned()),
        ("Mac Address", nic.mac.with_dashes()),
    ];
    if shown.moment == Moment::Now {
        let in_use = shown.view.other_mac(nic).map(|mac| mac.with_dashes());
        lines.extend(in_use.map(|mac| ("Mac Address in use", mac)));
    }
    lines.push(("Guest PCI path", guest_path::nic(nic.slot)));
    block(&lines)
}

/// The colon stands right before the value here, as A.03.50 has it in these blocks.
fn block(lines: &[(&str, String)]) -> String {
    lines.iter().map(|(key, value)| format!("{key:<22}:{}\n", printable(value))).collect()
}
