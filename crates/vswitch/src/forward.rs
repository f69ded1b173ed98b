//! The forwarding thread: takes frames from each port in turn and gives them to their receivers, a batch at a time.
//!
//! ```text
//!              new frames                  rate used up
//!   Listening ────────────► Polled ◄──────────────────────► Paused
//!       ▲                      │
//!       └── quiet for a while ─┘        epoll tells of Listening ports; Polled ones are looked at in each round
//! ```
//!
//! While frames come the thread never sleeps and asks epoll now and then; when none comes it looks on for a while
//! ([`Pace`]), has all ports tell by their descriptors, and sleeps: an idle switch uses no processor time.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use hpvm_model::{MacAddress, PortNumber, PortRules, SwitchState};

use crate::command::Inbox;
use crate::counters::Counter;
use crate::delivery::Tools;
use crate::event::Event;
use crate::frame::{BATCH, Batch};
use crate::hold::HELD;
use crate::mac_table::{AGE_SECONDS_MAX, MacTable};
use crate::options::{Beginning, Clock};
use crate::pace::Pace;
use crate::port::{Attention, Peer, PeerFault, PlaceIndex, Port, Unusual, WIRE};
use crate::shared::PortShared;
use crate::stream::{Backlog, StreamFault};
use crate::switch::PortLink;
use crate::watch::{Interest, Token, Watch};
use crate::ways::Ways;

pub(crate) const PLACES: usize = PortNumber::MAX as usize + 1;
/// How many rounds pass between two questions to the clock and to epoll while frames come.
const BUSY_ROUNDS: u32 = 64;
/// The same while none comes.
const QUIET_ROUNDS: u32 = 256;
/// After so many, a thread sleeps for which looking on has not paid off.
const IN_VAIN_ROUNDS: u32 = 32;
/// A port without frames for so many rounds while others have some tells by its descriptor again.
const QUIET_ROUNDS_MAX: u32 = 2_000;
const NANOSECONDS: u64 = 1_000_000_000;
/// In this time of a switch that begins with all its ports together, QEMUs come back: they try every 50 ms.
const COMING_NS: u64 = 75_000_000;
/// A guest sees in this time that its link is back, emulated on a busy machine. What it answers before is lost with its question
/// for the neighbour's address, which it asks again only after a second.
const LINK_SEEN_NS: u64 = 80_000_000;

/// A port to be.
pub(crate) struct NewPort {
    pub(crate) mac: MacAddress,
    pub(crate) rules: PortRules,
    pub(crate) shared: Arc<PortShared>,
    /// Of a stream port; an AVIO port's peer is listened for by its conversation.
    pub(crate) listener: Option<UnixListener>,
}

pub(crate) struct Forwarder {
    pub(crate) inbox: Inbox,
    pub(crate) events: Sender<Event>,
    pub(crate) state: SwitchState,
    pub(crate) ports: Vec<Option<Box<Port>>>,
    pub(crate) macs: Vec<MacAddress>,
    /// Places whose peers are there.
    pub(crate) open: Vec<PlaceIndex>,
    pub(crate) polled: Vec<PlaceIndex>,
    paused: Vec<PlaceIndex>,
    /// Places to be looked at again in a moment: their frames wait for a receiver to have room, or for more to come.
    pub(crate) waiting: Vec<PlaceIndex>,
    pub(crate) table: MacTable,
    pub(crate) watch: Watch,
    pub(crate) ways: Ways,
    pub(crate) batch: Batch,
    pub(crate) tools: Tools,
    pace: Pace,
    clock: Clock,
    beginning: Beginning,
    started: Instant,
    pub(crate) now_ns: u64,
    swept_seconds: u32,
    last_frame_ns: u64,
    /// When it was last asked whether to go on looking.
    looked_ns: u64,
    pub(crate) stopped: bool,
}

