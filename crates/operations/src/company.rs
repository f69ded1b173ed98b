//! Two commands that stop one guest: the second does not wait for the first, it asks the same worker and gets the same
//! answer. A hard stop thereby ends a graceful one that is under way. Called by the stop.

use std::time::{Duration, Instant};

use hpvm_app::client::ClientError;
use hpvm_host::image_lock;
use hpvm_host::lock::{Busy, BusyError};
use hpvm_host::names::run_folder;
use hpvm_host::process::{self, Life};
use hpvm_host::signals;
use hpvm_model::GuestConfig;

use crate::presence::{self, Presence, Supervision};
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

/// A worker whose last sign of life is older hangs, for all a hard stop cares.
const SILENT_MS: u64 = 2_000;

/// Watches the worker that was asked for a stop while it does not answer.
pub(crate) struct Watch<'a> {
    host: &'a VmHost,
    config: &'a GuestConfig,
    began: Instant,
    /// The worker's number and start time, once they are looked up.
    worker: Option<(i32, u64)>,
}

impl Watch<'_> {
    pub(crate) fn new<'a>(host: &'a VmHost, config: &'a GuestConfig) -> Watch<'a> {
        Watch { host, config, began: Instant::now(), worker: None }
    }

    /// Ends the wait when the command is interrupted.
    pub(crate) fn interruption(&self) -> Result<(), ClientError> {
        signals::interrupted()
            .map_or(Ok(()), |interruption| Err(ClientError::Interrupted(interruption)))
    }

    /// The same, and when the worker is held by a signal, or silent for longer than one that lives ever is.
    pub(crate) fn hang(&mut self) -> Result<(), ClientError> {
        self.interruption()?;
        let waited_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let run_dir = self.host.root.run_dir(self.config.number.get());
        let silent_ms = match presence::last_beat(&run_dir) {
            Some(beat_ms) => process::boottime_ms().saturating_sub(beat_ms),
            None => waited_ms,
        };
        if silent_ms >= SILENT_MS || self.is_stopped() {
            return Err(ClientError::Hangs);
        }
        Ok(())
    }

    fn is_stopped(&mut self) -> bool {
        if self.worker.is_none() {
            let lock = self.host.root.run_dir(self.config.number.get()).join(run_folder::LOCK);
            let holders = image_lock::holders(&lock).unwrap_or_default();
            let worker = holders.into_iter().find(|holder| holder.program == "hpvmapp");
            self.worker = worker.and_then(|w| Some((w.pid, process::start_time(w.pid)?)));
        }
        self.worker.is_some_and(|(pid, start_time)| process::life(pid, start_time) == Life::Stopped)
    }
}
