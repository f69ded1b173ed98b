//! A command on a terminal of its own, as an administrator has it.

use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hpvm_testkit::wait::wait_until;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

/// Four times what the slowest verb, a start, needs on a quiet machine, and room for a busy one.
const BOUND: Duration = Duration::from_secs(20);

pub(crate) struct Terminal {
    child: Child,
    master: OwnedFd,
    /// What was shown and not yet expected.
    shown: String,
}

impl Terminal {
    /// Starts a command with its standard streams on a new terminal.
    pub(crate) fn of(mut command: Command) -> Terminal {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("a terminal");
        grantpt(&master).expect("a terminal");
        unlockpt(&master).expect("a terminal");
        let own = ioctl_tiocgptpeer(&master, flags).expect("its other end");
        let stream = || Stdio::from(own.try_clone().expect("a descriptor"));
        command.stdin(stream()).stdout(stream()).stderr(stream());
        Terminal { child: command.spawn().expect("it starts"), master, shown: String::new() }
    }

    pub(crate) fn type_in(&self, keys: &str) {
        let written = rustix::io::write(&self.master, keys.as_bytes()).expect("keys");
        assert_eq!(written, keys.len(), "a terminal takes a line at once");
    }

    /// Waits until `text` is shown after what was waited for before.
    #[track_caller]
    pub(crate) fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + BOUND;
        loop {
            if let Some(at) = self.shown.find(text) {
                drop(self.shown.drain(..at + text.len()));
                return;
            }
            assert!(Instant::now() < deadline, "'{text}' not within {BOUND:?}: {}", self.shown);
            assert!(self.read(), "the command ended before '{text}': {}", self.shown);
        }
    }

    /// Whether there may be more to read.
    fn read(&mut self) -> bool {
        let pause = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let mut ready = [PollFd::new(&self.master, PollFlags::IN)];
        if poll(&mut ready, Some(&pause)).is_ok_and(|count| count > 0) {
            let mut bytes = [0; 8192];
            // A terminal that nobody has open any more has been read to its end when a read fails.
            let Ok(length) = rustix::io::read(&self.master, &mut bytes) else { return false };
            self.shown.push_str(&String::from_utf8_lossy(&bytes[..length]));
        }
        true
    }

    /// The exit status of a command that ends by itself.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let mut status = None;
        wait_until(BOUND, "the command has ended", || {
            self.read();
            status = self.child.try_wait().expect("it is our child");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
