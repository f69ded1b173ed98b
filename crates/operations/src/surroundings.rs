//! What went wrong around a guest that runs on by itself: a switch was halted or killed under it, the file of a disk was taken
//! away. Told by `hpvm why`, and of disks by the doctor.

use std::collections::BTreeSet;

use hpvm_model::{GuestConfig, Remedy, StorageDevice, SwitchNumber, SwitchState, Vswitch};
use hpvm_plan::facts::FileFact;
use hpvm_plan::record::Machine;
use hpvm_registry::SwitchSelector;

use crate::VmHost;
use crate::network::nat::{self, NatView};
use crate::network::status;
use crate::stores::Stores;

/// One thing that is wrong, and the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) cause: String,
    pub(crate) remedy: Remedy,
}

/// All that is wrong around a running guest. What cannot be looked at is not wrong.
pub(crate) fn troubles(host: &VmHost, config: &GuestConfig) -> Vec<Trouble> {
    let Some(machine) = host.machine(config) else { return Vec::new() };
    let numbers: BTreeSet<SwitchNumber> = machine.nics.iter().map(|a| a.switch).collect();
    let switches = numbers.into_iter().filter_map(|number| {
        let found = host.registry.vswitch(&SwitchSelector::Number(number));
        found.ok().flatten()
    });
    let mut troubles: Vec<Trouble> =
        switches.filter_map(|switch| of_switch(host, &switch)).collect();
    troubles.extend(missing_files(&machine).into_iter().map(|path| Trouble {
        cause: missing_file(&path),
        remedy: Remedy {
            ask: Some(file_back(&path)),
            command: format!("hpvmstatus -P {}", config.name),
        },
    }));
    troubles
}

fn of_switch(host: &VmHost, switch: &Vswitch) -> Option<Trouble> {
    let name = &switch.name;
    let mut ask = None;
    let cause = if switch.state == SwitchState::Halted {
        format!("virtual switch '{name}' is halted, so NICs on it have no link")
    } else if status(host, switch.number.get()).is_none() {
        format!("the process of virtual switch '{name}' was killed, so NICs on it have no link")
    } else {
        match nat::of(host, switch)? {
            NatView::Gone => format!("the NAT of virtual switch '{name}' was killed"),
            NatView::Silent => {
                ask = Some("end hpvmnat, the process that does it".to_owned());
                format!("the NAT of virtual switch '{name}' does not answer")
            }
            NatView::AtRest | NatView::There { .. } | NatView::Unknown => return None,
        }
    };
    let command = format!("hpvmnet -S {name} -b");
    Some(Trouble { cause, remedy: Remedy { ask, command } })
}

/// Files that the machine has as disks, or will have at its next reset, and that are not under their names any more.
pub(crate) fn missing_files(machine: &Machine) -> Vec<String> {
    let devices = || machine.held().map(|attached| &attached.device);
    let paths: BTreeSet<&str> = devices().flat_map(StorageDevice::stores).collect();
    let files = Stores::look_at(paths).files.into_iter();
    files.filter_map(|(path, fact)| (fact == FileFact::Missing).then_some(path)).collect()
}

pub(crate) fn missing_file(path: &str) -> String {
    format!("{path} is not there any more; the guest goes on with what it has open, until it ends")
}

pub(crate) fn file_back(path: &str) -> String {
    format!(
        "move the file back to {path}; if it was deleted, save what is on the disk from within the guest before that ends"
    )
}
