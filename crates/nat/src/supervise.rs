//! The outer `hpvmnat`: starts the worker, which reads what guests send, and starts it again when it ends against its will. A
//! guest that brings libslirp down takes its neighbours' connections along, not their network.
//!
//! It has no part in what the worker does, and knows nothing of it but how it ended. The worker ends with it. Killed itself, it
//! is followed by another that stands by for that alone, once nothing of the old ones holds their ports:
//!
//! ```text
//!  outer ──lifeline──► worker
//!    │                   │
//!    └─────witness───────┴──► who stands by
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Instant;

use command_fds::{CommandFdExt, FdMapping};
use hpvm_host::lock::pause_for;
use hpvm_host::restarts::{QuickEnds, SETTLED, STARTED_WRONGLY};
use hpvm_nat::descriptor;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait, waitpid};

use crate::{LIFELINE, STANDBY, WITNESS, WORKER};

/// What each process of a `hpvmnat` is started with.
pub(crate) struct Start {
    pub(crate) wire: OwnedFd,
    pub(crate) control: OwnedFd,
    pub(crate) settings: Vec<String>,
}

/// Waits until the outer process and its worker are gone, then goes on in their place.
pub(crate) fn stand_by(start: &Start, witness: OwnedFd) -> io::Result<ExitCode> {
    // Without a bound: it may never be needed. Who ends in good order ends this process too.
    retry_on_intr(|| poll(&mut [PollFd::new(&witness, PollFlags::IN)], None))?;
    drop(witness);
    eprintln!("hpvmnat: the outer process was killed; another takes its place");
    supervise(start)
}

/// Runs until a worker has ended because it should.
pub(crate) fn supervise(start: &Start) -> io::Result<ExitCode> {
    let mut standby = Standby::new()?;
    let mut quick_ends = QuickEnds::default();
    loop {
        standby.ensure(start);
        let began = Instant::now();
        // Nobody writes to it: the worker sees that this end is gone.
        let (worker_end, lifeline) = pipe_with(PipeFlags::CLOEXEC)?;
        let ends = vec![(worker_end, LIFELINE), (standby.writer.try_clone()?, WITNESS)];
        let worker = start.process(WORKER, ends)?;
        let status = loop {
            match retry_on_intr(|| wait(WaitOptions::empty()))? {
                Some((pid, status)) if pid == worker => {
                    break ExitStatus::from_raw(status.as_raw());
                }
                Some((pid, _)) => standby.ended(pid, start),
                None => {}
            }
        };
        drop(lifeline);
        let life = began.elapsed();
        if let Some(ours) = as_it_should(status.code()) {
            return Ok(ExitCode::from(ours));
        }
        eprintln!("hpvmnat: the worker ended by itself ({status}); it is started again");
        pause_for(quick_ends.pause_after(life));
    }
}

/// How we end too, after a worker that ended so. `code` is none for one that was killed.
fn as_it_should(code: Option<i32>) -> Option<u8> {
    match code {
        Some(0) => Some(0),
        Some(code) if code == i32::from(STARTED_WRONGLY) => Some(STARTED_WRONGLY),
        _ => None,
    }
}

impl Start {
    fn process(&self, part: &str, own: Vec<(OwnedFd, i32)>) -> io::Result<Pid> {
        let mapping = |(parent_fd, child_fd)| FdMapping { parent_fd, child_fd };
        let shared = vec![
            (self.wire.try_clone()?, descriptor::WIRE),
            (self.control.try_clone()?, descriptor::CONTROL),
        ];
        // Not by its path, which an upgrade may have given to another program.
        let child = Command::new("/proc/self/exe")
            .arg(part)
            .args(&self.settings)
            .fd_mappings(shared.into_iter().chain(own).map(mapping).collect())
            .map_err(io::Error::other)?
            .spawn()?;
        Ok(Pid::from_child(&child))
    }
}

/// Who goes on when this process is killed. It ends with this one when that ends in good order.
struct Standby {
    /// Held open by this process and each worker, and by nobody else: who stands by sees when all are gone.
    writer: OwnedFd,
    reader: OwnedFd,
    process: Option<(Pid, Instant)>,
}

impl Standby {
    fn new() -> io::Result<Standby> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        Ok(Standby { writer, reader, process: None })
    }

    /// Guests have their network without.
    fn ensure(&mut self, start: &Start) {
        if self.process.is_some() {
            return;
        }
        let reader = self.reader.try_clone();
        match reader.and_then(|reader| start.process(STANDBY, vec![(reader, LIFELINE)])) {
            Ok(pid) => self.process = Some((pid, Instant::now())),
            Err(error) => eprintln!("hpvmnat: nobody stands by: {error}"),
        }
    }

    /// One that ends at once is not tried again before the next worker.
    fn ended(&mut self, pid: Pid, start: &Start) {
        let Some((_, began)) = self.process.take_if(|(own, _)| *own == pid) else { return };
        if began.elapsed() >= SETTLED {
            self.ensure(start);
        }
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        if let Some((pid, _)) = self.process.take() {
            let _ = kill_process(pid, Signal::KILL);
            let _ = retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_should_end_ends_and_who_should_not_is_started_again() {
        let ends = [Some(0), Some(2), Some(1), None];
        assert_eq!(ends.map(as_it_should), [Some(0), Some(2), None, None]);
    }
}
