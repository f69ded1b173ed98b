//! Guests are emulated: one that is at work takes a whole processor. So no more tests at a time have guests than there are
//! processors; tests of the fake engine mostly wait, and run beside them.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What tests have their bounds for.
const PROCESSORS: usize = 2;

static TAKEN: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

thread_local! {
    static OURS: Cell<Option<Processor>> = const { Cell::new(None) };
}

/// One that a test has taken.
struct Processor {
    waited: Duration,
}

impl Drop for Processor {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}

/// Waits until there is a processor for the guests of this thread's test, which has it until [`give_back`] or the thread's
/// end.
pub fn take() {
    let ours = OURS.take().unwrap_or_else(|| {
        let began = Instant::now();
        let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let free = FREED.wait_while(taken, |taken| *taken >= PROCESSORS);
        *free.unwrap_or_else(PoisonError::into_inner) += 1;
        Processor { waited: began.elapsed() }
    });
    OURS.set(Some(ours));
}

/// At the end of a test; gives how long it had waited for one.
pub fn give_back() -> Duration {
    OURS.take().map_or(Duration::ZERO, |ours| ours.waited)
}
