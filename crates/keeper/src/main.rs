//! `hpvmkeeper`: parent of one guest's QEMU and of the worker that speaks to it.
//!
//! It exists so that QEMU's wait status is never lost, and that a worker may die and come back without the guest noticing.
//! It holds the descriptors each new worker needs, and the lock that says it lives. It never reads what a guest or a client
//! sent, allocates nothing once it is under way, and knows nothing of guests, files or QMP: ARCHITECTURE.md, 'Keeper', is
//! all it does. A virtual switch has a keeper too: then there is a worker and no QEMU.
//!
//! ```text
//!            ┌────────── runs ──────────┐ SIGCHLD / pidfd
//! QEMU   ────┤                          ├──► gone(status) ── told to the worker, or to the next one
//!            └──────────────────────────┘
//!                    ┌───────── ends ─────────┐
//! worker ── runs ────┤ without Finished       ├──► waits, runs again
//!                    └─ after Finished, and QEMU is gone ──► the keeper ends
//! ```

mod description;
mod engine;
mod kept;
mod link;
mod log;
mod program;
mod restarts;
mod supervisor;
mod sys;

use std::process::ExitCode;

use crate::description::Description;
use crate::supervisor::Supervisor;
use crate::sys::Fd;

/// A second in all, a hundred times what a dying keeper takes.
const CLAIM_ATTEMPTS_MAX: u32 = 200;
const CLAIM_PAUSE_MS: i32 = 5;

/// How a keeper ends, other than by having done its work.
enum Failure {
    /// The launch description is not understood.
    Malformed,
    /// Another keeper looks after this guest.
    Locked,
    /// The system refused something without which nothing can be kept.
    System,
}

impl Failure {
    fn status(&self) -> u8 {
        match self {
            Failure::Malformed => 2,
            Failure::Locked => 3,
            Failure::System => 4,
        }
    }
}

fn main() -> ExitCode {
    match keep() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => ExitCode::from(failure.status()),
    }
}

fn keep() -> Result<(), Failure> {
    let mut arguments = std::env::args_os().skip(1);
    let number = arguments.next().and_then(|argument| argument.to_str()?.parse().ok());
    let (Some(number), None) = (number, arguments.next()) else {
        return Err(Failure::Malformed);
    };
    let text = sys::read_whole(number).map_err(|_| Failure::Malformed)?;
    let description = Description::parse(&text).ok_or(Failure::Malformed)?;
    drop(text);
    description.close_all_others();
    if let Some(lock) = description.lock {
        claim(lock)?;
    }
    Supervisor::begin(description).map_err(|_| Failure::System)?.run().map_err(|_| Failure::System)
}

/// Takes the lock that says a keeper lives.
///
/// The keeper before us may just be dying: its worker, which starts the next one, sees the link close a moment before the
/// kernel lets go of the lock.
fn claim(lock: Fd) -> Result<(), Failure> {
    for _ in 0..CLAIM_ATTEMPTS_MAX {
        match sys::lock_first_byte(lock) {
            Ok(true) => return Ok(()),
            Ok(false) => sys::wait_for(&mut [], CLAIM_PAUSE_MS).map_err(|_| Failure::System)?,
            Err(_) => return Err(Failure::System),
        }
    }
    Err(Failure::Locked)
}
