//! Why the engine holds a guest, in words for the administrator. Called by the machine.

use std::fmt;
use std::time::Duration;

use hpvm_qmp::RunState;

/// A guest held for lack of space is tried again this often.
const SPACE_RETRY: Duration = Duration::from_secs(5);
/// A guest that runs for so long after a try has space again.
const SPACE_BELIEVED: Duration = Duration::from_millis(900);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// The host's file system is full. The guest goes on by itself when there is room. `stores` are those that are known to lie
    /// there, in words.
    NoSpace {
        stores: Vec<String>,
    },
    /// A disk failed in a way the engine told no more about.
    IoError,
    /// Somebody typed `stop` at a monitor.
    Held,
    Panicked,
    InternalError,
    Other(String),
}

/// A guest that the engine holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hold {
    pub(super) reason: Pause,
    tried_at: Duration,
}

impl Hold {
    pub(super) fn new(reason: Pause, now: Duration) -> Hold {
        Hold { reason, tried_at: now }
    }

    /// Whether to let the guest go on now: the reason may be over.
    pub(super) fn is_tried(&mut self, now: Duration) -> bool {
        let is_due = self.reason.may_pass() && now >= self.tried_at + SPACE_RETRY;
        if is_due {
            self.tried_at = now;
        }
        is_due
    }

    /// Whether a guest that is seen to run is held all the same: after a try it runs for an instant even if there is still no
    /// space.
    pub(super) fn outlasts_a_try(&self, now: Duration) -> bool {
        matches!(self.reason, Pause::NoSpace { .. }) && now < self.tried_at + SPACE_BELIEVED
    }

    /// Whether this tells no more. An event told the reason already; the state of the engine is less exact.
    pub(super) fn covers(&self, reason: &Pause) -> bool {
        self.reason == *reason || *reason == Pause::IoError
    }
}

impl Pause {
    /// What a state of the engine other than running means.
    pub(crate) fn of(state: &RunState) -> Pause {
        match state {
            RunState::IoError => Pause::IoError,
            RunState::Paused => Pause::Held,
            RunState::GuestPanicked => Pause::Panicked,
            RunState::InternalError => Pause::InternalError,
            other => Pause::Other(other.name().to_owned()),
        }
    }

    /// The same when one more store is known to have no space.
    pub(crate) fn without_space_for(&self, store: Option<String>) -> Pause {
        let mut stores = match self {
            Pause::NoSpace { stores } => stores.clone(),
            _ => Vec::new(),
        };
        stores.extend(store.filter(|store| !stores.contains(store)));
        Pause::NoSpace { stores }
    }

    /// Whether trying again may help. The engine holds a guest for a disk only when there is no space (its default
    /// `werror=enospc`), so an I/O error of an adopted guest is one too.
    fn may_pass(&self) -> bool {
        matches!(self, Pause::NoSpace { .. } | Pause::IoError)
    }

    /// What ends it, for who waits for the guest to shut down.
    pub(crate) fn way_out(&self) -> &'static str {
        match self.may_pass() {
            true => "make room where its disks lie",
            false => "hpvmstop -h ends it",
        }
    }
}

impl fmt::Display for Pause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pause::NoSpace { stores } => {
                let of = match stores.is_empty() {
                    true => "where a disk's file lies".to_owned(),
                    false => format!("for {}", stores.join(", and for ")),
                };
                write!(f, "no space is left {of}; the guest goes on when there is some")
            }
            Pause::IoError => f.write_str(
                "a disk cannot be written; the guest goes on when it can, see its log and the host's",
            ),
            Pause::Held => f.write_str("stopped at a monitor of the engine"),
            Pause::Panicked => f.write_str("the operating system panicked"),
            Pause::InternalError => f.write_str("the engine met an error of its own"),
            Pause::Other(name) => write!(f, "the engine is in state {name}"),
        }
    }
}
