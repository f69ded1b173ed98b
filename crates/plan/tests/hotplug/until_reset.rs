//! What waits for the guest's reset: told once, shown since when, made then, or taken back before.

use std::collections::BTreeSet;

use crate::common::*;
use crate::{at_reset, changes, now, reason, running, take};
use hpvm_model::*;
use hpvm_plan::difference::{Effect, waiting};
use hpvm_plan::hotplug::{Force, Live, Planned, When, plan};
use hpvm_plan::record::*;

/// Tells a machine's worker what waits for the reset, as a command does.
pub(crate) fn tell(machine: &mut Machine, planned: &[Planned]) {
    for planned in planned {
        if let When::NextReset { told: Some(change), .. } = &planned.when {
            let (seq, change) = (machine.next_seq, change.clone());
            let at = format!("time {seq}");
            machine.replay(JournalLine::Asked { seq, at, change, due: Due::NextReset });
        }
    }
}

pub(crate) fn take_all(machine: &mut Machine, planned: &[Planned]) {
    for planned in planned {
        if let When::Now(change) = &planned.when {
            take(machine, machine.next_seq, change);
        }
    }
}

/// The guest was reset, and what was due is done, or cannot be done since its place is taken.
pub(crate) fn reset(machine: &mut Machine) {
    while let Some(pending) = machine.due(Occasion::Reset).into_iter().next() {
        let is_taken = |comes: &Attached| machine.device_at(comes.device.address).is_some();
        let outcome = match &pending.change {
            DeviceChange::Attach { devices, .. } if devices.iter().any(is_taken) => {
                Outcome::Failed("taken".into())
            }
            _ => Outcome::Done,
        };
        let (seq, at) = (pending.seq, String::new());
        machine.replay(JournalLine::Settled { seq, at, outcome });
    }
}

/// It is told once and shown since when; what leaves earlier, or is wanted again, waits for nothing any more.
#[test]
fn a_removal_waits_for_the_reset_until_it_is_made_or_taken_back() {
    let all = ["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,0,1:file:/b"];
    let mut machine = running(&all);
    let planned = changes(&machine, &all[..1], Some(3), Force::No);
    tell(&mut machine, &planned);
    let shown = waiting(&guest(&all[..1]), &machine);
    assert!(
        matches!(&shown[0].effect, Effect::NextReset(why) if why.contains("reset since time 1")),
        "{shown:?}"
    );
    let again = changes(&machine, &all[..1], Some(4), Force::No);
    assert_eq!(again.iter().map(at_reset).collect::<Vec<_>>(), [None]);
    assert_eq!(machine.due(Occasion::PlaceFree), [], "nobody but the reset lets it go");

    let mut forced = machine.clone();
    take_all(&mut forced, &changes(&machine, &all[..1], Some(4), Force::Yes));
    assert_eq!((forced.storage.len(), forced.pending.len()), (1, 0));

    let mut kept = machine.clone();
    let planned = changes(&machine, &all, Some(4), Force::No);
    assert!(matches!(now(&planned[0]), DeviceChange::TakeBack { .. }), "{planned:?}");
    take_all(&mut kept, &planned);
    assert_eq!((kept.storage.len(), kept.pending.len()), (2, 0));

    reset(&mut machine);
    assert_eq!((machine.storage.len(), machine.pending.len()), (1, 0));
}

