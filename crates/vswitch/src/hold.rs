//! The forwarding thread gives a batch to its receivers, and holds a sender back for one that has no room.
//!
//! Frames wait where they are, in the sender's ring, its socket, or the interface's slots: nothing is copied for it. A sender
//! is held only when its whole batch is for that one receiver and nothing is unusual about either, so that others do not
//! wait behind; and only as long as the patience with the receiver lasts ([`crate::patience`]). Other ports' frames pass meanwhile.

use std::time::Duration;

use crate::delivery::{self, WithoutRoom};
use crate::forward::Forwarder;
use crate::port::{Attention, Peer, PlaceIndex, Port, WIRE};
use crate::ways::{self, Facts, Sent};

/// Until a thread that has nothing else to do looks again whether there is room, or more to take: a guest gives buffers by
/// dozens, and the more frames have gathered, the less each costs both.
pub(crate) const HELD: Duration = Duration::from_micros(150);

impl Forwarder {
    /// Gives the batch's frames to their receivers. Returns how many of them were held back.
    pub(crate) fn hand_on(&mut self, source: PlaceIndex, malformed: usize) -> usize {
        let now_seconds = self.now_seconds();
        let (ports, table, open) = (&mut self.ports, &mut self.table, &self.open);
        let mut facts = Facts { ports, table, open, now_seconds, isolated: false };
        let mut sent = ways::decide(source, &mut self.batch, &mut facts, &mut self.ways);
        let may_wait = malformed == 0 && self.may_wait(source, &sent);
        let mut held = 0;
        while let Some(place) = self.ways.touched.pop() {
            let list = self.ways.take(place);
            let without_room = if may_wait { WithoutRoom::Wait } else { WithoutRoom::Discard };
            let done = self.deliver(source, place, &list, without_room);
            if done < list.len() {
                held = self.hold_back(source, place, &list[done..]);
            }
            self.ways.put_back(place, list);
        }
        if held > 0 {
            sent.without(&self.batch, self.batch.len() - held);
        }
        if let Some(port) = self.port(source) {
            sent.count(port);
        }
        held
    }

    /// Whether all frames of the batch go to one port and might as well go a moment later.
    fn may_wait(&self, source: PlaceIndex, sent: &Sent) -> bool {
        let [only] = self.ways.touched[..] else { return false };
        let plain = |place: PlaceIndex| {
            self.ports[usize::from(place)].as_deref().filter(|port| port.unusual.is_plain())
        };
        sent.unicast_local == self.batch.len() as u64
            && only != WIRE
            && plain(source).is_some()
            && plain(only).is_some()
    }

    /// Returns how many frames of the list are done with.
    fn deliver(
        &mut self,
        source: PlaceIndex,
        place: PlaceIndex,
        list: &[ways::Delivery],
        without_room: WithoutRoom,
    ) -> usize {
        let Some(port) = self.ports[usize::from(place)].as_deref_mut() else { return list.len() };
        let delivered = delivery::deliver(
            port,
            source,
            &self.batch,
            list,
            &mut self.tools,
            without_room,
            self.now_ns,
        );
        match delivered {
            Ok(delivered) => {
                if delivered.had_room && port.patience.is_tried() {
                    let now_ns = self.clock_ns();
                    self.port(place).into_iter().for_each(|port| port.patience.took_all(now_ns));
                }
                self.note_backlog(place, delivered.backlog);
                delivered.frames
            }
            Err(fault) => {
                self.lose(place, fault);
                list.len()
            }
        }
    }

    /// Has the frames of `rest` wait for the receiver at `place`, or lose them when it has been waited for too long. Returns
    /// how many wait.
    fn hold_back(
        &mut self,
        source: PlaceIndex,
        place: PlaceIndex,
        rest: &[ways::Delivery],
    ) -> usize {
        let now_ns = self.clock_ns();
        if !self.port(place).is_some_and(|receiver| receiver.patience.lasts(now_ns)) {
            self.deliver(source, place, rest, WithoutRoom::Discard);
            return 0;
        }
        let Some(sender) = self.port(source) else { return 0 };
        sender.hold_back(rest.len());
        sender.waits_for = Some(place);
        if !self.waiting.contains(&source) {
            self.waiting.push(source);
        }
        rest.len()
    }

    /// Whether a place's frames still wait for a receiver to have room.
    #[inline]
    pub(crate) fn waits(&mut self, place: PlaceIndex) -> bool {
        let Some(receiver) = self.ports[usize::from(place)].as_deref().and_then(|p| p.waits_for)
        else {
            return false;
        };
        let has_room = self.port(receiver).is_none_or(Port::has_more_room);
        if has_room {
            self.wait_no_more(place);
        }
        !has_room
    }

    fn wait_no_more(&mut self, place: PlaceIndex) {
        self.waiting.retain(|waiting| *waiting != place);
        if let Some(port) = self.port(place) {
            port.waits_for = None;
        }
    }

    /// Lets frames of a stream peer that talks gather for a moment. QEMU cuts what a VIO guest sends into frames and writes
    /// each for itself: whoever is woken by every one of them does little else.
    pub(crate) fn gathers(&mut self, place: PlaceIndex) -> bool {
        let talks = match self.port(place).map(|port| &mut port.peer) {
            Some(Peer::Stream(peer)) => peer.talked(),
            _ => false,
        };
        if talks {
            self.waiting.push(place);
            self.hold(place);
        }
        talks
    }

    /// Looks no more at a place whose frames wait, until [`Forwarder::try_again`].
    pub(crate) fn hold(&mut self, place: PlaceIndex) {
        self.polled.retain(|polled| *polled != place);
        if let Some(port) = self.port(place) {
            port.attention = Attention::Held;
        }
        self.set_interest(place);
    }

    /// Tries with all frames that wait, whether or not their receivers gave room: some have been waited for long enough.
    pub(crate) fn try_again(&mut self) {
        for place in std::mem::take(&mut self.waiting) {
            self.wait_no_more(place);
            if self.port(place).is_some_and(|port| port.attention == Attention::Held) {
                self.poll(place);
                self.set_interest(place);
            }
        }
    }
}