impl Forwarder {
    pub(crate) fn new(
        inbox: Inbox,
        events: Sender<Event>,
        clock: Clock,
        beginning: Beginning,
        state: SwitchState,
        wire: Arc<PortShared>,
    ) -> io::Result<Forwarder> {
        let watch = Watch::new()?;
        watch.add(inbox.descriptor(), Token::Bell, Interest::Arrival)?;
        let mut ports: Vec<Option<Box<Port>>> = (0..PLACES).map(|_| None).collect();
        ports[usize::from(WIRE)] = Some(Box::new(Port::wire(wire)));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Forwarder {
            inbox,
            events,
            state,
            ports,
            macs: vec![MacAddress::new([0; 6]); PLACES],
            open: Vec::new(),
            polled: Vec::new(),
            paused: Vec::new(),
            waiting: Vec::new(),
            table: MacTable::new(PLACES),
            watch,
            ways: Ways::new(PLACES),
            batch: Batch::new(),
            tools: Tools::default(),
            pace: Pace::new(processors),
            clock,
            beginning,
            started: Instant::now(),
            now_ns: 0,
            swept_seconds: 0,
            last_frame_ns: 0,
            looked_ns: 0,
            stopped: false,
        })
    }

    pub(crate) fn now_seconds(&self) -> u32 {
        (self.now_ns / NANOSECONDS) as u32
    }

    /// Real time, for what concerns this thread and not its ports.
    pub(crate) fn elapsed_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// What the clock says, for what concerns ports.
    pub(crate) fn clock_ns(&self) -> u64 {
        match &self.clock {
            Clock::Monotonic => self.elapsed_ns(),
            Clock::Manual(time) => time.load(std::sync::atomic::Ordering::Relaxed),
        }
    }

    /// Looks at the clock, and after what time does by itself.
    pub(crate) fn look_at_clock(&mut self) {
        self.now_ns = self.clock_ns();
        let seconds = self.now_seconds();
        if seconds - self.swept_seconds.min(seconds) > AGE_SECONDS_MAX {
            self.table.sweep(seconds);
            self.swept_seconds = seconds;
        }
        for place in std::mem::take(&mut self.paused) {
            match self.port(place).map(|port| port.attention) {
                Some(Attention::Paused { until_ns }) if until_ns > self.now_ns => {
                    self.paused.push(place);
                }
                Some(Attention::Paused { .. }) => self.resume(place),
                _ => {}
            }
        }
    }

    pub(crate) fn port(&mut self, place: PlaceIndex) -> Option<&mut Port> {
        self.ports.get_mut(usize::from(place))?.as_deref_mut()
    }

    /// Looks at a place in each round from now on.
    pub(crate) fn poll(&mut self, place: PlaceIndex) {
        let Some(port) = self.port(place) else { return };
        if !port.is_open() || port.attention == Attention::Polled {
            return;
        }
        port.attention = Attention::Polled;
        port.quiet_rounds = 0;
        if let Peer::Avio(peer) = &mut port.peer {
            peer.silence();
        }
        self.polled.push(place);
    }

    /// Has a place tell by its descriptor from now on.
    fn listen(&mut self, place: PlaceIndex) {
        self.polled.retain(|polled| *polled != place);
        let Some(port) = self.port(place) else { return };
        port.attention = Attention::Listening;
        let has_frames = match &mut port.peer {
            Peer::Avio(peer) => peer.listen().map_err(PeerFault::from),
            // What was read and held back is nothing that a descriptor tells of.
            Peer::Stream(peer) => {
                peer.rest();
                Ok(peer.has_frames())
            }
            Peer::Device(peer) => Ok(peer.has_frames()),
            Peer::Absent => Ok(false),
        };
        match has_frames {
            Ok(true) => self.poll(place),
            Ok(false) => {}
            Err(fault) => self.lose(place, fault),
        }
    }

    /// Looks at a paused place again.
    pub(crate) fn resume(&mut self, place: PlaceIndex) {
        self.paused.retain(|paused| *paused != place);
        let Some(port) = self.port(place) else { return };
        if !matches!(port.attention, Attention::Paused { .. }) {
            return;
        }
        match port.is_open() {
            true => {
                self.poll(place);
                self.set_interest(place);
            }
            false => {
                port.attention = Attention::Listening;
                self.accept_again(place);
            }
        }
    }

    pub(crate) fn pause(&mut self, place: PlaceIndex, until_ns: u64) {
        self.polled.retain(|polled| *polled != place);
        if !self.paused.contains(&place) {
            self.paused.push(place);
        }
        if let Some(port) = self.port(place) {
            port.attention = Attention::Paused { until_ns };
        }
        self.set_interest(place);
    }

    /// Has epoll tell of a stream peer or a network interface what is of use now.
    pub(crate) fn set_interest(&mut self, place: PlaceIndex) {
        let Some(port) = self.ports[usize::from(place)].as_deref() else { return };
        let reads = !matches!(port.attention, Attention::Paused { .. } | Attention::Held);
        let interest = match (reads, port.backlog) {
            (true, Backlog::Empty) => Interest::Arrival,
            (true, Backlog::Waits) => Interest::ArrivalOrRoom,
            (false, Backlog::Waits) => Interest::Room,
            (false, Backlog::Empty) => Interest::Nothing,
        };
        let token = Token::Peer(place);
        let _ = match &port.peer {
            Peer::Stream(peer) => self.watch.change(peer.descriptor(), token, interest),
            Peer::Device(peer) => self.watch.change(peer.descriptor(), token, interest),
            Peer::Avio(_) | Peer::Absent => Ok(()),
        };
    }

    /// Gives a place its peer; a driver's rings, a connection, an interface.
    pub(crate) fn open(&mut self, place: PlaceIndex, peer: Peer) -> io::Result<()> {
        let token = Token::Peer(place);
        match &peer {
            Peer::Stream(peer) => self.watch.add(peer.descriptor(), token, Interest::Arrival)?,
            Peer::Device(peer) => self.watch.add(peer.descriptor(), token, Interest::Arrival)?,
            Peer::Avio(_) | Peer::Absent => {}
        }
        let Some(port) = self.port(place) else { return Ok(()) };
        port.peer = peer;
        port.backlog = Backlog::Empty;
        port.attention = Attention::Listening;
        if let Peer::Avio(peer) = &mut port.peer {
            peer.begin();
        }
        if !self.open.contains(&place) {
            self.open.push(place);
        }
        self.begin(place);
        Ok(())
    }

    /// Looks at a new peer's place from now on, or at all places later.
    fn begin(&mut self, place: PlaceIndex) {
        let now_ns = self.clock_ns();
        if self.beginning == Beginning::AtOnce || now_ns >= COMING_NS {
            return self.poll(place);
        }
        for place in self.open.clone() {
            self.pause(place, COMING_NS.max(now_ns + LINK_SEEN_NS));
        }
    }

    /// Takes a place's peer away.
    pub(crate) fn close(&mut self, place: PlaceIndex) -> Peer {
        self.polled.retain(|polled| *polled != place);
        self.paused.retain(|paused| *paused != place);
        self.open.retain(|open| *open != place);
        self.waiting.retain(|waiting| *waiting != place);
        let now_ns = self.clock_ns();
        let Some(port) = self.port(place) else { return Peer::Absent };
        port.waits_for = None;
        // A guest that begins anew is waited for no longer than one that goes on.
        port.patience.took_all(now_ns);
        port.attention = Attention::Listening;
        let peer = std::mem::replace(&mut port.peer, Peer::Absent);
        match &peer {
            Peer::Stream(peer) => self.watch.remove(peer.descriptor()),
            Peer::Device(peer) => self.watch.remove(peer.descriptor()),
            Peer::Avio(_) | Peer::Absent => {}
        }
        peer
    }

    /// A peer did what ends it.
    pub(crate) fn lose(&mut self, place: PlaceIndex, fault: PeerFault) {
        let peer = self.close(place);
        self.table.forget(place);
        let event = match (PortNumber::new(place), fault) {
            (Some(port), PeerFault::Ring(fault)) => {
                if let (Some(lost), Peer::Avio(peer)) = (self.port(place), &peer) {
                    lost.lost = Some(peer.bases());
                    lost.shared.set_link(PortLink::Lost);
                }
                Event::Lost { port, fault }
            }
            (Some(port), fault) => {
                self.accept_again(place);
                if matches!(fault, PeerFault::Stream(StreamFault::Length(_))) {
                    let reason = hpvm_model::chain(&fault);
                    let _ = self.events.send(Event::Refused { port, reason });
                }
                Event::Disconnected { port }
            }
            (None, fault) => {
                self.accept_again(place);
                Event::WireLost { reason: hpvm_model::chain(&fault) }
            }
        };
        let _ = self.events.send(event);
    }

    /// Takes one batch from a place. Returns how many frames there were.
    fn visit(&mut self, place: PlaceIndex) -> usize {
        if self.waits(place) {
            return 0;
        }
        let Some(port) = self.ports[usize::from(place)].as_deref_mut() else { return 0 };
        let mut limit = BATCH;
        if port.unusual.has(Unusual::RATE_OUT)
            && let Some(bucket) = &mut port.rate_out
        {
            bucket.fill(self.now_ns);
            limit = bucket.frames(BATCH);
            if !bucket.open() {
                let until_ns = bucket.open_at_ns().unwrap_or(u64::MAX);
                self.pause(place, until_ns);
                return 0;
            }
        }
        self.batch.clear();
        let gathered = match port.likely {
            Some(likely) => self.gather_towards(place, likely, limit),
            None => port.gather(&mut self.batch, limit),
        };
        let (count, malformed) = match gathered {
            Ok((0, _)) => return 0,
            Ok(gathered) => gathered,
            Err(fault) => {
                self.lose(place, fault);
                return 1;
            }
        };
        let Some(port) = self.ports[usize::from(place)].as_deref_mut() else { return 0 };
        port.count(Counter::Malformed, malformed as u64);
        if let Some(bucket) = &mut port.rate_out {
            (0..self.batch.len()).for_each(|index| bucket.take(self.batch.frame(index).octets));
        }
        let held = match self.state {
            SwitchState::Halted => {
                port.count(Counter::Halted, self.batch.len() as u64);
                0
            }
            SwitchState::Up => self.hand_on(place, malformed),
        };
        if let Some(port) = self.port(place) {
            port.release();
            port.flush_capture();
            if port.unusual.has(Unusual::LAN_BOOT) {
                self.answer(place);
            }
        }
        count - held
    }

    fn gather_towards(
        &mut self,
        place: PlaceIndex,
        likely: PlaceIndex,
        limit: usize,
    ) -> Result<(usize, usize), PeerFault> {
        let both = [usize::from(place), usize::from(likely)];
        match self.ports.get_disjoint_mut(both) {
            Ok([Some(port), Some(receiver)]) => {
                port.gather_towards(receiver, &mut self.batch, limit)
            }
            Ok([Some(port), None]) => port.gather(&mut self.batch, limit),
            _ => Ok((0, 0)),
        }
    }

    pub(crate) fn note_backlog(&mut self, place: PlaceIndex, backlog: Backlog) {
        let Some(port) = self.port(place) else { return };
        if port.backlog != backlog {
            port.backlog = backlog;
            self.set_interest(place);
        }
    }

    /// Does what epoll tells.
    fn attend(&mut self, tokens: &[Token]) {
        for token in tokens {
            match *token {
                Token::Bell => self.inbox.silence(),
                Token::Kick(place) => self.poll_if_listening(place),
                Token::Listener(place) => self.accept(place),
                Token::Peer(place) => self.attend_peer(place),
            }
        }
    }

    fn attend_peer(&mut self, place: PlaceIndex) {
        let Some(port) = self.port(place) else { return };
        if port.backlog == Backlog::Waits {
            match port.flush() {
                Ok(backlog) => self.note_backlog(place, backlog),
                Err(fault) => return self.lose(place, fault),
            }
        }
        self.poll_if_listening(place);
    }

    /// A paused place stays so, whatever it has.
    fn poll_if_listening(&mut self, place: PlaceIndex) {
        if self.port(place).is_some_and(|port| port.attention == Attention::Listening) {
            self.poll(place);
        }
    }

    /// One look at each polled place. Returns how many frames there were.
    fn round(&mut self) -> usize {
        let mut frames = 0;
        let mut at = 0;
        while at < self.polled.len() {
            let place = self.polled[at];
            let count = self.visit(place);
            frames += count;
            // The place may have left the list, and then another is where it was.
            if self.polled.get(at) != Some(&place) {
                continue;
            }
            at += 1;
            if self.is_quiet(place, count) && !self.gathers(place) {
                self.listen(place);
            }
        }
        frames
    }

    /// Whether a polled place should tell by its descriptor instead. A socket that was read empty tells at once: to look
    /// again costs a system call.
    fn is_quiet(&mut self, place: PlaceIndex, count: usize) -> bool {
        let Some(port) = self.port(place) else { return false };
        if count > 0 || port.waits_for.is_some() {
            port.quiet_rounds = 0;
            return false;
        }
        port.quiet_rounds += 1;
        !matches!(port.peer, Peer::Avio(_)) || port.quiet_rounds > QUIET_ROUNDS_MAX
    }

    /// Has every place tell by its descriptor and sleeps until one does.
    fn sleep(&mut self) {
        for place in self.polled.clone() {
            match self.waiting.contains(&place) {
                true => self.hold(place),
                false => self.listen(place),
            }
        }
        if !self.polled.is_empty() || self.inbox.rung() {
            return;
        }
        let before = self.elapsed_ns();
        self.look_at_clock();
        let tokens = self.watch.wait(self.timeout());
        let after = self.elapsed_ns();
        // A wait for room tells nothing of when frames come.
        if self.waiting.is_empty() {
            self.pace.slept(after - before);
        }
        self.last_frame_ns = after;
        self.look_at_clock();
        self.attend(&tokens);
        self.try_again();
    }

    /// Until the first paused place may go on. A clock moved by hand says itself when it moves.
    fn timeout(&self) -> Option<Duration> {
        if !self.polled.is_empty() {
            return Some(Duration::ZERO);
        }
        if !self.waiting.is_empty() {
            return Some(HELD);
        }
        if matches!(self.clock, Clock::Manual(_)) {
            return None;
        }
        let until = |place: &PlaceIndex| match self.ports[usize::from(*place)].as_deref()?.attention
        {
            Attention::Paused { until_ns } => Some(until_ns),
            _ => None,
        };
        let first = self.paused.iter().filter_map(until).min()?;
        Some(Duration::from_nanos(first.saturating_sub(self.now_ns)))
    }
}

