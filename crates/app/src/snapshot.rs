//! The status snapshot of a running guest, `run/NUMBER/status`.
//!
//! ```text
//! hpvm-status 1 00000000000001234567      heartbeat: CLOCK_BOOTTIME in ms, 20 digits, rewritten in place
//! {"boot_id":"…","phase":{…},…}           replaced as a whole, by rename, when something changes
//! ```
//!
//! Readers take the state from here and from the locks whether the writer lives; they never ask a process.

use std::fmt::{self, Display, Formatter};

use hpvm_model::{Bytes, DeviceKind, Memory, Occupant, RunState, StorageAddress, Vcpus};
use hpvm_plan::record::Machine;
use serde::{Deserialize, Serialize};

use crate::counters::Zero;

/// The first line, without the heartbeat.
pub const HEAD: &str = "hpvm-status 1 ";
/// No status file comes near this size.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// A heartbeat older than this means that the worker hangs.
pub const BEAT_STALE_MS: u64 = 3_000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The host boot it was written in; of another boot it says nothing about now.
    pub boot_id: String,
    pub phase: Phase,
    /// When the phase began, RFC 3339.
    pub since: String,
    /// When the [state](Snapshot::state) began, RFC 3339; absent where nobody knows.
    #[serde(default)]
    pub state_since: Option<String>,
    /// How the guest will have ended, while QEMU is still on its way out: known to the next worker too.
    #[serde(default)]
    pub decided: Option<Ending>,
    /// The engine stopped answering then; absent while it answers.
    pub unresponsive_since: Option<String>,
    /// What an administrator should know, a sentence each: a disk that fails, a keeper that finds no successor.
    pub notes: Vec<String>,
    /// Why the boot record of this run cannot be used; absent when it can.
    #[serde(default)]
    pub record_damage: Option<String>,
    /// What backs disks and does not answer.
    #[serde(default)]
    pub silent_stores: Vec<SilentStore>,
    /// What was cut under the guest, which is not told of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cut_images: Vec<CutImage>,
    /// Where the counters of disks stood that an administrator had counted from zero.
    #[serde(default)]
    pub zeros: Vec<Zero>,
    pub qemu: Process,
    pub accelerator: String,
    /// What a list tells of the machine; absent where its boot record cannot be used.
    #[serde(default)]
    pub extent: Option<Extent>,
    #[serde(default)]
    pub agent: Agent,
    /// How often a worker took this guest over.
    pub adoptions: u32,
}

/// An image whose file became shorter while the guest had it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutImage {
    pub path: String,
    /// Of the file, before.
    pub length: Bytes,
}

/// How large the machine is that runs, whatever the configuration says of the next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    pub vcpus: Vcpus,
    pub memory: Memory,
    pub storage_devices: u32,
    pub nics: u32,
}

impl Extent {
    #[must_use]
    pub fn of(machine: &Machine) -> Extent {
        let count = |devices: usize| u32::try_from(devices).unwrap_or(u32::MAX);
        Extent {
            vcpus: machine.base.vcpus,
            memory: machine.base.memory,
            storage_devices: count(machine.storage.len()),
            nics: count(machine.nics.len()),
        }
    }
}

/// What is known of an agent in the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Agent {
    /// The machine has no channel for one, or its worker knows nothing of agents.
    #[default]
    NoChannel,
    /// Nobody in the guest listens.
    Absent,
    /// RFC 3339, as below.
    Answers { since: String },
    /// Somebody listens, and the last request was not answered.
    Silent { since: String },
}

/// A backing store by the device that it backs, or lies under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStore {
    pub address: StorageAddress,
    #[serde(default = "disk")]
    pub kind: DeviceKind,
    pub path: String,
    #[serde(default)]
    pub role: Role,
}

/// What a store is to its device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It backs the device, or lies under what does.
    #[default]
    Backing,
    /// It is becoming a copy of it.
    Copy,
}

/// A backing store that left a request unanswered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SilentStore {
    #[serde(flatten)]
    store: DeviceStore,
    /// It may be one of these as well: the requests of an adapter's disks are counted together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    or: Vec<DeviceStore>,
    /// RFC 3339.
    pub since: String,
}

/// Earlier workers watched nothing else.
fn disk() -> DeviceKind {
    DeviceKind::Disk
}

impl Display for DeviceStore {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let DeviceStore { address, kind, path, role } = self;
        let relation = match role {
            Role::Backing => "which backs",
            Role::Copy => "which is being made a copy of",
        };
        write!(f, "'{path}', {relation} the {} at {address}", kind.as_str())
    }
}

impl SilentStore {
    /// It is not known which of them it is; `None` where there are none.
    #[must_use]
    pub fn one_of(stores: Vec<DeviceStore>, since: String) -> Option<SilentStore> {
        let mut stores = stores.into_iter();
        Some(SilentStore { store: stores.next()?, or: stores.collect(), since })
    }

