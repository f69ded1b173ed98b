//! The user's end: standard input, output, the modes of the terminal and the signals that end a session.
//!
//! The session is the only caller. A [`Terminal`] reads input into a buffer, collects output and writes it as fast as it is
//! taken, and turns signals into events. What it changes it gives back: when it is dropped, when the program panics (also
//! where panics abort), and when SIGINT, SIGTERM, SIGHUP or SIGQUIT end the session. Input need not be a terminal.

mod modes;
mod signals;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::termios::isatty;

pub use modes::Mode;
use modes::Modes;
use signals::Signals;

/// The way from the console back to the menu.
pub const CTRL_B: u8 = 0x02;

/// A longer line is no command.
const LINE_BYTES_MAX: usize = 4096;
/// Input is read no further while so much of it is not used yet.
const INPUT_BYTES_MAX: usize = 64 * 1024;
/// While so much output is not written yet, no more should be made.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// Output that nobody takes for so long at the end of a session is given up.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);
/// Written at once: what a pipe that polls as writable takes without blocking.
const OUTPUT_PART_BYTES: usize = 4096;

/// What the input holds for the menu.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    Text(String),
    /// Ctrl-B; what stood before it on the line is void.
    CtrlB,
    TooLong,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Woken {
    /// A signal wants the session to end.
    pub signal: Option<i32>,
    /// The other descriptor can be read, or is broken.
    pub peer_readable: bool,
    pub peer_writable: bool,
}

/// The other descriptor of a wait: the stream to the guest's worker.
#[derive(Clone, Copy)]
pub struct Peer<'fd> {
    pub fd: BorrowedFd<'fd>,
    pub read: bool,
    pub write: bool,
}

pub struct Terminal<'fd> {
    input_fd: BorrowedFd<'fd>,
    output_fd: BorrowedFd<'fd>,
    /// When output is a terminal: an open description of our own that never blocks, where there may be one.
    output_terminal: Option<Option<OwnedFd>>,
    // Declared before the signals, so that the modes are given back first: a signal that waits kills on its release.
    modes: Modes,
    signals: Signals,
    input: Vec<u8>,
    input_ended: bool,
    /// A carriage return ended the last line: a newline behind it is no line of its own.
    after_return: bool,
    output: Vec<u8>,
}

