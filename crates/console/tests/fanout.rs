//! The fan-out under any order of events: one writer at most, no byte of output lost in silence, nothing that grows.

use std::collections::BTreeMap;

use hpvm_console::door::{
    ClientFrame, DriveAddress, Ended, Hello, Keyboard, MediumRequest, ServerFrame, VERSION, Want,
};
use hpvm_console::fanout::{
    Fanout, INPUT_BYTES_MAX, Next, Peer, Rights, SESSIONS_MAX, SessionId, Verb, VerbAsked,
};
use hpvm_console::history::History;
use proptest::prelude::*;

fn operator(user: &str) -> Peer {
    Peer { user: user.into(), rights: Rights::Operate }
}

fn hello(want: Want, history_bytes: u32) -> ClientFrame {
    ClientFrame::Hello(Hello { version: VERSION, want, history_bytes })
}

/// A verb: take the medium out of a drive.
fn eject() -> ClientFrame {
    let drive = DriveAddress { bus: 0, device: 4, target: 0 };
    ClientFrame::Medium(MediumRequest { drive, image: None })
}

/// A session that has said Hello and heard its Welcome, with the keyboard in it.
fn attached(fanout: &mut Fanout, peer: Peer, want: Want) -> (SessionId, Keyboard) {
    let session = fanout.admit(peer).expect("room");
    assert_eq!(fanout.receive(session, hello(want, 1000)), None);
    match fanout.next(session) {
        Next::Send(ServerFrame::Welcome(welcome)) => (session, welcome.keyboard),
        other => panic!("no welcome but {other:?}"),
    }
}

fn all(fanout: &mut Fanout, session: SessionId) -> Vec<ServerFrame> {
    let frames = std::iter::from_fn(|| match fanout.next(session) {
        Next::Send(frame) => Some(frame),
        Next::Wait | Next::Close => None,
    });
    frames.collect()
}

fn fanout(before: &[u8]) -> Fanout {
    let mut history = History::new(20_000);
    history.push(before);
    Fanout::new("web1", "On (OS)", history)
}

#[test]
fn a_session_gets_welcome_history_and_what_is_live_in_this_order() {
    let mut fanout = fanout(b"boot\r\n");
    let session = fanout.admit(operator("root")).expect("room");
    assert_eq!(fanout.next(session), Next::Wait, "nothing is said before the Hello");
    fanout.receive(session, hello(Want::Write, 1000));
    fanout.guest_output(b"login: ");
    let frames = all(&mut fanout, session);
    let [ServerFrame::Welcome(welcome), rest @ ..] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!((welcome.guest.as_str(), welcome.state.as_str()), ("web1", "On (OS)"));
    assert_eq!(welcome.keyboard, Keyboard::Yours);
    assert_eq!(
        rest,
        [
            ServerFrame::History(b"boot\r\n".into()),
            ServerFrame::Current,
            ServerFrame::Live(b"login: ".into())
        ]
    );
}

#[test]
fn the_keyboard_is_taken_freed_and_picked_up() {
    let mut fanout = fanout(b"");
    let (ann, keyboard) = attached(&mut fanout, operator("ann"), Want::Write);
    assert_eq!(keyboard, Keyboard::Yours);
    let (bob, keyboard) = attached(&mut fanout, operator("bob"), Want::Write);
    assert_eq!(keyboard, Keyboard::HeldBy("ann".into()));
    all(&mut fanout, ann);
    all(&mut fanout, bob);

    fanout.receive(bob, ClientFrame::Input(b"no".into()));
    assert_eq!(fanout.guest_input(), b"");
    fanout.receive(bob, ClientFrame::TakeKeyboard);
    assert_eq!(all(&mut fanout, ann), [ServerFrame::Keyboard(Keyboard::HeldBy("bob".into()))]);
    assert_eq!(all(&mut fanout, bob), [ServerFrame::Keyboard(Keyboard::Yours)]);
    fanout.receive(ann, ClientFrame::Input(b"no".into()));
    fanout.receive(bob, ClientFrame::Input(b"yes".into()));
    assert_eq!(fanout.guest_input(), b"yes");

    fanout.leave(bob);
    assert_eq!(all(&mut fanout, ann), [ServerFrame::Keyboard(Keyboard::Free)]);
    fanout.receive(ann, ClientFrame::Input(b", sir".into()));
    assert_eq!(fanout.guest_input(), b"yes, sir");
    assert_eq!(fanout.audience(), (1, Some("ann")));
}

