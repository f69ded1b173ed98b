//! Who waits for his turn: for silent stores, for devices that are in order, and for whoever came before.

use super::*;

const TOUCHES_STORES: [Ask; 3] = [Ask::Idle, Ask::Change, Ask::Copy];

/// One whose store has just fallen silent.
fn with_silent_store() -> Guest {
    let mut guest = Guest::with_os();
    guest.gets(Input::Stores(silence(guest.now)));
    guest
}

fn silent_store() -> Reply {
    Reply::Denied { reason: Denial::SilentStore { store: FAR.into() } }
}

/// From what QEMU does with any disk it may not come back before that one answers. A store that hesitates fails nobody.
#[test]
fn what_touches_stores_waits_for_a_silent_one_and_is_denied_when_that_lasts() {
    for ask in TOUCHES_STORES {
        let mut guest = with_silent_store();
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
        let mut guest = with_silent_store();
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
        let mut guest = with_silent_store();
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
    let mut guest = with_silent_store();
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
    let mut guest = with_silent_store();
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
