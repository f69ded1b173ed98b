//! What is left behind and what comes late: a dead keeper, changes of a worker before us, adapters that a guest lets go
//! long after it was asked.

use std::collections::BTreeSet;

use hpvm_engine::devices::Bench;
use hpvm_engine::devices::present::{self, Present, Repair};
use hpvm_model::{AdapterKind, PciSlot, chain};
use hpvm_plan::command_line::adapter_id;
use hpvm_plan::command_line::network::nic_id;
use hpvm_plan::record::{AdapterPresence, Attached, Occasion, Outcome, Pending};
use hpvm_qmp::Error;
use hpvm_qmp::command::{Cont, DeviceDel};

use super::due::Inherited;
use super::*;
use crate::changes::Changes;

/// What is still to be seen to of a worker before us.
pub(super) struct Takeover {
    /// It may have left things half done, which QEMU has not been asked about.
    is_due: bool,
    /// The next look at the devices is the first after it.
    inherits: bool,
    /// A look at the devices got no answer.
    owes_look: bool,
    /// A step of a change got none, and QEMU may still perform it.
    is_step_unanswered: bool,
    /// What it left half done is being undone. By a second undoing, whoever makes the change anew would lose it again.
    undoing: BTreeSet<u64>,
}

impl Takeover {
    pub(super) fn new(is_due: bool) -> Takeover {
        Takeover {
            is_due,
            inherits: false,
            owes_look: false,
            is_step_unanswered: false,
            undoing: BTreeSet::new(),
        }
    }

    /// What comes of it is put in order when QEMU answers again.
    pub(super) fn step_got_no_answer(&mut self) {
        self.is_step_unanswered = true;
        self.owes_look = true;
    }

    /// Whether it is known what was left half done, and undone.
    pub(super) fn is_over(&self) -> bool {
        !self.is_due && !self.inherits && self.undoing.is_empty()
    }
}

/// What a worker before us added only in part.
enum HalfDone {
    Attach(PciSlot, AdapterPresence, Vec<Attached>),
    Nic(PciSlot),
}

/// Whether the guest may be held while a change is made.
fn holds_guest(pending: &Pending) -> bool {
    use DeviceChange::{Attach, Detach};
    matches!(pending.change, Attach { kind: AdapterKind::Scsi, .. } | Detach { .. })
}

/// What a guest was asked to let go.
enum Leaving {
    Adapter,
    Nic(PciSlot),
}

impl Driver {
    /// A successor takes over with the next worker, so ours is done. Without one we go on, and try again each beat.
    pub(super) fn keeper_died(&mut self) {
        if std::mem::replace(&mut self.keeper.lives, false) {
            self.log.say("the keeper is gone");
        }
        let Some(qemu) = self.engine.alive() else { return self.engine_ended(Crash::Unseen) };
        let Some(program) = &self.keeper.program else { return };
        let folder = self.publisher.folder();
        let pid = self.engine.process().pid;
        let kept = self.stores.watch.for_next_workers();
        match successor::start(program, &self.keeper.launch, folder, (pid, qemu), kept) {
            Ok(()) => {
                self.log.say("started its successor; the next worker takes over");
                // Nothing is said to the old keeper or to those who wait: their connections end with us.
                std::process::exit(0);
            }
            Err(error) => {
                let error = chain(&error);
                self.tell_trouble(&format!("no successor of the keeper can be started: {error}"));
            }
        }
    }

    /// Once QEMU answers and what is held of stores for us has come, if anything is left to do. QEMU looks at each of its stores
    /// for it.
    pub(super) fn take_over(&mut self) {
        if self.takeover.is_due && self.stores.are_given() {
            self.when_stores_are_read(Driver::begin_takeover);
        }
    }

    fn begin_takeover(&mut self) {
        if !self.takeover.is_due || self.monitor.client().is_none() {
            return;
        }
        if !self.stores.may_be_touched() {
            return self.let_held_guest_go_on();
        }
        self.takeover.is_due = false;
        self.takeover.inherits = true;
        self.begin_look();
        self.take_copies_back();
    }

    /// The worker before us may have died while it held the guest for a change. That is put in order when all stores answer, and
    /// the guest needs not wait for it.
    fn let_held_guest_go_on(&self) {
        let Ok(known) = &self.recorded.machine else { return };
        if known.file.machine().pending.iter().any(holds_guest) {
            self.monitor.tell(Cont {});
        }
    }

