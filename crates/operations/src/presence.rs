//! Whether a guest runs, told from `/run` alone: its lock, its status snapshot and, when nobody supervises it or its worker is
//! silent, its processes.
//! Nobody is asked, so a guest that hangs delays no reader.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use hpvm_app::snapshot::{
    BEAT_STALE_MS, Crash, Ending, FILE_BYTES_MAX, Phase, SilentStore, Snapshot,
};
use hpvm_host::durable;
use hpvm_host::names::run_folder;
use hpvm_host::process::{self, Life};
pub(crate) use hpvm_host::supervision::Supervision;
use hpvm_model::{Occupant, RunState};
use jiff::Timestamp;

use crate::hanging::{WORKER, stopped_supervisor};

/// A guest as `/run` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Not running. What its last run left, if this host boot remembers one.
    Off { last: Option<Snapshot> },
    /// Running, or coming up while there is no snapshot yet.
    On { snapshot: Option<Snapshot>, supervision: Supervision, attention: Option<Attention> },
}

/// Why a running guest needs somebody's attention.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Attention {
    #[error("QEMU does not answer since {since}")]
    Unresponsive { since: String },
    #[error("QEMU (process {pid}) is stopped by a signal; `kill -CONT {pid}` lets it go on")]
    Stopped { pid: i32 },
    #[error("the guest's worker gave no sign of life for {seconds} s")]
    Silent { seconds: u64, since: String },
    #[error(
        "the guest's worker (process {pid}) is stopped by a signal; `kill -CONT {pid}` lets it go on"
    )]
    WorkerStopped { pid: i32, since: String },
    #[error("{}", silent(stores))]
    Stores { stores: Vec<SilentStore> },
    #[error(
        "its boot record cannot be used ({reason}); it runs on, and its devices cannot be changed until it was stopped and started"
    )]
    NoRecord { reason: String },
    #[error("whether it runs cannot be seen by this user")]
    Unseen,
}

/// Reads the run folder of a guest. A folder that is not there is a guest that is off.
pub(crate) fn read(run_dir: &Path, boot_id: &str) -> Presence {
    let Ok(supervision) = Supervision::at(&run_dir.join(run_folder::LOCK)) else {
        return Presence::Off { last: None };
    };
    let file = status(&run_dir.join(run_folder::STATUS)).unwrap_or_default();
    match (Snapshot::from_file(&file), supervision) {
        (Some((_, snapshot)), _) if matches!(snapshot.phase, Phase::Ended { .. }) => {
            Presence::Off { last: (snapshot.boot_id == boot_id).then_some(snapshot) }
        }
        (Some((_, snapshot)), Supervision::None) => orphan(snapshot, boot_id),
        (None, Supervision::None) => Presence::Off { last: None },
        (Some((beat_ms, snapshot)), Supervision::Unseen) => {
            by_status(run_dir, beat_ms, snapshot, boot_id)
        }
        (None, Supervision::Unseen) => {
            Presence::On { snapshot: None, supervision, attention: Some(Attention::Unseen) }
        }
        (Some((beat_ms, snapshot)), _) => {
            let attention = attention(run_dir, &snapshot, beat_ms);
            Presence::On { snapshot: Some(snapshot), supervision, attention }
        }
        (None, _) => Presence::On { snapshot: None, supervision, attention: None },
    }
}

const STATUS_BYTES_USUAL: usize = 1 << 10;

