//! One file a command: its options, and what it does with them. A command resolves what was typed into a request, calls
//! one operation, and prints the outcome.

mod autostart;
mod autostop;
mod clone;
mod completions;
mod console;
mod crash_steps;
mod create;
mod devmgmt;
mod doctor;
mod gvsdmgr;
mod hostrdev;
mod man;
mod modify;
mod net;
mod nvram;
mod remove;
mod start;
mod status;
mod stop;
mod undelete;
mod why;

pub use autostart::Autostart;
pub use autostop::Autostop;
pub use clone::Clone;
pub use completions::Completions;
pub use console::Console;
pub use crash_steps::CrashSteps;
pub use create::Create;
pub use devmgmt::Devmgmt;
pub use doctor::Doctor;
pub use gvsdmgr::Gvsdmgr;
pub use hostrdev::Hostrdev;
pub use man::Man;
pub use modify::Modify;
pub use net::Net;
pub use nvram::Nvram;
pub use remove::Remove;
pub use start::Start;
pub use status::{Status, Subject};
pub use stop::Stop;
pub use undelete::Undelete;
pub use why::Why;

use hpvm_host::signals;
use hpvm_model::{GuestName, chain};
use hpvm_operations::{Mode, Refusal, VmHost};
use hpvm_registry::RemovedGuest;

use crate::args::Selector;
use crate::dispatch::Context;
use crate::exit::{About, Failure};
use crate::messages::Answer;

/// Times of removals, which nobody needs more exactly.
const TO_THE_SECOND: &str = "%Y-%m-%dT%H:%M:%SZ";

fn mode(is_dry_run: bool) -> Mode {
    if is_dry_run { Mode::DryRun } else { Mode::Apply }
}

/// From here on a signal ends a wait and no change in its middle. Where that cannot be had, Ctrl-C ends the command all the
/// same, only more curtly.
fn catch_interruptions() {
    let _ = signals::catch_interruptions();
}

/// Who was interrupted, and did what was asked all the same, hears that: `guest 'web' is changed already`.
fn done(what: &str) -> Result<(), Failure> {
    match signals::interrupted() {
        Some(interruption) => Err(Failure::interrupted(interruption, what)),
        None => Ok(()),
    }
}

/// A removed guest over its time of which something is left.
fn not_cleared(context: &Context, name: &GuestName, refusal: &Refusal) {
    let text = format!(
        "what was kept of removed guest '{name}' is not all cleared: {}; `hpvm doctor --repair` tries again",
        chain(refusal)
    );
    context.say.warning(None, &text);
}

/// Once, whatever is wrong in hpvmconf: for those commands that go by most of it.
fn tell_conf_faults(context: &Context, host: &VmHost) {
    if let Some(faults) = conf_faults(host) {
        context.say.warning(None, &faults);
    }
}

fn conf_faults(host: &VmHost) -> Option<String> {
    let faults = host.conf_faults();
    let (first, others) = faults.split_first()?;
    let more = match others.len() {
        0 => String::new(),
        count => format!("; {count} more: `hpvm doctor` lists them"),
    };
    Some(format!("{first}{more}"))
}

/// What becomes of a question.
fn agreed(answer: Answer) -> Result<(), Failure> {
    // Who has no answer at hand, as a script, is told how not to be asked; every command that asks has that option.
    let (why, next) = match answer {
        Answer::Yes => return Ok(()),
        Answer::No => ("the answer was no", ""),
        Answer::None => {
            ("the input ended before the question was answered", ", and --force asks nothing")
        }
        Answer::Noise => ("the question was answered neither by y nor by n", ""),
    };
    done("nothing was changed")?;
    Err(Failure::refused(format!("{why}; nothing was changed{next}")))
}

/// Problems are told one by one, everything else as one sentence about the guest.
fn refused<T>(guest: &GuestName, refusal: Refusal) -> Result<T, Failure> {
    match refusal {
        Refusal::Problems(problems) => Err(Failure::Problems { guest: guest.clone(), problems }),
        // Where the VM Host lies concerns no guest.
        Refusal::Root(error) => Err(Refusal::Root(error).into()),
        other => Err(other).about(guest),
    }
}

/// A guest that was removed and can still be brought back.
fn kept_guest(host: &VmHost, selector: &Selector) -> Result<RemovedGuest, Failure> {
    let is_meant = |removed: &RemovedGuest| match selector {
        Selector::Name(name) => removed.config.name == *name,
        Selector::Number(number) => removed.config.number == *number,
    };
    let mut kept: Vec<RemovedGuest> =
        host.registry.removed()?.into_iter().filter(is_meant).collect();
    match (kept.pop(), kept.is_empty()) {
        (Some(guest), true) => Ok(guest),
        (Some(_), false) => Err(Refusal::SeveralRemoved(selector.shown()).into()),
        (None, _) => Err(Refusal::NotRemoved(selector.shown()).into()),
    }
}
