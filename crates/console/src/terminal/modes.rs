//! The modes of the terminal, changed and always given back: on drop, and by a panic hook, since a program whose panics
//! abort drops nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};

use rustix::termios::{OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr, tcsetattr};

use super::CTRL_B;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As the user's shell left it.
    Original,
    /// Lines, edited and echoed by the terminal; Ctrl-B ends one at once.
    Line,
    /// Every byte as it is typed: the guest echoes.
    Raw,
}

pub(super) struct Modes {
    /// `None` when input is no terminal: then there is nothing to set.
    saved: Option<Arc<Saved>>,
    current: Mode,
}

/// A terminal and the modes to give back to it.
struct Saved {
    fd: OwnedFd,
    original: Termios,
}

/// The terminals to restore when the program panics.
static CHANGED: Mutex<Vec<Weak<Saved>>> = Mutex::new(Vec::new());
static HOOK: Once = Once::new();

impl Modes {
    pub(super) fn new(input: BorrowedFd<'_>) -> io::Result<Modes> {
        if !isatty(input) {
            return Ok(Modes { saved: None, current: Mode::Original });
        }
        let saved =
            Arc::new(Saved { fd: input.try_clone_to_owned()?, original: tcgetattr(input)? });
        HOOK.call_once(restore_on_panic);
        let mut changed = changed();
        changed.retain(|terminal| terminal.strong_count() > 0);
        changed.push(Arc::downgrade(&saved));
        Ok(Modes { saved: Some(saved), current: Mode::Original })
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.saved.is_some()
    }

    pub(super) fn current(&self) -> Mode {
        self.current
    }

    pub(super) fn set(&mut self, mode: Mode) -> io::Result<()> {
        if mode != self.current {
            self.current = mode;
            self.renew()?;
        }
        Ok(())
    }

    /// Sets the current mode again, whatever somebody else set in the meantime.
    pub(super) fn renew(&self) -> io::Result<()> {
        match &self.saved {
            Some(saved) => saved.set(self.current),
            None => Ok(()),
        }
    }
}

impl Drop for Modes {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing back.
        let _ = self.set(Mode::Original);
    }
}

impl Saved {
    fn set(&self, mode: Mode) -> io::Result<()> {
        let mut termios = self.original.clone();
        match mode {
            Mode::Original => {}
            Mode::Line => termios.special_codes[SpecialCodeIndex::VEOL] = CTRL_B,
            Mode::Raw => termios.make_raw(),
        }
        // At once: to wait for output that nobody takes would have no bound, and our output was translated when written.
        Ok(tcsetattr(self.fd.as_fd(), OptionalActions::Now, &termios)?)
    }
}

fn restore_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        for terminal in changed().iter().filter_map(Weak::upgrade) {
            let _ = terminal.set(Mode::Original);
        }
        report(panic);
    }));
}

fn changed() -> MutexGuard<'static, Vec<Weak<Saved>>> {
    CHANGED.lock().unwrap_or_else(PoisonError::into_inner)
}