    /// All that it may be.
    pub fn stores(&self) -> impl Iterator<Item = &DeviceStore> {
        std::iter::once(&self.store).chain(&self.or)
    }

    /// Whether it is known to be one of these, and no more.
    #[must_use]
    pub fn is(&self, stores: &[DeviceStore]) -> bool {
        self.stores().eq(stores)
    }

    /// Whether it backs, or lies under, the device at an address for certain.
    #[must_use]
    pub fn is_of(&self, address: StorageAddress) -> bool {
        self.or.is_empty() && self.store.address == address && self.store.role == Role::Backing
    }
}

impl Display for SilentStore {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)?;
        self.or.iter().try_for_each(|other| write!(f, ", or {other}"))
    }
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Field 22 of /proc/PID/stat.
    pub start_time: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    Starting,
    Running {
        occupant: Occupant,
    },
    /// The engine holds the guest still, and why.
    Paused {
        reason: String,
        occupant: Occupant,
    },
    Stopping {
        occupant: Occupant,
        /// The engine holds the guest still, and why: it cannot shut down before it goes on.
        #[serde(default)]
        held: Option<String>,
        /// Nobody in the guest listens to its power button.
        #[serde(default)]
        is_unheard: bool,
    },
    Ended {
        how: Ending,
    },
}

/// How a guest's run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how")]
pub enum Ending {
    /// hpvmstop -h, or pc -off.
    StoppedHard,
    /// hpvmstop -g and the guest went along.
    StoppedGracefully,
    /// The guest powered itself off.
    PoweredOff,
    /// QEMU did not come up; its last words.
    FailedToStart { error: String },
    /// QEMU ended by itself or was killed.
    Crashed { cause: Crash },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "cause")]
pub enum Crash {
    Exited {
        status: i32,
    },
    Killed {
        signal: i32,
    },
    /// Killed while the kernel was out of memory.
    OutOfMemory,
    /// It was told to end, by none of us, and ends in order: how, in QEMU's own name for it, and what it said of that.
    Told {
        reason: String,
        words: String,
    },
    /// Its parent was not there to see how, and the kernel tells nobody else.
    Unseen,
}

impl Snapshot {
    /// The state that lists show, as far as the guest's worker can know it.
    #[must_use]
    pub fn state(&self) -> RunState {
        match &self.phase {
            Phase::Ended { .. } => RunState::Off,
            Phase::Paused { .. } | Phase::Stopping { held: Some(_), .. } => RunState::Attention,
            _ if self.unresponsive_since.is_some()
                || !self.silent_stores.is_empty()
                || self.record_damage.is_some() =>
            {
                RunState::Attention
            }
            Phase::Running { occupant } | Phase::Stopping { occupant, .. } => {
                RunState::On(*occupant)
            }
            Phase::Starting => RunState::On(Occupant::Firmware),
        }
    }

    /// The whole file, with a first heartbeat.
    #[must_use]
    pub fn to_file(&self, beat_ms: u64) -> String {
        let json = serde_json::to_string(self).unwrap_or_default();
        format!("{}\n{json}\n", Self::head(beat_ms))
    }

    /// The first line without its newline; always as long.
    #[must_use]
    pub fn head(beat_ms: u64) -> String {
        format!("{HEAD}{beat_ms:020}")
    }

    /// Reads a file as written by [`Snapshot::to_file`]: the heartbeat and the snapshot. `None`: not of this format.
    #[must_use]
    pub fn from_file(text: &str) -> Option<(u64, Snapshot)> {
        let (head, json) = text.split_once('\n')?;
        let beat = head.strip_prefix(HEAD)?.parse().ok()?;
        Some((beat, serde_json::from_str(json).ok()?))
    }
}

impl Ending {
    /// Whether somebody should look into it.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        matches!(self, Ending::FailedToStart { .. } | Ending::Crashed { .. })
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ending::StoppedHard => f.write_str("stopped (hard)"),
            Ending::StoppedGracefully => f.write_str("stopped gracefully"),
            Ending::PoweredOff => f.write_str("the guest powered itself off"),
            Ending::FailedToStart { error } => write!(f, "QEMU did not start: {error}"),
            Ending::Crashed { cause } => cause.fmt(f),
        }
    }
}

impl std::fmt::Display for Crash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Crash::Exited { status } => write!(f, "QEMU ended by itself with status {status}"),
            Crash::Killed { signal } => write!(f, "QEMU was killed by signal {signal}"),
            Crash::OutOfMemory => {
                f.write_str("QEMU was killed because the VM Host ran out of memory")
            }
            Crash::Told { reason, words } if words.is_empty() => {
                write!(f, "QEMU was told to end from outside ({reason})")
            }
            Crash::Told { words, .. } => write!(f, "QEMU was told to end from outside: {words}"),
            Crash::Unseen => f.write_str(
                "QEMU ended; how is not known, since the keeper that started it was gone or stood still",
            ),
        }
    }
}
