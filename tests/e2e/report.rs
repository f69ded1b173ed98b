//! How long each test took and which took longest, and in short why others failed: what is printed meanwhile is long.

use std::any::Any;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hpvm_testkit::processors;

static TIMES: Mutex<Vec<(&str, Duration)>> = Mutex::new(Vec::new());
static FAILURES: Mutex<Vec<(&str, String)>> = Mutex::new(Vec::new());

/// How much of a failure's message is told again.
const MESSAGE_CHARS: usize = 400;

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
    if let Err(panic) = catch_unwind(test) {
        if let Ok(mut failures) = FAILURES.lock() {
            failures.push((name, message(&*panic)));
        }
        resume_unwind(panic);
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    text.chars().take(MESSAGE_CHARS).collect()
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

/// Prints why tests failed.
pub(crate) fn failures() {
    let Ok(failures) = FAILURES.lock() else { return };
    for (name, message) in failures.iter() {
        println!("{name} failed: {message}");
    }
}
