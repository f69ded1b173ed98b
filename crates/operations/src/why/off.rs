//! A guest that is off: what keeps it from starting, or how it ended.

use std::path::Path;

use hpvm_app::snapshot::{Crash, Ending};
use hpvm_engine::last_words;
use hpvm_host::durable;
use hpvm_host::names::guest_folder;
use hpvm_model::{GuestConfig, GuestName, Problem, Remedy, Severity};
use hpvm_plan::judge::{Purpose, problems};
use hpvm_registry::Outcome;
use jiff::Timestamp;

use super::attempts::command;
use super::unseen::Unseen;
use super::{RECENT_OPERATIONS, Why};
use crate::actor::{Failed, ToldBy};
use crate::presence::Presence;
use crate::{Refusal, VmHost, console_media};

pub(super) fn explain(
    host: &VmHost,
    config: &GuestConfig,
    presence: &Presence,
) -> Result<Why, Refusal> {
    let name = &config.name;
    let start = format!("hpvmstart -P {name}");
    // As a start takes it, with what was changed at the console.
    let judged = console_media::seen(host, config.clone());
    let facts = host.start_facts(&judged)?;
    let unseen = Unseen::of(host, &facts);
    let mut found = problems(&judged, &facts, Purpose::Start);
    unseen.set_aside(&mut found);
    let errors: Vec<_> = found.iter().filter(|p| p.severity == Severity::Error).collect();
    if !errors.is_empty() {
        let Remedy { ask, command } = all_remedies(&errors, start);
        return Ok(Why::that(format!("'{name}' is off and cannot start"))
            .because_of(errors.iter().map(|p| p.text.clone()))
            .noting(unseen.note())
            .remedied(ask, command));
    }
    let prevents = match unseen.is_nothing() {
        true => "Nothing prevents a start",
        false => "Nothing that this user can see prevents a start",
    };
    let why = match (last_failed_start(host, config, presence)?, presence.ending()) {
        (Some(failed), _) => failed,
        (None, Some((when, how))) if how.is_failure() => {
            Why::that(format!("'{name}' is off since {when}: {how}"))
                .because_of(crash_causes(host, config, how))
                .remedied(crash_ask(how), start)
        }
        (None, Some((when, how))) => {
            let headline = format!("'{name}' is off since {when}: {how}. {prevents}");
            Why::that(headline).run(start)
        }
        (None, None) => Why::that(format!("'{name}' is off. {prevents}")).run(start),
    };
    Ok(why.noting(found.into_iter().map(|problem| problem.text)).noting(unseen.note()))
}

/// Without its folder a guest has nothing that a start could be judged by.
pub(super) fn without_folder(name: &GuestName, folder: &Path) -> Why {
    let shown = folder.display();
    Why::that(format!("'{name}' is off and cannot start"))
        .because(format!("its folder {shown} is missing"))
        .ask(
            format!(
                "bring {shown} back from a backup; if there is none, give the guest up: hpvmremove -P {name}"
            ),
            format!("hpvmstart -P {name}"),
        )
}

/// One way out of all these problems: what to do outside hpvm, then one line to type that ends with the start.
fn all_remedies(errors: &[&Problem], start: String) -> Remedy {
    let (asks, mut commands) = remedies(errors, &start);
    // A start in another environment, such as `HPVM_ACCEL=tcg hpvmstart`, is the start.
    commands.sort_by_key(|command| command.ends_with(&start));
    if !commands.last().is_some_and(|command| command.ends_with(&start)) {
        commands.push(start);
    }
    let ask = (!asks.is_empty()).then(|| asks.join("; "));
    Remedy { ask, command: commands.join(" && ") }
}

/// What to do about problems outside hpvm, and the commands beside the start, each once.
pub(super) fn remedies(errors: &[&Problem], start: &str) -> (Vec<String>, Vec<String>) {
    let (mut asks, mut commands) = (Vec::new(), Vec::new());
    for error in errors {
        let Some(Remedy { ask, command }) = &error.remedy else {
            let ask = format!("change by hpvmmodify what this is about: {}", error.item);
            asks.push(ask);
            continue;
        };
        asks.extend(ask.clone().filter(|ask| !asks.contains(ask)));
        if *command != start && !commands.contains(command) {
            commands.push(command.clone());
        }
    }
    (asks, commands)
}

fn crash_causes(host: &VmHost, config: &GuestConfig, how: &Ending) -> Vec<String> {
    let log = host.root.guest_link(config.name.as_str()).join(guest_folder::QEMU_LOG);
    let words = durable::open_regular(&log).ok().and_then(|log| last_words::read(&log));
    let words = words.filter(|words| !how.to_string().contains(words.as_str()));
    let mut causes = Vec::from_iter(words.map(|words| format!("QEMU's last words: {words}")));
    if matches!(how, Ending::Crashed { cause: Crash::Exited { .. } }) {
        causes.push(format!("its log: {}", log.display()));
    }
    causes
}

fn crash_ask(how: &Ending) -> Option<String> {
    matches!(how, Ending::Crashed { cause: Crash::OutOfMemory })
        .then(|| "see what else used the memory of this VM Host (`hpvmstatus -s`)".into())
}

/// The last start was tried after the last run ended, and failed.
fn last_failed_start(
    host: &VmHost,
    config: &GuestConfig,
    presence: &Presence,
) -> Result<Option<Why>, Refusal> {
    let recent = host.registry.operations(Some(config.uuid), RECENT_OPERATIONS)?;
    let is_start = |line: &str| matches!(&*command(line), "hpvmstart" | "hpvmautostart");
    let Some(start) = recent.into_iter().map(|r| r.operation).find(|o| is_start(&o.command_line))
    else {
        return Ok(None);
    };
    let Outcome::Failed(text) = &start.outcome else { return Ok(None) };
    let since: Option<Timestamp> = presence.snapshot().and_then(|s| s.since.parse().ok());
    if since.is_some_and(|ended| ended > start.at) {
        return Ok(None);
    }
    Ok(Some(failed_start(&config.name, start.at, Failed::from_text(text))))
}

/// Of a guest that can start as far as the judgement tells.
fn failed_start(name: &GuestName, at: Timestamp, failed: Failed) -> Why {
    let Failed { causes, remedy: _, told_by } = failed;
    let headline = format!("'{name}' is off; its last start, at {at}, failed");
    let why = match told_by {
        ToldBy::Judgement => Why::that(format!(
            "{headline}: {}. That is over; nothing prevents a start now",
            causes.join("; and ")
        )),
        ToldBy::Trial => Why::that(headline).because_of(causes),
    };
    why.run(format!("hpvmstart -P {name}"))
}
