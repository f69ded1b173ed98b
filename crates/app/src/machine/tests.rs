//! The machine held to its rules, whatever happens to it.

mod endings;
mod requests;
mod stops;

use proptest::prelude::*;

use super::*;

const GRACEFUL: Ask = Ask::Stop(StopHow::Graceful { seconds_max: 20 });
const HARD: Ask = Ask::Stop(StopHow::Hard);

/// A machine with its clock and what it did so far.
struct Guest {
    machine: Machine,
    now: Duration,
    tickets: u64,
    done: Vec<Action>,
}

impl Guest {
    fn new(origin: Origin) -> Guest {
        Guest {
            machine: Machine::new(origin, Devices::Known),
            now: Duration::ZERO,
            tickets: 0,
            done: Vec::new(),
        }
    }

    fn running() -> Guest {
        let mut guest = Guest::new(Origin::Start);
        guest.gets(Input::Status(RunState::Running));
        guest
    }

    fn with_os() -> Guest {
        let mut guest = Guest::running();
        guest.gets(Input::Seen(Occupant::Os));
        guest
    }

    fn gets(&mut self, input: Input) -> Vec<Action> {
        let actions = self.machine.step(self.now, input);
        self.done.extend(actions.clone());
        actions
    }

    fn asks(&mut self, ask: Ask) -> (Ticket, Vec<Action>) {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        (ticket, self.gets(Input::Asked { ticket, ask }))
    }

    fn after(&mut self, seconds: u64) -> Vec<Action> {
        self.now += Duration::from_secs(seconds);
        self.gets(Input::Tick)
    }

    fn exits(&mut self) -> Vec<Action> {
        self.gets(Input::Exited { crash: Crash::Killed { signal: 9 }, words: String::new() })
    }

    fn reply(&self, ticket: Ticket) -> Option<&Reply> {
        replies(&self.done).find(|(t, _)| *t == ticket).map(|(_, reply)| reply)
    }
}

/// Final replies; progress is none.
fn replies(actions: &[Action]) -> impl Iterator<Item = (Ticket, &Reply)> {
    actions.iter().filter_map(|action| match action {
        Action::Reply(_, Reply::Progress { .. }) => None,
        Action::Reply(ticket, reply) => Some((*ticket, reply)),
        _ => None,
    })
}

fn button(enabled: bool, pending: bool) -> Input {
    Input::Button(PowerButton { enabled, pending })
}

fn told() -> Crash {
    Crash::Told { reason: "host-signal".into(), words: String::new() }
}

const FAR: &str = "'/far', which backs the disk at 0,0,1 and has not answered since 07:00";

fn silence(since: Duration) -> Option<Silence> {
    Some(Silence { words: FAR.into(), since })
}

#[test]
fn a_guest_starts_once_qemu_runs_it() {
    let mut guest = Guest::new(Origin::Start);
    assert_eq!(guest.machine.phase(), Phase::Starting);
    assert_eq!(guest.gets(Input::Status(RunState::Prelaunch)), []);
    let actions = guest.gets(Input::Status(RunState::Running));
    assert!(actions.contains(&Action::Started(Ok(()))), "{actions:?}");
    assert_eq!(guest.machine.phase(), Phase::Running { occupant: Occupant::Firmware });
}

#[test]
fn a_start_that_fails_says_qemus_last_words() {
    let mut guest = Guest::new(Origin::Start);
    let words = "could not open the disk".to_owned();
    let crash = Crash::Exited { status: 1 };
    let actions = guest.gets(Input::Exited { crash, words: words.clone() });
    assert!(actions.contains(&Action::Started(Err(words.clone()))));
    let how = Ending::FailedToStart { error: words };
    assert_eq!(guest.machine.phase(), Phase::Ended { how });
    assert_eq!(actions.last(), Some(&Action::Finish));
}

#[test]
fn a_restart_inside_the_guest_is_no_stop() {
    let mut guest = Guest::with_os();
    assert_eq!(guest.machine.phase(), Phase::Running { occupant: Occupant::Os });
    let actions = guest.gets(Input::Reset);
    assert!(actions.contains(&Action::AfterReset));
    assert!(!actions.iter().any(|a| matches!(a, Action::Quit | Action::Kill | Action::Finish)));
    assert_eq!(guest.machine.phase(), Phase::Running { occupant: Occupant::Firmware });
}

#[test]
fn a_guest_that_powers_off_ends_in_order() {
    let mut guest = Guest::with_os();
    assert!(guest.gets(Input::PoweredOff).contains(&Action::Quit));
    assert_eq!(guest.machine.decided(), Some(&Ending::PoweredOff));
    assert_eq!(guest.gets(Input::Status(RunState::Shutdown)), []);
    guest.exits();
    assert_eq!(guest.machine.phase(), Phase::Ended { how: Ending::PoweredOff });
}

