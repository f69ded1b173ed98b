//! Giving one receiver its part of a batch, and counting it.

use crate::avio::{AvioPeer, Put};
use crate::counters::Counter;
use crate::event::RingFault;
use crate::frame::{Batch, EditedHead, HEAD_BYTES, View};
use crate::offload::Finisher;
use crate::port::{Peer, PeerFault, PlaceIndex, Port, WIRE};
use crate::stream::Backlog;
use crate::vlan::{Edit, TAG_BYTES};
use crate::ways::{Delivery, Kind};

/// Memory that is used for one frame after another.
pub(crate) struct Tools {
    finisher: Finisher,
    scratch: EditedHead,
}

impl Default for Tools {
    fn default() -> Tools {
        Tools { finisher: Finisher::default(), scratch: [0; HEAD_BYTES + TAG_BYTES] }
    }
}

/// What becomes of frames for which a receiver has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WithoutRoom {
    Discard,
    /// They, and all behind them, wait where they are.
    Wait,
}

/// What a receiver took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivered {
    pub(crate) backlog: Backlog,
    /// How many of the list's frames are done with; fewer than all only if the rest was to wait.
    pub(crate) frames: usize,
    /// Whether it had room for all of the list.
    pub(crate) had_room: bool,
}

/// What a list adds to its receiver's counters.
struct Received {
    octets: u64,
    unicast: u64,
    other: u64,
    no_room: u64,
    rate: u64,
    without_room: WithoutRoom,
}

/// Puts frames that came from `source` to a receiver and shows them to it. Only frames that need no more than to be copied,
/// or find much room, can wait.
pub(crate) fn deliver(
    port: &mut Port,
    source: PlaceIndex,
    batch: &Batch,
    list: &[Delivery],
    tools: &mut Tools,
    without_room: WithoutRoom,
    now_ns: u64,
) -> Result<Delivered, PeerFault> {
    let mut received = Received::none(without_room);
    let done = put_all(port, batch, list, tools, now_ns, &mut received);
    let backlog = port.flush();
    port.flush_capture();
    let (unicast, other) = match source {
        WIRE => (Counter::InUnicastWire, Counter::InOtherWire),
        _ => (Counter::InUnicastLocal, Counter::InOtherLocal),
    };
    port.count(Counter::InOctets, received.octets);
    port.count(unicast, received.unicast);
    port.count(other, received.other);
    port.count(Counter::NoRoom, received.no_room);
    port.count(Counter::Rate, received.rate);
    let frames = done?;
    let had_room = frames == list.len() && received.no_room == 0;
    Ok(Delivered { backlog: backlog?, frames, had_room })
}

fn put_all(
    port: &mut Port,
    batch: &Batch,
    list: &[Delivery],
    tools: &mut Tools,
    now_ns: u64,
    received: &mut Received,
) -> Result<usize, PeerFault> {
    port.prepare(list.len())?;
    if let Some(bucket) = &mut port.rate_in {
        bucket.fill(now_ns);
    }
    let takes = port.takes();
    if port.unusual.is_plain()
        && let Peer::Avio(peer) = &mut port.peer
    {
        return put_to_guest(peer, batch, list, tools, received);
    }
    for (done, delivery) in list.iter().enumerate() {
        let index = usize::from(delivery.frame);
        let view = batch.view(index, delivery.edit, &mut tools.scratch);
        if !port.unusual.is_plain() && !unusual(port, &view, delivery.kind) {
            received.rate += 1;
            continue;
        }
        if batch.frame(index).needs & !takes == 0 {
            let put = port.put(&view)?;
            if received.waits(put) {
                return Ok(done);
            }
            received.add(put, delivery.kind, view.octets);
            continue;
        }
        // Of a frame that is cut, all pieces should find room.
        if received.without_room == WithoutRoom::Wait && !port.is_roomy() {
            return Ok(done);
        }
        tools.finisher.finish(&view, takes, |piece| {
            let put = port.put(piece)?;
            received.add(put, delivery.kind, piece.octets);
            Ok::<_, PeerFault>(put)
        })?;
    }
    Ok(list.len())
}

/// The same for an AVIO guest's port of which nothing is unusual: the way of nearly all frames, with nothing to look up in
/// between.
fn put_to_guest(
    peer: &mut AvioPeer,
    batch: &Batch,
    list: &[Delivery],
    tools: &mut Tools,
    received: &mut Received,
) -> Result<usize, PeerFault> {
    let takes = peer.takes();
    for (done, delivery) in list.iter().enumerate() {
        let index = usize::from(delivery.frame);
        let finished = batch.frame(index).needs & !takes == 0;
        if finished && delivery.edit == Edit::Keep {
            let put = peer.put(batch.plain(index))?;
            if received.waits(put) {
                return Ok(done);
            }
            received.add(put, delivery.kind, batch.frame(index).octets);
            continue;
        }
        let view = batch.view(index, delivery.edit, &mut tools.scratch);
        if finished {
            let put = peer.put_any(&view)?;
            if received.waits(put) {
                return Ok(done);
            }
            received.add(put, delivery.kind, view.octets);
            continue;
        }
        tools.finisher.finish(&view, takes, |piece| {
            let put = peer.put_any(piece)?;
            received.add(put, delivery.kind, piece.octets);
            Ok::<_, RingFault>(put)
        })?;
    }
    Ok(list.len())
}

/// What only some receivers ask for. Returns whether the frame is within the rate.
#[cold]
fn unusual(port: &mut Port, view: &View<'_>, kind: Kind) -> bool {
    if let Some(bucket) = &mut port.rate_in {
        if !bucket.open() {
            return false;
        }
        bucket.take(view.octets);
    }
    // A capture shows what the port's own guest says and hears.
    if let Some(capture) = port.capture.as_mut().filter(|_| kind != Kind::Mirrored) {
        capture.frame(view);
    }
    true
}

impl Received {
    fn none(without_room: WithoutRoom) -> Received {
        Received { octets: 0, unicast: 0, other: 0, no_room: 0, rate: 0, without_room }
    }

    /// Whether a frame that was tried is to be tried again.
    #[inline(always)]
    fn waits(&self, put: Put) -> bool {
        put == Put::NoRoom && self.without_room == WithoutRoom::Wait
    }

    #[inline]
    fn add(&mut self, put: Put, kind: Kind, octets: u32) {
        match put {
            Put::NoRoom | Put::TooLong => self.no_room += 1,
            Put::Done => {
                self.octets += u64::from(octets);
                match kind {
                    Kind::Unicast => self.unicast += 1,
                    Kind::Other | Kind::Mirrored => self.other += 1,
                }
            }
        }
    }
}
