//! The outer `hpvmnat`: starts the worker, which reads what guests send, and starts it again when it ends against its will. A
//! guest that brings libslirp down takes its neighbours' connections along, not their network.
//!
//! It has no part in what the worker does, and knows nothing of it but how it ended. The worker ends with it.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use hpvm_nat::descriptor;
use rustix::event::{Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::{LIFELINE, WORKER};

/// A worker that lived so long counts as new.
const SETTLED: Duration = Duration::from_secs(2);
/// How long is waited before each start, after so many quick ends in a row; then always the last.
const PAUSES_MS: [u64; 5] = [0, 10, 20, 40, 10_000];
/// How a worker ends that was started wrongly: as often as it is tried.
pub(crate) const STARTED_WRONGLY: u8 = 2;

/// What follows from how a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    End(u8),
    Again(Duration),
}

/// Runs until a worker has ended because it should.
pub(crate) fn supervise(
    wire: &OwnedFd,
    control: &OwnedFd,
    settings: &[String],
) -> io::Result<ExitCode> {
    let mut quick_ends = 0;
    loop {
        let began = Instant::now();
        // Nobody writes to it: the worker sees that this end is gone.
        let (worker_end, lifeline) = pipe_with(PipeFlags::CLOEXEC)?;
        let status = start(wire, control, worker_end, settings)?.wait()?;
        drop(lifeline);
        if began.elapsed() >= SETTLED {
            quick_ends = 0;
        }
        match next(status.code(), quick_ends) {
            Next::End(status) => return Ok(ExitCode::from(status)),
            Next::Again(pause) => {
                eprintln!("hpvmnat: {}; it is started again", how(status));
                let pause = Timespec::try_from(pause).map_err(io::Error::other)?;
                poll(&mut [], Some(&pause))?;
                quick_ends += 1;
            }
        }
    }
}

/// `code` is none for a worker that was killed.
fn next(code: Option<i32>, quick_ends: usize) -> Next {
    match code {
        Some(0) => Next::End(0),
        Some(code) if code == i32::from(STARTED_WRONGLY) => Next::End(STARTED_WRONGLY),
        _ => {
            let pause_ms = PAUSES_MS[quick_ends.min(PAUSES_MS.len() - 1)];
            Next::Again(Duration::from_millis(pause_ms))
        }
    }
}

fn how(status: ExitStatus) -> String {
    format!("the worker ended by itself ({status})")
}

fn start(
    wire: &OwnedFd,
    control: &OwnedFd,
    worker_end: OwnedFd,
    settings: &[String],
) -> io::Result<Child> {
    let mapping = |parent_fd, child_fd| FdMapping { parent_fd, child_fd };
    let mappings = vec![
        mapping(wire.try_clone()?, descriptor::WIRE),
        mapping(control.try_clone()?, descriptor::CONTROL),
        mapping(worker_end, LIFELINE),
    ];
    // Not by its path, which an upgrade may have given to another program.
    Command::new("/proc/self/exe")
        .arg(WORKER)
        .args(settings)
        .fd_mappings(mappings)
        .map_err(io::Error::other)?
        .spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_should_end_ends_and_who_should_not_is_started_again() {
        assert_eq!(next(Some(0), 3), Next::End(0));
        assert_eq!(next(Some(2), 0), Next::End(2));
        assert_eq!(next(None, 0), Next::Again(Duration::ZERO));
        assert_eq!(next(Some(1), 3), Next::Again(Duration::from_millis(40)));
        assert_eq!(next(None, 4000), Next::Again(Duration::from_secs(10)));
    }
}
