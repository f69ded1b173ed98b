//! Ends a running guest: at once, or by its own shutdown.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use hpvm_app::client::{self, ClientError};
use hpvm_app::protocol::{Denial, Reply, Request, StopHow};
use hpvm_host::dying_memory::DyingMemory;
use hpvm_model::{GuestConfig, NicKind, Problem, chain};
use hpvm_registry::{Operation, Step};

use crate::company::{self, Claim};
use crate::displaced::{Displaced, displaced_files};
use crate::hanging::{Watch, is_off_within, past_worker, settle};
use crate::presence::{Presence, Supervision};
use crate::refusal::{Left, unless_interrupted};
use crate::start::{Started, start};
use crate::{Actor, Mode, Refusal, VmHost, lost, supervise};

/// How a guest is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Hard,
    Graceful { at_most: Duration },
}

/// A hard stop includes what the engine still writes to the disks.
const HARD_BOUND: Duration = Duration::from_secs(30);
/// The same when the guest is known not to answer.
const HARD_BOUND_HANGING: Duration = Duration::from_secs(2);
/// A worker that could not write down the end has let go of the guest by then, and its keeper too.
const LET_GO_BOUND: Duration = Duration::from_millis(500);

/// What came of it: the guest is off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    pub before: Before,
    /// Something of the guest that could not be cleared away.
    pub left: Option<Problem>,
}

/// How the guest was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    On,
    Off,
}

impl Stopped {
    /// A guest is off whatever is left of it.
    fn after(before: Before, config: &GuestConfig, cleared: Result<(), Refusal>) -> Stopped {
        let name = &config.name;
        let left = cleared.err().map(|refusal| {
            let text = format!(
                "the guest is off, and not all it had could be cleared away: {}; `hpvmstop -P {name}` clears the rest once that can be done",
                chain(&refusal)
            );
            Problem::warning(name.as_str(), text)
        });
        Stopped { before, left }
    }
}

/// What is lost when a guest ends, a sentence each: it writes files that were deleted under it.
#[must_use]
pub fn losses(host: &VmHost, config: &GuestConfig) -> Vec<String> {
    let machine = host.machine(config);
    let displaced = machine.map(|machine| displaced_files(host, config, &machine));
    let deleted = displaced.into_iter().flatten().filter(Displaced::is_deleted);
    deleted.map(|file| file.cause()).collect()
}

/// Stops a guest; `progress` gets a sentence now and then.
pub fn stop(
    host: &mut VmHost,
    actor: &Actor,
    config: &GuestConfig,
    how: How,
    progress: &mut dyn FnMut(&str),
) -> Result<Stopped, Refusal> {
    let ended = attempt(host, actor, config, how, progress);
    let stopped = ended.map(|Ended { stopped, record, _claim }| {
        // The guest is off, whether or not that can be written down.
        if let Err(error) = host.registry.record(&record) {
            let text =
                format!("the guest is off, but this could not be recorded: {}", chain(&error));
            progress(&text);
        }
        stopped
    });
    host.record_failure(actor, Some(config), stopped)
}

/// Switches a guest off at once and on again, which is one operation: of the two it is the start that ends it.
pub fn cycle(host: &mut VmHost, actor: &Actor, config: &GuestConfig) -> Result<Started, Refusal> {
    let ended = attempt(host, actor, config, How::Hard, &mut |_| {}).map(drop);
    host.record_failure(actor, Some(config), ended)?;
    start(host, actor, config, Mode::Apply)
}

/// A stop that went well.
struct Ended {
    stopped: Stopped,
    /// As of the guest's end.
    record: Operation,
    /// Whoever starts the guest next waits until this one is recorded.
    _claim: Option<Claim>,
}

fn attempt(
    host: &mut VmHost,
    actor: &Actor,
    config: &GuestConfig,
    how: How,
    progress: &mut dyn FnMut(&str),
) -> Result<Ended, Refusal> {
    let claim = company::claim(host, actor, config, progress)?;
    host.unless_renamed(config, actor)?;
    unless_interrupted()?;
    let presence = host.presence(config.number);
    if !presence.is_on() {
        let stopped = end_unseen(host, config, how)?;
        return Ok(Ended { stopped, record: done(actor, config), _claim: Some(claim) });
    }
    end(host, config, how, &presence, progress)?;
    let record = done(actor, config);
    Step::StopEnded.reached();
    let mut cleared = Ok(());
    let claim = claim.into_right_to_clear(host, actor, config);
    // Whoever was let in between may have started it.
    if claim.is_some() && is_off_within(host, config, LET_GO_BOUND) {
        cleared = supervise::clear(host, config);
    }
    Step::StopCleaned.reached();
    let stopped = Stopped::after(Before::On, config, cleared);
    Ok(Ended { stopped, record, _claim: claim })
}

/// Of a guest that `/run` shows as off QEMU may live all the same.
fn end_unseen(host: &VmHost, config: &GuestConfig, how: How) -> Result<Stopped, Refusal> {
    match lost::qemu(host, config) {
        Some(pid) => {
            stop_lost(host, config, how, pid)?;
            Ok(Stopped::after(Before::On, config, Ok(())))
        }
        None => Ok(Stopped::after(Before::Off, config, supervise::clear(host, config))),
    }
}

