//! Workers that hang. One that a signal holds is ended by whoever asks something of the guest, and its successor answers
//! ([`end_stopped_worker`]). Past one that cannot be replaced a hard stop goes: [`Watch`] tells that the worker asked hangs,
//! [`past_worker`] ends QEMU without it, and [`settle`] waits until that is known to all.

use std::path::Path;
use std::time::{Duration, Instant};

use hpvm_app::client::ClientError;
use hpvm_host::image_lock::{self, Holder};
use hpvm_host::lock::{KEEPER_BYTE, WORKER_BYTE, pause_for};
use hpvm_host::names::run_folder;
use hpvm_host::process::{self, Life, PidFd, Signal};
use hpvm_host::signals;
use hpvm_model::GuestConfig;
use hpvm_qmp::blocking::Client;
use hpvm_qmp::command::Quit;

use crate::{Refusal, VmHost, lost, presence};

/// The names of a guest's two supervisors, as `ps` shows them.
pub(crate) const WORKER: &str = "hpvmapp";
pub(crate) const KEEPER: &str = "hpvmkeeper";

/// An engine that obeys its second monitor ends within milliseconds.
const RESCUE_BOUND: Duration = Duration::from_secs(2);
/// Keeper and worker learn of QEMU's end within milliseconds.
const SETTLE_BOUND: Duration = Duration::from_secs(2);

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

    /// Ends the wait when the command is interrupted, and when the worker is held by a signal.
    pub(crate) fn standstill(&mut self) -> Result<(), ClientError> {
        goes_on_unless(self.is_stopped())
    }

    /// The same, and when the worker is silent for longer than one that lives ever is.
    pub(crate) fn hang(&mut self) -> Result<(), ClientError> {
        goes_on_unless(self.is_stopped() || self.is_silent())
    }

    fn is_silent(&self) -> bool {
        let waited_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let run_dir = self.host.root.run_dir(self.config.number.get());
        let silent_ms = match presence::last_beat(&run_dir) {
            Some(beat_ms) => process::boottime_ms().saturating_sub(beat_ms),
            None => waited_ms,
        };
        silent_ms >= SILENT_MS
    }

    pub(crate) fn is_stopped(&mut self) -> bool {
        if self.worker.is_none() {
            let worker = supervisors(self.host, self.config, WORKER).into_iter().next();
            self.worker = worker.and_then(|w| Some((w.pid, process::start_time(w.pid)?)));
        }
        self.worker.is_some_and(|(pid, start_time)| process::life(pid, start_time) == Life::Stopped)
    }
}

fn goes_on_unless(hangs: bool) -> Result<(), ClientError> {
    match signals::interrupted() {
        Some(interruption) => Err(ClientError::Interrupted(interruption)),
        None if hangs => Err(ClientError::Hangs),
        None => Ok(()),
    }
}

/// Ends a worker that a signal holds, if its keeper lives, which starts the next one. That one knows of the guest what this one
/// knew, and answers within a moment.
pub(crate) fn end_stopped_worker(host: &VmHost, config: &GuestConfig) {
    let is_in = |program, wanted: fn(Life) -> bool| {
        let lives = |holder: &Holder| {
            process::start_time(holder.pid).map(|started| process::life(holder.pid, started))
        };
        supervisors(host, config, program).iter().filter_map(lives).any(wanted)
    };
    if is_in(WORKER, |life| life == Life::Stopped) && is_in(KEEPER, |life| life == Life::Alive) {
        for worker in hold_supervisors(host, config, WORKER) {
            let _ = worker.signal(Signal::KILL);
        }
    }
}

/// Ends QEMU past a worker that hangs: by its second monitor, which nobody else uses, and if it does not answer there, by
/// force. Keeper and worker see it end and follow.
pub(crate) fn past_worker(host: &VmHost, config: &GuestConfig) -> Result<(), Refusal> {
    let Some(snapshot) = host.presence(config.number).snapshot().cloned() else {
        return match lost::qemu(host, config) {
            Some(pid) => lost::end(host, config, pid),
            None => Err(Refusal::StopFailed("its process is not known".into())),
        };
    };
    let failed = |e: std::io::Error| Refusal::StopFailed(e.to_string());
    let Some(qemu) = lost::hold(host, config, snapshot.qemu)? else { return Ok(()) };
    let rescue = host.root.run_dir(config.number.get()).join(run_folder::RESCUE);
    let quits = Client::connect(&rescue).and_then(|mut monitor| monitor.execute(&Quit {}));
    if quits.is_ok() && qemu.wait_exit(RESCUE_BOUND).map_err(failed)? {
        return Ok(());
    }
    lost::kill(&qemu)
}

/// QEMU has ended past its worker: waits until that is known to all, so that the next command finds the guest off. A worker
/// that hangs never learns it, so it is ended too; its successor does. Where the keeper hangs there is no successor, and with
/// QEMU gone nothing left to keep.
pub(crate) fn settle(host: &VmHost, config: &GuestConfig) -> Result<(), Refusal> {
    for program in [WORKER, KEEPER] {
        if is_off_within(host, config, SETTLE_BOUND) {
            return Ok(());
        }
        for hanging in hold_supervisors(host, config, program) {
            let _ = hanging.signal(Signal::KILL);
        }
    }
    if is_off_within(host, config, SETTLE_BOUND) {
        return Ok(());
    }
    Err(Refusal::StopFailed(
        "its QEMU has ended, and who looks after it takes no notice; `hpvm doctor` tells what is left".into(),
    ))
}

pub(crate) fn is_off_within(host: &VmHost, config: &GuestConfig, bound: Duration) -> bool {
    let deadline = Instant::now() + bound;
    while host.presence(config.number).is_on() {
        if Instant::now() >= deadline {
            return false;
        }
        pause_for(Duration::from_millis(2));
    }
    true
}

/// The processes of this program that have a lock of the guest's supervision.
pub(crate) fn supervisors(host: &VmHost, config: &GuestConfig, program: &str) -> Vec<Holder> {
    supervisors_at(&host.root.run_dir(config.number.get()), program)
}

/// The same of the guest with this run folder.
pub(crate) fn supervisors_at(run_dir: &Path, program: &str) -> Vec<Holder> {
    let lock = run_dir.join(run_folder::LOCK);
    let mut holders = image_lock::holders(&lock, &(KEEPER_BYTE..=WORKER_BYTE)).unwrap_or_default();
    holders.retain(|holder| holder.program == program);
    holders
}

/// Which process of this program a signal holds. Only root, and the user who runs the guest, can tell.
pub(crate) fn stopped_supervisor(run_dir: &Path, program: &str) -> Option<i32> {
    let is_stopped = |pid: &i32| {
        let start_time = process::start_time(*pid);
        start_time.is_some_and(|time| process::life(*pid, time) == Life::Stopped)
    };
    supervisors_at(run_dir, program).into_iter().map(|holder| holder.pid).find(is_stopped)
}

/// Takes hold of them. Looked at again after that: the held processes are the ones that have the locks.
pub(crate) fn hold_supervisors(host: &VmHost, config: &GuestConfig, program: &str) -> Vec<PidFd> {
    let hold = |holder: Holder| Some((PidFd::open_number(holder.pid).ok()??, holder));
    let held: Vec<(PidFd, Holder)> =
        supervisors(host, config, program).into_iter().filter_map(hold).collect();
    let those_now = supervisors(host, config, program);
    held.into_iter()
        .filter(|(_, holder)| those_now.contains(holder))
        .map(|(held, _)| held)
        .collect()
}
