//! Which way each frame of a batch goes: the switch's decision, and the lists of what each receiver is to get.

use crate::avio::IN_STEP_MAX;
use crate::counters::Counter;
use crate::frame::Batch;
use crate::lan_boot::{self, Answerer, QUESTION_BYTES_MAX};
use crate::mac_table::{MacTable, Station};
use crate::port::{PlaceIndex, Port, Unusual, WIRE};
use crate::vlan::{Edit, Membership};

/// Addresses 01:80:C2:00:00:00 to 0F are for neighbours on one link and never forwarded (IEEE 802.1D, 7.12.6).
const LINK_LOCAL: u64 = 0x0000_00c2_8001;
const LINK_LOCAL_MASK: u64 = 0xf0ff_ffff_ffff;
/// The lowest bit of an address's first byte: for many stations.
const GROUP: u64 = 1;

/// One frame for one receiver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    pub(crate) frame: u8,
    pub(crate) edit: Edit,
    pub(crate) kind: Kind,
}

/// What a frame counts as at its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Unicast,
    Other,
    /// A copy of what passed another port.
    Mirrored,
}

/// What each receiver is to get of one batch.
pub(crate) struct Ways {
    lists: Vec<Vec<Delivery>>,
    pub(crate) touched: Vec<PlaceIndex>,
}

impl Ways {
    pub(crate) fn new(places: usize) -> Ways {
        Ways { lists: vec![Vec::new(); places], touched: Vec::new() }
    }

    /// Takes a receiver's list; [`Ways::put_back`] returns its memory.
    pub(crate) fn take(&mut self, place: PlaceIndex) -> Vec<Delivery> {
        std::mem::take(&mut self.lists[usize::from(place)])
    }

    pub(crate) fn put_back(&mut self, place: PlaceIndex, mut list: Vec<Delivery>) {
        list.clear();
        self.lists[usize::from(place)] = list;
    }

    #[inline]
    fn add(&mut self, place: PlaceIndex, delivery: Delivery) {
        let list = &mut self.lists[usize::from(place)];
        if list.is_empty() {
            self.touched.push(place);
        }
        list.push(delivery);
    }
}

/// What the decision needs beside the batch.
pub(crate) struct Facts<'a> {
    pub(crate) ports: &'a mut [Option<Box<Port>>],
    pub(crate) table: &'a mut MacTable,
    /// Places whose peers are there, for frames that go everywhere.
    pub(crate) open: &'a [PlaceIndex],
    pub(crate) now_seconds: u32,
    /// Whether the batch came from an isolated port.
    pub(crate) isolated: bool,
}

impl Facts<'_> {
    /// Whether the batch's sender and a receiver are both isolated, so that neither hears the other.
    #[inline(always)]
    fn parts(&self, place: PlaceIndex) -> bool {
        self.isolated
            && self.ports[usize::from(place)]
                .as_ref()
                .is_some_and(|port| port.unusual.has(Unusual::ISOLATED))
    }

    fn has_wire(&self) -> bool {
        self.ports[usize::from(WIRE)].as_ref().is_some_and(|wire| wire.is_open())
    }
}

/// What a batch adds to its sender's counters.
#[derive(Default)]
pub(crate) struct Sent {
    octets: u64,
    unicast_wire: u64,
    pub(crate) unicast_local: u64,
    other: u64,
    other_wire: u64,
    other_local: u64,
    spoofed: u64,
    vlan: u64,
    malformed: u64,
    filtered: u64,
}

/// Where the last frame of a source and the last to a destination were found, since the next is likely the same.
struct Memo {
    learned: Option<Station>,
    found: Option<(Station, Option<PlaceIndex>)>,
}

