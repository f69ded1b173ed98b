//! The signals that end a session, as readable events: a session that is asked to end gives its terminal back first.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Tells nothing but that the program runs again.
pub(super) const CONTINUED: i32 = Signal::SIGCONT as i32;

const TAKEN: [Signal; 5] =
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGCONT];

pub(super) struct Signals {
    events: SignalFd,
    taken: SigSet,
    before: SigSet,
}

impl Signals {
    pub(super) fn new() -> io::Result<Signals> {
        let taken: SigSet = TAKEN.into_iter().collect();
        let events = SignalFd::with_flags(&taken, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let before = taken.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(Signals { events, taken, before })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// The number of a signal that came.
    pub(super) fn read(&self) -> io::Result<Option<i32>> {
        Ok(self.events.read_signal()?.and_then(|signal| i32::try_from(signal.ssi_signo).ok()))
    }

    /// Lets signals do again what they did before.
    pub(super) fn release(&self) -> io::Result<()> {
        Ok(self.before.thread_set_mask()?)
    }

    pub(super) fn take(&self) -> io::Result<()> {
        Ok(self.taken.thread_block()?)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // Setting a mask that was in force before cannot fail.
        let _ = self.release();
    }
}