#[test]
fn who_may_only_watch_types_nothing_and_changes_nothing() {
    let mut fanout = fanout(b"");
    let peer = Peer { user: "eve".into(), rights: Rights::Watch };
    let (eve, keyboard) = attached(&mut fanout, peer, Want::Write);
    assert_eq!(keyboard, Keyboard::WatchOnly);
    all(&mut fanout, eve);
    fanout.receive(eve, ClientFrame::Input(b"rm -rf /\r".into()));
    fanout.receive(eve, ClientFrame::TakeKeyboard);
    assert_eq!(fanout.receive(eve, eject()), None);
    assert_eq!(fanout.guest_input(), b"");
    let refusal = "user 'eve' may watch guest 'web1' but not change its media".into();
    assert_eq!(
        all(&mut fanout, eve),
        [ServerFrame::Answer(Err(refusal)), ServerFrame::Keyboard(Keyboard::WatchOnly)]
    );
}

#[test]
fn a_verb_is_answered_before_the_end_is_told() {
    let mut fanout = fanout(b"");
    let (session, _) = attached(&mut fanout, operator("root"), Want::Watch);
    all(&mut fanout, session);
    let asked = fanout.receive(session, ClientFrame::Drives);
    assert_eq!(asked, Some(VerbAsked { session, user: "root".into(), verb: Verb::Drives }));
    fanout.guest_output(b"last words");
    fanout.guest_ended(Ended::Stopped);
    assert_eq!(all(&mut fanout, session), [ServerFrame::Live(b"last words".into())]);
    assert_eq!(fanout.next(session), Next::Wait);
    fanout.verb_done(session, Ok("done".into()));
    assert_eq!(
        all(&mut fanout, session),
        [ServerFrame::Answer(Ok("done".into())), ServerFrame::Ended(Ended::Stopped)]
    );
    assert_eq!(fanout.next(session), Next::Close);
}

#[test]
fn who_breaks_the_protocol_is_told_and_closed() {
    let mut fanout = fanout(b"");
    let breaks: [(&[ClientFrame], &str); 4] = [
        (&[ClientFrame::TakeKeyboard], "a session begins with its Hello"),
        (&[hello(Want::Write, 0), hello(Want::Write, 0)], "a session says Hello once"),
        (
            &[hello(Want::Write, 0), ClientFrame::Drives, eject()],
            "a session asks for one verb at a time",
        ),
        (
            &[ClientFrame::Hello(Hello { version: 9, want: Want::Write, history_bytes: 0 })],
            "this hpvmconsole speaks version 9 of the console's protocol and the guest's hpvmapp version 1; use the \
             hpvmconsole that was installed when the guest was started, or restart the guest",
        ),
    ];
    for (frames, reason) in breaks {
        let session = fanout.admit(operator("root")).expect("room");
        for frame in frames {
            let _ = fanout.receive(session, frame.clone());
        }
        assert_eq!(all(&mut fanout, session), [ServerFrame::Denied(reason.into())]);
        assert_eq!(fanout.next(session), Next::Close);
        assert_eq!(fanout.audience().1, None, "who was thrown out keeps no keyboard");
        fanout.leave(session);
    }
}

#[test]
fn sessions_are_counted() {
    let mut fanout = fanout(b"");
    let sessions: Vec<SessionId> =
        (0..SESSIONS_MAX).map(|_| fanout.admit(operator("root")).expect("room")).collect();
    let refused = fanout.admit(operator("root"));
    assert!(matches!(refused, Err(ServerFrame::Denied(_))), "{refused:?}");
    fanout.leave(sessions[0]);
    assert!(fanout.admit(operator("root")).is_ok());
}

#[test]
fn a_guest_that_takes_no_input_is_not_fed_without_end() {
    let mut fanout = fanout(b"");
    let (session, _) = attached(&mut fanout, operator("root"), Want::Write);
    let (watcher, _) = attached(&mut fanout, operator("ann"), Want::Write);
    while fanout.wants_input(session) {
        fanout.receive(session, ClientFrame::Input(vec![b'x'; 1000]));
    }
    assert!(fanout.guest_input().len() < INPUT_BYTES_MAX + 1000);
    assert!(fanout.wants_input(watcher), "another session can still take the keyboard");
    fanout.guest_took(2000);
    assert!(fanout.wants_input(session));
}

