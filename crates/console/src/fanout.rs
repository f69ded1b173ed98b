//! Who sees a guest's console and who types on it: the server's half, without any I/O.
//!
//! hpvmapp has one [`Fanout`] per guest and feeds it the guest's output, the frames of the sessions and their coming and
//! going. For each session it asks [`Fanout::next`] what to write whenever that session can be written to.
//!
//! ```text
//!   admit ──► Expected ──Hello──► Attached ──Detach, end of guest, fault──► Leaving ──► Next::Close
//! ```
//!
//! Sessions hold no queues of output. Each has a place in the guest's [`History`] ring and is given the bytes from there
//! on; one that reads too slowly finds its place gone, is told how many bytes it lost, and goes on from the middle of the
//! ring. So memory is bounded by the ring whatever clients do, and the guest never waits for any of them.
//!
//! The keyboard belongs to one session at most. It is taken at Hello or by the first key when it is free, and by
//! TakeKeyboard at any time; it becomes free when its holder leaves. Who holds it is a fact each session is told when it
//! differs from what it was told last, so quick hand-overs need no queue either.

use std::collections::{BTreeMap, VecDeque};

use crate::door::{
    ClientFrame, Drive, Ended, Hello, Keyboard, MediumRequest, ServerFrame, VERSION, Want, Welcome,
};
use crate::history::History;

/// More sessions of one guest are refused.
pub const SESSIONS_MAX: usize = 32;
/// From so many bytes on that the guest has not taken yet, the holder of the keyboard is read no more.
pub const INPUT_BYTES_MAX: usize = 64 * 1024;
/// Output is given in parts of at most this size, so that a slow session takes little memory in the driver's hands.
const OUTPUT_PART_BYTES: usize = 8 * 1024;

/// A session's name inside one fan-out; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u64);

/// Who is at the other end, as the kernel says (SO_PEERCRED).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub user: String,
    pub rights: Rights,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    Watch,
    /// Watch, type and ask for verbs.
    Operate,
}

/// A verb to perform; its end is told by [`Fanout::verb_done`], or [`Fanout::drives_known`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "the session waits for its answer"]
pub struct VerbAsked {
    pub session: SessionId,
    /// Who asks.
    pub user: String,
    pub verb: Verb,
}

/// What a session may ask of the guest's owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    Drives,
    Medium(MediumRequest),
}

/// What to do for a session that can be written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Send(ServerFrame),
    /// Nothing now. Ask again after the next event.
    Wait,
    /// Everything is sent: close the stream.
    Close,
}

#[derive(Debug)]
pub struct Fanout {
    guest: String,
    state: String,
    history: History,
    seats: BTreeMap<SessionId, Seat>,
    next_id: u64,
    writer: Option<SessionId>,
    to_guest: Vec<u8>,
    ended: Option<Ended>,
}

#[derive(Debug)]
struct Seat {
    peer: Peer,
    phase: Phase,
    asked: Asked,
}

#[derive(Debug)]
enum Phase {
    /// Its Hello has not come yet.
    Expected,
    Attached(Attached),
    /// Only this is still to be said, then the stream closes.
    Leaving(Option<ServerFrame>),
}

#[derive(Debug)]
struct Attached {
    want: Want,
    /// The next byte to send.
    place: u64,
    /// Bytes before this place are history; the session knows when it has them all.
    live_from: u64,
    current: bool,
    /// Bytes left out that the session was not told of yet.
    lagged: u64,
    /// What the session was told of the keyboard; nothing before its Welcome.
    told: Option<Keyboard>,
    /// Asked for the keyboard without the right to it: it is told again how things are.
    repeat_keyboard: bool,
}

/// A session's verb: one at a time.
#[derive(Debug)]
enum Asked {
    Nothing,
    Verb,
    /// What is still to be said in answer, never empty.
    Answer(VecDeque<ServerFrame>),
}

impl Fanout {
    /// `history` may already hold the end of a console log: an adopted guest shows what it said before.
    #[must_use]
    pub fn new(guest: &str, state: &str, history: History) -> Fanout {
        Fanout {
            guest: guest.into(),
            state: state.into(),
            history,
            seats: BTreeMap::new(),
            next_id: 0,
            writer: None,
            to_guest: Vec::new(),
            ended: None,
        }
    }

    /// A client has connected.
    ///
    /// # Errors
    /// The frame to answer before closing, when there are too many.
    pub fn admit(&mut self, peer: Peer) -> Result<SessionId, ServerFrame> {
        if self.seats.len() >= SESSIONS_MAX {
            return Err(ServerFrame::Denied(format!(
                "guest '{}' has {SESSIONS_MAX} console sessions already; leave one of them first",
                self.guest
            )));
        }
        let session = SessionId(self.next_id);
        self.next_id += 1;
        self.seats.insert(session, Seat { peer, phase: Phase::Expected, asked: Asked::Nothing });
        Ok(session)
    }

