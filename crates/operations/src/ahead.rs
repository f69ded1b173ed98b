//! What the making of a guest begins with while its options are still read, since it is the same for every guest: two threads,
//! which have their own processor where there is one, and the look for what the VM Host uses.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::stores::InUse;

/// Work for a thread.
pub(crate) type Task = Box<dyn FnOnce() + Send>;

/// Two threads that do what they are given, in the order in which it comes. A store that never answers may hold one; the other
/// goes on.
#[derive(Clone, Debug)]
pub(crate) struct Hands(Sender<Task>);

impl Hands {
    const NUMBER: usize = 2;

    fn at_work() -> Hands {
        let (give, given) = channel::<Task>();
        let given = Arc::new(Mutex::new(given));
        for _ in 0..Hands::NUMBER {
            let given = Arc::clone(&given);
            // Where no thread can be had, there is nobody to give anything to.
            let _ = thread::Builder::new().spawn(move || {
                while let Some(task) = next(&given) {
                    task();
                }
            });
        }
        Hands(give)
    }

    /// Has it done; whoever gives nothing more drops the hands, which ends them.
    pub(crate) fn give(&self, task: Task) -> io::Result<()> {
        self.0.send(task).map_err(|_| io::Error::other("no thread can be started"))
    }
}

fn next(given: &Mutex<Receiver<Task>>) -> Option<Task> {
    given.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// The threads, and what they look for.
#[derive(Debug)]
pub(crate) struct Ahead {
    pub(crate) hands: Hands,
    pub(crate) in_use: Receiver<InUse>,
}

/// The command's only one.
static BEGUN: Mutex<Option<Ahead>> = Mutex::new(None);

/// Begins with it, before it is known what the command is to do.
pub fn begin() {
    *BEGUN.lock().unwrap_or_else(PoisonError::into_inner) = Some(Ahead::begun());
}

impl Ahead {
    /// What was begun, or is now.
    pub(crate) fn take() -> Ahead {
        let begun = BEGUN.lock().unwrap_or_else(PoisonError::into_inner).take();
        begun.unwrap_or_else(Ahead::begun)
    }

    fn begun() -> Ahead {
        let hands = Hands::at_work();
        let (tell, in_use) = channel();
        // Who waits for it may have given up, and without threads looks himself.
        let _ = hands.give(Box::new(move || drop(tell.send(InUse::look()))));
        Ahead { hands, in_use }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_task_that_never_ends_holds_no_other_up() {
        let Ahead { hands, in_use } = Ahead::take();
        hands
            .give(Box::new(|| {
                loop {
                    thread::park();
                }
            }))
            .unwrap();
        let (tell, told) = channel();
        for number in 0..3 {
            let tell = tell.clone();
            hands.give(Box::new(move || tell.send(number).unwrap())).unwrap();
        }
        let bound = Duration::from_secs(10);
        let done: Vec<_> = (0..3).map(|_| told.recv_timeout(bound).unwrap()).collect();
        assert_eq!(done, [0, 1, 2]);
        in_use.recv_timeout(bound).unwrap();
    }
}