/// What can happen to a fan-out. Sessions are chosen by number among those that are there.
#[derive(Clone, Debug)]
enum Event {
    Admit(Rights),
    Leave(usize),
    Frame(usize, ClientFrame),
    Output(usize),
    /// A session can be written to, for so many frames.
    Next(usize, usize),
    VerbDone(usize),
    GuestTakes(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let frame = prop_oneof![
        4 => (prop_oneof![Just(Want::Watch), Just(Want::Write)], 0_u32..30_000)
            .prop_map(|(want, history_bytes)| hello(want, history_bytes)),
        4 => prop::collection::vec(any::<u8>(), 1..40).prop_map(ClientFrame::Input),
        2 => Just(ClientFrame::TakeKeyboard),
        1 => prop_oneof![Just(ClientFrame::Drives), Just(eject())],
        1 => Just(ClientFrame::Detach),
    ];
    let output_bytes = prop_oneof![4 => 0_usize..200, 1 => 0_usize..30_000];
    prop_oneof![
        2 => prop_oneof![Just(Rights::Operate), Just(Rights::Watch)].prop_map(Event::Admit),
        1 => (0_usize..8).prop_map(Event::Leave),
        8 => (0_usize..8, frame).prop_map(|(session, frame)| Event::Frame(session, frame)),
        6 => output_bytes.prop_map(Event::Output),
        8 => (0_usize..8, 1_usize..6).prop_map(|(session, frames)| Event::Next(session, frames)),
        1 => (0_usize..8).prop_map(Event::VerbDone),
        1 => (0_usize..100).prop_map(Event::GuestTakes),
    ]
}

/// What a client has heard so far.
#[derive(Default)]
struct Heard {
    /// Where its next byte of output must come from; known from its Hello on.
    place: Option<u64>,
    current: bool,
    keyboard: Option<Keyboard>,
    /// It broke the protocol, detached, or was told the end.
    over: bool,
    ended: bool,
}

struct World {
    fanout: Fanout,
    /// Knows where a history begins.
    mirror: History,
    printed: Vec<u8>,
    clients: BTreeMap<SessionId, Heard>,
}

impl World {
    fn new(capacity: usize) -> World {
        World {
            fanout: Fanout::new("web1", "On (OS)", History::new(capacity)),
            mirror: History::new(capacity),
            printed: Vec::new(),
            clients: BTreeMap::new(),
        }
    }

    fn client(&self, number: usize) -> Option<SessionId> {
        self.clients.keys().nth(number % self.clients.len().max(1)).copied()
    }

    fn happens(&mut self, event: Event) -> Result<(), TestCaseError> {
        match event {
            Event::Admit(rights) => {
                let user = format!("user{}", self.clients.len());
                if let Ok(session) = self.fanout.admit(Peer { user, rights }) {
                    self.clients.insert(session, Heard::default());
                }
            }
            Event::Leave(number) => {
                if let Some(session) = self.client(number) {
                    self.fanout.leave(session);
                    self.clients.remove(&session);
                }
            }
            Event::Frame(number, frame) => {
                if let Some(session) = self.client(number) {
                    self.says(session, frame)?;
                }
            }
            Event::Output(length) => {
                let start = self.printed.len();
                self.printed.extend((start..start + length).map(|place| (place % 251) as u8));
                self.mirror.push(&self.printed[start..]);
                self.fanout.guest_output(&self.printed[start..]);
            }
            Event::Next(number, frames) => {
                if let Some(session) = self.client(number) {
                    for _ in 0..frames {
                        self.hears(session)?;
                    }
                }
            }
            Event::VerbDone(number) => {
                if let Some(session) = self.client(number) {
                    self.fanout.verb_done(session, Ok(String::new()));
                }
            }
            Event::GuestTakes(bytes) => self.fanout.guest_took(bytes),
        }
        Ok(())
    }

    fn says(&mut self, session: SessionId, frame: ClientFrame) -> Result<(), TestCaseError> {
        let before = self.fanout.guest_input().len();
        let heard = self.clients.get_mut(&session).expect("a client");
        if let (ClientFrame::Hello(hello), None, false) = (&frame, heard.place, heard.over) {
            heard.place = Some(self.mirror.recent(hello.history_bytes as usize));
        }
        let typed = if let ClientFrame::Input(bytes) = &frame { bytes.len() } else { 0 };
        let _ = self.fanout.receive(session, frame);
        let taken = self.fanout.guest_input().len() - before;
        prop_assert!(taken == 0 || taken == typed);
        if taken > 0 {
            prop_assert!(self.holds_keyboard(session), "keys of somebody without the keyboard");
        }
        Ok(())
    }