/// Ends a guest that is on: by its worker, by the next one where that hangs or dies, and by a hard stop past both.
fn end(
    host: &VmHost,
    config: &GuestConfig,
    how: How,
    presence: &Presence,
    progress: &mut dyn FnMut(&str),
) -> Result<(), Refusal> {
    if let Presence::On { supervision: Supervision::None, .. } = presence {
        // A hard stop ends the guest, supervised or not.
        let patience = match how {
            How::Hard => supervise::TO_LOOK,
            How::Graceful { .. } => supervise::TO_ASK,
        };
        let adopted = supervise::adopt(host, config, patience);
        if how != How::Hard {
            adopted.map_err(|refusal| refusal.leaving(|| Left::AsItWas))?;
        }
    }
    // A QEMU that hangs on a store is not got at past its worker either, who tells so.
    let stores_answer = presence.snapshot().is_none_or(|shown| shown.silent_stores.is_empty());
    let hard_bound = match presence.hangs() && stores_answer {
        true => HARD_BOUND_HANGING,
        false => HARD_BOUND,
    };
    let mut result = ask(host, config, how, hard_bound, progress);
    if hangs_or_died(&result)
        && host.presence(config.number).is_on()
        && supervise::reach(host, config).is_ok()
    {
        // What its successor has begun already is what was asked before.
        result = ask(host, config, how, hard_bound, progress).map(|_| None);
    }
    Step::StopAsked.reached();
    match (result, how) {
        // A worker that was killed over its answer cannot tell that the guest ended; /run does.
        (Err(Refusal::Worker(_)), _) if !host.presence(config.number).is_on() => Ok(()),
        // It did what was asked of the worker before this one.
        (Err(Refusal::Denied(Denial::Ended)), How::Graceful { .. }) => Ok(()),
        // A hard stop ends the guest whatever its worker does.
        (Err(Refusal::Worker(_) | Refusal::Denied(_) | Refusal::StopFailed(_)), How::Hard) => {
            past_worker(host, config).and_then(|()| settle(host, config))
        }
        (result, _) => {
            if let Some(text) = result? {
                progress(&text);
            }
            Ok(())
        }
    }
}

/// Then its successor ends the guest as it would have, and knows why it ended.
fn hangs_or_died(result: &Result<Option<String>, Refusal>) -> bool {
    matches!(result, Err(Refusal::Worker(ClientError::Hangs | ClientError::Closed)))
}

fn done(actor: &Actor, config: &GuestConfig) -> Operation {
    actor.outcome(config, &Ok(()))
}

/// A guest that nobody can reach is not asked, only ended.
fn stop_lost(host: &VmHost, config: &GuestConfig, how: How, pid: i32) -> Result<(), Refusal> {
    match how {
        How::Hard => lost::end(host, config, pid),
        How::Graceful { .. } => Err(lost::refusal(config, pid)),
    }
}

/// What somebody else had asked before, if so.
fn ask(
    host: &VmHost,
    config: &GuestConfig,
    how: How,
    hard_bound: Duration,
    progress: &mut dyn FnMut(&str),
) -> Result<Option<String>, Refusal> {
    let (stop_how, bound) = match how {
        How::Hard => (StopHow::Hard, hard_bound),
        How::Graceful { at_most } => {
            let seconds_max = u32::try_from(at_most.as_secs()).unwrap_or(u32::MAX);
            (StopHow::Graceful { seconds_max }, at_most + HARD_BOUND)
        }
    };
    let control = host.control(config.number);
    let mut watch = Watch::new(host, config);
    let mut goes_on = || match how {
        How::Hard => watch.hang(),
        How::Graceful { .. } => watch.standstill(),
    };
    let left = || match how {
        How::Hard => Left::Stopping(config.name.clone()),
        How::Graceful { .. } => Left::ShuttingDown(config.name.clone()),
    };
    if how != How::Hard {
        supervise::awake(host, config)?;
    }
    let request = Request::Stop { how: stop_how };
    let memory = if how == How::Hard { memory(host, config) } else { None };
    let reply = freeing(memory, || {
        client::ask_while(&control, &request, &[], bound, progress, &mut goes_on)
    });
    let reply = reply.map_err(|error| Refusal::from(error).leaving(left))?;
    match reply {
        Reply::Done => Ok(None),
        Reply::Already { text } => Ok(Some(text)),
        Reply::Denied { reason } => Err(Refusal::Denied(reason)),
        Reply::NotStopped { why } => Err(Refusal::NotStopped { name: config.name.clone(), why }),
        Reply::Failed { error } => Err(Refusal::StopFailed(error)),
        Reply::Held { by } => Err(Refusal::HeldByStore { name: config.name.clone(), by }),
        _ => Err(Refusal::Worker(ClientError::Malformed)),
    }
}

/// What a hard stop frees beside the kernel. A switch that shares the guest's memory would find its rings emptied before it
/// learns that the guest ended, so then it is left to the kernel. What the guest runs with decides, not what waits for its next
/// start.
fn memory(host: &VmHost, config: &GuestConfig) -> Option<DyingMemory> {
    let machine = host.machine(config)?;
    if machine.nics.iter().any(|attached| attached.nic.kind == NicKind::AvioLan) {
        return None;
    }
    let presence = host.presence(config.number);
    let qemu = presence.snapshot()?.qemu;
    DyingMemory::of(qemu.pid, qemu.start_time)
}

/// Does something that ends a guest, and frees the guest's memory as soon as it dies.
fn freeing<T>(memory: Option<DyingMemory>, end: impl FnOnce() -> T) -> T {
    let Some(memory) = memory else { return end() };
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| memory.free_when_dying(HARD_BOUND, || is_over.load(Ordering::Relaxed)));
        let result = end();
        is_over.store(true, Ordering::Relaxed);
        result
    })
}