impl<'fd> Terminal<'fd> {
    /// # Errors
    /// When the terminal's modes cannot be read or signals not be taken.
    pub fn new(input: BorrowedFd<'fd>, output: BorrowedFd<'fd>) -> io::Result<Terminal<'fd>> {
        Ok(Terminal {
            input_fd: input,
            output_fd: output,
            output_terminal: isatty(output).then(|| reopened(output)),
            modes: Modes::new(input)?,
            signals: Signals::new()?,
            input: Vec::new(),
            input_ended: false,
            after_return: false,
            output: Vec::new(),
        })
    }

    /// Whether a person types here.
    #[must_use]
    pub fn input_is_terminal(&self) -> bool {
        self.modes.is_terminal()
    }

    #[must_use]
    pub fn output_is_terminal(&self) -> bool {
        self.output_terminal.is_some()
    }

    /// # Errors
    /// When the terminal refuses.
    pub fn set_mode(&mut self, mode: Mode) -> io::Result<()> {
        self.modes.set(mode)
    }

    /// Gives the terminal and the signals back while `act` runs, as if this program did not change them: what `act` starts
    /// inherits neither, and Ctrl-C works as everywhere.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub fn lend<T>(&mut self, act: impl FnOnce() -> T) -> io::Result<T> {
        let mode = self.modes.current();
        self.modes.set(Mode::Original)?;
        self.signals.release()?;
        let result = act();
        self.signals.take()?;
        // Keys typed meanwhile were no lines of ours: a Ctrl-B among them would stay in the terminal until Enter. Leaving
        // and entering the terminal's line mode hands over what it has.
        self.modes.set(Mode::Raw)?;
        self.modes.set(mode)?;
        Ok(result)
    }

    /// Text of ours.
    pub fn print(&mut self, text: &str) {
        if self.modes.current() == Mode::Raw {
            self.output.extend(text.replace('\n', "\r\n").into_bytes());
        } else {
            self.output.extend_from_slice(text.as_bytes());
        }
    }

    /// Output of the guest, as it is.
    pub fn pass(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    /// Whether there is room for more output.
    #[must_use]
    pub fn takes_output(&self) -> bool {
        self.output.len() < OUTPUT_BYTES_MAX
    }

    #[must_use]
    pub fn input(&self) -> &[u8] {
        &self.input
    }

    pub fn use_input(&mut self, bytes: usize) {
        self.input.drain(..bytes.min(self.input.len()));
    }

    /// Whether the input has ended. What was read before may still be there.
    #[must_use]
    pub fn input_ended(&self) -> bool {
        self.input_ended
    }

    /// Takes a line from what was read. The last one needs no newline.
    pub fn take_line(&mut self) -> Option<Line> {
        if std::mem::take(&mut self.after_return) && self.input.first() == Some(&b'\n') {
            self.use_input(1);
        }
        let is_end = |byte: &u8| matches!(*byte, b'\n' | b'\r' | CTRL_B);
        let Some(end) = self.input.iter().position(is_end) else { return self.take_unfinished() };
        let ending = self.input[end];
        self.after_return = ending == b'\r';
        let line = self.text(end);
        self.use_input(end + 1);
        Some(if ending == CTRL_B { Line::CtrlB } else { line })
    }

    fn take_unfinished(&mut self) -> Option<Line> {
        let length = self.input.len();
        if length == 0 || (length <= LINE_BYTES_MAX && !self.input_ended) {
            return None;
        }
        let line = self.text(length);
        self.use_input(length);
        Some(line)
    }

    fn text(&self, length: usize) -> Line {
        match &self.input[..length] {
            text if text.len() > LINE_BYTES_MAX => Line::TooLong,
            text => Line::Text(String::from_utf8_lossy(text).into_owned()),
        }
    }

    /// Waits until something can be done or `deadline`, whichever is first; reads what there is to read and writes what
    /// can be written.
    ///
    /// # Errors
    /// When input or output is broken.
    pub fn wait(&mut self, peer: Option<Peer<'_>>, deadline: Instant) -> io::Result<Woken> {
        let [signalled, input, output, stream] = self.poll(peer, deadline)?;
        if input {
            self.read()?;
        }
        if output {
            self.write()?;
        }
        let signal = if signalled { self.signals.read()? } else { None };
        if signal == Some(signals::CONTINUED) {
            // The shell that had the terminal in the meantime may have set its modes.
            self.modes.renew()?;
        }
        let ready = |wanted: fn(&Peer<'_>) -> bool| stream && peer.as_ref().is_some_and(wanted);
        Ok(Woken {
            signal: signal.filter(|signal| *signal != signals::CONTINUED),
            peer_readable: ready(|peer| peer.read),
            peer_writable: ready(|peer| peer.write),
        })
    }

    /// Which of signals, input, output and peer are ready.
    fn poll(&self, peer: Option<Peer<'_>>, deadline: Instant) -> io::Result<[bool; 4]> {
        let idle = self.signals.fd();
        let wanted =
            |wanted: bool, flags: PollFlags| if wanted { flags } else { PollFlags::empty() };
        let reads = !self.input_ended && self.input.len() < INPUT_BYTES_MAX;
        let (peer_fd, peer_flags) = peer.map_or((idle, PollFlags::empty()), |peer| {
            (peer.fd, wanted(peer.read, PollFlags::IN) | wanted(peer.write, PollFlags::OUT))
        });
        let mut polled = [
            entry(idle, PollFlags::IN, idle),
            entry(self.input_fd, wanted(reads, PollFlags::IN), idle),
            entry(self.output_fd(), wanted(!self.output.is_empty(), PollFlags::OUT), idle),
            entry(peer_fd, peer_flags, idle),
        ];
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) => Ok(polled.map(|polled| !polled.revents().is_empty())),
            Err(Errno::INTR) => Ok([false; 4]),
            Err(error) => Err(error.into()),
        }
    }

    fn output_fd(&self) -> BorrowedFd<'_> {
        self.output_terminal.as_ref().and_then(Option::as_ref).map_or(self.output_fd, AsFd::as_fd)
    }

    fn read(&mut self) -> io::Result<()> {
        let mut part = [0; 4096];
        match rustix::io::read(self.input_fd, &mut part) {
            // A terminal whose other side is gone says EIO.
            Ok(0) | Err(Errno::IO) => self.input_ended = true,
            Ok(length) => self.input.extend_from_slice(&part[..length]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        let part = &self.output[..self.output.len().min(OUTPUT_PART_BYTES)];
        match rustix::io::write(self.output_fd(), part) {
            Ok(written) => drop(self.output.drain(..written)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Writes what is still to be written, for as long as somebody takes it.
    ///
    /// # Errors
    /// When output is broken.
    pub fn drain(&mut self) -> io::Result<()> {
        let mut deadline = Instant::now() + DRAIN_PATIENCE;
        while !self.output.is_empty() && Instant::now() < deadline {
            let left = self.output.len();
            let mut polled = [PollFd::from_borrowed_fd(self.output_fd(), PollFlags::OUT)];
            let timeout = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            match poll(&mut polled, Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => self.write()?,
                Err(error) => return Err(error.into()),
            }
            if self.output.len() < left {
                deadline = Instant::now() + DRAIN_PATIENCE;
            }
        }
        Ok(())
    }
}

/// An entry for poll; one that wants nothing watches a descriptor that never hangs up, so that it stays silent.
fn entry<'fd>(fd: BorrowedFd<'fd>, flags: PollFlags, idle: BorrowedFd<'fd>) -> PollFd<'fd> {
    PollFd::from_borrowed_fd(if flags.is_empty() { idle } else { fd }, flags)
}

/// A terminal that polls as writable may have room for one byte and block for the rest, and nothing would end that while
/// nobody reads. Our standard output is shared with other programs, which count on its blocking; so it is opened anew.
fn reopened(terminal: BorrowedFd<'_>) -> Option<OwnedFd> {
    let path = format!("/proc/self/fd/{}", terminal.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty()).ok()
}
