//! Threads that are to run while their maker goes on.

use std::os::unix::thread::JoinHandleExt;
use std::thread::{self, JoinHandle};
use std::{io, mem};

use nix::libc;
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu};

/// Starts a thread on another processor than ours, where there is one. Linux may leave the first thread of a process waiting for
/// the processor on which the process runs, however idle the others are.
pub fn spawn_elsewhere(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let thread = thread::Builder::new().spawn(work)?;
    // Not known of a machine with more processors than the set has room for.
    if let Ok(ours) = sched_getaffinity(None) {
        let mut others = ours;
        others.unset(sched_getcpu());
        // Once it is there it may go wherever it likes.
        if others.count() > 0 && confine(&thread, &others) {
            confine(&thread, &ours);
        }
    }
    Ok(())
}

/// Whether it could be done: a processor may be taken away at any moment.
#[allow(unsafe_code)]
fn confine(thread: &JoinHandle<()>, to: &CpuSet) -> bool {
    // SAFETY: a set is a row of bits, of which none has to be set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    for number in (0..CpuSet::MAX_CPU).filter(|number| to.is_set(*number)) {
        // SAFETY: both sets have room for the same number of processors (CPU_SETSIZE).
        unsafe { libc::CPU_SET(number, &mut set) };
    }
    // SAFETY: who has a handle knows that the thread was not detached; the set is as long as is said.
    let failed = unsafe {
        libc::pthread_setaffinity_np(thread.as_pthread_t(), mem::size_of_val(&set), &raw const set)
    };
    failed == 0
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_thread_may_go_wherever_its_maker_may() {
        let (go, gone) = channel();
        let (tell, told) = channel();
        let look = move || {
            gone.recv().unwrap();
            tell.send(sched_getaffinity(None).unwrap()).unwrap();
        };
        spawn_elsewhere(look).unwrap();
        go.send(()).unwrap();
        assert_eq!(told.recv().unwrap(), sched_getaffinity(None).unwrap());
    }
}
