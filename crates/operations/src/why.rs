//! Why a guest does not start, or what failed last: one screen, with the next command to type. Nothing proposed here stops
//! another guest or drops a device.

use std::fs::File;

use hpvm_app::snapshot::{Crash, Ending, Phase};
use hpvm_engine::last_words;
use hpvm_host::names::guest_folder;
use hpvm_model::{GuestConfig, GuestName, Occupant, Problem, Remedy, Severity};
use hpvm_plan::difference::{Effect, waiting};
use hpvm_plan::judge::{Purpose, boot_disk, problems};
use hpvm_plan::record::{Attached, AttachedNic, Machine, NicBoot};
use hpvm_registry::Outcome;
use jiff::{SignedDuration, Timestamp};

use crate::actor::{Failed, ToldBy};
use crate::lost_record::Loss;
use crate::presence::{Attention, Presence, Supervision};
use crate::surroundings::{self, Trouble};
use crate::{Refusal, VmHost, console_media, lost, lost_record};

/// So many operations back the last start is looked for.
const RECENT_OPERATIONS: usize = 20;

/// The screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// One sentence: how it is.
    pub headline: String,
    /// What led there, nearest cause first.
    pub causes: Vec<String>,
    /// What else there is to know, of which nothing led there.
    pub notes: Vec<String>,
    /// What to do outside hpvm, if anything, and the command to type then.
    pub remedy: Option<Remedy>,
}

/// Explains one guest.
pub fn why(host: &VmHost, config: &GuestConfig) -> Result<Why, Refusal> {
    let presence = host.presence(config.number);
    match &presence {
        Presence::On { attention, supervision, .. } => {
            if let Some(loss) = lost_record::look(host, config, &presence) {
                return Ok(without_record(config, loss));
            }
            let why = running(config, &presence, attention.as_ref(), *supervision);
            let machine = host.machine(config);
            let why = with_waiting(why, config, machine.as_ref());
            let troubles = surroundings::troubles(host, config);
            let why = with_surroundings(why, &config.name, &troubles);
            Ok(with_firmware(why, config, &presence, machine.as_ref()))
        }
        Presence::Off { .. } => match lost::qemu_at_rest(host, config) {
            Some(pid) => Ok(out_of_reach(config, pid)),
            None => off(host, config, &presence),
        },
    }
}

/// A guest that is well itself may have lost what it needs. What keeps it from running comes first, and its way out alone.
fn with_surroundings(mut why: Why, name: &GuestName, troubles: &[Trouble]) -> Why {
    let causes: Vec<String> = troubles.iter().map(|trouble| trouble.cause.clone()).collect();
    if why.remedy.is_some() || causes.is_empty() {
        why.notes.extend(causes);
        return why;
    }
    let remedies = troubles.iter().map(|trouble| &trouble.remedy);
    let asks: Vec<&str> = remedies.clone().filter_map(|remedy| remedy.ask.as_deref()).collect();
    let mut commands: Vec<&str> = remedies.map(|remedy| remedy.command.as_str()).collect();
    // Two files have one last look.
    commands.dedup();
    Why {
        headline: format!("'{name}' runs, and lacks what it was given"),
        causes,
        notes: why.notes,
        remedy: Some(Remedy {
            ask: (!asks.is_empty()).then(|| asks.join("; ")),
            command: commands.join(" && "),
        }),
    }
}

fn out_of_reach(config: &GuestConfig, pid: i32) -> Why {
    let name = &config.name;
    Why {
        headline: format!("'{name}' runs, and nobody can reach it"),
        causes: vec![format!("its files in /run are gone or damaged; its QEMU is process {pid}")],
        notes: Vec::new(),
        remedy: Some(Remedy {
            ask: Some("shut it down from within if that can be done".into()),
            command: format!("hpvmstop -P {name} -h -F && hpvmstart -P {name}"),
        }),
    }
}