#[test]
fn a_guest_out_of_space_is_tried_again_and_believed_when_it_lasts() {
    let mut guest = Guest::with_os();
    let no_space = |store: &str| Input::NoSpace(Some(store.into()));
    let told = |guest: &Guest| {
        let Phase::Paused { reason, .. } = guest.machine.phase() else { panic!("not paused") };
        reason
    };
    guest.gets(no_space("'/a'"));
    guest.gets(Input::Status(RunState::IoError));
    assert_eq!(told(&guest), "no space is left for '/a'; the guest goes on when there is some");
    assert_eq!(guest.after(5), [Action::Continue]);
    assert_eq!(guest.gets(Input::Status(RunState::Running)), [], "not believed at once");
    assert_eq!(guest.gets(no_space("'/a'")), [], "no line for each try");
    guest.gets(no_space("'/b'"));
    assert!(told(&guest).starts_with("no space is left for '/a', and for '/b'; "));
    assert_eq!(guest.gets(no_space("'/a'")), []);
    assert_eq!(guest.after(5), [Action::Continue]);
    guest.after(1);
    guest.gets(Input::Status(RunState::Running));
    assert_eq!(guest.machine.phase(), Phase::Running { occupant: Occupant::Os });
}

#[test]
fn a_silent_engine_refuses_changes_but_not_its_end() {
    let mut guest = Guest::with_os();
    guest.gets(Input::Silent);
    let (change, _) = guest.asks(Ask::Change);
    assert_eq!(guest.reply(change), Some(&Reply::Denied { reason: Denial::Unresponsive }));
    let (_, actions) = guest.asks(HARD);
    assert!(actions.contains(&Action::Kill));
}

#[test]
fn what_the_worker_before_decided_holds() {
    let phase = Some(Phase::Stopping { occupant: Occupant::Os, held: None, is_unheard: false });
    let decided = Some(Ending::StoppedHard);
    let origin = Origin::Adoption { phase, decided };
    // One that answers no more hangs in its end, perhaps.
    for input in [Input::Status(RunState::Running), Input::Silent] {
        let mut guest = Guest::new(origin.clone());
        assert!(guest.gets(input).contains(&Action::Kill));
    }
    let mut guest = Guest::new(origin);
    guest.exits();
    assert_eq!(guest.machine.phase(), Phase::Ended { how: Ending::StoppedHard });
}

#[test]
fn an_adopted_guest_keeps_its_occupant() {
    let phase = Some(Phase::Running { occupant: Occupant::Os });
    let mut guest = Guest::new(Origin::Adoption { phase, decided: None });
    guest.gets(Input::Status(RunState::Running));
    assert_eq!(guest.machine.phase(), Phase::Running { occupant: Occupant::Os });
}

#[test]
fn a_reset_between_two_workers_is_found() {
    let phase = Some(Phase::Running { occupant: Occupant::Os });
    let mut guest = Guest::new(Origin::Adoption { phase, decided: None });
    guest.gets(Input::Status(RunState::Running));
    assert!(guest.machine.wants_occupant());
    assert!(guest.gets(Input::Seen(Occupant::Firmware)).contains(&Action::AfterReset));
    assert_eq!(guest.machine.phase(), Phase::Running { occupant: Occupant::Firmware });
    assert_eq!(guest.gets(Input::Seen(Occupant::Firmware)), []);
    guest.gets(Input::Seen(Occupant::Os));
    // What we saw ourselves stays: a moment in a firmware call means nothing.
    assert!(!guest.machine.wants_occupant());
    assert_eq!(guest.gets(Input::Seen(Occupant::Firmware)), []);
    assert_eq!(guest.machine.phase(), Phase::Running { occupant: Occupant::Os });
}

fn any_ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        Just(Ask::Ping),
        Just(HARD),
        (0u32..30).prop_map(|seconds_max| Ask::Stop(StopHow::Graceful { seconds_max })),
        Just(Ask::Idle),
        Just(Ask::Counters),
        Just(Ask::Change),
        Just(Ask::ChangeWithoutStores),
        Just(Ask::Copy),
    ]
}

fn any_status() -> impl Strategy<Value = RunState> {
    prop_oneof![
        5 => Just(RunState::Running),
        1 => Just(RunState::Paused),
        1 => Just(RunState::Prelaunch),
        1 => Just(RunState::Shutdown),
        1 => Just(RunState::IoError),
        1 => Just(RunState::Other("save-vm".into())),
    ]
}

