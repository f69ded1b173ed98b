//! Giving one receiver its part of a batch, and counting it.

use crate::avio::{AvioPeer, Put};
use crate::counters::Counter;
use crate::frame::{Batch, EditedHead, HEAD_BYTES, View};
use crate::offload::Finisher;
use crate::port::{Peer, PeerFault, PlaceIndex, Port, Unusual, WIRE};
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

/// What a list adds to its receiver's counters.
#[derive(Default)]
struct Received {
    octets: u64,
    unicast: u64,
    other: u64,
    no_room: u64,
    rate: u64,
}

/// Puts frames that came from `source` to a receiver and shows them to it.
pub(crate) fn deliver(
    port: &mut Port,
    source: PlaceIndex,
    batch: &Batch,
    list: &[Delivery],
    tools: &mut Tools,
    now_ns: u64,
) -> Result<Backlog, PeerFault> {
    let mut received = Received::default();
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
    done?;
    backlog
}

fn put_all(
    port: &mut Port,
    batch: &Batch,
    list: &[Delivery],
    tools: &mut Tools,
    now_ns: u64,
    received: &mut Received,
) -> Result<(), PeerFault> {
    port.prepare(list.len())?;
    if let Some(bucket) = &mut port.rate_in {
        bucket.fill(now_ns);
    }
    let takes = port.takes();
    if port.unusual == Unusual::NONE
        && let Peer::Avio(peer) = &mut port.peer
    {
        return put_to_guest(peer, batch, list, tools, received);
    }
    for delivery in list {
        let index = usize::from(delivery.frame);
        let view = batch.view(index, delivery.edit, &mut tools.scratch);
        if port.unusual != Unusual::NONE && !unusual(port, &view, delivery.kind) {
            received.rate += 1;
            continue;
        }
        if batch.frame(index).needs & !takes == 0 {
            let put = port.put(&view)?;
            received.add(put, delivery.kind, view.octets);
            continue;
        }
        let mut failed = None;
        tools.finisher.finish(&view, takes, |piece| match port.put(piece) {
            Ok(put) => received.add(put, delivery.kind, piece.octets),
            Err(fault) => failed = Some(fault),
        });
        if let Some(fault) = failed {
            return Err(fault);
        }
    }
    Ok(())
}

/// The same for an AVIO guest's port of which nothing is unusual: the way of nearly all frames, with nothing to look up in
/// between.
fn put_to_guest(
    peer: &mut AvioPeer,
    batch: &Batch,
    list: &[Delivery],
    tools: &mut Tools,
    received: &mut Received,
) -> Result<(), PeerFault> {
    let takes = peer.takes();
    for delivery in list {
        let index = usize::from(delivery.frame);
        let finished = batch.frame(index).needs & !takes == 0;
        if finished && delivery.edit == Edit::Keep {
            let put = peer.put(batch.plain(index))?;
            received.add(put, delivery.kind, batch.frame(index).octets);
            continue;
        }
        let view = batch.view(index, delivery.edit, &mut tools.scratch);
        if finished {
            let put = peer.put_any(&view)?;
            received.add(put, delivery.kind, view.octets);
            continue;
        }
        let mut failed = None;
        tools.finisher.finish(&view, takes, |piece| match peer.put_any(piece) {
            Ok(put) => received.add(put, delivery.kind, piece.octets),
            Err(fault) => failed = Some(fault),
        });
        if let Some(fault) = failed {
            return Err(fault.into());
        }
    }
    Ok(())
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
    #[inline]
    fn add(&mut self, put: Put, kind: Kind, octets: u32) {
        match put {
            Put::NoRoom => self.no_room += 1,
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
