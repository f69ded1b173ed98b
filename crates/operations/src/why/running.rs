//! A guest that runs, and may be well, held up, or without something that it needs.

use std::path::Path;

use hpvm_app::snapshot::{Agent, DeviceStore, Phase, SilentStore};
use hpvm_host::block::Places;
use hpvm_model::{
    Backing, GuestConfig, GuestName, Occupant, Problem, Remedy, Severity, StorageType,
};
use hpvm_plan::difference::{Effect, waiting};
use hpvm_plan::judge::{Purpose, boot_disk, problems};
use hpvm_plan::record::{Attached, AttachedNic, Machine, NicBoot};
use jiff::{SignedDuration, Timestamp};

use super::surroundings::{self, Trouble};
use super::unseen::Unseen;
use super::{Why, off};
use crate::displaced::displaced_files;
use crate::lost_record::Loss;
use crate::presence::{Attention, Presence, Supervision};
use crate::{VmHost, console_media};

pub(super) fn explain(
    host: &VmHost,
    config: &GuestConfig,
    presence: &Presence,
    attention: Option<&Attention>,
    supervision: Supervision,
) -> Why {
    let machine = host.machine(config);
    let silent = presence.snapshot().map_or(&[][..], |snapshot| &snapshot.silent_stores);
    let why = match attention {
        Some(attention @ (Attention::Stores { .. } | Attention::Unresponsive { .. }))
            if !silent.is_empty() =>
        {
            let why = without_answer(&config.name, silent, machine.as_ref());
            match attention {
                Attention::Unresponsive { .. } => why.because(attention.to_string()),
                // The guest waits for what holds it, whatever else does not answer.
                _ if presence.held().is_some() => by_itself(&config.name, presence, supervision),
                _ => why,
            }
        }
        Some(attention) => in_need(&config.name, attention),
        None => by_itself(&config.name, presence, supervision),
    };
    let Some(machine) = machine else {
        return with_firmware(why, config, presence, None);
    };
    let why = with_waiting(why, config, &machine);
    let displaced = displaced_files(host, config, &machine);
    let troubles = surroundings::troubles(host, config, &machine, &displaced);
    let why = with_surroundings(why, &config.name, &troubles);
    let why = with_firmware(why, config, presence, Some(&machine));
    let (mut errors, unseen) = errors_of_next_start(host, config, &machine);
    let why = why.noting(unseen).noting(surroundings::unseen(host, &machine));
    // It is told already what becomes of these when the guest ends.
    errors.retain(|error| displaced.iter().all(|file| file.path != error.item));
    with_next_start(why, &config.name, &errors)
}

/// What would refuse a start of the guest, once it has ended, and what whoever asks cannot see of that. Whoever cannot be asked now
/// refuses nothing.
fn errors_of_next_start(
    host: &VmHost,
    config: &GuestConfig,
    machine: &Machine,
) -> (Vec<Problem>, Option<String>) {
    // As a start takes it, with what was changed at the console.
    let judged = console_media::seen(host, config.clone());
    let Ok(facts) = host.next_start_facts(&judged, machine) else { return (Vec::new(), None) };
    let unseen = Unseen::of(host, &facts);
    let mut found = problems(&judged, &facts, Purpose::Start);
    found.retain(|problem| problem.severity == Severity::Error);
    unseen.set_aside(&mut found);
    (found, unseen.note())
}

