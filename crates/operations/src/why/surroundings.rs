//! What went wrong around a guest that runs on by itself: a switch was halted or killed under it, or does not answer, the file of a
//! disk was taken away, or cut.

use std::collections::BTreeSet;

use hpvm_model::{GuestConfig, Remedy, SwitchNumber, SwitchState, Vswitch, Wire};
use hpvm_plan::record::Machine;
use hpvm_registry::SwitchSelector;

use crate::VmHost;
use crate::displaced::Displaced;
use crate::network::nat::{self, NatView};
use crate::network::runner;
use crate::network::silence::{self, Silence};
use crate::network::{status, view};

/// One thing that is wrong, and the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) cause: String,
    pub(super) remedy: Remedy,
}

/// All that is wrong around a running guest, with these of its files. What cannot be looked at is not wrong.
pub(super) fn troubles(
    host: &VmHost,
    config: &GuestConfig,
    machine: &Machine,
    displaced: &[Displaced],
) -> Vec<Trouble> {
    let switches = switches(host, machine);
    let mut troubles: Vec<Trouble> =
        switches.iter().filter_map(|switch| of_switch(host, switch)).collect();
    troubles.extend(displaced.iter().map(|file| Trouble {
        cause: file.cause(),
        remedy: Remedy {
            ask: Some(file.cure()),
            command: format!("hpvmstatus -P {}", config.name),
        },
    }));
    troubles
}

/// What of it whoever asks cannot see, a sentence each.
pub(super) fn unseen(host: &VmHost, machine: &Machine) -> Vec<String> {
    let switches = switches(host, machine).into_iter();
    let unseen = switches.filter(|switch| runner::is_unseen(host, switch));
    unseen.map(|switch| view::unseen(&switch)).collect()
}

fn switches(host: &VmHost, machine: &Machine) -> Vec<Vswitch> {
    let numbers: BTreeSet<SwitchNumber> = machine.nics.iter().map(|a| a.switch).collect();
    let found = numbers.into_iter().map(|number| {
        let found = host.registry.vswitch(&SwitchSelector::Number(number));
        found.ok().flatten()
    });
    found.flatten().collect()
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
            None if runner::was_refused_wire(host, switch) => {
                if let Wire::Nic(interface) = &switch.wire {
                    ask = Some(format!(
                        "only root, or who has CAP_NET_RAW, may have frames of {interface}; without that give the switch another wire: `hpvmnet -S {name} -C --wire nat`"
                    ));
                }
                let wire = &switch.wire;
                format!(
                    "virtual switch '{name}' has no wire, since its {wire} could not be had, so NICs on it have no link"
                )
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
