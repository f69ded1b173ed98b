//! A process that does a command's work in its place, and is left behind when a store holds it: the kernel ends no process of
//! which a thread waits for storage, nor one that closes a file whose server is silent, and whoever started a command waits for
//! the whole process. Called by hpvmclone for stores that may fall silent.
//!
//! ```text
//!  principal    waits for the word ─► its status is ours; forwards a signal ─► no word after a while: ends without it
//!  deputy       does the work ─► says the status, with nothing left that anybody waits for ─► ends, when it can
//! ```
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::libc;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, Signal, WaitOptions, getppid, kill_process, set_parent_process_death_signal, waitpid,
};

use crate::answers::ANSWER_BOUND;
use crate::process;
use crate::signals::{self, Interruption};

/// Between two looks whether a signal came.
const LOOK: Duration = Duration::from_millis(50);
/// For so long whoever has the word waits for the end of what said it, which closes devices that the next command may want.
const CLOSES_WITHIN: Duration = Duration::from_millis(500);
/// A deputy that was told to end waits for its copying threads, and for what it takes back, as long as for an answer each.
const ENDS_WITHIN: Duration = Duration::from_secs(4 * ANSWER_BOUND.as_secs());

/// Who goes on.
#[derive(Debug)]
pub enum Side {
    /// The work is to be done; [`say`] ends it.
    Deputy,
    /// It is done, with this status.
    Done(u8),
    /// It was to end, and waits for a store.
    Left(Interruption),
}

/// Through which the status is said, in a deputy.
static WORD: Mutex<Option<io::PipeWriter>> = Mutex::new(None);

/// Has the rest of the command done by a deputy. Refused where there is another thread.
pub fn appoint() -> io::Result<Side> {
    let threads = process::threads()?;
    if threads != 1 {
        return Err(io::Error::other(format!("{threads} threads run, and only one is copied")));
    }
    let (word, says) = io::pipe()?;
    let principal = rustix::process::getpid();
    // SAFETY: this is the only thread, as was just seen, so that nothing is in the middle of anything in the child.
    match unsafe { libc::fork() } {
        0 => {
            drop(word);
            *WORD.lock().unwrap_or_else(PoisonError::into_inner) = Some(says);
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            match getppid() == Some(principal) {
                true => Ok(Side::Deputy),
                false => std::process::abort(),
            }
        }
        pid => {
            drop(says);
            let deputy = Pid::from_raw(pid).filter(|_| pid > 0);
            attend(deputy.ok_or_else(io::Error::last_os_error)?, word)
        }
    }
}

/// Whether this process is one, whose principal ends in time whatever holds us.
#[must_use]
pub fn is_appointed() -> bool {
    WORD.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// What this process ends with. A principal goes on by it, and nobody waits for us any more.
pub fn say(status: u8) {
    let Some(mut word) = WORD.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    let _ = io::stdout().flush();
    if let Ok(nobody) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        // Whoever reads to the end what we print is not to wait for us either.
        let _ = (dup2_stdin(&nobody), dup2_stdout(&nobody), dup2_stderr(&nobody));
    }
    // Without a principal nobody hears it.
    let _ = word.write_all(&[status]);
}

fn attend(deputy: Pid, mut word: io::PipeReader) -> io::Result<Side> {
    let mut told: Option<(Interruption, Instant)> = None;
    loop {
        let look = Timespec::try_from(LOOK).ok();
        if let Ok(1..) = poll(&mut [PollFd::new(&word.as_fd(), PollFlags::IN)], look.as_ref()) {
            break;
        }
        match (told, signals::interrupted()) {
            (Some((interruption, until)), _) if Instant::now() >= until => {
                return Ok(Side::Left(interruption));
            }
            (None, Some(interruption)) => {
                told = Some((interruption, Instant::now() + ENDS_WITHIN));
                // It may have ended.
                let _ = kill_process(deputy, signal(interruption.number()));
            }
            _ => {}
        }
    }
    let mut status = [0];
    if word.read(&mut status)? == 1 {
        until_ended(deputy);
        return Ok(Side::Done(status[0]));
    }
    Ok(Side::Done(status_of(deputy)))
}

fn signal(number: i32) -> Signal {
    Signal::from_named_raw(number).unwrap_or(Signal::TERM)
}

fn until_ended(deputy: Pid) {
    let until = Instant::now() + CLOSES_WITHIN;
    while let Ok(None) = waitpid(Some(deputy), WaitOptions::NOHANG) {
        if Instant::now() >= until {
            return;
        }
        crate::lock::pause_for(Duration::from_millis(1));
    }
}

/// Of one that ended without a word: we end as it did.
fn status_of(deputy: Pid) -> u8 {
    let Ok(Some((_, ended))) = waitpid(Some(deputy), WaitOptions::empty()) else { return 1 };
    if let Some(number) = ended.terminating_signal() {
        let _ = kill_process(rustix::process::getpid(), signal(number));
        return u8::try_from(number).map_or(1, |number| number.saturating_add(128));
    }
    ended.exit_status().and_then(|status| u8::try_from(status).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_another_thread_gets_no_deputy() {
        // Tests run beside the thread that waits for them.
        let refused = appoint().expect_err("nobody is copied in the middle of something");
        assert!(refused.to_string().contains("threads run"), "{refused}");
    }
}