/// What the guest itself does comes first: that it could not start again matters once it ends.
fn with_next_start(mut why: Why, name: &GuestName, errors: &[Problem]) -> Why {
    if errors.is_empty() {
        return why;
    }
    let texts = errors.iter().map(|error| error.text.clone());
    if why.remedy.is_some() {
        why.notes.extend(texts.map(|text| format!("it could not start again: {text}")));
        return why;
    }
    let start = format!("hpvmstart -P {name}");
    let (mut asks, commands) = off::remedies(&errors.iter().collect::<Vec<_>>(), &start);
    // A guest that runs is given no other variables.
    let waits = |command: &String| command.starts_with("hpvm nvram ");
    let (then, now): (Vec<String>, Vec<String>) = commands.into_iter().partition(waits);
    asks.extend(then.iter().map(|command| format!("once the guest has ended, `{command}`")));
    let ask = (!asks.is_empty()).then(|| asks.join("; "));
    let commands = now.into_iter().chain([format!("hpvm why -P {name}")]);
    Why::that(format!("'{name}' runs, but could not start again if it ended now"))
        .because_of(texts)
        .noting(why.notes)
        .remedied(ask, commands.collect::<Vec<_>>().join(" && "))
}

pub(super) fn out_of_reach(config: &GuestConfig, pid: i32) -> Why {
    let name = &config.name;
    Why::that(format!("'{name}' runs, and nobody can reach it"))
        .because(format!("its files in /run are gone or damaged; its QEMU is process {pid}"))
        .ask(
            "shut it down from within if that can be done",
            format!("hpvmstop -P {name} -h -F && hpvmstart -P {name}"),
        )
}

pub(super) fn without_folder(name: &GuestName, folder: &Path, health: Vec<String>) -> Why {
    let shown = folder.display();
    Why::that(format!("'{name}' runs, but could not start again if it ended now"))
        .because(format!("its folder {shown} is missing"))
        .noting(health)
        .ask(
            format!(
                "bring {shown} back from a backup; if there is none, give the guest up: hpvmstop -P {name} -g && hpvmremove -P {name}"
            ),
            format!("hpvm why -P {name}"),
        )
}

pub(super) fn without_record(config: &GuestConfig, loss: Loss) -> Why {
    let name = &config.name;
    let told = Why::that(format!("'{name}' runs, and commands cannot tell what machine it got"));
    match loss {
        Loss::Mendable { why } => told
            .because(why)
            .because("only its worker still has its boot record")
            .run("hpvm doctor --repair".into()),
        Loss::Final { why } => told.because(why).start_anew(name),
    }
}

fn in_need(name: &GuestName, attention: &Attention) -> Why {
    let silent =
        || Why::that(format!("'{name}' runs and does not answer")).because(attention.to_string());
    let status = format!("hpvmstatus -P {name}");
    match attention {
        Attention::NoRecord { .. } => {
            Why::that(format!("'{name}' runs, and what machine it got is not known any more"))
                .because(attention.to_string())
                .start_anew(name)
        }
        Attention::Unseen => Why::that(format!(
            "'{name}' runs, or has ended: {attention}; run this as its owner or as root"
        )),
        Attention::Stopped { pid } | Attention::WorkerStopped { pid, .. } => {
            silent().ask(format!("let it go on: kill -CONT {pid}"), status)
        }
        Attention::Unresponsive { .. } | Attention::Silent { .. } | Attention::Stores { .. } => {
            silent().run(status)
        }
    }
}

/// The guest waits for what is not its own, and nothing on it helps.
fn without_answer(name: &GuestName, stores: &[SilentStore], machine: Option<&Machine>) -> Why {
    let causes =
        stores.iter().map(|store| format!("{store}, does not answer since {}", store.since));
    let mut grounds: Vec<String> =
        stores.iter().flat_map(SilentStore::stores).map(|store| ground(store, machine)).collect();
    grounds.dedup();
    Why::that(format!("'{name}' runs, and waits for storage that does not answer"))
        .because_of(causes)
        .ask(
            format!(
                "see what became of {}; once it answers, the guest goes on by itself",
                grounds.join(" and of ")
            ),
            format!("hpvm why -P {name}"),
        )
}

