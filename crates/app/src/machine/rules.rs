//! The machine held to its rules, whatever happens to it.

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
fn an_order_by_quit_is_followed_by_force_in_the_end() {
    let mut guest = Guest::with_os();
    guest.gets(Input::PoweredOff);
    assert_eq!(guest.after(1), [Action::Quit]);
    assert_eq!(guest.after(5), [Action::Quit, Action::Kill]);
}

#[test]
fn a_hard_stop_overtakes_a_graceful_one_and_both_are_answered() {
    let mut guest = Guest::with_os();
    let (graceful, _) = guest.asks(GRACEFUL);
    let (hard, actions) = guest.asks(HARD);
    assert!(actions.contains(&Action::Kill));
    for ticket in [graceful, hard] {
        assert_eq!(guest.reply(ticket), None, "it is answered when the guest is off");
    }
    guest.exits();
    assert!(matches!(guest.reply(graceful), Some(Reply::Already { .. })));
    assert_eq!(guest.reply(hard), Some(&Reply::Done));
    assert_eq!(guest.machine.phase(), Phase::Ended { how: Ending::StoppedHard });
}

/// Whatever comes of it comes to both.
#[test]
fn a_second_graceful_stop_waits_for_the_outcome_of_the_first() {
    type Outcome = (fn(&mut Guest), Reply);
    let outcomes: [Outcome; 3] = [
        (|guest| drop(guest.gets(Input::PoweredOff)), Reply::Done),
        (|guest| drop(guest.after(20)), Reply::NotStopped { why: NotStopped::NoOs }),
        (
            |_| {},
            Reply::Failed {
                error: "QEMU was killed by signal 9 while the guest was shutting down".into(),
            },
        ),
    ];
    for (happens, outcome) in outcomes {
        let mut guest = Guest::with_os();
        let (first, _) = guest.asks(GRACEFUL);
        guest.after(5);
        let (second, actions) = guest.asks(GRACEFUL);
        assert_eq!(actions, [], "the button is pressed for both");
        happens(&mut guest);
        guest.exits();
        for ticket in [first, second] {
            assert_eq!(guest.reply(ticket), Some(&outcome));
        }
    }
}

#[test]
fn a_stop_that_comes_late_waits_for_the_end_that_is_decided() {
    let mut guest = Guest::with_os();
    guest.asks(HARD);
    for ask in [GRACEFUL, HARD] {
        let (late, _) = guest.asks(ask);
        assert_eq!(guest.reply(late), None);
    }
    guest.exits();
    let late = replies(&guest.done).filter(|(_, reply)| matches!(reply, Reply::Already { .. }));
    assert_eq!(late.count(), 2);
}

#[test]
fn a_guest_without_a_boot_record_keeps_its_devices_and_can_be_stopped() {
    let mut guest = Guest::with_os();
    guest.machine.devices = Devices::Unknown;
    for ask in [Ask::Change, Ask::Copy, Ask::Idle, Ask::Counters] {
        let (ticket, _) = guest.asks(ask);
        assert_eq!(guest.reply(ticket), Some(&Reply::Denied { reason: Denial::NoRecord }));
    }
    let (ticket, actions) = guest.asks(GRACEFUL);
    assert!(actions.contains(&Action::PressButton));
    guest.gets(Input::PoweredOff);
    guest.exits();
    assert_eq!(guest.reply(ticket), Some(&Reply::Done));
}

#[test]
fn a_graceful_stop_ends_when_the_guest_goes_along() {
    let mut guest = Guest::with_os();
    let (ticket, actions) = guest.asks(GRACEFUL);
    let press = actions.iter().position(|a| *a == Action::PressButton);
    let read = actions.iter().position(|a| *a == Action::ReadButton);
    assert!(read < press && read.is_some(), "looked at before it is pressed: {actions:?}");
    guest.gets(Input::PoweredOff);
    guest.exits();
    assert_eq!(guest.reply(ticket), Some(&Reply::Done));
    assert_eq!(guest.machine.phase(), Phase::Ended { how: Ending::StoppedGracefully });
}

