//! Two commands that stop one guest: the second does not wait for the first, it asks the same worker and gets the same
//! answer. A hard stop thereby ends a graceful one that is under way. Nor does a stop wait for a clone that copies the guest's
//! disks, perhaps for an hour: the clone fails. Called by the stop.

use std::time::Duration;

use hpvm_host::lock::{Busy, BusyError};
use hpvm_model::GuestConfig;

use crate::presence::{Presence, Supervision};
use crate::{Actor, Refusal, VmHost};

/// By what right a command stops a guest.
#[derive(Debug)]
pub(crate) enum Claim {
    /// Nobody else changes it. What is left of the guest is ours to clear.
    Own { busy: Busy },
    /// Another command is stopping it, and clears what is left.
    Joined,
    /// A clone is copying its disks. Once it has failed, what is left of the guest is ours to clear.
    Past,
}

/// The command that copies disks of running guests, as locks name it.
const COPIES: &str = "hpvmclone";
/// A clone that fails takes back what it made.
const FAILS_WITHIN: Duration = Duration::from_secs(10);

/// Takes the right to change the guest, or joins the command that is stopping it.
pub(crate) fn claim(
    host: &VmHost,
    actor: &Actor,
    config: &GuestConfig,
    progress: &mut dyn FnMut(&str),
) -> Result<Claim, Refusal> {
    match host.busy_within(config, actor, Duration::ZERO) {
        Err(BusyError::Held { owner })
            if owner.command == actor.command && has_worker(host, config) =>
        {
            progress(&format!("{} (process {}) is stopping it already", owner.command, owner.pid));
            Ok(Claim::Joined)
        }
        Err(BusyError::Held { owner }) if owner.command == COPIES && has_worker(host, config) => {
            progress(&format!(
                "{} (process {}) is copying its disks, and fails now",
                owner.command, owner.pid
            ));
            Ok(Claim::Past)
        }
        Ok(busy) => Ok(Claim::Own { busy }),
        Err(_) => Ok(Claim::Own { busy: host.busy(config, actor)? }),
    }
}

impl Claim {
    /// The right to clear what is left of a guest that has ended, if it is ours.
    pub(crate) fn into_right_to_clear(
        self,
        host: &VmHost,
        actor: &Actor,
        config: &GuestConfig,
    ) -> Option<Busy> {
        match self {
            Claim::Own { busy } => Some(busy),
            Claim::Joined => None,
            // Whoever has it instead clears, or starts the guest.
            Claim::Past => host.busy_within(config, actor, FAILS_WITHIN).ok(),
        }
    }
}

/// Whether there is somebody to ask. Taking a guest over is for one command at a time.
fn has_worker(host: &VmHost, config: &GuestConfig) -> bool {
    match host.presence(config.number) {
        Presence::On { supervision, .. } => supervision != Supervision::None,
        Presence::Off { .. } => false,
    }
}