    /// Has what was put off for silent stores found: all of them answer.
    pub(super) fn look_after_silence(&mut self) {
        if self.stores.was_put_off() {
            match self.takeover.is_due {
                true => self.take_over(),
                false => self.look_at_devices(),
            }
        }
    }

    /// Compares record and engine when events may have been missed. QEMU looks at each of its stores for that.
    pub(super) fn look_at_devices(&mut self) {
        self.when_stores_are_read(Driver::begin_look);
    }

    fn begin_look(&mut self) {
        if !self.stores.may_be_touched() {
            return;
        }
        let Some(client) = self.monitor.client().cloned() else {
            self.takeover.owes_look = true;
            return;
        };
        let (news, journal) = (self.monitor.news(), self.journal());
        spawn_local(async move {
            let answer = present::ask(&client).await;
            let _ = news.send(News::Present { journal, answer }).await;
        });
    }

    fn journal(&self) -> Journal {
        let Ok(known) = &self.recorded.machine else { return Journal::default() };
        let machine = known.file.machine();
        let under_way = self.changes.as_ref().and_then(Changes::under_way);
        Journal { asked: machine.next_seq, unsettled: machine.pending.len(), under_way }
    }

    /// One that got no answer is taken again when QEMU answers.
    pub(super) fn looked(&mut self, journal: Journal, answer: Result<Present, Error>) {
        match answer {
            Ok(present) => {
                self.when_stores_are_read(move |driver| driver.repair(journal, &present));
            }
            Err(_) => self.takeover.owes_look = true,
        }
    }

    pub(super) fn look_if_owed(&mut self) {
        if self.takeover.owes_look && !self.machine.is_silent() {
            self.takeover.owes_look = false;
            self.look_at_devices();
        }
    }

    /// What a change brought since the look was begun may be missing in it: then it is taken anew.
    fn repair(&mut self, journal: Journal, present: &Present) {
        if !self.stores.may_be_touched() {
            if self.takeover.inherits {
                self.let_held_guest_go_on();
            }
            return;
        }
        if journal != self.journal() {
            return self.look_at_devices();
        }
        let Ok(known) = &self.recorded.machine else {
            self.takeover.inherits = false;
            return;
        };
        let inherits = std::mem::take(&mut self.takeover.inherits);
        let may_be_held = inherits && known.file.machine().pending.iter().any(holds_guest);
        let repairs = present::repairs(known.file.machine(), present);
        let undoes = repairs.iter().any(|repair| matches!(repair, Repair::Undo { .. }));
        for repair in repairs {
            self.carry_out(repair);
        }
        if inherits {
            self.look_for_unwatched_again();
            // Undoing lets the guest go on by itself.
            let is_held = may_be_held && !undoes;
            self.due.inherit(if is_held { Inherited::HeldGuest } else { Inherited::Nodes });
        }
        if std::mem::take(&mut self.takeover.is_step_unanswered) {
            self.due.inherit(Inherited::Nodes);
        }
        self.go_on_if_over();
    }

    fn carry_out(&mut self, repair: Repair) {
        match repair {
            // A change under way settles itself.
            Repair::Settle { seq, .. }
            | Repair::AskAgain { seq, .. }
            | Repair::Undo { seq, .. }
            | Repair::AskAgainForNic { seq, .. }
            | Repair::UndoNic { seq, .. }
                if self.is_under_way(seq) => {}
            Repair::Gone { .. } | Repair::GoneNic { .. } if self.is_anything_under_way() => {}
            Repair::Settle { seq, outcome } => self.settle(seq, outcome),
            Repair::AskAgain { slot, .. } => {
                self.monitor.tell(DeviceDel { id: adapter_id(slot) });
            }
            Repair::Undo { seq, slot, adapter, devices } => {
                self.undo(seq, HalfDone::Attach(slot, adapter, devices));
            }
            Repair::Gone { address } => {
                self.log.say(&format!("the device at {address} is gone from the machine"));
                self.note(DeviceChange::Detach { address, consent: Consent::Given });
            }
            Repair::AskAgainForNic { slot, .. } => {
                self.monitor.tell(DeviceDel { id: nic_id(slot) });
            }
            Repair::UndoNic { seq, slot } => self.undo(seq, HalfDone::Nic(slot)),
            Repair::GoneNic { slot } => {
                self.log.say(&format!("the NIC at {slot} is gone from the machine"));
                self.note(DeviceChange::UnplugNic { slot });
            }
        }
    }

    /// Writes down what has happened without anybody having asked.
    fn note(&mut self, change: DeviceChange) {
        if let Ok(known) = &mut self.recorded.machine
            && let Ok(seq) = known.file.asked(&now(), change)
        {
            self.settle(seq, Outcome::Done);
        }
    }