/// Runs a graceful stop to its bound; `look` is what each look at the button says.
fn verdict(look: impl Fn(u64) -> (bool, bool)) -> NotStopped {
    let mut guest = Guest::with_os();
    let (ticket, mut actions) = guest.asks(GRACEFUL);
    for second in 1..=20 {
        if actions.contains(&Action::ReadButton) {
            let (enabled, pending) = look(second);
            guest.gets(button(enabled, pending));
        }
        actions = guest.after(1);
    }
    assert_eq!(guest.machine.phase(), Phase::Running { occupant: Occupant::Os });
    match guest.reply(ticket) {
        Some(Reply::NotStopped { why }) => *why,
        other => panic!("not the bound's answer: {other:?}"),
    }
}

#[test]
fn where_a_graceful_stop_got_stuck_is_told_apart() {
    assert_eq!(verdict(|_| (false, false)), NotStopped::NoOs);
    assert_eq!(verdict(|_| (true, true)), NotStopped::NoReaction);
    assert_eq!(verdict(|_| (true, false)), NotStopped::ShuttingDown);
    assert_eq!(
        verdict(|second| (second < 15, false)),
        NotStopped::ShuttingDown,
        "at its end a system listens no more"
    );
}

#[test]
fn what_does_not_change_is_told_rarely_and_with_the_time_that_is_left() {
    let mut guest = Guest::with_os();
    guest.asks(Ask::Stop(StopHow::Graceful { seconds_max: 300 }));
    for _ in 0..119 {
        guest.after(1);
    }
    let told: Vec<&str> = guest
        .done
        .iter()
        .filter_map(|action| match action {
            Action::Reply(_, Reply::Progress { text }) => Some(text.as_str()),
            _ => None,
        })
        .collect();
    let left = told.iter().map(|text| text.split_once(" (").map(|(_, left)| left));
    let expected = ["115 s left)", "85 s left)", "55 s left)", "25 s left)"].map(Some);
    assert_eq!(left.collect::<Vec<_>>(), expected, "{told:?}");
}

#[test]
fn a_press_that_was_lost_is_repeated_as_soon_as_somebody_listens() {
    let mut guest = Guest::with_os();
    guest.asks(GRACEFUL);
    guest.gets(button(false, false));
    assert!(guest.after(1).contains(&Action::ReadButton));
    guest.gets(button(true, false));
    assert!(guest.after(1).contains(&Action::PressButton));
}

