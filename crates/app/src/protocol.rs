//! The control protocol: one JSON value per line each way over `run/NUMBER/control`; the descriptors a request names ride
//! with its line by SCM_RIGHTS. The worker answers any number of [`Reply::Progress`] and [`Reply::Copying`], then exactly one other reply.

use std::time::Duration;

use hpvm_model::StorageAddress;
use hpvm_plan::copying::DiskCopy;
use hpvm_plan::record::DeviceChange;
use serde::{Deserialize, Serialize};

use crate::counters::Counted;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum Request {
    /// Is anybody there?
    Ping,
    /// End the guest.
    Stop { how: StopHow },
    /// How long each disk has been without I/O, and how large it is.
    Idle,
    /// What each disk has done; and from now on those of `from_zero` are counted anew.
    Counters {
        #[serde(default)]
        from_zero: Vec<StorageAddress>,
    },
    /// Change devices, in this order. One descriptor per medium comes along, in the order in which [`DeviceChange::media`]
    /// names them; what lies under a medium follows it, [`DeviceChange::layers_of`].
    /// Then come those of the stores to be watched, if there are any, each with its device's address; what lies under a store
    /// follows it, with the same address.
    Change {
        changes: Vec<DeviceChange>,
        #[serde(default)]
        watched: Vec<StorageAddress>,
    },
    /// Changes that are made at the guest's next reset; all else as with [`Request::Change`]. An hpvmapp that knows no such
    /// changes must not make them now, so they are a request of their own.
    AtReset {
        changes: Vec<DeviceChange>,
        #[serde(default)]
        watched: Vec<StorageAddress>,
    },
    /// Copy disks and firmware variables as they are at one point in time. The descriptors of the disks' targets come along,
    /// in order, then that of the variables'. Who asked gives up by closing his half of the connection; until then he is
    /// told twice a second at least how far it is.
    Copy {
        disks: Vec<DiskCopy>,
        /// What the disks' targets are called, in their order.
        #[serde(default)]
        targets: Vec<String>,
    },
}

/// Within this a worker begins what it was asked for or says why not, though its guest's devices have to be put in order first and
/// a store falls silent then.
pub const BEGINS_WITHIN: Duration = Duration::from_secs(21);

impl Request {
    /// A change without stores to be watched.
    #[must_use]
    pub fn change(changes: Vec<DeviceChange>) -> Request {
        Request::Change { changes, watched: Vec::new() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "how")]
pub enum StopHow {
    /// Like pulling the plug.
    Hard,
    /// By the guest's own shutdown, pressed again while nothing happens, for at most so long.
    Graceful { seconds_max: u32 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub enum Reply {
    /// A sentence for the administrator who waits.
    Progress { text: String },
    /// Done as asked.
    Done,
    /// Nothing had to be done.
    Already { text: String },
    /// Not possible in the guest's state; the state is unchanged.
    Denied { reason: Denial },
    /// Tried and failed; the state is as told.
    Failed { error: String },
    /// A copy that failed before any of its targets was written.
    NotBegun { error: String },
    /// A graceful stop that did not end the guest.
    NotStopped { why: NotStopped },
    /// The engine is killed, and the kernel does not let it go before these answer: their paths, in words.
    Held { by: String },
    /// Milliseconds since the last I/O of each disk; disks that never had any count from the start. Also the size the guest
    /// sees of each.
    Idle {
        idle_ms: Vec<(StorageAddress, u64)>,
        #[serde(default)]
        size_bytes: Vec<(StorageAddress, u64)>,
    },
    /// What each disk had done until it was asked.
    Counted { disks: Vec<Counted> },
    /// What became of each change, in order.
    Changed { results: Vec<ChangeResult> },
    /// How far copies are, in bytes.
    Copying { done: u64, whole: u64 },
    /// The copies are what disks and variables were at one point in time.
    Copied { state: CopiedState },
}

impl Reply {
    /// Whether no other one follows.
    #[must_use]
    pub fn is_last(&self) -> bool {
        !matches!(self, Reply::Progress { .. } | Reply::Copying { .. })
    }
}

/// What a guest will find on copies of its disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum CopiedState {
    /// File systems that need no repair: the guest's agent held them.
    Clean,
    /// What a failure of the power would have left, and why.
    AsAfterPowerFailure { why: String },
}

/// Why a request is refused without being tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Denial {
    #[error("the guest is starting; try again in a moment")]
    Starting,
    #[error(
        "the guest is being stopped; try again when it is off, or end it at once with `hpvmstop -h`"
    )]
    Stopping,
    #[error("the guest has ended")]
    Ended,
    #[error("another change of this guest is being made; try again in a moment")]
    Busy,
    #[error(
        "its disks are being copied for another command, or are still let go by the last copy; try again in a moment"
    )]
    Copying,
    #[error(
        "the guest does not answer; `hpvm why` tells what it hangs on, and `hpvmstop -h` ends it all the same"
    )]
    Unresponsive,
    /// What QEMU does with any of its disks may wait for this one, and the guest with it.
    #[error(
        "QEMU, and the guest with it, would wait for {store}; try again when that answers, or end the guest with `hpvmstop -h`"
    )]
    SilentStore { store: String },
    #[error(
        "the guest's boot record cannot be used, so its devices are not known; stopping and starting it makes a new one"
    )]
    NoRecord,
    #[error("only root and the owner of this VM Host may do that")]
    NotAllowed,
    #[error("the request is not understood by this version of hpvmapp")]
    NotUnderstood,
}

/// Where a graceful stop got stuck.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum NotStopped {
    /// The engine holds the guest, whatever its operating system would do.
    #[error("the guest is held and cannot shut down: {reason}; {way_out}")]
    Held { reason: String, way_out: String },
    #[error(
        "no operating system listens to the power button, so none is running that could shut down"
    )]
    NoOs,
    #[error("the operating system did not react to the power button")]
    NoReaction,
    #[error("the operating system is shutting down and has not finished yet")]
    ShuttingDown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "result")]
pub enum ChangeResult {
    Done,
    /// The same, and nobody had the guest let the disk go that left: what may be lost with it, in words.
    DoneUnasked {
        loss: String,
    },
    /// Asked of the guest, which has not let go yet; it happens when it does, at the next reset at the latest. Or noted: it
    /// happens at the guest's next reset.
    Pending,
    Failed {
        error: String,
    },
    /// Nothing was done: it has to wait, and why.
    Waits {
        reason: String,
    },
    /// Not tried, since an earlier change failed.
    Skipped,
}
