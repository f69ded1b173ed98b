//! A QEMU that somebody else told to end.

use super::*;

/// Somebody sent QEMU a signal. It writes out what it holds, and answers nobody meanwhile.
#[test]
fn a_qemu_that_somebody_told_to_end_is_on_its_way_out() {
    let mut guest = Guest::with_os();
    guest.gets(Input::ToldToEnd(told()));
    assert_eq!(
        guest.machine.phase(),
        Phase::Stopping { occupant: Occupant::Os, held: None, is_unheard: false }
    );
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
