//! A look at a path by a process of its own, before any thread of ours asks there. Called by `answers` of paths on file systems
//! that may have lost their server.
//!
//! A server that has read a question, answers it never, and does not care that who asked was killed, keeps the thread that asked
//! in the kernel (Linux, fs/fuse/dev.c, `request_wait_answer`), with the whole process and every lock that it has. The process here
//! has nothing, and nobody waits for its end.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};

use super::ANSWER_BOUND;

/// What is tried at a path.
#[derive(Clone, Copy, Debug)]
pub(super) enum Errand {
    /// A look at what is there; a file is opened as it will be.
    Look(OFlags),
    /// To remove what is not there: refused by a file system that takes changes, and held by one that takes none now.
    Change,
}

/// Whether all that is asked of a path is answered in time, whatever the answers are. Where no process can be had, that is not
/// known, and the question itself has to be risked.
pub(super) fn comes_back_from(path: &Path, errand: Errand) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return true };
    sent_to(&path, errand).is_none_or(has_come_back)
}

fn has_come_back(scout: Pid) -> bool {
    let Ok(ends) = pidfd_open(scout, PidfdFlags::empty()) else { return true };
    let bound = Timespec::try_from(ANSWER_BOUND).ok();
    let mut ends = [PollFd::new(&ends, PollFlags::IN)];
    let is_back = matches!(poll(&mut ends, bound.as_ref()), Ok(1..));
    if is_back {
        let _ = waitpid(Some(scout), WaitOptions::empty());
    } else {
        // It ends when it is let go.
        let _ = kill_process(scout, Signal::KILL);
    }
    is_back
}

fn sent_to(path: &CStr, errand: Errand) -> Option<Pid> {
    // SAFETY: the child makes system calls only, and ends; nothing of what other threads of ours had under way is touched in it.
    let child = unsafe { libc::fork() };
    match child {
        0 => run(path, errand),
        1.. => Pid::from_raw(child),
        _ => None,
    }
}

/// In the child: what a look at a store asks, or a change there, then the end.
fn run(path: &CStr, errand: Errand) -> ! {
    // SAFETY: plain system calls on memory of this function, which outlives them.
    unsafe {
        // Whoever waits for the end of what we print is not to wait for this one, and no lock is to be held by it.
        libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0);
        let mut found: libc::statx = mem::zeroed();
        let (flags, wanted) = (libc::AT_STATX_FORCE_SYNC, libc::STATX_BASIC_STATS);
        libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, wanted, &raw mut found);
        match (u32::from(found.stx_mode) & libc::S_IFMT, errand) {
            // What is no file may have to be waited for, or have something happen, when it is opened.
            (libc::S_IFREG, Errand::Look(flags)) => {
                let flags = flags.bits().cast_signed() | libc::O_CLOEXEC;
                let file = libc::open(path.as_ptr(), flags);
                let mut byte = 0_u8;
                libc::pread(file, (&raw mut byte).cast(), 1, 0);
            }
            // The kernel waits for a file system that is frozen before it looks for the name (Linux, fs/namei.c, `do_rmdir`).
            (_, Errand::Change) => {
                libc::rmdir(path.as_ptr());
            }
            _ => {}
        }
        libc::_exit(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_there_it_comes_back() {
        for path in ["/proc/self/status", "/dev/null", "/nowhere/at/all", "/"] {
            for errand in [Errand::Look(OFlags::RDWR), Errand::Change] {
                assert!(comes_back_from(Path::new(path), errand), "{path}, {errand:?}");
            }
        }
    }
}