fn without_record(config: &GuestConfig, loss: Loss) -> Why {
    let name = &config.name;
    let headline = format!("'{name}' runs, and commands cannot tell what machine it got");
    match loss {
        Loss::Mendable { why } => Why {
            headline,
            causes: vec![why, "only its worker still has its boot record".into()],
            notes: Vec::new(),
            remedy: command("hpvm doctor --repair".into()),
        },
        Loss::Final { why } => Why {
            headline,
            causes: vec![why],
            notes: Vec::new(),
            remedy: Some(Remedy {
                ask: Some("choose a time at which the guest may be off for a moment".into()),
                command: format!("hpvmstop -P {name} -g -F && hpvmstart -P {name}"),
            }),
        },
    }
}

fn command(remedy: String) -> Option<Remedy> {
    Some(Remedy { ask: None, command: remedy })
}

fn running(
    config: &GuestConfig,
    presence: &Presence,
    attention: Option<&Attention>,
    supervision: Supervision,
) -> Why {
    let name = &config.name;
    let stopping = presence.snapshot().filter(|s| matches!(s.phase, Phase::Stopping { .. }));
    let paused = presence.snapshot().and_then(|s| match &s.phase {
        Phase::Paused { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    let status = format!("hpvmstatus -P {name}");
    match (attention, paused, supervision) {
        (Some(attention @ Attention::NoRecord { .. }), _, _) => Why {
            headline: format!("'{name}' runs, and what machine it got is not known any more"),
            causes: vec![attention.to_string()],
            notes: Vec::new(),
            remedy: Some(Remedy {
                ask: Some("choose a time at which the guest may be off for a moment".into()),
                command: format!("hpvmstop -P {name} -g -F && hpvmstart -P {name}"),
            }),
        },
        (Some(attention), _, _) => {
            let ask = match attention {
                Attention::Stopped { pid } => Some(format!("let it go on: kill -CONT {pid}")),
                _ => None,
            };
            Why {
                headline: format!("'{name}' runs and does not answer"),
                causes: vec![attention.to_string()],
                notes: Vec::new(),
                remedy: Some(Remedy { ask, command: status }),
            }
        }
        (None, Some(reason), _) => Why {
            headline: format!("'{name}' runs and is held still"),
            causes: vec![reason],
            notes: Vec::new(),
            remedy: Some(Remedy {
                ask: Some("make room where its disks lie; it goes on by itself".into()),
                command: status,
            }),
        },
        (None, None, Supervision::None) => Why {
            headline: format!("'{name}' runs, and nobody supervises it"),
            causes: vec!["its keeper and its worker were both killed".into()],
            notes: Vec::new(),
            remedy: command(format!("hpvmstart -P {name}")),
        },
        (None, None, _) if stopping.is_some() => Why {
            headline: format!("'{name}' is on its way down and still runs"),
            causes: presence.health(),
            notes: Vec::new(),
            remedy: Some(Remedy {
                ask: Some(format!(
                    "wait until it is off, which `{status}` shows; or end it like a power cut"
                )),
                command: format!("hpvmstop -P {name} -h -F"),
            }),
        },
        (None, None, _) => Why {
            headline: match presence.runs_since() {
                None => format!("'{name}' is coming up; nothing is wrong with it"),
                Some(since) => format!(
                    "'{name}' runs since {}; nothing is wrong with it",
                    since.strftime("%Y-%m-%dT%H:%M:%SZ")
                ),
            },
            causes: Vec::new(),
            notes: presence.health(),
            remedy: None,
        },
    }
}

/// A guest that does not get beyond its firmware.
fn with_firmware(
    mut why: Why,
    config: &GuestConfig,
    presence: &Presence,
    machine: Option<&Machine>,
) -> Why {
    let snapshot = presence.snapshot().filter(|snapshot| {
        matches!(snapshot.phase, Phase::Running { occupant: Occupant::Firmware })
    });
    let since = snapshot.and_then(|snapshot| snapshot.since.parse().ok());
    let source = machine.map_or(Source::Some, Source::of);
    let held = since.and_then(|since| held_in_firmware(config, source, since));
    match held {
        Some((cause, _)) if why.remedy.is_some() => {
            why.notes.push(cause);
            why
        }
        Some((cause, remedy)) => Why {
            headline: format!("'{}' runs and is in its firmware still", config.name),
            causes: vec![cause],
            notes: why.notes,
            remedy: Some(remedy),
        },
        None => why,
    }
}

/// It may have no driver for the disk it boots from, or nothing to boot from; what else keeps it is on its console.
fn held_in_firmware(
    config: &GuestConfig,
    source: Source,
    since: Timestamp,
) -> Option<(String, Remedy)> {
    let name = &config.name;
    if let Some(missing) = boot_disk::no_driver(config) {
        return Some((missing.text, missing.remedy));
    }
    if Timestamp::now().duration_since(since) < FIRMWARE_BOUND {
        return None;
    }
    if source == Source::None {
        let ask = format!(
            "add a disk with a system (hpvmmodify -P {name} -a disk:…), or put a medium in (-m dvd:…)"
        );
        let cause = "it has nothing to boot from: no disk, and no medium in a drive".to_owned();
        return Some((
            cause,
            Remedy { ask: Some(ask), command: format!("hpvmstatus -P {name} -d") },
        ));
    }
    let cause = format!(
        "nothing has booted since {since}: there may be no system that boots by UEFI, or somebody is in the firmware's menus"
    );
    let ask = Some("see what the firmware says: CO in the console's menu".to_owned());
    Some((cause, Remedy { ask, command: format!("hpvmconsole -P {name}") }))
}

/// Firmware finds a system within seconds, and within a minute where an emulated processor is short of time.
const FIRMWARE_BOUND: SignedDuration = SignedDuration::from_secs(90);

/// Whether the firmware has a device on which a system could be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Some,
    None,
}

impl Source {
    fn of(machine: &Machine) -> Source {
        let holds = |attached: &Attached| attached.device.backing.store().is_some();
        let boots = |attached: &AttachedNic| attached.boot == NicBoot::AfterDisks;
        match machine.storage.iter().any(holds) || machine.nics.iter().any(boots) {
            true => Source::Some,
            false => Source::None,
        }
    }
}

/// What the guest was asked for and has not done is no trouble, and may be what somebody wonders about.
fn with_waiting(mut why: Why, config: &GuestConfig, machine: Option<&Machine>) -> Why {
    let Some(machine) = machine else { return why };
    let waits = waiting(config, machine).into_iter().filter_map(|change| match change.effect {
        Effect::NextReset(reason) => {
            Some(format!("{}, {} to {}, {reason}", change.field, change.from, change.to))
        }
        _ => None,
    });
    why.notes.extend(waits);
    why
}

fn off(host: &VmHost, config: &GuestConfig, presence: &Presence) -> Result<Why, Refusal> {
    let name = &config.name;
    let start = format!("hpvmstart -P {name}");
    // As a start takes it, with what was changed at the console.
    let judged = console_media::seen(host, config.clone());
    let found = problems(&judged, &host.start_facts(&judged)?, Purpose::Start);
    let errors: Vec<_> = found.iter().filter(|p| p.severity == Severity::Error).collect();
    if !errors.is_empty() {
        return Ok(Why {
            headline: format!("'{name}' is off and cannot start"),
            causes: errors.iter().map(|p| p.text.clone()).collect(),
            notes: Vec::new(),
            remedy: Some(all_remedies(&errors, start)),
        });
    }
    let notes: Vec<String> = found.iter().map(|p| p.text.clone()).collect();
    if let Some(failed) = last_failed_start(host, config, presence)? {
        return Ok(Why { notes, ..failed });
    }
    let ended = presence.ending();
    Ok(match ended {
        Some((when, how)) if how.is_failure() => Why {
            headline: format!("'{name}' is off since {when}: {how}"),
            causes: crash_causes(host, config, how),
            notes,
            remedy: Some(Remedy { ask: crash_ask(how), command: start }),
        },
        Some((when, how)) => Why {
            headline: format!("'{name}' is off since {when}: {how}. Nothing prevents a start"),
            causes: Vec::new(),
            notes,
            remedy: command(start),
        },
        None => Why {
            headline: format!("'{name}' is off. Nothing prevents a start"),
            causes: Vec::new(),
            notes,
            remedy: command(start),
        },
    })
}

/// One way out of all these problems: what to do outside hpvm, then one line to type that ends with the start.
fn all_remedies(errors: &[&Problem], start: String) -> Remedy {
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
    // A start in another environment, such as `HPVM_ACCEL=tcg hpvmstart`, is the start.
    commands.sort_by_key(|command| command.ends_with(&start));
    if !commands.last().is_some_and(|command| command.ends_with(&start)) {
        commands.push(start);
    }
    let ask = (!asks.is_empty()).then(|| asks.join("; "));
    Remedy { ask, command: commands.join(" && ") }
}

fn crash_causes(host: &VmHost, config: &GuestConfig, how: &Ending) -> Vec<String> {
    let log = host.root.guest_link(config.name.as_str()).join(guest_folder::QEMU_LOG);
    let words = File::open(&log).ok().and_then(|log| last_words::read(&log));
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
    Ok(Some(failed_start(&config.name, start.at, Failed::from_text(text))))
}

/// Of a guest that can start as far as the judgement tells.
fn failed_start(name: &GuestName, at: Timestamp, failed: Failed) -> Why {
    let Failed { causes, remedy: _, told_by } = failed;
    let headline = format!("'{name}' is off; its last start, at {at}, failed");
    let remedy = command(format!("hpvmstart -P {name}"));
    match told_by {
        ToldBy::Judgement => Why {
            headline: format!(
                "{headline}: {}. That is over; nothing prevents a start now",
                causes.join("; and ")
            ),
            causes: Vec::new(),
            notes: Vec::new(),
            remedy,
        },
        ToldBy::Trial => Why { headline, causes, notes: Vec::new(), remedy },
    }
}

#[cfg(test)]
mod tests {
    use hpvm_model::GuestUuid;

    use super::*;
    use crate::create::blank;

    fn trouble(cause: &str, ask: Option<&str>, command: &str) -> Trouble {
        let remedy = Remedy { ask: ask.map(str::to_owned), command: command.to_owned() };
        Trouble { cause: cause.to_owned(), remedy }
    }

    #[test]
    fn a_guest_that_is_long_in_its_firmware_is_told_why() {
        let name: GuestName = "web".parse().expect("a name");
        let config = blank(&name, GuestUuid(uuid::Uuid::nil()));
        let now = Timestamp::now();
        let long_ago = now - FIRMWARE_BOUND - FIRMWARE_BOUND;
        assert_eq!(held_in_firmware(&config, Source::None, now), None);
        let (cause, _) = held_in_firmware(&config, Source::None, long_ago).expect("a cause");
        assert!(cause.contains("no disk, and no medium"), "{cause}");
        let (cause, remedy) = held_in_firmware(&config, Source::Some, long_ago).expect("a cause");
        assert!(cause.starts_with("nothing has booted since "), "{cause}");
        assert_eq!(remedy.command, "hpvmconsole -P web");
    }

    #[test]
    fn what_a_running_guest_lacks_is_told_unless_it_does_not_run_well_itself() {
        let name: GuestName = "web".parse().expect("a name");
        let well = Why {
            headline: "well".into(),
            causes: Vec::new(),
            notes: vec!["a note".into()],
            remedy: None,
        };
        let troubles = [
            trouble("the switch is halted", None, "hpvmnet -S a -b"),
            trouble("a is gone", Some("bring a"), "hpvmstatus -P web"),
            trouble("b is gone", Some("bring b"), "hpvmstatus -P web"),
        ];
        assert_eq!(with_surroundings(well.clone(), &name, &[]), well);
        let told = with_surroundings(well.clone(), &name, &troubles);
        assert_eq!(told.causes, ["the switch is halted", "a is gone", "b is gone"]);
        assert_eq!(told.notes, ["a note"]);
        assert_eq!(
            told.remedy,
            Some(Remedy {
                ask: Some("bring a; bring b".into()),
                command: "hpvmnet -S a -b && hpvmstatus -P web".into()
            })
        );
        let held = Why { notes: Vec::new(), remedy: command("hpvmstatus -P web".into()), ..well };
        let told = with_surroundings(held.clone(), &name, &troubles[..1]);
        assert_eq!(told, Why { notes: vec!["the switch is halted".into()], ..held });
    }
}
