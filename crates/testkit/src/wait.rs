//! Waiting for a state, with a bound. Nothing in a test sleeps for a time it hopes to be enough.

use std::time::{Duration, Instant};

use hpvm_host::lock::pause_for;

/// Looks again every few milliseconds until `reached`; panics, naming what was waited for, when the bound is over.
#[track_caller]
pub fn wait_until(bound: Duration, what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + bound;
    while !reached() {
        assert!(Instant::now() < deadline, "not within {bound:?}: {what}");
        pause_for(Duration::from_millis(5));
    }
}