/// What waits to leave is the device that was there then: the next one at its address stays.
#[test]
fn a_removal_that_waits_ends_with_its_device() {
    let all = ["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,0,1:file:/b"];
    let machine = running(&all);
    let second = machine.storage[1].clone();
    let address = second.device.address;
    let leaves = DeviceChange::Detach { address, consent: Consent::Given };
    let comes = DeviceChange::Attach {
        slot: address.slot,
        kind: AdapterKind::AvioStor,
        adapter: AdapterPresence::Present,
        devices: vec![second.clone()],
    };
    let waits = |machine: &mut Machine, seq| {
        let (at, change, due) = (format!("time {seq}"), leaves.clone(), Due::NextReset);
        machine.replay(JournalLine::Asked { seq, at, change, due });
    };
    let left_first = |machine: &mut Machine| {
        take(machine, 1, &leaves);
        waits(machine, 2);
    };
    let left_later = |machine: &mut Machine| {
        waits(machine, 1);
        take(machine, 2, &DeviceChange::DetachAdapter { slot: address.slot });
    };
    // Nobody noted that it had left.
    let replaced = |machine: &mut Machine| waits(machine, 1);
    let stories: [&dyn Fn(&mut Machine); 3] = [&left_first, &left_later, &replaced];
    for story in stories {
        let mut machine = machine.clone();
        story(&mut machine);
        let seq = machine.next_seq;
        take(&mut machine, seq, &comes);
        assert_eq!(machine.pending, []);
        reset(&mut machine);
        assert_eq!(machine.device_at(address), Some(&second));
        waits(&mut machine, 9);
        let shown = waiting(&guest(&all[..1]), &machine);
        let mut effects = shown.iter().map(|change| change.effect.reason());
        assert!(effects.any(|why| why.contains("since time 9")), "{shown:?}");
    }
}

/// Naming one of its disks asks for the adapter once more, unless a disk there is wanted again: that one leaves with it at the
/// reset at the latest.
#[test]
fn an_adapter_that_was_asked_for_is_asked_for_again() {
    let all = ["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,0,1:file:/b"];
    let mut machine = running(&all);
    let [first, second] = [0, 1].map(|place: usize| machine.storage[place].device.address);
    let away = DeviceChange::DetachAdapter { slot: first.slot };
    let (at, due) = ("t".to_owned(), Due::Now);
    machine.replay(JournalLine::Asked { seq: 1, at, change: away.clone(), due });
    let idle = [first, second].map(|at| (at, std::time::Duration::from_secs(100))).into();
    let live = Live { idle, ..Live::default() };
    for (keep, beside, force, is_asked) in [
        (&[][..], None, Force::No, true),
        (&[], Some(second), Force::No, true),
        (&[], Some(second), Force::Yes, true),
        (&all[1..], None, Force::Yes, false),
    ] {
        let wanted = guest(keep);
        let waits = beside.into_iter().collect();
        let planned = plan(&waits, &machine, &wanted, &host(&wanted), &live, force);
        match is_asked {
            true => assert_eq!(planned.iter().map(now).collect::<Vec<_>>(), [&away]),
            false => {
                assert_eq!(planned.iter().map(at_reset).collect::<Vec<_>>(), [None]);
                assert!(reason(&planned[0]).contains("was asked to let the adapter at 0,0 go"));
            }
        }
    }
    let nothing_named =
        plan(&[first, second].into(), &machine, &guest(&[]), &host(&guest(&[])), &live, Force::Yes);
    assert_eq!(nothing_named, []);
    let used = changes(&machine, &[], Some(3), Force::No);
    assert!(used.iter().all(|planned| at_reset(planned).is_none()), "{used:?}");
}

