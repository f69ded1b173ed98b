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

use std::io;
use std::process::ExitCode;

use crate::description::Description;
use crate::log::Line;
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
    System(io::Error),
}

impl Failure {
    fn status(&self) -> u8 {
        match self {
            Failure::Malformed => 2,
            Failure::Locked => 3,
            Failure::System(_) => 4,
        }
    }

    /// For the guest's log: whoever waits for the guest is sent there.
    fn push(&self, line: &mut Line) {
        line.push("nothing is started: ");
        match self {
            Failure::Malformed => line.push(
                "its description is not understood, as when hpvm's programs are of different versions",
            ),
            Failure::Locked => line.push("another keeper has the lock"),
            Failure::System(error) => {
                line.push("the system refuses what a keeper needs: error ");
                line.push_number(u64::from(error.raw_os_error().unwrap_or(0).unsigned_abs()));
            }
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
    let log = Description::log_of(&text);
    let description = Description::parse(&text);
    drop(text);
    let kept = description.ok_or(Failure::Malformed).and_then(begin);
    let kept = kept.and_then(|supervisor| supervisor.run().map_err(Failure::System));
    if let Err(failure) = &kept {
        log.say(|line| failure.push(line));
    }
    kept
}

fn begin(description: Description) -> Result<Supervisor, Failure> {
    description.close_all_others();
    if let Some(lock) = description.lock {
        claim(lock)?;
    }
    Supervisor::begin(description).map_err(Failure::System)
}

/// Takes the lock that says a keeper lives.
///
/// The keeper before us may just be dying: its worker, which starts the next one, sees the link close a moment before the
/// kernel lets go of the lock.
fn claim(lock: Fd) -> Result<(), Failure> {
    for _ in 0..CLAIM_ATTEMPTS_MAX {
        match sys::lock_first_byte(lock) {
            Ok(true) => return Ok(()),
            Ok(false) => sys::wait_for(&mut [], CLAIM_PAUSE_MS).map_err(Failure::System)?,
            Err(error) => return Err(Failure::System(error)),
        }
    }
    Err(Failure::Locked)
}