    /// The stream of a session is gone, or the driver gave it up. Unknown sessions are none of our business.
    pub fn leave(&mut self, session: SessionId) {
        self.free_keyboard(session);
        self.seats.remove(&session);
    }

    /// A session said something the codec does not understand.
    pub fn fault(&mut self, session: SessionId, what: &str) {
        self.free_keyboard(session);
        if let Some(seat) = self.seats.get_mut(&session) {
            seat.phase = Phase::Leaving(Some(ServerFrame::Denied(what.into())));
        }
    }

    /// A session sent a frame.
    pub fn receive(&mut self, session: SessionId, frame: ClientFrame) -> Option<VerbAsked> {
        let seat = self.seats.get_mut(&session)?;
        match (&mut seat.phase, frame) {
            (Phase::Leaving(_), _) => {}
            (_, ClientFrame::Detach) => {
                seat.phase = Phase::Leaving(None);
                self.free_keyboard(session);
            }
            (Phase::Expected, ClientFrame::Hello(hello)) => self.hello(session, hello),
            (Phase::Expected, _) => self.fault(session, "a session begins with its Hello"),
            (Phase::Attached(_), ClientFrame::Hello(_)) => {
                self.fault(session, "a session says Hello once");
            }
            (Phase::Attached(attached), ClientFrame::Input(bytes)) => {
                let may = seat.peer.rights == Rights::Operate && attached.want == Want::Write;
                if may && self.writer.is_none() {
                    self.writer = Some(session);
                }
                if self.writer == Some(session) && self.ended.is_none() {
                    self.to_guest.extend(bytes);
                }
            }
            (Phase::Attached(attached), ClientFrame::TakeKeyboard) => match seat.peer.rights {
                Rights::Operate => {
                    attached.want = Want::Write;
                    self.writer = Some(session);
                }
                Rights::Watch => attached.repeat_keyboard = true,
            },
            (Phase::Attached(_), ClientFrame::Drives) => {
                return self.verb(session, Verb::Drives);
            }
            (Phase::Attached(_), ClientFrame::Medium(request)) => {
                return self.verb(session, Verb::Medium(request));
            }
        }
        None
    }

    fn hello(&mut self, session: SessionId, hello: Hello) {
        if hello.version != VERSION {
            let reason = format!(
                "this hpvmconsole speaks version {} of the console's protocol and the guest's hpvmapp version {VERSION}; \
                 use the hpvmconsole that was installed when the guest was started, or restart the guest",
                hello.version
            );
            return self.fault(session, &reason);
        }
        let history_bytes = usize::try_from(hello.history_bytes).unwrap_or(usize::MAX);
        let place = self.history.recent(history_bytes);
        let live_from = self.history.end();
        let Some(seat) = self.seats.get_mut(&session) else { return };
        if hello.want == Want::Write && seat.peer.rights == Rights::Operate {
            self.writer.get_or_insert(session);
        }
        seat.phase = Phase::Attached(Attached {
            want: hello.want,
            place,
            live_from,
            current: false,
            lagged: 0,
            told: None,
            repeat_keyboard: false,
        });
    }

    fn verb(&mut self, session: SessionId, verb: Verb) -> Option<VerbAsked> {
        let seat = self.seats.get_mut(&session)?;
        match (&seat.asked, seat.peer.rights) {
            (Asked::Verb | Asked::Answer(_), _) => {
                self.fault(session, "a session asks for one verb at a time");
                None
            }
            (Asked::Nothing, Rights::Watch) => {
                let refusal = format!(
                    "user '{}' may watch guest '{}' but not change its media",
                    seat.peer.user, self.guest
                );
                seat.asked = Asked::Answer([ServerFrame::Answer(Err(refusal))].into());
                None
            }
            (Asked::Nothing, Rights::Operate) => {
                seat.asked = Asked::Verb;
                Some(VerbAsked { session, user: seat.peer.user.clone(), verb })
            }
        }
    }

    /// What became of a verb. Nobody hears it when the session left in the meantime.
    pub fn verb_done(&mut self, session: SessionId, result: Result<String, String>) {
        self.answer(session, [ServerFrame::Answer(result)].into());
    }

    /// The answer to [`Verb::Drives`].
    pub fn drives_known(&mut self, session: SessionId, drives: Vec<Drive>) {
        let done = ServerFrame::Answer(Ok(String::new()));
        self.answer(session, drives.into_iter().map(ServerFrame::Drive).chain([done]).collect());
    }

    fn answer(&mut self, session: SessionId, frames: VecDeque<ServerFrame>) {
        if let Some(seat) = self.seats.get_mut(&session)
            && matches!(seat.asked, Asked::Verb)
        {
            seat.asked = Asked::Answer(frames);
        }
    }

    /// The guest printed something.
    pub fn guest_output(&mut self, output: &[u8]) {
        self.history.push(output);
    }

