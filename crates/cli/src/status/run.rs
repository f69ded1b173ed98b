//! What A.03.50 had no place for: since when a guest is in its state, what runs it, how it is, what waits for its next start.

use hpvm_app::snapshot::Agent;
use hpvm_operations::view::GuestView;
use hpvm_plan::difference::{Effect, FieldChange};

use crate::messages::printable;
use crate::table::Table;

/// Keys and values, those that have something to say.
pub(super) fn facts(view: &GuestView) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if let Some(since) = &view.since {
        facts.push(("State since", since.clone()));
    }
    if let Some(machine) = &view.machine {
        let base = &machine.base;
        facts.push(("Accelerator", base.accelerator.as_str().to_owned()));
        facts.push(("Engine", format!("QEMU {}", base.engine.version)));
        facts.push(("Machine type", base.machine_type.clone()));
    }
    facts.extend(view.agent.as_ref().map(|agent| ("Guest agent", agent_words(agent))));
    if let Some((at, ending)) = view.last_ending.as_ref().filter(|_| !view.state.is_on()) {
        facts.push(("Last run ended", format!("{at}, {ending}")));
    }
    facts.extend(view.empty_drives.iter().map(|sentence| ("Drive", sentence.clone())));
    facts.extend(view.health.iter().map(|sentence| ("Health", sentence.clone())));
    facts
}

fn agent_words(agent: &Agent) -> String {
    match agent {
        Agent::NoChannel => "no channel for one before the next start".into(),
        Agent::Absent => "none is running".into(),
        Agent::Answers { since } => format!("answers since {since}"),
        Agent::Silent { since } => format!("does not answer since {since}"),
    }
}

pub(super) fn details_section(view: &GuestView) -> Option<String> {
    let facts = facts(view);
    let lines: String =
        facts.iter().map(|(key, value)| format!("{key:<15}: {}\n", printable(value))).collect();
    (!facts.is_empty()).then(|| format!("[Run Details]\n{lines}"))
}

pub(super) fn waiting_section(view: &GuestView) -> Option<String> {
    let mut table = Table::new(["Field", "Now", "Next Start", "Why"]);
    for change in &view.waiting {
        table.row([&change.field, &change.from, &change.to, change.effect.reason()]);
    }
    let waits_for_reset = |change: &FieldChange| matches!(change.effect, Effect::NextReset(_));
    let until = match view.waiting.iter().any(waits_for_reset) {
        true => "Reset or Start",
        false => "Start",
    };
    (!view.waiting.is_empty()).then(|| format!("[Waiting for Next {until}]\n{}", table.render()))
}