/// Decides about every frame of a batch that came from `source`. What is returned is counted when the frames have gone.
pub(crate) fn decide(
    source: PlaceIndex,
    batch: &mut Batch,
    facts: &mut Facts<'_>,
    ways: &mut Ways,
) -> Sent {
    let mut sent = Sent::default();
    let mut memo = Memo { learned: None, found: None };
    let Some(mut port) = facts.ports[usize::from(source)].take() else { return sent };
    facts.isolated = port.unusual.has(Unusual::ISOLATED);
    ask_ahead(&port, batch, facts);
    for index in 0..batch.len() {
        sent.octets += u64::from(batch.frame(index).octets);
        one(source, &mut port, index, batch, facts, ways, &mut sent, &mut memo);
    }
    port.note_source(batch.last_source());
    port.likely = match batch.len() {
        ..=IN_STEP_MAX => memo
            .found
            .and_then(|(_, place)| place)
            .filter(|place| *place != source && !facts.parts(*place)),
        _ => None,
    };
    facts.ports[usize::from(source)] = Some(port);
    sent
}

/// Has what is known of the stations at hand when each frame's turn comes. One conversation needs no more than its first.
fn ask_ahead(port: &Port, batch: &Batch, facts: &Facts<'_>) {
    let Membership::Plain(domain) = port.membership else { return };
    let mut last = (0, 0);
    for index in 0..batch.len() {
        let (to, from) = batch.addresses(index);
        if (to, from) != last {
            last = (to, from);
            facts.table.prefetch(Station::new(from, domain));
            facts.table.prefetch(Station::new(to, domain));
        }
    }
}

impl Sent {
    pub(crate) fn count(&self, port: &Port) {
        port.count(Counter::OutOctets, self.octets);
        port.count(Counter::OutUnicastWire, self.unicast_wire);
        port.count(Counter::OutUnicastLocal, self.unicast_local);
        port.count(Counter::OutOther, self.other);
        port.count(Counter::OutOtherWire, self.other_wire);
        port.count(Counter::OutOtherLocal, self.other_local);
        port.count(Counter::Spoofed, self.spoofed);
        port.count(Counter::Vlan, self.vlan);
        port.count(Counter::Malformed, self.malformed);
        port.count(Counter::Filtered, self.filtered);
    }