/// Runs until told to stop.
pub(crate) fn run(mut forwarder: Forwarder) {
    let (mut busy, mut quiet) = (0, 0);
    while !forwarder.stopped {
        if forwarder.inbox.rung() {
            forwarder.look_at_clock();
            forwarder.obey();
            continue;
        }
        if forwarder.polled.is_empty() {
            forwarder.sleep();
            continue;
        }
        if forwarder.round() > 0 {
            quiet = 0;
            busy += 1;
            if busy >= BUSY_ROUNDS {
                busy = 0;
                forwarder.look_around();
            }
            continue;
        }
        quiet += 1;
        if quiet == IN_VAIN_ROUNDS && !forwarder.pace.pays() {
            forwarder.sleep();
            quiet = 0;
        } else if quiet % QUIET_ROUNDS == 0 {
            forwarder.look_around();
            if quiet == QUIET_ROUNDS {
                forwarder.last_frame_ns = forwarder.elapsed_ns();
                forwarder.looked_ns = forwarder.last_frame_ns;
            } else if !forwarder.looks_on() {
                forwarder.sleep();
                quiet = 0;
            }
        }
    }
}

impl Forwarder {
    /// Clock and epoll, between rounds.
    fn look_around(&mut self) {
        self.look_at_clock();
        let tokens = self.watch.wait(Some(Duration::ZERO));
        self.attend(&tokens);
        self.try_again();
    }

    /// Whether to go on looking, when nothing came for some rounds.
    fn looks_on(&mut self) -> bool {
        let now_ns = self.elapsed_ns();
        let before_ns = std::mem::replace(&mut self.looked_ns, now_ns);
        self.pace.looked(now_ns - before_ns, now_ns);
        self.pace.looks_on(self.last_frame_ns, now_ns)
    }
}

/// A listener among what is waited for.
pub(crate) fn watch_listener(
    watch: &Watch,
    listener: &UnixListener,
    place: PlaceIndex,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    watch.add(listener.as_fd(), Token::Listener(place), Interest::Arrival)
}
