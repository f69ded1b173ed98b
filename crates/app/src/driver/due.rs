//! What waits for the guest's reset, and is made when one comes: no operating system has a disk then. One that is heard of late,
//! or found by the next worker, counts as long as firmware runs; when the operating system is back, it has passed, and what
//! waits goes on waiting for the next one.
//!
//! Nothing of it is made while a store is silent: QEMU would wait for that one, and the guest with it. What comes as soon as it
//! finds its place comes when all answer; what waits for a reset, at the next one if this one is long past.
//!
//! One change is made at a time, since each may free the place of the next. What commands want meanwhile waits, see
//! [`Input::ChangeBegun`]. So does what is due, as long as it is not known and undone what a worker before us left half done.

use std::collections::BTreeSet;

use hpvm_engine::devices::due::is_in_firmware;
use hpvm_engine::devices::{Bench, DeviceError, Performed};
use hpvm_model::{PciSlot, chain};
use hpvm_plan::command_line::adapter_id;
use hpvm_plan::record::{self, Occasion, Outcome, Pending};
use hpvm_qmp::client::Client;
use hpvm_qmp::command::Cont;

use super::*;

/// Where the owner stands with it.
#[derive(Default)]
pub(super) struct DueChanges {
    under_way: Option<Round>,
    /// There was a reset while something else was changed.
    missed: bool,
    /// What was tried since the last reset. It is not tried again, also when what came of it cannot be noted.
    tried: BTreeSet<u64>,
    /// What is to be put in order after the worker before us.
    inherited: Option<Inherited>,
    /// It is over, but for QEMU, which has closed the connection.
    waits_for_qemu: bool,
}

struct Round {
    occasion: Occasion,
    /// The change that is being made.
    seq: Option<u64>,
}

/// How a worker before us may have left QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Inherited {
    /// With nodes that nobody has.
    Nodes,
    /// The same, and the guest held, while something was plugged in.
    HeldGuest,
}

impl DueChanges {
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Whether something is still to be made, or put in order.
    pub(super) fn is_anything_left(&self) -> bool {
        self.under_way.is_some() || self.inherited.is_some()
    }

    pub(super) fn is_making(&self, seq: u64) -> bool {
        self.under_way.as_ref().is_some_and(|round| round.seq == Some(seq))
    }

    /// To be put in order when what is due has been made.
    pub(super) fn inherit(&mut self, inherited: Inherited) {
        self.inherited = self.inherited.max(Some(inherited));
    }
}

impl Driver {
    pub(super) fn after_reset(&mut self) {
        self.make_due(Occasion::Reset);
        if !self.due.is_under_way() {
            self.look_at_devices();
        }
    }

    /// Makes what is due.
    pub(super) fn make_due(&mut self, occasion: Occasion) {
        if self.monitor.client().is_none() {
            return;
        }
        let is_reset = occasion == Occasion::Reset;
        if is_reset {
            self.due.tried.clear();
        }
        if self.next_due(occasion).is_none() && self.due.inherited.is_none() {
            return;
        }
        // Who ends what is in the way comes back, and who looks at the devices when all stores answer.
        if self.is_anything_under_way() || !self.takeover.is_over() || !self.stores.may_be_touched()
        {
            self.due.missed |= is_reset;
            return;
        }
        self.due.under_way = Some(Round { occasion, seq: None });
        self.feed(Input::ChangeBegun);
        self.make_next_due();
    }

    fn next_due(&self, occasion: Occasion) -> Option<Pending> {
        let known = self.recorded.machine.as_ref().ok()?;
        let due = known.file.machine().due(occasion);
        due.into_iter().find(|pending| !self.due.tried.contains(&pending.seq))
    }

    fn make_next_due(&mut self) {
        self.when_stores_are_read(Driver::begin_next_due);
    }

