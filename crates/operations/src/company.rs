//! Two commands that stop one guest: the second does not wait for the first, it asks the same worker and gets the same
//! answer. A hard stop thereby ends a graceful one that is under way. Nor does a stop wait for a clone that copies the guest's
//! disks, perhaps for an hour: the clone fails. What the other does stands in the guest's lock, by whatever command. Called by
//! the stop, and by the clone.

use std::time::{Duration, Instant};

use hpvm_host::lock::{Busy, BusyError};
use hpvm_model::GuestConfig;

use crate::presence::{Presence, Supervision};
use crate::vm_host::BUSY_BOUND;
use crate::{Actor, Mode, Refusal, VmHost};

/// By what right a command stops a guest.
#[derive(Debug)]
pub(crate) enum Claim {
    /// Nobody else changes it. What is left of the guest is ours to clear.
    Own { _busy: Busy },
    /// Another command is stopping it, and clears what is left.
    Joined,
    /// A clone is copying its disks. Once it has failed, what is left of the guest is ours to clear.
    Past,
    /// Its folder is gone while it runs, and its lock with it. What is left is whoever's to clear.
    NoFolder,
    /// Nobody can write its lock, nor whatever else a start or a change of it needs. What is left is whoever's to clear.
    ReadOnly,
}

/// What a holder's lock says when a stop need not wait for him.
const STOPPING: &str = "stopping";
const COPYING: &str = "copying disks";
/// A clone that fails takes back what it made.
const FAILS_WITHIN: Duration = Duration::from_secs(10);
/// A holder who does something else may come to these.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Takes the right to change the guest, or joins the command that is stopping it.
pub(crate) fn claim(
    host: &VmHost,
    actor: &Actor,
    config: &GuestConfig,
    progress: &mut dyn FnMut(&str),
) -> Result<Claim, Refusal> {
    let deadline = Instant::now() + BUSY_BOUND;
    let mut wait = Duration::ZERO;
    loop {
        let error = match host.busy_within(config, actor, wait) {
            Ok(busy) => return Ok(Claim::Own { _busy: saying(busy, STOPPING) }),
            Err(BusyError::ReadOnly { .. }) => return Ok(Claim::ReadOnly),
            Err(BusyError::Gone { .. }) if host.presence(config.number).is_on() => {
                return Ok(Claim::NoFolder);
            }
            Err(error) => error,
        };
        if let BusyError::Held { owner, .. } = &error
            && has_worker(host, config)
        {
            let who = format!("{} (process {})", owner.command, owner.pid);
            match owner.step.as_str() {
                STOPPING => {
                    progress(&format!("{who} is stopping it already"));
                    return Ok(Claim::Joined);
                }
                COPYING => {
                    progress(&format!("{who} is copying its disks, and fails now"));
                    return Ok(Claim::Past);
                }
                _ => {}
            }
        }
        let is_held = matches!(error, BusyError::Held { .. } | BusyError::HeldByUnknown { .. });
        if !is_held || Instant::now() >= deadline {
            return Err(host.not_busy(config, error));
        }
        wait = LOOK_AGAIN;
    }
}

/// The right to change a guest whose disks are copied meanwhile.
pub(crate) fn claim_to_copy(
    host: &VmHost,
    actor: &Actor,
    source: &GuestConfig,
    mode: Mode,
) -> Result<Option<Busy>, Refusal> {
    Ok(host.busy_in(mode, source, actor)?.map(|busy| saying(busy, COPYING)))
}

/// Whoever cannot read it waits for us, and that is all.
fn saying(mut busy: Busy, step: &str) -> Busy {
    let _ = busy.step(step);
    busy
}

impl Claim {
    /// The right to clear what is left of a guest that has ended, if it is ours.
    pub(crate) fn into_right_to_clear(
        self,
        host: &VmHost,
        actor: &Actor,
        config: &GuestConfig,
    ) -> Option<Claim> {
        match self {
            Claim::Joined => None,
            // Whoever has it instead clears, or starts the guest.
            Claim::Past => {
                let busy = host.busy_within(config, actor, FAILS_WITHIN).ok()?;
                Some(Claim::Own { _busy: busy })
            }
            Claim::Own { .. } | Claim::ReadOnly | Claim::NoFolder => Some(self),
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
