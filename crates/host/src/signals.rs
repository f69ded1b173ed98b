//! Signals and limits as commands want them: a file that may not grow is an error to be told, Ctrl-C ends a wait and not a
//! change in its middle, children end seen, and a guest does not inherit the limits of the shell it was started from. Called by
//! the main functions of commands and of who waits for children, by commands that wait long, and by whoever starts a keeper.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;

use nix::libc;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// From here on, writing beyond the limit for files (`ulimit -f`) fails and does not kill us. To be called before there is
/// another thread.
pub fn survive_file_limit() -> io::Result<()> {
    Ok(SigSet::from(Signal::SIGXFSZ).thread_block()?)
}

/// From here on the ends of our children, and of theirs, are seen, whoever started us: many a daemon ignores SIGCHLD, and what
/// it starts does too, so that nobody could be waited for. To be called before a child is started.
#[allow(unsafe_code)]
pub fn see_children_end() {
    // Refused of SIGKILL and SIGSTOP alone.
    // SAFETY: the default runs no code of ours, and no handler is replaced.
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) };
}

/// By these a user, or the end of the terminal, asks a command to end.
const INTERRUPTING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// A signal that asked this process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interruption(i32);

impl Interruption {
    /// The signal's number.
    #[must_use]
    pub fn number(self) -> i32 {
        self.0
    }
}

/// From here on such a signal does not end this process at any moment: whoever waits asks [`interrupted`] now and then, and
/// leaves a state that can be told. What this process was started to ignore, as by `nohup`, stays ignored. To be called
/// before there is another thread; the first call counts.
pub fn catch_interruptions() -> io::Result<()> {
    if CAUGHT.get().is_some() {
        return Ok(());
    }
    let taken: SigSet = INTERRUPTING.into_iter().filter(|signal| !is_ignored(*signal)).collect();
    let events = SignalFd::with_flags(&taken, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    taken.thread_block()?;
    let _ = CAUGHT.set(Caught { events, first: OnceLock::new() });
    Ok(())
}

/// The signal by which this process was asked to end, if it was and if it catches such signals.
#[must_use]
pub fn interrupted() -> Option<Interruption> {
    let caught = CAUGHT.get()?;
    if let Some(first) = caught.first.get() {
        return Some(*first);
    }
    let came = caught.events.read_signal().ok()??;
    let number = i32::try_from(came.ssi_signo).ok()?;
    Some(*caught.first.get_or_init(|| Interruption(number)))
}

/// The process's only one: signals are the process's too.
static CAUGHT: OnceLock<Caught> = OnceLock::new();

#[derive(Debug)]
struct Caught {
    events: SignalFd,
    first: OnceLock<Interruption>,
}

/// A blocked signal comes by the descriptor even where it was to be ignored, so those are left out.
#[allow(unsafe_code)]
fn is_ignored(signal: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only writes the present one to where there is room for it.
    let done = unsafe { libc::sigaction(signal as i32, ptr::null(), action.as_mut_ptr()) } == 0;
    // SAFETY: all zeroes is a valid action, and the call wrote at most another one.
    done && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// What a guest must not run into because somebody's shell does.
const GUEST_LIMITS: [Resource; 6] = [
    Resource::Cpu,
    Resource::Fsize,
    Resource::As,
    Resource::Data,
    Resource::Nproc,
    Resource::Nofile,
];

/// Lifts the limits that our children would inherit as far as we may.
pub fn lift_limits() {
    for resource in GUEST_LIMITS {
        let limit = getrlimit(resource);
        let most = Rlimit { current: limit.maximum, maximum: limit.maximum };
        let none = Rlimit { current: None, maximum: None };
        // Files have a maximum of the system's, beyond which nobody gets.
        let is_lifted = resource != Resource::Nofile && setrlimit(resource, none).is_ok();
        if !is_lifted {
            // Without the right to more, what is allowed has to do.
            let _ = setrlimit(resource, most);
        }
    }
}

/// Beyond what our children never get, `None` being no end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub cpu_seconds: Option<u64>,
    pub file_bytes: Option<u64>,
    pub address_bytes: Option<u64>,
    pub data_bytes: Option<u64>,
    /// Processes and threads of the user's, all together.
    pub processes: Option<u64>,
}

impl Limits {
    /// Those that were not lifted, if all were that can be.
    #[must_use]
    pub fn left() -> Limits {
        let most = |resource| getrlimit(resource).maximum;
        Limits {
            cpu_seconds: most(Resource::Cpu),
            file_bytes: most(Resource::Fsize),
            address_bytes: most(Resource::As),
            data_bytes: most(Resource::Data),
            processes: most(Resource::Nproc),
        }
    }
}
