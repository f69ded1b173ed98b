//! What waits for the guest's reset, and is made when one comes: no operating system has a disk then. A reset that nobody saw,
//! since the worker was being replaced or stood still, passes: what waits goes on waiting for the next one.

use hpvm_engine::devices::due::is_in_firmware;
use hpvm_engine::devices::{Bench, DeviceError, Performed};
use hpvm_model::chain;
use hpvm_plan::record::{Occasion, Outcome};

use super::*;

/// Where the owner stands with it.
#[derive(Default)]
pub(super) struct DueChanges {
    is_under_way: bool,
    /// There was a reset while something else was changed.
    missed: bool,
}

impl Driver {
    pub(super) fn after_reset(&mut self) {
        self.make_due(Occasion::Reset);
        if !self.due.is_under_way {
            self.look_at_devices();
        }
    }

    /// Makes what is due. Meanwhile no command changes anything.
    pub(super) fn make_due(&mut self, occasion: Occasion) {
        let (Some(client), Ok(known)) = (self.monitor.client().cloned(), &self.recorded.machine)
        else {
            return;
        };
        let machine = known.file.machine().clone();
        let due = machine.due(occasion);
        if due.is_empty() {
            return;
        }
        if self.changes.is_some() || self.due.is_under_way {
            self.due.missed |= occasion == Occasion::Reset;
            return;
        }
        self.due.is_under_way = true;
        self.feed(Input::ChangeBegun);
        let news = self.monitor.news();
        spawn_local(async move {
            // An event that lay about for long tells of a guest whose system has its disks again.
            if occasion == Occasion::PlaceFree || is_in_firmware(&client).await {
                let (_none, mut happenings) = mpsc::channel(1);
                let mut bench = Bench::of(&client, &machine, &mut happenings);
                for pending in due {
                    let result = bench.perform_prepared(pending.seq, &pending.change).await;
                    let _ = news.send(News::DueMade { seq: pending.seq, result }).await;
                }
            }
            let _ = news.send(News::DueOver).await;
        });
    }

    pub(super) fn due_made(&mut self, seq: u64, result: Result<Performed, DeviceError>) {
        self.settle(
            seq,
            match result {
                Ok(_) => Outcome::Done,
                Err(error) => Outcome::Failed(chain(&error)),
            },
        );
        if let Ok(known) = &self.recorded.machine {
            self.zeros.keep_those_of(known.file.machine());
        }
    }

    pub(super) fn due_over(&mut self) {
        self.due.is_under_way = false;
        self.feed(Input::ChangeOver);
        self.look_at_devices();
        self.make_missed();
    }

    /// A reset that came while something was changed, if it was not long ago.
    pub(super) fn make_missed(&mut self) {
        if std::mem::take(&mut self.due.missed) {
            self.make_due(Occasion::Reset);
        }
    }
}