/// What a store lies on, as far as that is known without asking there.
fn ground(store: &DeviceStore, machine: Option<&Machine>) -> String {
    let path = &store.path;
    let held = machine.into_iter().flat_map(Machine::held);
    let mut stores = held.filter(|a| a.device.address == store.address).flat_map(|attached| {
        let layers = attached.layers.iter().map(|layer| (&layer.backing, layer.identity));
        std::iter::once((&attached.device.backing, attached.identity)).chain(layers)
    });
    let known = stores.find(|(backing, _)| backing.path == *path);
    let file_system = known.and_then(|(_, file)| Places::default().file_system(file?.device));
    match (known, file_system) {
        (Some((Backing { storage: StorageType::Disk | StorageType::Lv, .. }, _)), _) => {
            format!("the device '{path}', of which `dmesg` may tell more")
        }
        (_, Some(file_system)) => format!("{file_system}, where '{path}' lies"),
        (_, None) => format!("what '{path}' lies on"),
    }
}

/// As its phase tells, and who looks after it.
fn by_itself(name: &GuestName, presence: &Presence, supervision: Supervision) -> Why {
    let status = format!("hpvmstatus -P {name}");
    if let Some(reason) = presence.held() {
        return Why::that(format!("'{name}' runs and is held still"))
            .because(reason)
            .noting(presence.health().into_iter().skip(1))
            .ask("make room where its disks lie; it goes on by itself", status);
    }
    let phase = presence.snapshot().map(|snapshot| &snapshot.phase);
    match (phase, supervision) {
        (_, Supervision::None) => Why::that(format!("'{name}' runs, and nobody supervises it"))
            .because("its keeper and its worker were both killed")
            .run(format!("hpvmstart -P {name}")),
        (Some(Phase::Stopping { is_unheard: true, .. }), _) => {
            Why::that(format!("'{name}' is asked to shut down and still runs"))
                .because_of(presence.health())
                .ask(
                    "end it like a power cut, unless an operating system is just coming up in it",
                    format!("hpvmstop -P {name} -h -F"),
                )
        }
        (Some(Phase::Stopping { .. }), _) => {
            Why::that(format!("'{name}' is on its way down and still runs"))
                .because_of(presence.health())
                .noting(silent_agent(name, presence))
                .ask(
                    format!(
                        "wait until it is off, which `{status}` shows; or end it like a power cut"
                    ),
                    format!("hpvmstop -P {name} -h -F"),
                )
        }
        _ => {
            let silence = silent_agent(name, presence);
            let how = match silence {
                None => "nothing is wrong with it",
                Some(_) => "all that is known against it is that its guest agent does not answer",
            };
            Why::that(match presence.runs_since() {
                None => format!("'{name}' is coming up; {how}"),
                Some(since) => {
                    format!("'{name}' runs since {}; {how}", since.strftime("%Y-%m-%dT%H:%M:%SZ"))
                }
            })
            .noting(silence.into_iter().chain(presence.health()))
        }
    }
}

/// No certain fault: an agent may have been stopped on purpose, and a kernel that hangs or panicked tells nobody.
fn silent_agent(name: &GuestName, presence: &Presence) -> Option<String> {
    let Agent::Silent { since } = &presence.snapshot()?.agent else { return None };
    Some(format!(
        "its guest agent does not answer since {since}: somebody may have stopped it, or its operating system hangs or has panicked, which its console shows (hpvmconsole -P {name})"
    ))
}