/// The new store of an exchange is open already: it is let go before anything else is done with it.
#[test]
fn an_exchange_that_waits_is_taken_back_when_something_else_is_wanted() {
    let with = |path: &str| {
        ["disk:avio_stor:0,0,0:file:/a".to_owned(), format!("disk:avio_stor:0,0,1:file:{path}")]
    };
    let planned = |machine: &Machine, path: &str, idle| {
        let wanted = with(path);
        changes(machine, &wanted.each_ref().map(String::as_str), Some(idle), Force::No)
    };
    let mut machine = running(&with("/b").each_ref().map(String::as_str));
    let first = planned(&machine, "/c", 3);
    tell(&mut machine, &first);
    assert_eq!(machine.held().count(), 3);
    let same = planned(&machine, "/c", 3);
    assert_eq!(same.iter().map(at_reset).collect::<Vec<_>>(), [None, None]);
    for (path, idle) in [("/b", 3), ("/c", 100), ("/d", 3), ("/d", 100)] {
        let mut machine = machine.clone();
        let planned = planned(&machine, path, idle);
        // A removal that the guest refuses has taken nothing back, and what comes finds nothing open.
        let turns = planned.iter().filter_map(|planned| match &planned.when {
            When::Now(DeviceChange::Detach { .. }) => Some("leaves"),
            When::Now(DeviceChange::TakeBack { .. }) => Some("taken back"),
            When::Now(DeviceChange::Attach { .. }) => Some("comes"),
            _ => None,
        });
        let turns: Vec<_> = turns.collect();
        let is_made_now = idle == 100;
        let expected = match is_made_now {
            true => &["leaves", "taken back", "comes"][..],
            false => &["taken back"],
        };
        assert_eq!(turns, expected, "{path}: {planned:?}");
        take_all(&mut machine, &planned);
        assert_eq!(machine.held().count(), machine.storage.len());
        tell(&mut machine, &planned);
        reset(&mut machine);
        let wanted = with(path);
        let wanted = guest(&wanted.each_ref().map(String::as_str));
        assert_eq!(waiting(&wanted, &machine), [], "{path}");
    }
}

/// Two disks of an adapter that the guest does not let go are exchanged: what becomes of one is no matter of the other.
#[test]
fn one_of_several_that_come_with_an_adapter_is_taken_back_alone() {
    let before = ["disk:scsi:0,0,0:file:/a", "disk:scsi:0,0,1:file:/b"];
    let both = ["disk:scsi:0,0,0:file:/c", "disk:scsi:0,0,1:file:/d"];
    let mut machine = running(&before);
    let [first, second] = [0, 1].map(|place: usize| machine.storage[place].device.address);
    let away = DeviceChange::DetachAdapter { slot: first.slot };
    machine.replay(JournalLine::Asked { seq: 1, at: "t".into(), change: away, due: Due::Now });
    let planned = changes(&machine, &both, Some(0), Force::No);
    tell(&mut machine, &planned);
    assert_eq!(machine.waiting().count(), 1, "they come with one adapter");
    let earlier = machine.clone();

    // Another one in the place of the first; whoever says so names the first alone.
    let other = ["disk:scsi:0,0,0:file:/e", both[1]];
    let (config, live) = (guest(&other), Live::default());
    let beside = BTreeSet::from([second]);
    let planned = plan(&beside, &machine, &config, &host(&config), &live, Force::No);
    let back = DeviceChange::TakeBack { address: first };
    assert_eq!(planned.iter().filter(|p| p.when == When::Now(back.clone())).count(), 1);
    take_all(&mut machine, &planned);
    assert!(machine.comes_at_reset(first).is_none());
    assert_eq!(machine.comes_at_reset(second), earlier.comes_at_reset(second));
    assert!(machine.held().any(|held| held.device.backing.path == "/d"), "open still, and named");

    // Taken back by a command that failed, it is told again; the other one never waited less.
    let lost = machine.waits_no_more(&earlier);
    let [DeviceChange::Attach { devices, .. }] = &lost[..] else { panic!("{lost:?}") };
    assert_eq!(devices.iter().map(|d| d.device.address).collect::<Vec<_>>(), [first]);

    tell(&mut machine, &planned);
    let (at, outcome) = (String::new(), Outcome::Done);
    machine.replay(JournalLine::Settled { seq: 1, at, outcome });
    assert_eq!(machine.due(Occasion::PlaceFree).len(), 2, "{:?}", machine.pending);
    let (at, outcome, seq) =
        (String::new(), Outcome::Done, machine.due(Occasion::PlaceFree)[0].seq);
    machine.replay(JournalLine::Settled { seq, at, outcome });
    assert_eq!(machine.due(Occasion::PlaceFree), [], "the guest would not see it before its reset");
    reset(&mut machine);
    assert_eq!(waiting(&config, &machine), []);
}

