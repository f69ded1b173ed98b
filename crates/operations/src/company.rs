//! Two commands that stop one guest: the second does not wait for the first, it asks the same worker and gets the same
//! answer. A hard stop thereby ends a graceful one that is under way. Called by the stop.

use std::time::Duration;

use hpvm_host::lock::{Busy, BusyError};
use hpvm_model::GuestConfig;

use crate::presence::{Presence, Supervision};
use crate::{Actor, Refusal, VmHost};

/// By what right a command stops a guest.
#[derive(Debug)]
pub(crate) enum Claim {
    /// Nobody else changes it. What is left of the guest is ours to clear.
    Own { _busy: Busy },
    /// Another command is stopping it, and clears what is left.
    Joined,
}

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
        Ok(busy) => Ok(Claim::Own { _busy: busy }),
        Err(_) => Ok(Claim::Own { _busy: host.busy(config, actor)? }),
    }
}

/// Whether there is somebody to ask. Taking a guest over is for one command at a time.
fn has_worker(host: &VmHost, config: &GuestConfig) -> bool {
    match host.presence(config.number) {
        Presence::On { supervision, .. } => supervision != Supervision::None,
        Presence::Off { .. } => false,
    }
}