    /// A holder is the only one whose keys are taken while the queue has room; that is asked on a copy of the facts.
    fn holds_keyboard(&mut self, session: SessionId) -> bool {
        // Without output in between, the session hears within a few frames who holds the keyboard.
        for _ in 0..64 {
            if self.hears(session).is_err() {
                return false;
            }
        }
        self.clients[&session].keyboard == Some(Keyboard::Yours)
    }

    fn hears(&mut self, session: SessionId) -> Result<bool, TestCaseError> {
        let heard = self.clients.get_mut(&session).expect("a client");
        let frame = match self.fanout.next(session) {
            Next::Send(frame) => frame,
            Next::Wait => return Ok(false),
            Next::Close => {
                heard.over = true;
                return Ok(false);
            }
        };
        prop_assert!(!heard.ended, "{frame:?} after the end");
        match frame {
            ServerFrame::Welcome(welcome) => {
                prop_assert!(heard.keyboard.is_none(), "a second welcome");
                heard.keyboard = Some(welcome.keyboard);
            }
            ServerFrame::History(bytes) => {
                prop_assert!(!heard.current, "history after live output");
                heard.follows(&self.printed, &bytes)?;
            }
            ServerFrame::Current => {
                prop_assert!(!heard.current);
                heard.current = true;
            }
            ServerFrame::Live(bytes) => {
                prop_assert!(heard.current, "live output in the history");
                heard.follows(&self.printed, &bytes)?;
            }
            ServerFrame::Keyboard(keyboard) => heard.keyboard = Some(keyboard),
            ServerFrame::Lagged(bytes) => {
                prop_assert!(bytes > 0);
                heard.place = heard.place.map(|place| place + bytes);
            }
            ServerFrame::Answer(_) | ServerFrame::Drive(_) => {
                prop_assert!(heard.keyboard.is_some());
            }
            ServerFrame::Ended(_) => (heard.ended, heard.over) = (true, true),
            ServerFrame::Denied(_) => heard.over = true,
        }
        Ok(true)
    }

    /// Every client reads all there is. Bounded: nothing was queued that the ring does not hold.
    fn all_read(&mut self) -> Result<(), TestCaseError> {
        let sessions: Vec<SessionId> = self.clients.keys().copied().collect();
        for session in sessions {
            let mut frames = 0;
            while self.hears(session)? {
                frames += 1;
                prop_assert!(frames < 12, "more frames than ring and facts can make");
            }
        }
        Ok(())
    }
}

impl Heard {
    fn follows(&mut self, printed: &[u8], bytes: &[u8]) -> Result<(), TestCaseError> {
        let place = self.place.expect("a Hello") as usize;
        prop_assert_eq!(bytes, &printed[place..place + bytes.len()], "out of order at {}", place);
        self.place = Some((place + bytes.len()) as u64);
        Ok(())
    }
}

proptest! {
    #[test]
    fn any_order_of_events_keeps_the_rules(
        capacity in prop_oneof![Just(1_usize), Just(60), Just(20_000)],
        events in prop::collection::vec(event(), 0..120),
    ) {
        let mut world = World::new(capacity);
        for event in events {
            world.happens(event)?;
        }
        world.all_read()?;
        let here = world.clients.values().filter(|heard| !heard.over && heard.keyboard.is_some());
        let holders = here.filter(|heard| heard.keyboard == Some(Keyboard::Yours)).count();
        prop_assert!(holders <= 1, "two sessions hold the keyboard");
        prop_assert_eq!(holders == 1, world.fanout.audience().1.is_some());
        for heard in world.clients.values().filter(|heard| !heard.over && heard.current) {
            prop_assert_eq!(heard.place, Some(world.printed.len() as u64), "output is missing");
        }

        world.fanout.guest_ended(Ended::Crashed);
        let sessions: Vec<SessionId> = world.clients.keys().copied().collect();
        for session in sessions {
            world.fanout.verb_done(session, Ok(String::new()));
        }
        world.all_read()?;
        for heard in world.clients.values().filter(|heard| heard.current && !heard.over) {
            prop_assert!(heard.ended, "a session was not told the end");
        }
    }
}
