//! Why a guest does not start, or what failed last: one screen, with the next command to type. Nothing proposed here stops
//! another guest or drops a device.

use hpvm_app::snapshot::{Crash, Ending, Phase};
use hpvm_model::{GuestConfig, Remedy, Severity};
use hpvm_plan::judge::{Purpose, problems};

use hpvm_registry::Outcome;
use jiff::Timestamp;

use crate::actor::Failed;
use crate::presence::{Presence, Supervision};
use crate::{Refusal, VmHost};

/// So many operations back the last start is looked for.
const RECENT_OPERATIONS: usize = 20;

/// The screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// One sentence: how it is.
    pub headline: String,
    /// What led there, nearest cause first.
    pub causes: Vec<String>,
    /// What to do outside hpvm, if anything, and the command to type then.
    pub remedy: Option<Remedy>,
}

/// Explains one guest.
pub fn why(host: &VmHost, config: &GuestConfig) -> Result<Why, Refusal> {
    let presence = host.presence(config.number);
    match &presence {
        Presence::On { attention, supervision, .. } => {
            Ok(running(config, &presence, attention.as_deref(), *supervision))
        }
        Presence::Off { .. } => off(host, config, &presence),
    }
}

fn command(remedy: String) -> Option<Remedy> {
    Some(Remedy { ask: None, command: remedy })
}

fn running(
    config: &GuestConfig,
    presence: &Presence,
    attention: Option<&str>,
    supervision: Supervision,
) -> Why {
    let name = &config.name;
    let since = presence.snapshot().map_or("", |s| s.since.as_str());
    let paused = presence.snapshot().and_then(|s| match &s.phase {
        Phase::Paused { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    let status = format!("hpvmstatus -P {name}");
    match (attention, paused, supervision) {
        (Some(sentence), _, _) => {
            let pid = presence.snapshot().map(|s| s.qemu.pid);
            let is_stopped = sentence.contains("is stopped by a signal");
            let remedy = match pid {
                Some(pid) if is_stopped => Some(Remedy {
                    ask: Some(format!("let it go on: kill -CONT {pid}")),
                    command: status,
                }),
                _ => command(status),
            };
            Why {
                headline: format!("'{name}' runs and does not answer"),
                causes: vec![sentence.into()],
                remedy,
            }
        }
        (None, Some(reason), _) => Why {
            headline: format!("'{name}' runs and is held still"),
            causes: vec![reason],
            remedy: Some(Remedy {
                ask: Some("make room where its disks lie; it goes on by itself".into()),
                command: status,
            }),
        },
        (None, None, Supervision::None) => Why {
            headline: format!("'{name}' runs, and nobody supervises it"),
            causes: vec!["its keeper and its worker were both killed".into()],
            remedy: command(format!("hpvmstart -P {name}")),
        },
        (None, None, _) => Why {
            headline: format!("'{name}' runs since {since}; nothing is wrong with it"),
            causes: presence.health(),
            remedy: None,
        },
    }
}

fn off(host: &VmHost, config: &GuestConfig, presence: &Presence) -> Result<Why, Refusal> {
    let name = &config.name;
    let start = format!("hpvmstart -P {name}");
    let facts = host.start_facts(config)?;
    let found = problems(config, &facts, Purpose::Start);
    let errors: Vec<_> = found.iter().filter(|p| p.severity == Severity::Error).collect();
    if let Some(first) = errors.first() {
        return Ok(Why {
            headline: format!("'{name}' is off and cannot start"),
            causes: errors.iter().map(|p| p.text.clone()).collect(),
            remedy: first.remedy.clone().or_else(|| command(start)),
        });
    }
    if let Some(failed) = last_failed_start(host, config, presence)? {
        return Ok(failed);
    }
    let ended = presence.snapshot().and_then(|s| match &s.phase {
        Phase::Ended { how } => Some((s.since.clone(), how.clone())),
        _ => None,
    });
    Ok(match ended {
        Some((when, how)) if how.is_failure() => Why {
            headline: format!("'{name}' is off since {when}: {how}"),
            causes: crash_causes(host, config, &how),
            remedy: Some(Remedy { ask: crash_ask(&how), command: start }),
        },
        Some((when, how)) => Why {
            headline: format!("'{name}' is off since {when}: {how}. Nothing prevents a start"),
            causes: Vec::new(),
            remedy: command(start),
        },
        None => Why {
            headline: format!("'{name}' is off. Nothing prevents a start"),
            causes: Vec::new(),
            remedy: command(start),
        },
    })
}

fn crash_causes(host: &VmHost, config: &GuestConfig, how: &Ending) -> Vec<String> {
    let folder = host.folder(config);
    let mut causes = Vec::new();
    if let Ok(log) = std::fs::read_to_string(folder.file("qemu.log"))
        && let Some(line) = log.lines().rev().find(|line| !line.trim().is_empty())
    {
        causes.push(format!("QEMU's last words: {}", hpvm_model::bytes::shown(line)));
    }
    if matches!(how, Ending::Crashed { cause: Crash::Exited { .. } }) {
        causes.push(format!("its log: {}", folder.file("qemu.log").display()));
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
    let is_start = |line: &str| line.contains("hpvmstart") || line.contains("hpvm start");
    let Some(start) = recent.into_iter().map(|r| r.operation).find(|o| is_start(&o.command_line))
    else {
        return Ok(None);
    };
    let Outcome::Failed(text) = &start.outcome else { return Ok(None) };
    let since: Option<Timestamp> = presence.snapshot().and_then(|s| s.since.parse().ok());
    if since.is_some_and(|ended| ended > start.at) {
        return Ok(None);
    }
    let Failed { causes, remedy } = Failed::from_text(text);
    let again = || command(format!("hpvmstart -P {}", config.name));
    Ok(Some(Why {
        headline: format!("'{}' is off; its last start, at {}, failed", config.name, start.at),
        causes,
        remedy: remedy.or_else(again),
    }))
}