    fn undo(&mut self, seq: u64, half_done: HalfDone) {
        let (Some(client), Ok(known)) = (self.monitor.client().cloned(), &self.recorded.machine)
        else {
            return;
        };
        self.takeover.undoing.insert(seq);
        let (machine, news) = (known.file.machine().clone(), self.monitor.news());
        spawn_local(async move {
            let (_none, mut happenings) = mpsc::channel(1);
            let mut bench = Bench::of(&client, &machine, &mut happenings);
            match half_done {
                HalfDone::Nic(slot) => bench.undo_nic(slot).await,
                HalfDone::Attach(slot, adapter, devices) => {
                    bench.undo_attach(slot, adapter, &devices).await;
                    // The worker before us may have held the guest for the change.
                    let _ = client.execute(&Cont {}).await;
                }
            }
            let _ = news.send(News::Undone { seq }).await;
        });
    }

    pub(super) fn undone(&mut self, seq: u64) {
        self.takeover.undoing.remove(&seq);
        self.settle(seq, Outcome::Failed(present::REPLACED.into()));
        self.go_on_if_over();
    }

    /// What has waited for it has its turn.
    fn go_on_if_over(&mut self) {
        self.make_missed();
        self.make_due(Occasion::PlaceFree);
        self.tell_if_in_order();
    }

    /// The machine has what came while it was not known what a worker before us left half done.
    pub(super) fn tell_if_in_order(&mut self) {
        if self.takeover.is_over() && !self.due.is_anything_left() {
            self.feed(Input::InOrder);
        }
    }

    /// The guest let go of something, perhaps long after it was asked.
    pub(super) fn let_go(&mut self, id: &str) {
        if let Some((seq, leaving)) = self.leaving(id) {
            self.settle(seq, Outcome::Done);
            match leaving {
                Leaving::Adapter => self.due.inherit(Inherited::Nodes),
                Leaving::Nic(slot) => self.discard_nic(slot),
            }
            self.make_due(Occasion::PlaceFree);
        }
    }

    pub(super) fn refused_to_let_go(&mut self, id: &str) {
        if let Some((seq, _)) = self.leaving(id) {
            self.settle(seq, Outcome::Failed("the guest refused to let it go".into()));
        }
    }

    /// The change that asked for this adapter or NIC to leave; one that is still being made settles itself.
    fn leaving(&self, id: &str) -> Option<(u64, Leaving)> {
        let machine = self.recorded.machine.as_ref().ok()?.file.machine();
        machine.pending.iter().find_map(|pending| match &pending.change {
            DeviceChange::DetachAdapter { slot }
                if adapter_id(*slot) == id && !self.is_under_way(pending.seq) =>
            {
                Some((pending.seq, Leaving::Adapter))
            }
            DeviceChange::UnplugNic { slot }
                if nic_id(*slot) == id && !self.is_under_way(pending.seq) =>
            {
                Some((pending.seq, Leaving::Nic(*slot)))
            }
            _ => None,
        })
    }

    fn is_under_way(&self, seq: u64) -> bool {
        let of_command = self.changes.as_ref().and_then(Changes::under_way);
        of_command == Some(seq) || self.due.is_making(seq) || self.takeover.undoing.contains(&seq)
    }

    pub(super) fn is_anything_under_way(&self) -> bool {
        self.changes.is_some() || self.due.is_under_way()
    }

    /// Takes away in QEMU what served a NIC that left.
    fn discard_nic(&self, slot: PciSlot) {
        let (Some(client), Ok(known)) = (self.monitor.client().cloned(), &self.recorded.machine)
        else {
            return;
        };
        let machine = known.file.machine().clone();
        spawn_local(async move {
            let (_none, mut happenings) = mpsc::channel(1);
            Bench::of(&client, &machine, &mut happenings).discard_nic(slot).await;
        });
    }

    pub(super) fn settle(&mut self, seq: u64, outcome: Outcome) {
        let change = self.recorded.change(seq);
        self.log.say(&match &outcome {
            Outcome::Done => format!("{change} is done"),
            Outcome::Failed(reason) => format!("{change} failed: {reason}"),
        });
        if let Ok(known) = &mut self.recorded.machine
            && let Err(error) = known.file.settled(&now(), seq, outcome)
        {
            self.log.say(&format!("it cannot be noted: {}", chain(&error)));
        }
        if self.changes.is_none() {
            self.forget_stores();
        }
        self.publish();
    }
}
