//! What the machine makes of requests: what is refused in which state, and the two ways to stop.

use std::time::Duration;

use hpvm_app::protocol::{Denial, Reply, StopHow};
use hpvm_app::snapshot::Ending;

use super::graceful::Graceful;
use super::{
    Action, Ask, Changing, Copy, Devices, Machine, ORDER_PATIENCE, Origin, PutOff, Silence, State,
    Ticket,
};

impl Machine {
    pub(super) fn asked(
        &mut self,
        now: Duration,
        ticket: Ticket,
        ask: Ask,
        actions: &mut Vec<Action>,
    ) {
        // Whatever else is under way.
        if let Ask::Stop(StopHow::Hard) = ask {
            return self.hard_stop(now, ticket, actions);
        }
        if let Some(reason) = self.why_not(now, ask) {
            return deny(ticket, reason, actions);
        }
        if let Some(silence) = self.silent_stores.as_ref().filter(|_| ask.needs_stores()) {
            actions.push(Action::Log(format!("a request waits for {}", silence.words)));
        }
        self.begin_or_put_off(now, PutOff { ticket, ask, since: now }, actions);
    }

    /// Whether what waits may begin, or waits no longer.
    pub(super) fn judge_put_off(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for waits in std::mem::take(&mut self.put_off) {
            match self.why_not(now, waits.ask) {
                Some(reason) => deny(waits.ticket, reason, actions),
                None => self.begin_or_put_off(now, waits, actions),
            }
        }
    }

    fn begin_or_put_off(&mut self, now: Duration, waits: PutOff, actions: &mut Vec<Action>) {
        let PutOff { ticket, ask, since } = waits;
        let waits_for_stores = ask.needs_stores() && self.silent_stores.is_some();
        let waits_for_order = self.waits_for_order(ask);
        if !waits_for_stores && !waits_for_order {
            self.begin(now, ticket, ask, actions);
        } else if waits_for_order && now >= since + ORDER_PATIENCE {
            deny(ticket, Denial::Busy, actions);
        } else {
            self.put_off.push(PutOff { ticket, ask, since });
        }
    }

    /// Beside a silent store nothing is put in order, and NICs need not wait for that.
    fn waits_for_order(&self, ask: Ask) -> bool {
        let is_disorder = self.inherits && self.silent_stores.is_none();
        ask.needs_order() && (is_disorder || self.changing == Changing::AsDue)
    }

    /// When it waits no longer.
    pub(super) fn bound_of(&self, waits: &PutOff) -> Option<Duration> {
        let silence = self.silent_stores.as_ref().filter(|_| waits.ask.needs_stores());
        let of_order = self.waits_for_order(waits.ask).then(|| waits.since + ORDER_PATIENCE);
        silence.map(Silence::bound).into_iter().chain(of_order).min()
    }

    fn begin(&mut self, now: Duration, ticket: Ticket, ask: Ask, actions: &mut Vec<Action>) {
        match ask {
            Ask::Ping => actions.push(Action::Reply(ticket, Reply::Done)),
            Ask::Stop(StopHow::Hard) => self.hard_stop(now, ticket, actions),
            Ask::Idle => actions.push(Action::ReadIdle(ticket)),
            Ask::Counters => actions.push(Action::ReadCounters(ticket)),
            Ask::Change | Ask::ChangeWithoutStores => {
                self.changing = Changing::AsAsked;
                actions.push(Action::BeginChange(ticket));
            }
            Ask::Copy => {
                self.copy = Copy::UnderWay;
                actions.push(Action::BeginCopy(ticket));
            }
            Ask::Stop(StopHow::Graceful { seconds_max }) => {
                self.graceful_stop(now, ticket, Duration::from_secs(seconds_max.into()), actions);
            }
        }
    }

    /// Who asks while a stop is under way waits for its outcome with the others.
    fn graceful_stop(
        &mut self,
        now: Duration,
        ticket: Ticket,
        bound: Duration,
        actions: &mut Vec<Action>,
    ) {
        match &mut self.state {
            State::Stopping { graceful, .. } => return graceful.join(ticket),
            State::Closing { closing, .. } => return closing.join(ticket),
            _ => {}
        }
        let (occupant, hold) = (self.occupant(), self.hold().cloned());
        let graceful = Graceful::begin(ticket, now, bound);
        self.state = State::Stopping { graceful, occupant, hold };
        actions.push(Action::Log("the guest is asked to shut down".into()));
        actions.push(Action::Publish);
        self.tick(now, actions);
    }

    /// The one place that says which request is refused in which state.
    fn why_not(&self, now: Duration, ask: Ask) -> Option<Denial> {
        let looks = matches!(ask, Ask::Idle | Ask::Counters);
        let needs_devices = looks || ask.changes() || ask == Ask::Copy;
        let silence = self.silent_stores.as_ref().filter(|_| ask.needs_stores());
        let silent_store = silence.and_then(|silence| silence.denial(now));
        let is_stop = matches!(ask, Ask::Stop(_));
        match &self.state {
            State::Ended { .. } => Some(Denial::Ended),
            _ if ask == Ask::Ping => None,
            State::Closing { .. } if is_stop => None,
            State::Closing { .. } => Some(Denial::Stopping),
            State::Starting { origin: Origin::Adoption { .. } } if self.silent => {
                Some(Denial::Unresponsive)
            }
            State::Starting { .. } => Some(Denial::Starting),
            _ if silent_store.is_some() => silent_store,
            // A QEMU that waits for a store answers when that does.
            _ if self.silent && silence.is_none() => Some(Denial::Unresponsive),
            State::Stopping { .. } if !looks && !is_stop => Some(Denial::Stopping),
            _ if self.devices == Devices::Unknown && needs_devices => Some(Denial::NoRecord),
            _ if self.waits_for_order(ask) => None,
            _ if ask.changes() && self.changing != Changing::No => Some(Denial::Busy),
            _ if ask == Ask::Copy && self.copy != Copy::None => Some(Denial::Copying),
            State::Running { .. } | State::Paused { .. } | State::Stopping { .. } => None,
        }
    }

    fn hard_stop(&mut self, now: Duration, ticket: Ticket, actions: &mut Vec<Action>) {
        match &mut self.state {
            State::Ended { .. } => deny(ticket, Denial::Ended, actions),
            State::Closing { closing, .. } => {
                closing.join(ticket);
                if closing.how != Ending::StoppedHard {
                    actions.push(Action::Kill);
                }
            }
            State::Starting { .. }
            | State::Running { .. }
            | State::Paused { .. }
            | State::Stopping { .. } => self.end_hard(now, vec![(ticket, Reply::Done)], actions),
        }
    }

    /// It wins over a graceful stop under way.
    pub(super) fn end_hard(
        &mut self,
        now: Duration,
        mut waiting: Vec<(Ticket, Reply)>,
        actions: &mut Vec<Action>,
    ) {
        if let State::Stopping { graceful, .. } = &self.state {
            let text = "the guest was stopped hard in the meantime".into();
            waiting.extend(graceful.askers_with(&Reply::Already { text }));
        }
        self.close(now, Ending::StoppedHard, waiting, actions);
    }
}

pub(super) fn deny(ticket: Ticket, reason: Denial, actions: &mut Vec<Action>) {
    actions.push(Action::Reply(ticket, Reply::Denied { reason }));
}