/// The folder is the worker's, which is trusted with its guest and with nothing else: whatever lies there, it delays no
/// reader.
fn status(path: &Path) -> std::io::Result<String> {
    let mut text = String::with_capacity(STATUS_BYTES_USUAL);
    durable::open_regular(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// Whoever may not see who supervises it sees its process, or where the host hides those its worker's signs of life.
fn by_status(run_dir: &Path, beat_ms: u64, snapshot: Snapshot, boot_id: &str) -> Presence {
    let is_of_this_boot = snapshot.boot_id == boot_id;
    match orphan(snapshot.clone(), boot_id) {
        Presence::Off { last } if !is_of_this_boot || age_ms(beat_ms) > BEAT_STALE_MS => {
            Presence::Off { last }
        }
        _ => Presence::On {
            attention: attention(run_dir, &snapshot, beat_ms),
            snapshot: Some(snapshot),
            supervision: Supervision::Unseen,
        },
    }
}

fn age_ms(beat_ms: u64) -> u64 {
    process::boottime_ms().saturating_sub(beat_ms)
}

/// Nobody supervises it: it runs if its process does, and not since a host boot.
fn orphan(snapshot: Snapshot, boot_id: &str) -> Presence {
    if snapshot.boot_id != boot_id {
        return Presence::Off { last: None };
    }
    match process::life(snapshot.qemu.pid, snapshot.qemu.start_time) {
        Life::Dead => {
            let unseen = Ending::Crashed { cause: Crash::Unseen };
            let phase = Phase::Ended { how: snapshot.decided.clone().unwrap_or(unseen) };
            Presence::Off { last: Some(Snapshot { phase, state_since: None, ..snapshot }) }
        }
        Life::Stopped => Presence::On {
            attention: Some(Attention::Stopped { pid: snapshot.qemu.pid }),
            snapshot: Some(snapshot),
            supervision: Supervision::None,
        },
        Life::Alive => Presence::On {
            attention: no_record(&snapshot),
            snapshot: Some(snapshot),
            supervision: Supervision::None,
        },
    }
}

fn attention(run_dir: &Path, snapshot: &Snapshot, beat_ms: u64) -> Option<Attention> {
    if process::life(snapshot.qemu.pid, snapshot.qemu.start_time) == Life::Stopped {
        return Some(Attention::Stopped { pid: snapshot.qemu.pid });
    }
    if let Some(since) = &snapshot.unresponsive_since {
        return Some(Attention::Unresponsive { since: since.clone() });
    }
    let age_ms = age_ms(beat_ms);
    match age_ms > BEAT_STALE_MS {
        true => {
            let since = ago(Duration::from_millis(age_ms));
            Some(match stopped_supervisor(run_dir, WORKER) {
                Some(pid) => Attention::WorkerStopped { pid, since },
                None => Attention::Silent { seconds: age_ms / 1000, since },
            })
        }
        false if !snapshot.silent_stores.is_empty() => {
            Some(Attention::Stores { stores: snapshot.silent_stores.clone() })
        }
        false => no_record(snapshot),
    }
}

/// RFC 3339, as workers write times.
fn ago(age: Duration) -> String {
    let then = Timestamp::now().checked_sub(age).unwrap_or_default();
    then.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn silent(stores: &[SilentStore]) -> String {
    let clause = |store: &SilentStore| format!("{store}, does not answer since {}", store.since);
    stores.iter().map(clause).collect::<Vec<_>>().join("; ")
}

/// A guest on its way down.
fn stopping(snapshot: &Snapshot) -> String {
    let Snapshot { phase, since, decided, .. } = snapshot;
    if let Some(how) = decided {
        return format!("its QEMU is ending since {since}: {how}");
    }
    let when = match phase {
        Phase::Stopping { held: Some(_), .. } => {
            "it can do so once it goes on, and is off at once by hpvmstop -h"
        }
        Phase::Stopping { is_unheard: true, .. } => {
            "no operating system listens to the power button, and it is off at once by hpvmstop -h"
        }
        _ => "it is off when its operating system has done so, or at once by hpvmstop -h",
    };
    format!("asked to shut down at {since}; {when}")
}

fn no_record(snapshot: &Snapshot) -> Option<Attention> {
    let reason = snapshot.record_damage.clone()?;
    Some(Attention::NoRecord { reason })
}

/// When a guest's worker gave its last sign of life, in milliseconds since the host booted.
pub(crate) fn last_beat(run_dir: &Path) -> Option<u64> {
    let file = status(&run_dir.join(run_folder::STATUS)).ok()?;
    Snapshot::from_file(&file).map(|(beat_ms, _)| beat_ms)
}

/// What its worker knows of a running guest; `None` while it has told nothing.
pub(crate) fn snapshot(run_dir: &Path) -> Option<Snapshot> {
    let file = status(&run_dir.join(run_folder::STATUS)).ok()?;
    Snapshot::from_file(&file).map(|(_, snapshot)| snapshot)
}

impl Presence {
    /// The state column.
    #[must_use]
    pub fn state(&self) -> RunState {
        match self {
            Presence::Off { .. } => RunState::Off,
            Presence::On { attention: Some(_), .. } => RunState::Attention,
            Presence::On { snapshot: None, .. } => RunState::On(Occupant::Firmware),
            Presence::On { snapshot: Some(snapshot), .. } => snapshot.state(),
        }
    }

    /// When that state began; `None`: nobody knows.
    #[must_use]
    pub fn state_since(&self) -> Option<String> {
        let snapshot = self.snapshot()?;
        if snapshot.state() == self.state() {
            return snapshot.state_since.clone();
        }
        match self {
            Presence::On {
                attention:
                    Some(Attention::Silent { since, .. } | Attention::WorkerStopped { since, .. }),
                ..
            } => Some(since.clone()),
            _ => None,
        }
    }

    #[must_use]
    pub fn is_on(&self) -> bool {
        matches!(self, Presence::On { .. })
    }

    /// Whether QEMU is known not to answer.
    #[must_use]
    pub fn is_deaf(&self) -> bool {
        let attention = match self {
            Presence::On { attention, .. } => attention,
            Presence::Off { .. } => &None,
        };
        matches!(attention, Some(Attention::Unresponsive { .. } | Attention::Stopped { .. }))
    }

    /// Whether QEMU or the worker is known not to answer.
    #[must_use]
    pub fn hangs(&self) -> bool {
        match self {
            Presence::On { attention: Some(attention), .. } => !matches!(
                attention,
                Attention::NoRecord { .. } | Attention::Stores { .. } | Attention::Unseen
            ),
            _ => false,
        }
    }

    #[must_use]
    pub fn snapshot(&self) -> Option<&Snapshot> {
        match self {
            Presence::Off { last } => last.as_ref(),
            Presence::On { snapshot, .. } => snapshot.as_ref(),
        }
    }

    /// When the run began, whatever state it has been in since.
    #[must_use]
    pub fn runs_since(&self) -> Option<Timestamp> {
        let Presence::On { snapshot: Some(snapshot), .. } = self else { return None };
        let age = process::age(snapshot.qemu.start_time);
        Timestamp::now().checked_sub(age).ok()
    }

    /// When and how the last run ended, while the VM Host remembers it.
    #[must_use]
    pub fn ending(&self) -> Option<(&str, &Ending)> {
        let snapshot = self.snapshot()?;
        match &snapshot.phase {
            Phase::Ended { how } => Some((&snapshot.since, how)),
            _ => None,
        }
    }

    /// Why the engine holds the guest still, if it does.
    #[must_use]
    pub fn held(&self) -> Option<&str> {
        let Presence::On { snapshot: Some(snapshot), .. } = self else { return None };
        match &snapshot.phase {
            Phase::Paused { reason, .. } => Some(reason),
            Phase::Stopping { held, .. } => held.as_deref(),
            Phase::Starting | Phase::Running { .. } | Phase::Ended { .. } => None,
        }
    }

    /// What an administrator should know, a sentence each.
    #[must_use]
    pub fn health(&self) -> Vec<String> {
        let Presence::On { snapshot, supervision, attention } = self else { return Vec::new() };
        let held = self.held().map(|reason| format!("paused: {reason}"));
        let mut sentences: Vec<String> = held.into_iter().collect();
        if let (Some(Attention::Unresponsive { .. } | Attention::Stopped { .. }), Some(snapshot)) =
            (attention, snapshot)
            && !snapshot.silent_stores.is_empty()
        {
            // What a store holds up may be QEMU as a whole.
            sentences.push(silent(&snapshot.silent_stores));
        }
        sentences.extend(attention.iter().map(Attention::to_string));
        if let Some(snapshot) = snapshot {
            if let Phase::Stopping { .. } = snapshot.phase {
                sentences.push(stopping(snapshot));
            }
            sentences.extend(snapshot.notes.iter().cloned());
        }
        match supervision {
            Supervision::None => {
                sentences.push("nobody supervises it; the next command takes it over".into());
            }
            Supervision::Unseen => {
                sentences.push("whether somebody supervises it cannot be seen by this user".into());
            }
            Supervision::Full | Supervision::KeeperAlone | Supervision::WorkerAlone => {}
        }
        sentences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopping_guest(decided: Option<&Ending>) -> Presence {
        let json = serde_json::json!({
            "boot_id": "b", "phase": { "phase": "stopping", "occupant": "os" },
            "since": "2026-11-24T08:00:12Z", "decided": decided, "unresponsive_since": null,
            "notes": [], "qemu": { "pid": 1, "start_time": 1 }, "accelerator": "kvm", "adoptions": 0
        });
        let snapshot = Some(serde_json::from_value(json).expect("a snapshot"));
        Presence::On { snapshot, supervision: Supervision::Full, attention: None }
    }

    fn with_phase(phase: Phase) -> Presence {
        let mut guest = stopping_guest(None);
        if let Presence::On { snapshot: Some(snapshot), .. } = &mut guest {
            snapshot.phase = phase;
        }
        guest
    }

    #[test]
    fn a_guest_that_is_held_needs_somebody() {
        let reason = "no space is left".to_owned();
        let guest = with_phase(Phase::Paused { reason, occupant: Occupant::Os });
        assert_eq!(guest.state(), RunState::Attention);
        assert_eq!(guest.health(), ["paused: no space is left"]);
        assert!(!guest.hangs(), "who stops it need not go past its worker");
    }

    #[test]
    fn a_silent_store_is_told_also_once_it_holds_qemu() {
        let mut guest = with_phase(Phase::Running { occupant: Occupant::Os });
        let store = serde_json::json!({
            "address": "0,1,0", "path": "/far/data.img", "since": "2026-11-24T08:00:20Z"
        });
        let Presence::On { snapshot: Some(snapshot), attention, .. } = &mut guest else {
            unreachable!()
        };
        snapshot.silent_stores = vec![serde_json::from_value(store).expect("a store")];
        *attention = Some(Attention::Unresponsive { since: "2026-11-24T08:00:24Z".into() });
        assert_eq!(
            guest.health(),
            [
                "'/far/data.img', which backs the disk at 0,1,0, does not answer since 2026-11-24T08:00:20Z",
                "QEMU does not answer since 2026-11-24T08:00:24Z",
            ]
        );
    }

    #[test]
    fn what_holds_a_guest_comes_before_that_it_was_asked_to_shut_down() {
        let (held, occupant) = (Some("no space is left".to_owned()), Occupant::Os);
        let mut guest = with_phase(Phase::Stopping { occupant, held, is_unheard: false });
        assert_eq!(guest.state(), RunState::Attention);
        let stopping = "asked to shut down at 2026-11-24T08:00:12Z; it can do so once it goes on, and is off at once by hpvmstop -h";
        assert_eq!(guest.health(), ["paused: no space is left", stopping]);
        if let Presence::On { attention, .. } = &mut guest {
            *attention = Some(Attention::Silent { seconds: 4, since: String::new() });
        }
        assert_eq!(guest.health()[0], "paused: no space is left");
    }

    #[test]
    fn nobody_is_told_to_wait_for_an_operating_system_that_is_not_there() {
        let occupant = Occupant::Firmware;
        let guest = with_phase(Phase::Stopping { occupant, held: None, is_unheard: true });
        assert_eq!(guest.state(), RunState::On(Occupant::Firmware));
        assert_eq!(
            guest.health(),
            [
                "asked to shut down at 2026-11-24T08:00:12Z; no operating system listens to the power button, and it is off at once by hpvmstop -h"
            ]
        );
    }

    #[test]
    fn a_state_began_when_it_was_first_shown() {
        let (of_worker, of_silence) = ("2026-11-24T08:00:09Z", "2026-11-24T09:00:00Z");
        let mut guest = stopping_guest(None);
        assert_eq!(guest.state_since(), None, "a worker of before does not tell");
        let Presence::On { snapshot: Some(snapshot), .. } = &mut guest else { unreachable!() };
        snapshot.state_since = Some(of_worker.into());
        assert_eq!(guest.state_since().as_deref(), Some(of_worker), "and not its way down");
        let with = |attention, has_noticed| {
            let Presence::On { snapshot, supervision, .. } = guest.clone() else { unreachable!() };
            let unresponsive_since = Some("2026-11-24T08:00:09Z".into()).filter(|_| has_noticed);
            let snapshot = snapshot.map(|s| Snapshot { unresponsive_since, ..s });
            Presence::On { snapshot, supervision, attention: Some(attention) }.state_since()
        };
        let worker = Attention::WorkerStopped { pid: 1, since: of_silence.into() };
        assert_eq!(with(worker, false).as_deref(), Some(of_silence));
        assert_eq!(with(Attention::Stopped { pid: 1 }, false), None, "nobody saw when");
        assert_eq!(with(Attention::Stopped { pid: 1 }, true).as_deref(), Some(of_worker));
    }

    #[test]
    fn a_guest_on_its_way_down_is_said_to_be() {
        assert_eq!(
            stopping_guest(None).health(),
            [
                "asked to shut down at 2026-11-24T08:00:12Z; it is off when its operating system has done so, or at once by hpvmstop -h"
            ]
        );
        assert_eq!(
            stopping_guest(Some(&Ending::StoppedHard)).health(),
            ["its QEMU is ending since 2026-11-24T08:00:12Z: stopped (hard)"]
        );
    }
}
