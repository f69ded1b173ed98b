//! The rules of a switch's ports, which they keep whoever has them: changed by `hpvmnet -u`.

use std::collections::BTreeSet;

use hpvm_model::PortNumber;
use hpvm_model::network::{PortChange, PortRule};
use hpvm_registry::SwitchSelector;

use super::SwitchRefused;
use super::switches::{Changed, alter};
use super::view::PortState;
use crate::{Actor, Mode, Refusal, VmHost};

/// Changes the rules of ports, now and for every guest that has them later.
pub fn change(
    host: &mut VmHost,
    actor: &Actor,
    selector: &SwitchSelector,
    asked: &[PortChange],
    mode: Mode,
) -> Result<Changed, Refusal> {
    let altered = alter(host, actor, selector, mode, |switch, _| {
        if let Some((port, what)) = asked_twice(asked) {
            let name = switch.name.clone();
            return Err(SwitchRefused::AskedTwice { name, port, what }.into());
        }
        for change in asked {
            let mut rules = switch.rules(change.port);
            change.apply(&mut rules);
            switch.set_rules(change.port, rules);
        }
        Ok(Vec::new())
    })?;
    altered.told(|runner, _| runner.tell_changes().map(|()| Vec::new()))
}

/// A port of which one thing is asked more than once: nobody knows which of the two is meant.
fn asked_twice(asked: &[PortChange]) -> Option<(PortNumber, &'static str)> {
    let mut seen = BTreeSet::new();
    let keys = asked.iter().map(|change| (change.port, change.rule.what()));
    keys.into_iter().find(|key| !seen.insert(*key))
}

/// Those of the ports that were asked for that have rules after a change, and no guest: a wrong number is easily typed.
pub fn waiting(
    host: &VmHost,
    changed: &Changed,
    asked: &[PortChange],
) -> Result<Vec<PortNumber>, Refusal> {
    let used = used(host, changed)?;
    let asked: BTreeSet<PortNumber> = asked.iter().map(|change| change.port).collect();
    let has_rules = |port: &PortNumber| changed.switch.ports.contains_key(port);
    Ok(asked.into_iter().filter(|port| has_rules(port) && !used.contains(port)).collect())
}

/// Ports that frames are to be copied to from now on, and that no guest has.
pub fn unheard_mirrors(
    host: &VmHost,
    changed: &Changed,
    asked: &[PortChange],
) -> Result<BTreeSet<PortNumber>, Refusal> {
    let used = used(host, changed)?;
    let mirror = |change: &PortChange| match change.rule {
        PortRule::Mirror(to) => to,
        _ => None,
    };
    Ok(asked.iter().filter_map(mirror).filter(|port| !used.contains(port)).collect())
}

/// Ports that guests have or keep.
fn used(host: &VmHost, changed: &Changed) -> Result<BTreeSet<PortNumber>, Refusal> {
    let views = host.switches()?.into_iter();
    let ports = views.filter(|view| view.switch.number == changed.switch.number);
    let used = ports.flat_map(|view| view.ports).filter(|port| port.state != PortState::Free);
    Ok(used.map(|port| port.port).collect())
}
