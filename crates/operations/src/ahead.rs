//! What the making of a guest begins with while its options are still read, since it is the same for every guest: two threads,
//! which have their own processor where there is one, and the opening of the registry.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::{io, iter, thread};

use hpvm_host::Root;
use hpvm_registry::{Access, Registry, RegistryError};

/// Work for a thread.
pub(crate) type Task = Box<dyn FnOnce() + Send>;

/// Two threads that do what they are given, in the order in which it comes. A store that never answers may hold one; the other
/// goes on. Whoever gives nothing more drops them.
#[derive(Clone)]
pub(crate) struct Hands(Arc<Giver>);

struct Giver {
    tasks: Arc<Tasks>,
    /// Whether there is anybody to give anything to.
    is_heard: bool,
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

impl Hands {
    /// Has them begin with a task. It is there for whoever comes second: where there are two processors, the first thread has to
    /// share that of who starts it.
    fn at_work(begin: Task) -> Hands {
        let tasks = Arc::new(Tasks::default());
        let work = |tasks: Arc<Tasks>| {
            let one_by_one = move || iter::from_fn(|| tasks.next()).for_each(|task| task());
            thread::Builder::new().spawn(one_by_one)
        };
        let first = work(Arc::clone(&tasks));
        locked(&tasks.state).left.push_back(begin);
        // One alone could be held.
        let is_heard = first.and_then(|_| work(Arc::clone(&tasks))).is_ok();
        Hands(Arc::new(Giver { tasks, is_heard }))
    }

    pub(crate) fn give(&self, task: Task) -> io::Result<()> {
        let Giver { tasks, is_heard: true } = &*self.0 else {
            return Err(io::Error::other("no thread can be started"));
        };
        locked(&tasks.state).left.push_back(task);
        tasks.changed.notify_one();
        Ok(())
    }

    /// Has something done of which somebody wants to know what came of it.
    pub(crate) fn begin<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Pending<T> {
        let (task, pending) = Pending::of(work);
        // Where there is nobody, it stays with whoever waits for it.
        let _ = self.give(task);
        pending
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

impl<T: Send + 'static> Pending<T> {
    fn of(work: impl FnOnce() -> T + Send + 'static) -> (Task, Pending<T>) {
        let (tell, told) = channel();
        let work: Arc<Mutex<Option<Work<T>>>> = Arc::new(Mutex::new(Some(Box::new(work))));
        let given = Arc::clone(&work);
        let task = move || {
            let work = locked(&given).take();
            // Who waits for it may have given up.
            let _ = work.map(|work| tell.send(work()));
        };
        (Box::new(task), Pending { work, told })
    }

    pub(crate) fn wait(self) -> T {
        let left = locked(&self.work).take();
        left.map_or_else(|| self.told.recv().expect("who begins some work ends it"), |work| work())
    }
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The threads, and what they open.
pub(crate) struct Ahead {
    pub(crate) hands: Hands,
    /// `None`: there is none yet.
    pub(crate) registry: Pending<Option<Result<Registry, RegistryError>>>,
}

/// The command's only one.
static BEGUN: Mutex<Option<Ahead>> = Mutex::new(None);

/// Begins with it, before it is known what the command is to do.
pub fn begin() {
    *locked(&BEGUN) = Some(Ahead::begun());
}

impl Ahead {
    /// What was begun, or is now.
    pub(crate) fn take() -> Ahead {
        let begun = locked(&BEGUN).take();
        begun.unwrap_or_else(Ahead::begun)
    }

    fn begun() -> Ahead {
        let (open, registry) = Pending::of(|| {
            let registry = Root::from_environment().ok()?.db();
            registry.exists().then(|| Registry::open(&registry, Access::ReadWrite))
        });
        Ahead { hands: Hands::at_work(open), registry }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_never_ends_holds_no_other_up() {
        let hands = Hands::at_work(Box::new(|| {}));
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
        let nobody = Hands(Arc::new(Giver { tasks: Arc::default(), is_heard: false }));
        assert!(nobody.give(Box::new(|| {})).is_err());
        let own = thread::current().id();
        assert_eq!(nobody.begin(|| thread::current().id()).wait(), own);
    }
}