    /// What later sessions are told in their Welcome.
    pub fn set_state(&mut self, state: &str) {
        self.state = state.into();
    }

    /// The guest has ended: each session gets what is left of its output, is told, and is closed.
    pub fn guest_ended(&mut self, how: Ended) {
        self.ended = Some(how);
        self.to_guest.clear();
    }

    /// What the guest is to get from the keyboard. Tell [`Fanout::guest_took`] how much of it was written.
    #[must_use]
    pub fn guest_input(&self) -> &[u8] {
        &self.to_guest
    }

    pub fn guest_took(&mut self, bytes: usize) {
        self.to_guest.drain(..bytes.min(self.to_guest.len()));
    }

    /// Whether to read from a session now. Only the keyboard of a guest that takes no input is not read, for as long as
    /// that lasts; the driver still watches it for the end of the stream.
    #[must_use]
    pub fn wants_input(&self, session: SessionId) -> bool {
        self.writer != Some(session) || self.to_guest.len() < INPUT_BYTES_MAX
    }

    /// The number of sessions, and who holds the keyboard.
    #[must_use]
    pub fn audience(&self) -> (usize, Option<&str>) {
        let writer = self.writer.and_then(|writer| self.seats.get(&writer));
        (self.seats.len(), writer.map(|seat| seat.peer.user.as_str()))
    }

    /// What to write to a session that can be written to. A session unknown here is to be closed.
    pub fn next(&mut self, session: SessionId) -> Next {
        let keyboard = self.keyboard_seen_by(session);
        let Some(seat) = self.seats.get_mut(&session) else { return Next::Close };
        let attached = match &mut seat.phase {
            Phase::Expected => return Next::Wait,
            Phase::Leaving(last) => return last.take().map_or(Next::Close, Next::Send),
            Phase::Attached(attached) => attached,
        };
        if attached.told.is_none() {
            attached.told = Some(keyboard.clone());
            return Next::Send(ServerFrame::Welcome(Welcome {
                version: VERSION,
                guest: self.guest.clone(),
                state: self.state.clone(),
                keyboard,
            }));
        }
        if let Asked::Answer(frames) = &mut seat.asked
            && let Some(frame) = frames.pop_front()
        {
            if frames.is_empty() {
                seat.asked = Asked::Nothing;
            }
            return Next::Send(frame);
        }
        if attached.told.as_ref() != Some(&keyboard) || attached.repeat_keyboard {
            attached.repeat_keyboard = false;
            attached.told = Some(keyboard.clone());
            return Next::Send(ServerFrame::Keyboard(keyboard));
        }
        if let Some(frame) = attached.output(&self.history) {
            return Next::Send(frame);
        }
        match self.ended {
            // Who asked to switch the guest off hears the answer before the end.
            Some(how) if !matches!(seat.asked, Asked::Verb) => {
                seat.phase = Phase::Leaving(None);
                self.free_keyboard(session);
                Next::Send(ServerFrame::Ended(how))
            }
            _ => Next::Wait,
        }
    }

    fn keyboard_seen_by(&self, session: SessionId) -> Keyboard {
        let rights = self.seats.get(&session).map(|seat| seat.peer.rights);
        let holder = self.writer.and_then(|writer| Some((writer, self.seats.get(&writer)?)));
        match (rights, holder) {
            (Some(Rights::Watch), _) => Keyboard::WatchOnly,
            (_, None) => Keyboard::Free,
            (_, Some((writer, _))) if writer == session => Keyboard::Yours,
            (_, Some((_, seat))) => Keyboard::HeldBy(seat.peer.user.clone()),
        }
    }

    fn free_keyboard(&mut self, session: SessionId) {
        if self.writer == Some(session) {
            self.writer = None;
        }
    }
}

impl Attached {
    /// The next part of the guest's output.
    fn output(&mut self, history: &History) -> Option<ServerFrame> {
        if self.place < history.start() {
            // From the middle of the ring on, so that a session that stays slow loses few large parts, not many small.
            let held = history.end() - history.start();
            let from = history.recent(usize::try_from(held / 2).unwrap_or(usize::MAX));
            self.lagged += from - self.place;
            self.place = from;
        }
        if self.lagged > 0 {
            return Some(ServerFrame::Lagged(std::mem::take(&mut self.lagged)));
        }
        let before_live = self.live_from.saturating_sub(self.place);
        if before_live == 0 && !std::mem::replace(&mut self.current, true) {
            return Some(ServerFrame::Current);
        }
        let part_bytes = match usize::try_from(before_live) {
            Ok(0) | Err(_) => OUTPUT_PART_BYTES,
            Ok(rest) => rest.min(OUTPUT_PART_BYTES),
        };
        let part = history.copy(self.place, part_bytes);
        if part.is_empty() {
            return None;
        }
        self.place += part.len() as u64;
        Some(if before_live > 0 { ServerFrame::History(part) } else { ServerFrame::Live(part) })
    }
}
