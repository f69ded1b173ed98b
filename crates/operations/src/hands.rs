//! Threads beside a command, which have a processor of their own where there is one, and what they are given to do.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::{io, iter, thread};

use rustix::io::Errno;

/// Work for a thread.
pub(crate) type Task = Box<dyn FnOnce() + Send>;

/// Two threads that do what they are given, in the order in which it comes. A store that never answers may hold one; the other
/// goes on. Whoever gives nothing more drops them.
#[derive(Clone)]
pub(crate) struct Hands(Arc<Giver>);

struct Giver {
    tasks: Arc<Tasks>,
    /// Why there is nobody to give anything to, where there is not.
    unheard: Option<Errno>,
}

#[derive(Default)]
struct Tasks {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    left: VecDeque<Task>,
    /// There will be no more.
    is_closed: bool,
}

/// The command's only ones.
static BEGUN: Mutex<Option<Hands>> = Mutex::new(None);

/// Starts them, for a command that will need them whatever its options say: while these are read.
pub fn begin() {
    *locked(&BEGUN) = Some(Hands::started());
}

impl Hands {
    /// Those that were started, or others.
    pub(crate) fn at_work() -> Hands {
        let begun = locked(&BEGUN).take();
        begun.unwrap_or_else(Hands::started)
    }

    fn started() -> Hands {
        let tasks = Arc::new(Tasks::default());
        let work = |tasks: Arc<Tasks>| {
            let one_by_one = move || iter::from_fn(|| tasks.next()).for_each(|task| task());
            thread::Builder::new().spawn(one_by_one)
        };
        // One alone could be held.
        let started = work(Arc::clone(&tasks)).and_then(|_| work(Arc::clone(&tasks)));
        let unheard =
            started.err().map(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN));
        Hands(Arc::new(Giver { tasks, unheard }))
    }

    pub(crate) fn give(&self, task: Task) -> io::Result<()> {
        let Giver { tasks, unheard } = &*self.0;
        if let Some(errno) = *unheard {
            return Err(errno.into());
        }
        locked(&tasks.state).left.push_back(task);
        tasks.changed.notify_one();
        Ok(())
    }

    /// Has something done of which somebody wants to know what came of it.
    pub(crate) fn begin<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Pending<T> {
        let (tell, told) = channel();
        let work: Arc<Mutex<Option<Work<T>>>> = Arc::new(Mutex::new(Some(Box::new(work))));
        let given = Arc::clone(&work);
        let task = move || {
            let work = locked(&given).take();
            // Who waits for it may have given up.
            let _ = work.map(|work| tell.send(work()));
        };
        // Where there is nobody, it stays with whoever waits for it.
        let _ = self.give(Box::new(task));
        Pending { work, told }
    }
}

impl Tasks {
    /// Waits for one; `None`: there will be none.
    fn next(&self) -> Option<Task> {
        let nothing = |state: &mut State| state.left.is_empty() && !state.is_closed;
        let state = self.changed.wait_while(locked(&self.state), nothing);
        state.unwrap_or_else(PoisonError::into_inner).left.pop_front()
    }
}

impl Drop for Giver {
    fn drop(&mut self) {
        locked(&self.tasks.state).is_closed = true;
        self.tasks.changed.notify_all();
    }
}

type Work<T> = Box<dyn FnOnce() -> T + Send>;

/// What comes of some work. Whoever waits for it does the work himself where nobody has begun it.
pub(crate) struct Pending<T> {
    work: Arc<Mutex<Option<Work<T>>>>,
    told: Receiver<T>,
}

impl<T> Pending<T> {
    pub(crate) fn wait(self) -> T {
        let left = locked(&self.work).take();
        left.map_or_else(|| self.told.recv().expect("who begins some work ends it"), |work| work())
    }
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_never_ends_holds_no_other_up() {
        let hands = Hands::started();
        let held = || {
            loop {
                thread::park();
            }
        };
        hands.give(Box::new(held)).unwrap();
        let (tell, told) = channel();
        hands.give(Box::new(move || tell.send(thread::current().id()).unwrap())).unwrap();
        assert_ne!(told.recv().unwrap(), thread::current().id());
    }

    #[test]
    fn work_that_nobody_begins_is_done_by_who_waits_for_it() {
        let nobody = Hands(Arc::new(Giver { tasks: Arc::default(), unheard: Some(Errno::AGAIN) }));
        assert!(nobody.give(Box::new(|| {})).is_err());
        let own = thread::current().id();
        assert_eq!(nobody.begin(|| thread::current().id()).wait(), own);
    }
}
