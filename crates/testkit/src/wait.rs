//! Waiting for a state, with a bound. Nothing in a test sleeps for a time it hopes to be enough.

use std::time::{Duration, Instant};

use rustix::event::{Timespec, poll};

/// Looks again every few milliseconds until `reached`; panics, naming what was waited for, when the bound is over.
#[track_caller]
pub fn wait_until(bound: Duration, what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + bound;
    while !reached() {
        assert!(Instant::now() < deadline, "not within {bound:?}: {what}");
        let pause = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        let _ = poll(&mut [], Some(&pause));
    }
}
