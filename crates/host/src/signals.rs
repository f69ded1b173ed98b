//! Signals and limits as commands want them: a file that may not grow is an error to be told, Ctrl-C during a long wait gets
//! an explanation, and a guest does not inherit the limits of the shell it was started from. Called by the commands' main
//! function, by those that wait long, and by whoever starts a keeper.

use std::io;
use std::sync::Once;
use std::thread;

use nix::sys::signal::{SigSet, Signal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// From here on, writing beyond the limit for files (`ulimit -f`) fails and does not kill us. To be called before there is
/// another thread.
pub fn survive_file_limit() -> io::Result<()> {
    Ok(SigSet::from(Signal::SIGXFSZ).thread_block()?)
}

/// Calls `explain` when the user, or the end of the terminal, interrupts this process, which then ends as it would have
/// without. The first call counts.
pub fn explain_interruption(explain: impl FnOnce() + Send + 'static) -> io::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = wait_beside(explain));
    result
}

fn wait_beside(explain: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block()?;
    thread::Builder::new().spawn(move || {
        if let Ok(signal) = signals.wait() {
            explain();
            std::process::exit(128 + signal as i32);
        }
    })?;
    Ok(())
}

/// What a guest must not run into because somebody's shell does.
const GUEST_LIMITS: [Resource; 5] =
    [Resource::Cpu, Resource::Fsize, Resource::As, Resource::Data, Resource::Nofile];

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