/// Half of an exchange, as a command that died leaves it, costs the guest no disk.
#[test]
fn half_an_exchange_takes_nothing_away() {
    let before = ["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,0,1:file:/b"];
    let mut machine = running(&before);
    let wanted = ["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,0,1:file:/c"];
    let planned = changes(&machine, &wanted, Some(3), Force::No);
    let comes = planned
        .iter()
        .filter(|planned| matches!(at_reset(planned), Some(DeviceChange::Attach { .. })));
    tell(&mut machine, &comes.cloned().collect::<Vec<_>>());
    assert_eq!(machine.waiting().count(), 1);
    let address = machine.storage[1].device.address;
    let again = changes(&machine, &wanted, Some(3), Force::No);
    assert!(matches!(at_reset(&again[0]), Some(DeviceChange::Detach { .. })), "{again:?}");
    assert_eq!((again.len(), at_reset(&again[1])), (2, None), "the same command tells the rest");
    reset(&mut machine);
    assert_eq!(machine.device_at(address).map(|a| a.device.backing.path.as_str()), Some("/b"));
    assert_eq!(waiting(&guest(&wanted), &machine).len(), 1, "and is shown to wait for the start");
}

/// Told in either order: an earlier hpvm said first what leaves.
#[test]
fn what_leaves_makes_room_for_what_comes() {
    let before = ["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,0,1:file:/b"];
    let after = ["disk:avio_stor:0,0,0:file:/c", "disk:avio_stor:0,0,1:file:/d"];
    let planned = changes(&running(&before), &after, Some(3), Force::No);
    let reversed: Vec<Planned> = planned.iter().rev().cloned().collect();
    for planned in [planned, reversed] {
        let mut machine = running(&before);
        tell(&mut machine, &planned);
        assert_eq!(machine.waiting().count(), 4);
        reset(&mut machine);
        assert_eq!(waiting(&guest(&after), &machine), []);
    }
}

/// An exchange goes on from a removal that waits, and waits since it was asked itself.
#[test]
fn an_exchange_is_told_over_a_removal_that_waits() {
    let before = ["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,0,1:file:/b"];
    let mut machine = running(&before);
    let planned = changes(&machine, &before[..1], Some(3), Force::No);
    tell(&mut machine, &planned);
    let wanted = [before[0], "disk:avio_stor:0,0,1:file:/c"];
    let planned = changes(&machine, &wanted, Some(3), Force::No);
    tell(&mut machine, &planned);
    let leaves = machine.waiting().filter(|p| matches!(p.change, DeviceChange::Detach { .. }));
    assert_eq!(leaves.count(), 1);
    let shown = waiting(&guest(&wanted), &machine);
    assert!(
        matches!(&shown[0].effect, Effect::NextReset(why) if why.contains("since time 2")),
        "{shown:?}"
    );
    reset(&mut machine);
    assert_eq!(waiting(&guest(&wanted), &machine), []);
}

/// What comes with an adapter that the guest is asked to let go finds its place when that has left.
#[test]
fn what_follows_an_adapter_comes_when_that_has_left() {
    let mut machine = running(&["disk:scsi:0,0,0:file:/a"]);
    let slot = PciSlot::new(0, 0).unwrap();
    let away = DeviceChange::DetachAdapter { slot };
    machine.replay(JournalLine::Asked { seq: 1, at: "t".into(), change: away, due: Due::Now });
    let planned = changes(&machine, &["disk:scsi:0,0,0:file:/c"], Some(0), Force::No);
    assert_eq!(planned.len(), 2, "{planned:?}");
    tell(&mut machine, &planned);
    assert_eq!(machine.due(Occasion::PlaceFree), []);
    let (at, outcome) = (String::new(), Outcome::Done);
    machine.replay(JournalLine::Settled { seq: 1, at, outcome });
    assert_eq!(machine.due(Occasion::PlaceFree).len(), 1, "{:?}", machine.pending);
    reset(&mut machine);
    assert_eq!(waiting(&guest(&["disk:scsi:0,0,0:file:/c"]), &machine), []);
}

