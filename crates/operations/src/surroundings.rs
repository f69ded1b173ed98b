//! What went wrong around a guest that runs on by itself: a switch was halted or killed under it, or does not answer, the file of a disk was taken
//! away. Told by `hpvm why`, and of disks by the doctor.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;

use hpvm_model::{FileIdentity, GuestConfig, Remedy, SwitchNumber, SwitchState, Vswitch, Wire};
use hpvm_plan::facts::FileFact;
use hpvm_plan::record::{Attached, Machine};
use hpvm_registry::SwitchSelector;

use crate::VmHost;
use crate::network::nat::{self, NatView};
use crate::network::runner;
use crate::network::silence::{self, Silence};
use crate::network::status;
use crate::stores::Stores;

/// One thing that is wrong, and the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) cause: String,
    pub(crate) remedy: Remedy,
}

/// All that is wrong around a running guest, with these of its files. What cannot be looked at is not wrong.
pub(crate) fn troubles(
    host: &VmHost,
    config: &GuestConfig,
    machine: &Machine,
    displaced: &[Displaced],
) -> Vec<Trouble> {
    let numbers: BTreeSet<SwitchNumber> = machine.nics.iter().map(|a| a.switch).collect();
    let switches = numbers.into_iter().filter_map(|number| {
        let found = host.registry.vswitch(&SwitchSelector::Number(number));
        found.ok().flatten()
    });
    let mut troubles: Vec<Trouble> =
        switches.filter_map(|switch| of_switch(host, &switch)).collect();
    troubles.extend(displaced.iter().map(|file| Trouble {
        cause: file.cause(),
        remedy: Remedy {
            ask: Some(file.cure()),
            command: format!("hpvmstatus -P {}", config.name),
        },
    }));
    troubles
}

fn of_switch(host: &VmHost, switch: &Vswitch) -> Option<Trouble> {
    let name = &switch.name;
    if let Some(Silence { cause, cure }) = silence::of(host, switch) {
        let remedy = Remedy { ask: Some(cure), command: format!("hpvmnet -S {name}") };
        return Some(Trouble { cause, remedy });
    }
    let (mut ask, mut command) = (None, format!("hpvmnet -S {name} -b"));
    let cause = if switch.state == SwitchState::Halted {
        format!("virtual switch '{name}' is halted, so NICs on it have no link")
    } else if status(host, switch.number.get()).is_none() {
        format!("the process of virtual switch '{name}' was killed, so NICs on it have no link")
    } else {
        match nat::of(host, switch) {
            Some(NatView::Gone) => format!("the NAT of virtual switch '{name}' was killed"),
            Some(NatView::Silent) => {
                ask = Some("end hpvmnat, the process that does it".to_owned());
                format!("the NAT of virtual switch '{name}' does not answer")
            }
            None if runner::lacks_wire(host, switch) => {
                if let Wire::Nic(interface) = &switch.wire {
                    let other = format!("`hpvmnet -S {name} -C -n INTERFACE`");
                    ask =
                        Some(format!("bring back interface {interface}, or name another: {other}"));
                    command = "hpvmnet --interfaces".to_owned();
                }
                let wire = &switch.wire;
                format!(
                    "virtual switch '{name}' has no wire now, since {wire} is not there, so NICs on it have no link"
                )
            }
            None | Some(NatView::AtRest | NatView::There { .. } | NatView::Unknown) => return None,
        }
    };
    Some(Trouble { cause, remedy: Remedy { ask, command } })
}

/// A file that the machine has as a disk, or will have at its next reset, and that is no more under its name.
pub(crate) struct Displaced {
    pub(crate) path: String,
    by: Displacement,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Displacement {
    Nothing,
    AnotherFile,
}

pub(crate) fn displaced_files(machine: &Machine) -> Vec<Displaced> {
    let opened: BTreeMap<&str, Option<FileIdentity>> = machine.held().flat_map(opened).collect();
    let files = Stores::look_at(opened.keys().copied()).files.into_iter();
    files
        .filter_map(|(path, fact)| {
            let before = opened.get(path.as_str()).copied().flatten();
            let by = match (fact.identity(), before) {
                _ if fact == FileFact::Missing => Displacement::Nothing,
                (Some(now), Some(before)) if now != before => Displacement::AnotherFile,
                _ => return None,
            };
            Some(Displaced { path, by })
        })
        .collect()
}

/// What was opened for a device, by its paths.
fn opened(attached: &Attached) -> impl Iterator<Item = (&str, Option<FileIdentity>)> {
    let layers = attached.layers.iter().map(|layer| layer.identity);
    let identities = iter::once(attached.identity).chain(layers);
    let backings = attached.device.backings().zip(identities);
    backings.filter_map(|(backing, identity)| Some((backing.store()?, identity)))
}

impl Displaced {
    pub(crate) fn cause(&self) -> String {
        let is = match self.by {
            Displacement::Nothing => "not there any more",
            Displacement::AnotherFile => "another file now",
        };
        format!("{} is {is}; the guest goes on with what it has open, until it ends", self.path)
    }

    pub(crate) fn cure(&self) -> String {
        let path = &self.path;
        let how = match self.by {
            Displacement::Nothing => format!("move the file back to {path}"),
            Displacement::AnotherFile => {
                format!("move what is at {path} now aside, and the guest's file back")
            }
        };
        format!(
            "{how}; if it was deleted, save what is on the disk from within the guest before that ends"
        )
    }
}
