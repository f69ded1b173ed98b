//! A guest whose end is decided and whose QEMU has yet to go: when to tell QEMU again, and who waits for the end.

use std::time::Duration;

use hpvm_app::protocol::Reply;
use hpvm_app::snapshot::Ending;

use super::{Action, Ticket};

/// QEMU that was killed and has not ended by then was perhaps not ours to kill: it is asked as well.
const END_ASK: Duration = Duration::from_millis(30);
/// QEMU that was told to end and has not is told again, harder; by its monitor only where it cannot have heard it.
const END_AGAIN: Duration = Duration::from_millis(150);
/// An orderly end may still write for so long before it is cut short.
const ORDERLY_BOUND: Duration = Duration::from_secs(5);
/// A process that was killed is gone within milliseconds, unless the kernel waits for its I/O; and of a store that leaves a
/// request unanswered the watch tells within two seconds. After one more both are known.
const HELD_BOUND: Duration = Duration::from_secs(3);
/// Those who wait for the end of a QEMU that does not end are told so.
const END_BOUND: Duration = Duration::from_secs(20);

/// How the guest ends is decided; QEMU has yet to go.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Closing {
    pub(super) how: Ending,
    since: Duration,
    told_at: Duration,
    pub(super) waiting: Vec<(Ticket, Reply)>,
}

impl Closing {
    pub(super) fn begin(how: Ending, now: Duration, waiting: Vec<(Ticket, Reply)>) -> Closing {
        Closing { how, since: now, told_at: now, waiting }
    }

    pub(super) fn wake_at(&self) -> Duration {
        self.told_at + self.patience()
    }

    /// Another one waits for the end.
    pub(super) fn join(&mut self, ticket: Ticket) {
        let text = "the guest was being stopped already".into();
        self.waiting.push((ticket, Reply::Already { text }));
    }

    fn patience(&self) -> Duration {
        match self.told_at == self.since {
            true => END_ASK,
            false => END_AGAIN,
        }
    }

    /// One of the two ways may be shut: a successor of a dead keeper may not signal QEMU, a hanging QEMU answers nothing.
    pub(super) fn tick(
        &mut self,
        now: Duration,
        silent_stores: Option<&str>,
        actions: &mut Vec<Action>,
    ) {
        if now < self.told_at + self.patience() {
            return;
        }
        self.told_at = now;
        actions.push(Action::Quit);
        let kill_at = match self.how {
            Ending::StoppedHard => self.since,
            _ => self.since + ORDERLY_BOUND,
        };
        if now >= kill_at {
            actions.push(Action::Kill);
        }
        if let Some(by) = silent_stores.filter(|_| now >= kill_at + HELD_BOUND) {
            for (ticket, _) in self.waiting.drain(..) {
                actions.push(Action::Reply(ticket, Reply::Held { by: by.to_owned() }));
            }
        }
        if now >= self.since + END_BOUND {
            let error = "the engine has not ended yet although it was killed; it hangs in the kernel, perhaps on a disk that does not answer";
            for (ticket, _) in self.waiting.drain(..) {
                actions.push(Action::Reply(ticket, Reply::Failed { error: error.into() }));
            }
        }
    }
}
