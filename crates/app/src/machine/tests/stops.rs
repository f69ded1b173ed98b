//! Graceful and hard stops: who waits for which, and what is told of one that takes time.

use super::*;

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
        Some(Reply::NotStopped { why }) => why.clone(),
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

/// Neither the button nor waiting is of use before there is space.
#[test]
fn a_stop_of_a_guest_without_space_tells_that_and_leaves_it_held() {
    let no_space = || Input::NoSpace(Some("'/a'".into()));
    let reason = "no space is left for '/a'; the guest goes on when there is some";
    let is_held = |guest: &Guest| match guest.machine.phase() {
        Phase::Stopping { held, .. } => held.as_deref() == Some(reason),
        _ => false,
    };
    // Held before it is asked, or after.
    for is_held_before in [true, false] {
        let mut guest = Guest::with_os();
        if is_held_before {
            guest.gets(no_space());
        }
        let (ticket, _) = guest.asks(GRACEFUL);
        guest.gets(button(true, false));
        guest.gets(no_space());
        assert!(is_held(&guest), "{:?}", guest.machine.phase());
        for second in 0..20 {
            if guest.after(1).contains(&Action::Continue) {
                // It takes the press in the instant that it runs, and comes no further.
                guest.gets(Input::Status(RunState::Running));
                guest.gets(button(true, false));
                guest.gets(no_space());
            }
            guest.gets(Input::Status(RunState::IoError));
            assert!(second == 19 || is_held(&guest), "{:?}", guest.machine.phase());
        }
        let tries = guest.done.iter().filter(|action| **action == Action::Continue).count();
        assert!((3..5).contains(&tries), "{tries} tries in 20 s");
        let told: Vec<&String> = progress(&guest.done).collect();
        assert!(!told.is_empty() && told.iter().all(|text| text.contains(reason)), "{told:?}");
        assert!(told.iter().all(|text| text.contains("make room")), "{told:?}");
        let Some(Reply::NotStopped { why: why @ NotStopped::Held { .. } }) = guest.reply(ticket)
        else {
            panic!("{:?}", guest.reply(ticket))
        };
        assert!(why.to_string().contains(reason) && why.to_string().contains("make room"));
        let held = Phase::Paused { reason: reason.into(), occupant: Occupant::Os };
        assert_eq!(guest.machine.phase(), held);
    }
}

#[test]
fn a_guest_that_has_space_again_shuts_down() {
    let mut guest = Guest::with_os();
    let (ticket, _) = guest.asks(GRACEFUL);
    guest.gets(Input::NoSpace(None));
    guest.after(5);
    guest.after(1);
    assert!(guest.gets(Input::Status(RunState::Running)).contains(&Action::Publish));
    let phase = Phase::Stopping { occupant: Occupant::Os, held: None, is_unheard: false };
    assert_eq!(guest.machine.phase(), phase);
    guest.gets(Input::PoweredOff);
    guest.exits();
    assert_eq!(guest.reply(ticket), Some(&Reply::Done));
}

#[test]
fn it_is_known_whether_anybody_listens_to_the_button() {
    let mut guest = Guest::running();
    guest.asks(GRACEFUL);
    let is_unheard = |guest: &Guest| match guest.machine.phase() {
        Phase::Stopping { is_unheard, .. } => is_unheard,
        phase => panic!("{phase:?}"),
    };
    assert!(!is_unheard(&guest), "nobody has looked");
    assert_eq!(guest.gets(button(false, false)), [Action::Publish]);
    assert!(is_unheard(&guest));
    guest.after(3);
    assert_eq!(guest.gets(button(true, false)), [Action::Publish]);
    assert!(!is_unheard(&guest));
}

fn progress(actions: &[Action]) -> impl Iterator<Item = &String> {
    actions.iter().filter_map(|action| match action {
        Action::Reply(_, Reply::Progress { text }) => Some(text),
        _ => None,
    })
}

#[test]
fn what_does_not_change_is_told_rarely_and_with_the_time_that_is_left() {
    let mut guest = Guest::with_os();
    guest.asks(Ask::Stop(StopHow::Graceful { seconds_max: 300 }));
    for _ in 0..119 {
        guest.after(1);
    }
    let told: Vec<&String> = progress(&guest.done).collect();
    let left = told.iter().map(|text| text.split_once(" (").map(|(_, left)| left));
    let expected = ["115 s left)", "85 s left)", "55 s left)", "25 s left)"].map(Some);
    assert_eq!(left.collect::<Vec<_>>(), expected, "{told:?}");
}

/// Nothing can be pressed or read, so nothing is said of the button.
#[test]
fn a_stop_that_qemu_does_not_answer_says_so() {
    let mut guest = Guest::with_os();
    let (stop, _) = guest.asks(GRACEFUL);
    guest.gets(button(false, false));
    guest.gets(Input::Silent);
    guest.done.clear();
    guest.after(1);
    let told: Vec<&String> = progress(&guest.done).collect();
    assert!(told[0].starts_with("the guest is held: QEMU does not answer; "), "{told:?}");
    guest.after(20);
    let Some(Reply::NotStopped { why }) = guest.reply(stop) else { panic!("{:?}", guest.done) };
    let why = why.to_string();
    assert!(why.contains("QEMU does not answer") && why.contains("hpvmstop -h"), "{why}");

    let mut guest = Guest::with_os();
    guest.asks(GRACEFUL);
    guest.gets(Input::Silent);
    guest.gets(Input::Status(RunState::Running));
    guest.done.clear();
    guest.after(6);
    assert!(progress(&guest.done).all(|text| text.contains("power button")), "{:?}", guest.done);
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