/// It is told once, shown since when, taken back by who wants it no more, and comes at the reset, or before with a new adapter.
#[test]
fn what_joins_a_live_vio_adapter_waits_for_the_reset() {
    let before = ["disk:scsi:0,0,0:file:/a"];
    let wanted = [before[0], "disk:scsi:0,0,1:file:/b"];
    let mut machine = running(&before);
    let address = guest(&wanted).storage[1].address;
    let planned = changes(&machine, &wanted, None, Force::No);
    tell(&mut machine, &planned);
    let shown = waiting(&guest(&wanted), &machine);
    assert!(
        matches!(&shown[..], [row] if row.effect.reason().contains("reset since time 1")),
        "{shown:?}"
    );
    assert!(machine.comes_at_reset(address).is_some(), "its store is the guest's already");
    let again = changes(&machine, &wanted, None, Force::No);
    assert_eq!(again.iter().map(at_reset).collect::<Vec<_>>(), [None]);
    assert_eq!(machine.due(Occasion::PlaceFree), [], "the guest would not see it");

    let mut kept = machine.clone();
    let planned = changes(&machine, &before, None, Force::No);
    assert_eq!(planned.iter().map(now).collect::<Vec<_>>(), [&DeviceChange::TakeBack { address }]);
    take_all(&mut kept, &planned);
    assert_eq!(kept.held().count(), 1);

    // What is there leaves, and its adapter with it.
    let mut alone = machine.clone();
    let (last, live) = (guest(&wanted[1..]), Live::default());
    let spared = BTreeSet::from([address]);
    let planned = plan(&spared, &alone, &last, &host(&last), &live, Force::Yes);
    take_all(&mut alone, &planned);
    assert_eq!((alone.storage.len(), alone.due(Occasion::PlaceFree).len()), (0, 1));

    reset(&mut machine);
    assert_eq!(waiting(&guest(&wanted), &machine), []);
}

/// What is wanted on an adapter that the guest was asked to let go comes with the next one there, a drive with its new medium.
#[test]
fn what_is_wanted_on_a_leaving_adapter_comes_when_that_has_left() {
    let has = "dvd:avio_stor:0,0,0:file:/iso/x";
    for wanted in ["dvd:avio_stor:0,0,0:file:/iso/y", "disk:avio_stor:0,0,1:file:/b"] {
        let mut machine = running(&[has]);
        let change = DeviceChange::DetachAdapter { slot: machine.storage[0].device.address.slot };
        machine.replay(JournalLine::Asked { seq: 1, at: "t".into(), change, due: Due::Now });
        let planned = changes(&machine, &[wanted], None, Force::No);
        let comes = planned.last().expect("it comes");
        assert!(reason(comes).contains("was asked to let the adapter at 0,0 go"), "{planned:?}");
        tell(&mut machine, &planned);
        let shown = waiting(&guest(&[wanted]), &machine);
        let is_shown = shown.iter().any(|row| {
            row.to == wanted
                && matches!(&row.effect, Effect::NextReset(why) if why.contains("since time 2"))
        });
        assert!(is_shown, "{shown:?}");
        assert_eq!(machine.due(Occasion::PlaceFree), []);
        let (at, outcome) = (String::new(), Outcome::Done);
        machine.replay(JournalLine::Settled { seq: 1, at, outcome });
        assert_eq!(machine.due(Occasion::PlaceFree).len(), 1, "{:?}", machine.pending);
        reset(&mut machine);
        assert_eq!(waiting(&guest(&[wanted]), &machine), []);
    }
}
