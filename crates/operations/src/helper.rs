//! A thread beside a command, which has a processor of its own where there is one, and what it is given to do.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::{io, iter, thread};

use hpvm_host::threads::spawn_elsewhere;
use rustix::io::Errno;

/// Work for a thread.
pub(crate) type Task = Box<dyn FnOnce() + Send>;

/// A thread that does what it is given, in the order in which it comes, until this is dropped. A store that never answers may
/// hold it for ever, and what it was given after that stays undone.
pub(crate) struct Helper {
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

impl Helper {
    pub(crate) fn started() -> Helper {
        let tasks = Arc::new(Tasks::default());
        let own = Arc::clone(&tasks);
        let one_by_one = move || iter::from_fn(|| own.next()).for_each(|task| task());
        let started = spawn_elsewhere(one_by_one);
        let unheard =
            started.err().map(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN));
        Helper { tasks, unheard }
    }

    pub(crate) fn give(&self, task: Task) -> io::Result<()> {
        if let Some(errno) = self.unheard {
            return Err(errno.into());
        }
        locked(&self.tasks.state).left.push_back(task);
        self.tasks.changed.notify_one();
        Ok(())
    }

    /// Has something done of which somebody wants to know what came of it.
    pub(crate) fn begin<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Pending<T> {
        let pending = Pending::of(work);
        // Where there is nobody, it stays with whoever waits for it.
        let _ = self.give(pending.given());
        pending
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        locked(&self.tasks.state).is_closed = true;
        self.tasks.changed.notify_one();
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

/// What comes of some work. Whoever begins it first does it.
pub(crate) struct Pending<T> {
    /// While nobody has begun it.
    task: Arc<Mutex<Option<Task>>>,
    told: Receiver<T>,
}

impl<T: Send + 'static> Pending<T> {
    /// Of what nobody was given to do.
    pub(crate) fn of(work: impl FnOnce() -> T + Send + 'static) -> Pending<T> {
        let (tell, told) = channel();
        // Who waits for it may have given up.
        let task: Task = Box::new(move || drop(tell.send(work())));
        Pending { task: Arc::new(Mutex::new(Some(task))), told }
    }

    fn given(&self) -> Task {
        let task = Arc::clone(&self.task);
        Box::new(move || {
            let left = locked(&task).take();
            left.into_iter().for_each(|task| task());
        })
    }

    /// Has a thread of its own begin it where whoever was given it has not.
    pub(crate) fn hurry(&self) -> io::Result<()> {
        let left = locked(&self.task).take();
        left.map_or(Ok(()), by_a_thread)
    }

    /// Waits for it, or does it where nobody has begun it.
    pub(crate) fn wait(self) -> T {
        let left = locked(&self.task).take();
        left.into_iter().for_each(|task| task());
        self.told.recv().expect("who begins some work ends it")
    }

    /// Waits for what was begun; nobody begins it any more.
    pub(crate) fn give_up(self) -> Option<T> {
        let left = locked(&self.task).take();
        if left.is_some() { None } else { self.told.recv().ok() }
    }
}

/// Has a thread of its own do it.
pub(crate) fn by_a_thread(task: Task) -> io::Result<()> {
    thread::Builder::new().spawn(task).map(drop)
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::thread::ThreadId;

    use super::*;

    fn who() -> ThreadId {
        thread::current().id()
    }

    #[test]
    fn what_waits_behind_a_task_that_never_ends_is_done_by_somebody_else() {
        let helper = Helper::started();
        let (tell, told) = channel();
        let held = move || {
            tell.send(()).unwrap();
            loop {
                thread::park();
            }
        };
        helper.give(Box::new(held)).unwrap();
        told.recv().unwrap();
        assert_eq!(helper.begin(who).wait(), who());
        let hurried = helper.begin(who);
        hurried.hurry().unwrap();
        assert_ne!(hurried.wait(), who());
        assert_eq!(helper.begin(who).give_up(), None);
    }

    #[test]
    fn work_that_nobody_begins_is_done_by_who_waits_for_it() {
        let nobody = Helper { tasks: Arc::default(), unheard: Some(Errno::AGAIN) };
        assert!(nobody.give(Box::new(|| {})).is_err());
        assert_eq!(nobody.begin(who).wait(), who());
    }
}