    fn begin_next_due(&mut self) {
        let occasion = self.due.under_way.as_ref().map(|round| round.occasion);
        let next = occasion.and_then(|occasion| self.next_due(occasion));
        if (next.is_some() || self.due.inherited.is_some()) && !self.stores.may_be_touched() {
            self.due.missed |= occasion == Some(Occasion::Reset);
            return self.due_over();
        }
        let news = self.monitor.news();
        let (Some(round), Some(client), Ok(known)) =
            (&mut self.due.under_way, self.monitor.client().cloned(), &self.recorded.machine)
        else {
            return self.due_over();
        };
        let machine = known.file.machine().clone();
        if let Some(pending) = next {
            let is_first = round.seq.replace(pending.seq).is_none();
            let leaves = matches!(pending.change, DeviceChange::Detach { .. });
            let needs_look = occasion == Some(Occasion::Reset) && (is_first || leaves);
            spawn_local(async move {
                let made = make(&client, &machine, &pending, needs_look).await;
                let _ = news.send(made).await;
            });
        } else if let Some(inherited) = self.due.inherited.take() {
            spawn_local(async move {
                put_in_order(&client, &machine, inherited).await;
                let _ = news.send(News::DueOver).await;
            });
        } else {
            self.due_over();
        }
    }

    pub(super) fn due_made(&mut self, seq: u64, result: Result<Performed, DeviceError>) {
        self.due.tried.insert(seq);
        match result {
            Ok(_) => self.settle(seq, Outcome::Done),
            // Whether it was made is seen when QEMU is, if it has not ended.
            Err(DeviceError::Engine(error)) if error.ends_connection() => {}
            Err(error) => {
                if error.is_unanswered() {
                    self.takeover.step_got_no_answer();
                }
                self.settle(seq, Outcome::Failed(chain(&error)));
            }
        }
        if let Ok(known) = &self.recorded.machine {
            self.zeros.keep_those_of(known.file.machine());
        }
        self.make_next_due();
    }

    /// The adapter that was in the way has left, and that is noted before the next one comes.
    pub(super) fn due_place_free(&mut self, slot: PciSlot) {
        self.let_go(&adapter_id(slot));
        let known = self.recorded.machine.as_ref().ok();
        match known.is_some_and(|known| known.file.machine().is_leaving(slot)) {
            true => self.due_over(),
            false => self.make_next_due(),
        }
    }

    pub(super) fn due_too_late(&mut self) {
        self.log.say("an operating system runs again: what waited for the guest's reset waits for the next one");
        self.due_over();
    }

    /// Whoever waits for it has his turn, or hears of the guest's end if that is why QEMU cannot be asked.
    pub(super) fn due_over(&mut self) {
        self.due.waits_for_qemu = self.monitor.client().is_none();
        if self.due.waits_for_qemu {
            return;
        }
        self.due.under_way = None;
        self.make_missed();
        if !self.due.is_under_way() {
            self.tell_if_in_order();
            self.feed(Input::ChangeOver);
            self.look_at_devices();
        }
    }

    pub(super) fn due_over_if_qemu_was_missing(&mut self) {
        if self.due.waits_for_qemu {
            self.due_over();
        }
    }

    /// What is due at a reset that came while something else had to be done, if that was not long ago.
    pub(super) fn make_missed(&mut self) {
        if std::mem::take(&mut self.due.missed) {
            self.make_due(Occasion::Reset);
        }
    }
}

/// Makes one change. News of a reset may be old, and what is made at one may take until the guest has a system again, which
/// then keeps its disks.
async fn make(
    client: &Client,
    machine: &record::Machine,
    pending: &Pending,
    needs_look: bool,
) -> News {
    if needs_look && !is_in_firmware(client).await {
        return News::DueTooLate;
    }
    let (_none, mut happenings) = mpsc::channel(1);
    let mut bench = Bench::of(client, machine, &mut happenings);
    if let DeviceChange::Attach { slot, .. } = pending.change
        && machine.is_leaving(slot)
    {
        return match bench.until_adapter_left(slot).await {
            true => News::DuePlaceFree { slot },
            false => News::DueOver,
        };
    }
    let result = bench.perform_prepared(pending.seq, &pending.change).await;
    News::DueMade { seq: pending.seq, result }
}

async fn put_in_order(client: &Client, machine: &record::Machine, inherited: Inherited) {
    if inherited == Inherited::HeldGuest {
        // One that runs runs on.
        let _ = client.execute(&Cont {}).await;
    }
    let (_none, mut happenings) = mpsc::channel(1);
    Bench::of(client, machine, &mut happenings).close_strays().await;
}