/// What the guest was asked for and has not done is no trouble, and may be what somebody wonders about.
fn with_waiting(mut why: Why, config: &GuestConfig, machine: &Machine) -> Why {
    let waits = waiting(config, machine).into_iter().filter_map(|change| match change.effect {
        Effect::NextReset(reason) => {
            Some(format!("{}, {} to {}, {reason}", change.field, change.from, change.to))
        }
        Effect::Asked(since) => Some(format!(
            "{}, {} to {}, {since}, which has not done so yet",
            change.field, change.from, change.to
        )),
        Effect::Now | Effect::NextStart(_) | Effect::Refused(_) => None,
    });
    why.notes.extend(waits);
    why
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
    let ask = (!asks.is_empty()).then(|| asks.join("; "));
    Why::that(format!("'{name}' runs, and lacks what it was given"))
        .because_of(causes)
        .noting(why.notes)
        .remedied(ask, commands.join(" && "))
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
    let since = snapshot.and_then(|snapshot| snapshot.state_since.as_deref()?.parse().ok());
    let source = machine.map_or(Source::Some, Source::of);
    let held = since.and_then(|since| held_in_firmware(config, source, since));
    match held {
        Some((cause, _)) if why.remedy.is_some() => {
            why.notes.push(cause);
            why
        }
        Some((cause, Remedy { ask, command })) => {
            Why::that(format!("'{}' runs and is in its firmware still", config.name))
                .because(cause)
                .noting(why.notes)
                .remedied(ask, command)
        }
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

    fn running(phase: &str, agent: &str) -> Presence {
        let json = format!(
            r#"{{ "boot_id": "b", "phase": {phase}, "since": "2026-11-24T08:00:12Z", "agent": {agent},
            "unresponsive_since": null, "notes": [], "qemu": {{ "pid": 1, "start_time": 1 }},
            "accelerator": "kvm", "adoptions": 0 }}"#
        );
        let snapshot = Some(serde_json::from_str(&json).expect("a snapshot"));
        Presence::On { snapshot, supervision: Supervision::Full, attention: None }
    }

    fn told_of(presence: &Presence) -> Why {
        by_itself(&"web".parse().expect("a name"), presence, Supervision::Full)
    }

    #[test]
    fn an_agent_that_fell_silent_is_told_as_what_is_known() {
        let os = r#"{ "phase": "running", "occupant": "os" }"#;
        let since = "2026-11-24T09:00:00Z";
        let well =
            told_of(&running(os, &format!(r#"{{ "state": "answers", "since": "{since}" }}"#)));
        assert!(well.headline.ends_with("; nothing is wrong with it") && well.notes.is_empty());
        let silent =
            told_of(&running(os, &format!(r#"{{ "state": "silent", "since": "{since}" }}"#)));
        assert!(!silent.headline.contains("nothing is wrong"), "{}", silent.headline);
        let [note] = &silent.notes[..] else { panic!("{:?}", silent.notes) };
        assert!(note.contains(since) && note.contains("hpvmconsole -P web"), "{note}");
        assert_eq!(silent.remedy, None, "it may be as it is to be");
    }

    #[test]
    fn what_is_wrong_with_a_guest_on_its_way_down_comes_first() {
        let absent = r#"{ "state": "absent" }"#;
        let held =
            r#"{ "phase": "stopping", "occupant": "os", "held": "no space is left for '/a'" }"#;
        let why = told_of(&running(held, absent));
        assert_eq!(why.causes, ["no space is left for '/a'"]);
        let ask = why.remedy.and_then(|remedy| remedy.ask).expect("what to do");
        assert!(ask.starts_with("make room"), "{ask}");
        let unheard = r#"{ "phase": "stopping", "occupant": "firmware", "is_unheard": true }"#;
        let why = told_of(&running(unheard, absent));
        assert!(why.causes[0].contains("no operating system listens"), "{:?}", why.causes);
        let remedy = why.remedy.expect("a way out");
        assert!(!remedy.ask.expect("what to do").contains("wait"));
        assert_eq!(remedy.command, "hpvmstop -P web -h -F");
    }

    #[test]
    fn what_a_running_guest_lacks_is_told_unless_it_does_not_run_well_itself() {
        let name: GuestName = "web".parse().expect("a name");
        let well = Why::that("well".into()).noting(["a note".into()]);
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
        let held = Why::that("held".into()).run("hpvmstatus -P web".into());
        let told = with_surroundings(held.clone(), &name, &troubles[..1]);
        assert_eq!(told, held.noting(["the switch is halted".into()]));
    }
}
