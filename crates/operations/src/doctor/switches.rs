//! Virtual switches that the doctor looks at: those that guests run on while nobody runs them, or whose process does not answer
//! or was not told of a change, the taps that are left of wires they had, and the texts that a lost registry would be rebuilt from.

use hpvm_model::{SwitchNumber, SwitchState, Vswitch};

use super::{Cure, Finding};
use crate::network::SwitchRefused;
use crate::network::nat::{self, NatView};
use crate::network::runner::{self, Runner};
use crate::network::silence::{self, Silence};
use crate::network::text::{self, Text};
use crate::network::view::ShownState;
use crate::network::wire::{self, MadeTap};
use crate::{Refusal, VmHost};

pub(super) fn examine(host: &VmHost, findings: &mut Vec<Finding>) -> Result<(), Refusal> {
    for view in host.switches()? {
        if view.state == ShownState::Unknown {
            let name = &view.switch.name;
            let text = format!("guests run on virtual switch '{name}', and its process was killed");
            let cure = Cure::Tell(format!("hpvmnet -S {name} -b"));
            findings.push(Finding { text, cure });
        } else if let Some(Silence { cause, cure }) = silence::of(host, &view.switch) {
            findings.push(Finding { text: cause, cure: Cure::Tell(cure) });
        } else {
            findings.extend(without_wire(host, &view.switch));
            findings.extend(untold(host, &view.switch)?);
            let now = nat::of(host, &view.switch);
            findings.extend(now.and_then(|now| without_nat(&view.switch, &now)));
        }
    }
    taps(host, findings)
}

/// Of a halted one nobody misses it.
fn without_wire(host: &VmHost, switch: &Vswitch) -> Option<Finding> {
    let is_missed = switch.state == SwitchState::Up && runner::was_refused_wire(host, switch);
    let Vswitch { name, wire, .. } = switch;
    is_missed.then(|| Finding {
        text: format!("virtual switch '{name}' has no wire, since its {wire} could not be had"),
        cure: Cure::Tell(format!(
            "hpvmnet -S {name} -b, which tells why if it cannot be had still"
        )),
    })
}

fn untold(host: &VmHost, switch: &Vswitch) -> Result<Option<Finding>, Refusal> {
    let untold = runner::untold(host, switch)?;
    let letter = match switch.state {
        SwitchState::Up => 'b',
        SwitchState::Halted => 'h',
    };
    let name = &switch.name;
    Ok((!untold.is_empty()).then(|| Finding {
        text: format!(
            "the process of virtual switch '{name}' does not have all as the registry says: {}",
            untold.join(", ")
        ),
        cure: Cure::Tell(format!("hpvmnet -S {name} -{letter}")),
    }))
}

/// What a command leaves that gives a switch another wire and is ended before it removes the one before.
fn taps(host: &VmHost, findings: &mut Vec<Finding>) -> Result<(), Refusal> {
    for switch in host.registry.vswitches()? {
        // Without a look at the interfaces nothing is known to be left.
        let left = wire::left_taps(host, &switch).unwrap_or_default();
        findings.extend(left.into_iter().map(|tap| Finding {
            text: format!(
                "the tap {} was made for virtual switch '{}' and is its wire no more",
                tap.name, switch.name
            ),
            cure: Cure::Tap(switch.number, tap),
        }));
    }
    Ok(())
}

/// Removes a tap that is left of a wire the switch had, unless it is its wire again; gives what was done. Nobody gives the switch
/// another wire meanwhile.
pub(super) fn remove(
    host: &VmHost,
    number: SwitchNumber,
    tap: &MadeTap,
) -> Result<String, Refusal> {
    let runner = Runner::claim(host, number)?;
    let left = wire::left_taps(host, &runner.switch).map_err(SwitchRefused::Interfaces)?;
    if !left.contains(tap) {
        return Ok(format!("{} is gone or in use by now", tap.name));
    }
    tap.remove()?;
    Ok(format!("removed {}", tap.name))
}

fn without_nat(switch: &Vswitch, now: &NatView) -> Option<Finding> {
    let name = &switch.name;
    let (text, cure) = match now {
        NatView::Gone => (
            format!("the NAT of virtual switch '{name}', on which guests run, was killed"),
            format!("hpvmnet -S {name} -b"),
        ),
        NatView::Silent => (
            format!("the NAT of virtual switch '{name}' does not answer"),
            format!("end its process, hpvmnat, and run `hpvmnet -S {name} -b`"),
        ),
        NatView::AtRest | NatView::There { .. } | NatView::Unknown => return None,
    };
    Some(Finding { text, cure: Cure::Tell(cure) })
}

/// What a lost registry would have the switches from.
pub(super) fn texts(host: &VmHost) -> Result<Vec<Finding>, Refusal> {
    let mut findings = Vec::new();
    let switches = host.registry.vswitches()?;
    let texts = text::all(&host.root);
    for switch in &switches {
        let number = switch.number.get();
        let found = texts.iter().find(|(of, ..)| *of == number).map(|(.., text)| text);
        match found {
            Some(Text::Switch(said)) if said == switch => {}
            None if !text::is_needed(switch) => {}
            // Written once the registry knows the switch.
            _ if runner::is_being_changed(host, switch) => {}
            _ => findings.push(Finding {
                text: format!(
                    "{} does not say what the registry says",
                    host.root.switch_text(number).display()
                ),
                cure: Cure::SwitchText(Box::new(switch.clone())),
            }),
        }
    }
    let unknown = texts
        .into_iter()
        .filter(|(number, ..)| switches.iter().all(|switch| switch.number.get() != *number));
    findings.extend(unknown.map(|(_, path, text)| {
        let shown = path.display();
        match text {
            Text::Switch(switch) if !is_name_taken(&switches, &switch) => Finding {
                text: format!(
                    "the registry does not know virtual switch '{}', of which {shown} tells",
                    switch.name
                ),
                cure: Cure::EnterSwitch(Box::new(switch)),
            },
            _ => Finding {
                text: format!("{shown} tells of no virtual switch that there could be"),
                cure: Cure::Tell("move it to another place if nobody misses it".into()),
            },
        }
    }));
    Ok(findings)
}

fn is_name_taken(switches: &[Vswitch], switch: &Vswitch) -> bool {
    switches.iter().any(|other| other.name == switch.name)
}
