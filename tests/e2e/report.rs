//! How long each test took, and which took longest.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use hpvm_testkit::processors;

static TIMES: Mutex<Vec<(&str, Duration)>> = Mutex::new(Vec::new());

/// Runs a test and remembers its time, also when it fails; what it waited for a processor is not its own.
pub(crate) fn timed(name: &'static str, test: fn()) {
    struct Timed(&'static str, Instant);
    impl Drop for Timed {
        fn drop(&mut self) {
            let took = self.1.elapsed().saturating_sub(processors::give_back());
            if let Ok(mut times) = TIMES.lock() {
                times.push((self.0, took));
            }
        }
    }
    let _timed = Timed(name, Instant::now());
    test();
}

/// Prints the slowest tests of the run.
pub(crate) fn slowest(count: usize) {
    let Ok(mut times) = TIMES.lock() else { return };
    times.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
    println!("the {} slowest tests:", times.len().min(count));
    for (name, time) in times.iter().take(count) {
        println!("{:8.2} s  {name}", time.as_secs_f64());
    }
}