    /// Leaves out the frames from `done` on, all of them for one port, which come again.
    pub(crate) fn without(&mut self, batch: &Batch, done: usize) {
        for index in done..batch.len() {
            self.octets -= u64::from(batch.frame(index).octets);
            self.unicast_local -= 1;
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "the loop's body, apart so that it can return early")]
#[inline(always)]
fn one(
    source: PlaceIndex,
    port: &mut Port,
    index: usize,
    batch: &mut Batch,
    facts: &mut Facts<'_>,
    ways: &mut Ways,
    sent: &mut Sent,
    memo: &mut Memo,
) {
    let (to, from) = batch.addresses(index);
    if from & GROUP != 0 {
        sent.malformed += 1;
        return;
    }
    let tag = batch.tag(index);
    let admitted = port.membership.admit(tag).filter(|_| !batch.hides_vlan(index));
    let Some(domain) = admitted else {
        sent.vlan += 1;
        return;
    };
    if port.own_source.is_some_and(|own| own != from) {
        sent.spoofed += 1;
        return;
    }
    if port.unusual != Unusual::NONE && !unusual(source, port, index, batch, ways, sent) {
        return;
    }
    batch.frame_mut(index).domain = domain;
    note_source(source, port, Station::new(from, domain), facts, memo);
    if to & GROUP != 0 {
        if to & LINK_LOCAL_MASK == LINK_LOCAL {
            sent.filtered += 1;
            return;
        }
        sent.other += 1;
        let heard = flood(source, index, tag, domain, Kind::Other, facts, ways);
        sent.other_wire += u64::from(heard.wire);
        sent.other_local += u64::from(heard.local);
        return;
    }
    let station = Station::new(to, domain);
    let found = match memo.found {
        Some((last, found)) if last == station => found,
        _ => facts.table.find(station, facts.now_seconds),
    };
    memo.found = Some((station, found));
    match found {
        Some(place) if place == source || facts.parts(place) => sent.filtered += 1,
        Some(place) => {
            match place {
                WIRE => sent.unicast_wire += 1,
                _ => sent.unicast_local += 1,
            }
            deliver(source, place, index, tag, domain, Kind::Unicast, facts, ways);
        }
        None => {
            match source != WIRE && facts.has_wire() {
                true => sent.unicast_wire += 1,
                false => sent.unicast_local += 1,
            }
            flood(source, index, tag, domain, Kind::Unicast, facts, ways);
        }
    }
}

/// Notes where a frame's source is; the port's own address stays there.
#[inline(always)]
fn note_source(
    source: PlaceIndex,
    port: &Port,
    station: Station,
    facts: &mut Facts<'_>,
    memo: &mut Memo,
) {
    if memo.learned != Some(station) {
        match port.mac == Some(station.address()) {
            true => facts.table.pin(station, source, facts.now_seconds),
            false => facts.table.learn(station, source, facts.now_seconds),
        }
        memo.learned = Some(station);
    }
}

/// What only some ports ask for. Returns whether the frame goes on; one that does not is counted.
#[cold]
fn unusual(
    source: PlaceIndex,
    port: &mut Port,
    index: usize,
    batch: &Batch,
    ways: &mut Ways,
    sent: &mut Sent,
) -> bool {
    if let Some(guard) = &port.addresses {
        let head_bytes = usize::from(batch.frame(index).head_bytes);
        if !guard.allows(&batch.head(index)[..head_bytes]) {
            sent.spoofed += 1;
            return false;
        }
    }
    if let Some(mirror) = port.mirror.filter(|mirror| *mirror != source) {
        ways.add(mirror, Delivery { frame: index as u8, edit: Edit::Keep, kind: Kind::Mirrored });
    }
    if let Some(capture) = &mut port.capture {
        capture.frame(&batch.view(index, Edit::Keep, &mut [0; _]));
    }
    let Some(answerer) = &mut port.answerer else { return true };
    if answers(answerer, index, batch) {
        sent.other += 1;
        sent.other_local += 1;
        return false;
    }
    true
}

/// Whether the frame is a question to the port. What it says waits for the end of the batch.
fn answers(answerer: &mut Answerer, index: usize, batch: &Batch) -> bool {
    let head_bytes = usize::from(batch.frame(index).head_bytes);
    if !lan_boot::may_be_question(&batch.head(index)[..head_bytes]) {
        return false;
    }
    let mut whole = [0; QUESTION_BYTES_MAX];
    let bytes = batch.plain(index).copy_start(&mut whole);
    answerer.hear(&whole[..bytes])
}

/// Where somebody was to hear a frame.
#[derive(Default)]
struct Heard {
    wire: bool,
    local: bool,
}

/// Everywhere in the domain but back.
fn flood(
    source: PlaceIndex,
    index: usize,
    tag: Option<u16>,
    domain: u16,
    kind: Kind,
    facts: &mut Facts<'_>,
    ways: &mut Ways,
) -> Heard {
    let mut heard = Heard::default();
    for place in facts.open {
        if *place != source
            && !facts.parts(*place)
            && deliver(source, *place, index, tag, domain, kind, facts, ways)
        {
            match *place {
                WIRE => heard.wire = true,
                _ => heard.local = true,
            }
        }
    }
    heard
}

/// Returns whether the place carries the frame's VLAN, and so gets it.
#[expect(
    clippy::too_many_arguments,
    reason = "one frame, one receiver, and what decides between them"
)]
#[inline(always)]
fn deliver(
    source: PlaceIndex,
    place: PlaceIndex,
    index: usize,
    tag: Option<u16>,
    domain: u16,
    kind: Kind,
    facts: &Facts<'_>,
    ways: &mut Ways,
) -> bool {
    let Some(port) = &facts.ports[usize::from(place)] else { return false };
    let Some(edit) = port.membership.emit(domain, tag) else { return false };
    ways.add(place, Delivery { frame: index as u8, edit, kind });
    if port.unusual.has(Unusual::MIRROR)
        && let Some(mirror) = port.mirror.filter(|mirror| *mirror != source && *mirror != place)
    {
        ways.add(mirror, Delivery { frame: index as u8, edit, kind: Kind::Mirrored });
    }
    true
}