fn any_input() -> impl Strategy<Value = Option<Input>> {
    prop_oneof![
        6 => any_ask().prop_map(|ask| Some(Input::Asked { ticket: Ticket(0), ask })),
        6 => any_status().prop_map(|status| Some(Input::Status(status))),
        2 => Just(Some(Input::Silent)),
        1 => Just(Some(Input::PoweredOff)),
        1 => Just(Some(Input::ToldToEnd(told()))),
        1 => Just(Some(Input::ToldToQuit)),
        2 => Just(Some(Input::InOrder)),
        3 => Just(Some(Input::Reset)),
        2 => Just(Some(Input::NoSpace(None))),
        2 => Just(Some(Input::Seen(Occupant::Os))),
        1 => Just(Some(Input::Seen(Occupant::Firmware))),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(e, p)| Some(button(e, p))),
        1 => Just(Some(Input::Exited { crash: Crash::Unseen, words: String::new() })),
        1 => Just(Some(Input::ChangeBegun)),
        2 => Just(Some(Input::ChangeOver)),
        1 => Just(Some(Input::CopyHolds)),
        2 => Just(Some(Input::CopyOver)),
        2 => (0u64..20).prop_map(|s| Some(Input::Stores(silence(Duration::from_secs(s))))),
        1 => Just(Some(Input::Stores(None))),
        // Time passes.
        8 => Just(None),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_rules_hold(inputs in prop::collection::vec((any_input(), 0u64..4), 0..60), adopted: bool, saw_os: bool, known: bool) {
        let origin = match adopted {
            true => Origin::Adoption {
                phase: saw_os.then_some(Phase::Running { occupant: Occupant::Os }),
                decided: None,
            },
            false => Origin::Start,
        };
        let mut guest = Guest::new(origin);
        if !known {
            guest.machine.devices = Devices::Unknown;
        }
        let mut asked: Vec<(Ticket, Ask)> = Vec::new();
        let (mut in_order, mut is_due_made) = (!adopted, false);
        for (input, seconds) in inputs {
            let was_ended = matches!(guest.machine.phase(), Phase::Ended { .. });
            let was_decided = guest.machine.decided().cloned();
            in_order |= input == Some(Input::InOrder);
            is_due_made = match input {
                Some(Input::ChangeBegun) => true,
                Some(Input::ChangeOver) => false,
                _ => is_due_made,
            };
            guest.now += Duration::from_secs(seconds);
            let actions = match input.clone() {
                None => guest.gets(Input::Tick),
                Some(Input::Asked { ask, .. }) => {
                    let (ticket, actions) = guest.asks(ask);
                    asked.push((ticket, ask));
                    actions
                }
                Some(input) => guest.gets(input),
            };
            if was_ended {
                let refused = |a: &Action| matches!(a, Action::Reply(_, Reply::Denied { reason: Denial::Ended }));
                prop_assert!(actions.iter().all(refused), "after the end: {actions:?}");
            }
            if let Some(Input::Asked { ask: HARD, .. }) = input {
                let ends = actions.contains(&Action::Kill) || was_decided == Some(Ending::StoppedHard);
                prop_assert!(was_ended || ends, "a hard stop that does nothing: {actions:?}");
            }
            let begins = |a: &Action| matches!(a, Action::BeginChange(_) | Action::BeginCopy(_) | Action::ReadIdle(_));
            let stores_answer = guest.machine.silent_stores.is_none();
            prop_assert!(in_order || !stores_answer || !actions.iter().any(begins), "judged too early: {actions:?}");
            prop_assert!(!is_due_made || !actions.iter().any(begins), "begun beside what was due: {actions:?}");
            if input == Some(Input::Reset) {
                let stops = |a: &Action| matches!(a, Action::Quit | Action::Kill | Action::Finish);
                prop_assert!(!actions.iter().any(stops), "a restart stopped the guest: {actions:?}");
            }
            if let (Some(before), Some(after)) = (was_decided, guest.machine.decided()) {
                prop_assert_eq!(&before, after, "how it ends was decided");
            }
        }
        let ends = guest.done.iter().filter(|a| **a == Action::Finish).count();
        prop_assert!(ends <= 1);
        let starts = guest.done.iter().filter(|a| matches!(a, Action::Started(_))).count();
        prop_assert!(starts <= 1);
        // Let everybody who still waits come to an end; none is forgotten and none is answered twice.
        guest.gets(Input::Exited { crash: Crash::Unseen, words: String::new() });
        for (ticket, ask) in asked {
            let answers = replies(&guest.done).filter(|(t, _)| *t == ticket).count();
            let handed_on = guest.done.iter().any(
                |a| matches!(a, Action::BeginChange(t) | Action::BeginCopy(t) | Action::ReadIdle(t) | Action::ReadCounters(t) if *t == ticket));
            prop_assert_eq!(answers + usize::from(handed_on), 1, "{:?} {:?}", ticket, ask);
        }
    }
}