#[test]
fn a_guest_out_of_space_is_tried_again_and_believed_when_it_lasts() {
    let mut guest = Guest::with_os();
    guest.gets(Input::NoSpace);
    guest.gets(Input::Status(RunState::IoError));
    let Phase::Paused { reason, .. } = guest.machine.phase() else { panic!("not paused") };
    assert!(reason.contains("no space"), "{reason}");
    assert_eq!(guest.after(5), [Action::Continue]);
    assert_eq!(guest.gets(Input::Status(RunState::Running)), [], "not believed at once");
    assert_eq!(guest.gets(Input::NoSpace), [], "no line for each try");
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

const FAR: &str = "'/far', which backs the disk at 0,0,1 and has not answered since 07:00";
const TOUCHES_STORES: [Ask; 3] = [Ask::Idle, Ask::Change, Ask::Copy];

fn silence(since: Duration) -> Option<Silence> {
    Some(Silence { words: FAR.into(), since })
}

fn silent_store() -> Reply {
    Reply::Denied { reason: Denial::SilentStore { store: FAR.into() } }
}

/// From what QEMU does with any disk it may not come back before that one answers. A store that hesitates fails nobody.
#[test]
fn what_touches_stores_waits_for_a_silent_one_and_is_denied_when_that_lasts() {
    for ask in TOUCHES_STORES {
        let mut guest = Guest::with_os();
        guest.gets(Input::Stores(silence(guest.now)));
        assert_eq!(guest.machine.wake_at(), None);
        let (first, actions) = guest.asks(ask);
        assert!(matches!(actions[..], [Action::Log(_)]), "{actions:?}");
        guest.after(4);
        assert_eq!(guest.reply(first), None);
        assert_eq!(guest.machine.wake_at(), Some(STORE_PATIENCE), "it is not forgotten");
        guest.after(1);
        assert_eq!(guest.reply(first), Some(&silent_store()));
        assert_eq!(guest.machine.wake_at(), None);
        let (late, actions) = guest.asks(ask);
        assert_eq!(actions, [Action::Reply(late, silent_store())], "nobody waits for it again");
    }
}

#[test]
fn what_waited_for_a_store_begins_when_it_answers() {
    let begins: [fn(Ticket) -> Action; 3] =
        [Action::ReadIdle, Action::BeginChange, Action::BeginCopy];
    for (ask, begins) in TOUCHES_STORES.into_iter().zip(begins) {
        let mut guest = Guest::with_os();
        guest.gets(Input::Stores(silence(guest.now)));
        let (waits, _) = guest.asks(ask);
        guest.after(4);
        assert_eq!(guest.gets(Input::Stores(None)), [begins(waits)]);
        assert_eq!(guest.after(5), [], "once");
    }
}

/// Which store it is, is told of a QEMU too that waits for it.
#[test]
fn an_engine_that_waits_for_a_store_is_waited_for_as_long() {
    for answers in [false, true] {
        let mut guest = Guest::with_os();
        guest.gets(Input::Stores(silence(guest.now)));
        guest.gets(Input::Silent);
        let (waits, _) = guest.asks(Ask::Change);
        assert_eq!(guest.reply(waits), None);
        if answers {
            guest.gets(Input::Status(RunState::Running));
            assert_eq!(guest.gets(Input::Stores(None)), [Action::BeginChange(waits)]);
        } else {
            guest.after(5);
            assert_eq!(guest.reply(waits), Some(&silent_store()));
        }
    }
}

/// One that fell silent later has its time too.
#[test]
fn the_store_that_is_silent_for_the_longest_counts() {
    let mut guest = Guest::with_os();
    guest.gets(Input::Stores(silence(guest.now)));
    let (waits, _) = guest.asks(Ask::Change);
    guest.after(4);
    guest.gets(Input::Stores(silence(guest.now)));
    guest.after(4);
    assert_eq!(guest.reply(waits), None);
    guest.after(1);
    assert_eq!(guest.reply(waits), Some(&silent_store()));
}

#[test]
fn what_touches_no_store_waits_for_none() {
    let mut guest = Guest::with_os();
    guest.gets(Input::Stores(silence(guest.now)));
    guest.after(60);
    let (change, actions) = guest.asks(Ask::ChangeWithoutStores);
    assert_eq!(actions, [Action::BeginChange(change)]);
    let (counters, actions) = guest.asks(Ask::Counters);
    assert_eq!(actions, [Action::ReadCounters(counters)]);
    assert!(guest.asks(GRACEFUL).1.contains(&Action::PressButton));
    assert!(guest.asks(HARD).1.contains(&Action::Kill));
}

#[test]
fn who_waits_for_his_turn_hears_of_the_guests_end() {
    for waits_for in [|| Input::Stores(silence(Duration::ZERO)), || Input::ChangeBegun] {
        let mut guest = Guest::with_os();
        guest.gets(waits_for());
        let (waits, _) = guest.asks(Ask::Change);
        guest.exits();
        assert_eq!(guest.reply(waits), Some(&Reply::Denied { reason: Denial::Ended }));
    }
}

/// What is due is made by QEMU, which may hang: nobody waits for that for ever, beside a silent store or not.
#[test]
fn what_is_due_is_waited_for_within_bounds() {
    for silence in [None, silence(Duration::ZERO)] {
        let mut guest = Guest::with_os();
        guest.gets(Input::ChangeBegun);
        let (waits, _) = guest.asks(Ask::ChangeWithoutStores);
        guest.gets(Input::Stores(silence));
        guest.after(9);
        assert_eq!(guest.machine.wake_at(), Some(ORDER_PATIENCE));
        guest.after(1);
        assert_eq!(guest.reply(waits), Some(&Reply::Denied { reason: Denial::Busy }));
        assert_eq!(guest.machine.wake_at(), None);
    }
}

/// To whoever takes it over too: it runs, and does not start.
#[test]
fn an_engine_that_was_silent_before_is_said_to_be() {
    for (origin, reason) in [
        (Origin::Adoption { phase: None, decided: None }, Denial::Unresponsive),
        (Origin::Start, Denial::Starting),
    ] {
        let mut guest = Guest::new(origin);
        guest.gets(Input::Silent);
        let (change, _) = guest.asks(Ask::Change);
        assert_eq!(guest.reply(change), Some(&Reply::Denied { reason }));
    }
}

#[test]
fn one_change_at_a_time() {
    let mut guest = Guest::with_os();
    let (first, actions) = guest.asks(Ask::Change);
    assert_eq!(actions, [Action::BeginChange(first)]);
    let (second, _) = guest.asks(Ask::Change);
    assert_eq!(guest.reply(second), Some(&Reply::Denied { reason: Denial::Busy }));
    assert_eq!(guest.gets(Input::Status(RunState::Paused)), [], "held for the change alone");
    guest.gets(Input::ChangeOver);
    let (third, actions) = guest.asks(Ask::Change);
    assert_eq!(actions, [Action::BeginChange(third)]);
    guest.gets(Input::ChangeOver);
    guest.gets(Input::ChangeBegun);
    for ask in NEEDS_ORDER {
        guest.asks(ask);
        assert_eq!(guest.done.last(), Some(&Action::BeginChange(third)), "what had waited is made");
    }
    let begun = guest.gets(Input::ChangeOver);
    assert!(matches!(begun[..], [Action::ReadIdle(_), Action::BeginChange(_), Action::Reply(..)]));
}

#[test]
fn one_copy_at_a_time_and_the_guest_it_holds_is_not_paused() {
    let mut guest = Guest::with_os();
    let (first, actions) = guest.asks(Ask::Copy);
    assert_eq!(actions, [Action::BeginCopy(first)]);
    let (second, _) = guest.asks(Ask::Copy);
    assert_eq!(guest.reply(second), Some(&Reply::Denied { reason: Denial::Copying }));
    let (change, actions) = guest.asks(Ask::Change);
    assert_eq!(actions, [Action::BeginChange(change)], "a medium may be changed meanwhile");
    guest.gets(Input::ChangeOver);
    guest.gets(Input::CopyHolds);
    assert_eq!(guest.gets(Input::Status(RunState::Paused)), [], "held for the copy alone");
    guest.gets(Input::CopyOver);
    guest.gets(Input::Status(RunState::Paused));
    assert!(matches!(guest.machine.phase(), Phase::Paused { .. }), "held by somebody else");
}

#[test]
fn what_the_worker_before_decided_holds() {
    let phase = Some(Phase::Stopping { occupant: Occupant::Os });
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

fn told() -> Crash {
    Crash::Told { reason: "host-signal".into(), words: String::new() }
}

/// Somebody sent QEMU a signal. It writes out what it holds, and answers nobody meanwhile.
#[test]
fn a_qemu_that_somebody_told_to_end_is_on_its_way_out() {
    let mut guest = Guest::with_os();
    guest.gets(Input::ToldToEnd(told()));
    assert_eq!(guest.machine.phase(), Phase::Stopping { occupant: Occupant::Os });
    assert_eq!(guest.gets(Input::Silent), []);
    assert!(!guest.machine.is_silent());
    let (_, actions) = guest.asks(HARD);
    assert!(actions.contains(&Action::Kill));
    guest.exits();
    let how = Ending::Crashed { cause: told() };
    assert_eq!(guest.machine.phase(), Phase::Ended { how });
}

#[test]
fn who_waits_for_a_guests_own_end_hears_that_qemu_was_told_to_end() {
    let mut guest = Guest::with_os();
    let (ticket, _) = guest.asks(GRACEFUL);
    guest.gets(Input::ToldToEnd(told()));
    assert_eq!(guest.reply(ticket), None);
    guest.exits();
    assert!(matches!(guest.reply(ticket), Some(Reply::Failed { error }) if error.contains("told")));
}

/// What we told it ourselves it says too.
#[test]
fn a_qemu_that_says_it_ends_changes_nothing_that_was_decided() {
    let mut guest = Guest::with_os();
    guest.gets(Input::PoweredOff);
    assert_eq!(guest.gets(Input::ToldToEnd(told())), []);
    assert_eq!(guest.gets(Input::ToldToQuit), []);
    assert_eq!(guest.machine.decided(), Some(&Ending::PoweredOff));
}

/// Whoever waits for the start hears it when QEMU is gone, which does not hang in its end for ever.
#[test]
fn a_start_that_somebody_ends_has_failed_once_qemu_is_gone() {
    let mut guest = Guest::new(Origin::Start);
    let actions = guest.gets(Input::ToldToEnd(told()));
    assert!(!actions.iter().any(|action| matches!(action, Action::Started(_))), "{actions:?}");
    assert_eq!(guest.after(5), [Action::Quit, Action::Kill]);
    let (error, actions) = (told().to_string(), guest.exits());
    assert!(actions.contains(&Action::Started(Err(error.clone()))), "{actions:?}");
    assert_eq!(guest.machine.phase(), Phase::Ended { how: Ending::FailedToStart { error } });
}

/// It has it from the second monitor, which a hard stop alone uses that finds a worker hanging.
#[test]
fn a_qemu_that_quits_without_being_told_by_us_was_stopped_hard() {
    for asks in [false, true] {
        let mut guest = Guest::with_os();
        let waits = asks.then(|| guest.asks(GRACEFUL).0);
        assert!(guest.gets(Input::ToldToQuit).contains(&Action::Kill));
        guest.exits();
        assert_eq!(guest.machine.phase(), Phase::Ended { how: Ending::StoppedHard });
        let answer = waits.map(|ticket| guest.reply(ticket));
        assert!(matches!(answer, None | Some(Some(Reply::Already { .. }))), "{answer:?}");
    }
}

const NEEDS_ORDER: [Ask; 3] = [Ask::Idle, Ask::Change, Ask::ChangeWithoutStores];

fn adopted() -> Guest {
    let phase = Some(Phase::Running { occupant: Occupant::Os });
    let mut guest = Guest::new(Origin::Adoption { phase, decided: None });
    guest.gets(Input::Status(RunState::Running));
    guest
}

/// What is judged before by what the record says may be judged by what is not so.
#[test]
fn what_counts_on_devices_waits_until_they_are_in_order() {
    for ask in NEEDS_ORDER {
        let mut guest = adopted();
        let (counters, actions) = guest.asks(Ask::Counters);
        assert_eq!(actions, [Action::ReadCounters(counters)]);
        let (_, actions) = guest.asks(ask);
        assert_eq!(actions, []);
        assert_eq!(guest.machine.wake_at(), Some(ORDER_PATIENCE));
        guest.gets(Input::ChangeBegun);
        guest.after(9);
        guest.gets(Input::ChangeOver);
        assert_eq!(guest.gets(Input::InOrder).len(), 1);
        let (_, actions) = guest.asks(Ask::Idle);
        assert_eq!(actions.len(), 1, "at once from then on");

        let mut guest = adopted();
        let (waits, _) = guest.asks(ask);
        guest.after(10);
        assert_eq!(guest.reply(waits), Some(&Reply::Denied { reason: Denial::Busy }));
        assert_eq!(guest.machine.wake_at(), None);
    }
}

/// That is not done beside a silent store, and not before the store answers anything is begun that counts on it.
#[test]
fn what_waited_for_a_store_waits_for_order_too() {
    let mut guest = adopted();
    guest.gets(Input::Stores(silence(guest.now)));
    let (waits, _) = guest.asks(Ask::Change);
    let (nics, actions) = guest.asks(Ask::ChangeWithoutStores);
    assert_eq!(actions, [Action::BeginChange(nics)]);
    guest.gets(Input::ChangeOver);
    guest.after(4);
    assert_eq!(guest.gets(Input::Stores(None)), []);
    assert_eq!(guest.gets(Input::InOrder), [Action::BeginChange(waits)]);
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
        2 => Just(Some(Input::NoSpace)),
        2 => Just(Some(Input::Seen(Occupant::Os))),
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
    fn the_rules_hold(inputs in prop::collection::vec((any_input(), 0u64..4), 0..60), adopted: bool, known: bool) {
        let origin = match adopted {
            true => Origin::Adoption { phase: None, decided: None },
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
