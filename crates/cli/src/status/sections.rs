//! `hpvmstatus -P` and `-D`: one guest in the sections of A.03.50, then ours.

use std::fmt::Write as _;

use hpvm_model::{Nic, StorageDevice};

use super::{Moment, RESERVED_MEMORY, Shown, name_column, run};
use crate::messages::printable;

pub(super) const ADMINISTRATORS: &str = "\
[Authorized Administrators]
Oper Groups:
Admin Groups:
Oper Users:
Admin Users:
";
const DEVICE_HEAD: &str = "\
Guest                                 Physical
Device  Adaptor    Bus Dev Ftn Tgt Lun Storage   Device
======= ========== === === === === === ========= =========================
";
const NETWORKS: &str = "\
[Network Interface Details]
Interface Adaptor    Name/Num   PortNum Bus Dev Ftn Mac Address
========= ========== ========== ======= === === === =================
";
const SERIAL: &str = "serial  com1                           tty       console\n";

#[must_use]
pub fn render(guest: &Shown<'_>) -> String {
    let mut sections = vec![
        details(guest),
        ADMINISTRATORS.to_owned(),
        processors(guest),
        memory(guest),
        format!("[Storage Interface Details]\n{DEVICE_HEAD}{}", storage(&guest.storage)),
        format!("{NETWORKS}{}", networks(&guest.nics)),
        format!("[Misc Interface Details]\n{DEVICE_HEAD}{SERIAL}"),
    ];
    if guest.moment == Moment::Now {
        sections.extend(run::details_section(guest.view));
        sections.extend(run::waiting_section(guest.view));
    }
    sections.join("\n")
}

fn details(guest: &Shown<'_>) -> String {
    let config = &guest.view.config;
    let width = name_column(std::iter::once(&config.name));
    format!(
        "[Virtual Machine Details]\n\
         {:<width$} VM #  OS Type State\n\
         {:=<width$} ===== ======= ========\n\
         {:<width$} {:>5} {:<7} {}\n",
        "Virtual Machine Name",
        "",
        config.name,
        config.number.get(),
        config.os.family,
        guest.view.state
    )
}

pub(super) fn processors(guest: &Shown<'_>) -> String {
    format!(
        "[Virtual CPU Details]\n\
         #vCPUs Entitlement Maximum\n\
         ====== =========== =======\n\
         {:>6} {:>11} {:>7}\n",
        guest.vcpus.get(),
        guest.entitled,
        guest.maximum
    )
}

fn memory(guest: &Shown<'_>) -> String {
    format!(
        "[Memory Details]\n\
         Total    Reserved\n\
         Memory   Memory\n\
         =======  ========\n\
         {:>7}  {RESERVED_MEMORY:>8}\n",
        guest.memory
    )
}

fn networks(nics: &[&Nic]) -> String {
    let mut rows = String::new();
    for nic in nics {
        // Writing to a string cannot fail. The function is always 0.
        let _ = writeln!(
            rows,
            "{:<9} {:<10} {:<10} {:<7} {:>3} {:>3}   0 {}",
            "vswitch",
            nic.kind.as_str(),
            nic.vswitch,
            nic.port.number(),
            nic.slot.bus(),
            nic.slot.device(),
            nic.mac.with_dashes(),
        );
    }
    rows
}

fn storage(devices: &[&StorageDevice]) -> String {
    let mut rows = String::new();
    for device in devices {
        let address = device.address;
        let (bus, slot, target) = (address.slot.bus(), address.slot.device(), address.target);
        // Writing to a string cannot fail. Function and logical unit are always 0.
        let _ = writeln!(
            rows,
            "{:<7} {:<10} {bus:>3} {slot:>3}   0 {target:>3}   0 {:<9} {}",
            device.kind.as_str(),
            device.adapter.as_str(),
            device.backing.storage.as_str(),
            printable(&device.backing.path),
        );
    }
    rows
}
