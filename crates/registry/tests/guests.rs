//! What goes into the registry comes out of it, and what its rules forbid is refused by name.

mod common;

use common::{Place, add, files, guest, name, next_number, number, operation};
use hpvm_model::Entitlement;
use hpvm_registry::{
    FileIdentity, Identities, OperationId, Outcome, Owner, RegistryError, Selector,
};
use jiff::Timestamp;

#[test]
fn a_guest_comes_out_as_it_went_in() {
    let place = Place::new();
    let guest = guest(7);
    add(&mut place.open(), &guest);
    let reader = place.reader();
    for selector in [
        Selector::Name(guest.name.clone()),
        Selector::Number(guest.number),
        Selector::Uuid(guest.uuid),
    ] {
        assert_eq!(reader.guest(&selector).unwrap().as_ref(), Some(&guest));
    }
    assert_eq!(reader.guest(&Selector::Number(number(8))).unwrap(), None);
    assert_eq!(reader.number_of(&guest.name).unwrap(), Some(guest.number));
    assert_eq!(reader.all().unwrap(), std::slice::from_ref(&guest));
    let [listed] = &reader.list().unwrap()[..] else { panic!("one guest") };
    assert_eq!((listed.number, &listed.name, listed.uuid), (guest.number, &guest.name, guest.uuid));
    assert_eq!((listed.memory, listed.vcpus, &listed.os), (guest.memory, guest.vcpus, &guest.os));
    assert_eq!((listed.devices, &listed.label), (4, &guest.label));
    assert_eq!(reader.check().unwrap(), Vec::<String>::new());
}

#[test]
fn an_update_replaces_all_but_the_identity() {
    let place = Place::new();
    let mut registry = place.open();
    add(&mut registry, &guest(1));
    let mut changed = guest(1);
    changed.name = name("another");
    changed.entitlement = Entitlement::parse_cycles("800:1600").unwrap();
    changed.os = "unknown".parse().unwrap();
    changed.storage.truncate(1);
    changed.ports.clear();
    let change = registry.change().unwrap();
    change.update(&changed, &Identities::new()).unwrap();
    change.commit().unwrap();
    assert_eq!(registry.all().unwrap(), [changed]);
    assert_eq!(registry.list().unwrap()[0].devices, 1);

    let change = registry.change().unwrap();
    let stranger = guest(2);
    let refused = change.update(&stranger, &Identities::new()).unwrap_err();
    assert!(matches!(refused, RegistryError::NoGuest(n) if n == number(2)));
}

#[test]
fn a_change_that_is_dropped_never_was() {
    let place = Place::new();
    let mut registry = place.open();
    add(&mut registry, &guest(1));
    {
        let change = registry.change().unwrap();
        change.insert(&guest(2), &Identities::new()).unwrap();
        change.remove(number(1), Timestamp::now()).unwrap();
        assert_eq!(change.list().unwrap().len(), 1);
        assert_eq!(place.reader().all().unwrap(), [guest(1)]);
    }
    assert_eq!(registry.all().unwrap(), [guest(1)]);
    add(&mut registry, &guest(2));
}

#[test]
fn names_numbers_and_uuids_belong_to_one_guest() {
    let place = Place::new();
    let mut registry = place.open();
    add(&mut registry, &guest(1));
    let change = registry.change().unwrap();
    let mut twin = guest(2);
    twin.name = name("guest1");
    let refused = change.insert(&twin, &Identities::new()).unwrap_err();
    assert!(matches!(&refused, RegistryError::NameTaken { number: n, .. } if *n == number(1)));
    assert!(refused.to_string().contains("'guest1'"), "{refused}");
    let mut twin = guest(1);
    twin.name = name("other");
    for (n, uuid) in [(number(1), guest(2).uuid), (number(2), guest(1).uuid)] {
        (twin.number, twin.uuid) = (n, uuid);
        let refused = change.insert(&twin, &Identities::new()).unwrap_err();
        assert!(matches!(refused, RegistryError::IdentityTaken { .. }), "{refused}");
    }
}

#[test]
fn numbers_grow_and_gaps_are_used_last() {
    let place = Place::new();
    let mut registry = place.open();
    add(&mut registry, &guest(1));
    add(&mut registry, &guest(7));
    let change = registry.change().unwrap();
    assert_eq!(next_number(&change), number(8));
    change.remove(number(7), Timestamp::MAX).unwrap();
    assert_eq!(next_number(&change), number(8));
    change.purge(number(7)).unwrap();
    assert_eq!(next_number(&change), number(2));
    change.insert(&guest(99_999), &Identities::new()).unwrap();
    assert_eq!(next_number(&change), number(2));
    change.insert(&guest(2), &Identities::new()).unwrap();
    assert_eq!(next_number(&change), number(3));
}

#[test]
fn a_number_that_something_holds_is_not_given_out() {
    let place = Place::new();
    let mut registry = place.open();
    add(&mut registry, &guest(2));
    let change = registry.change().unwrap();
    let (highest, held) = (change.highest_number().unwrap(), [number(3), number(4)]);
    assert_eq!(change.next_number(highest, |n| held.contains(&n)).unwrap(), number(5));
    change.insert(&guest(99_999), &Identities::new()).unwrap();
    let highest = change.highest_number().unwrap();
    assert_eq!(change.next_number(highest, |n| n == number(1)).unwrap(), number(3));
    assert!(matches!(change.next_number(highest, |_| true), Err(RegistryError::NoNumber)));
}

#[test]
fn sharers_of_a_file_are_found_whatever_its_path() {
    let place = Place::new();
    let mut registry = place.open();
    let shared = FileIdentity { device: 3, inode: u64::MAX - 1 };
    for n in 1..=3 {
        let guest = guest(n);
        let mut files = files(&guest);
        files.insert(guest.storage[2].backing.path.clone(), shared);
        let change = registry.change().unwrap();
        change.insert(&guest, &files).unwrap();
        change.commit().unwrap();
    }
    let sharers = registry.sharers(&shared, Some(number(2))).unwrap();
    let found: Vec<String> = sharers.iter().map(|s| format!("{} {}", s.guest, s.address)).collect();
    assert_eq!(found, ["guest1 0,1,2", "guest3 0,1,2"]);
    assert_eq!(registry.sharers(&shared, None).unwrap().len(), 3);
    let other = FileIdentity { device: 4, ..shared };
    assert_eq!(registry.sharers(&other, None).unwrap(), []);
    let change = registry.change().unwrap();
    change.remove(number(1), Timestamp::MAX).unwrap();
    assert_eq!(change.sharers(&shared, Some(number(2))).unwrap().len(), 1);
    let kept = change.sharers_and_kept(&shared, Some(number(2))).unwrap();
    let found: Vec<(u32, bool)> = kept.iter().map(|s| (s.number.get(), s.removed)).collect();
    assert_eq!(found, [(1, true), (3, false)]);
}

/// Settles 159: what was done is a row, which nothing renames and every reader finds.
#[test]
fn operations_are_kept_as_they_were() {
    let place = Place::new();
    let mut registry = place.open();
    let (one, two) = (guest(1), guest(2));
    let owner = Owner { pid: 4711, start_time: u64::MAX, boot_id: "b".into() };
    let begun = operation(&one, Outcome::Running(owner.clone()));
    let id = registry.record(&begun).unwrap();
    registry.record(&operation(&two, Outcome::Done)).unwrap();
    let [unfinished] = &registry.unfinished().unwrap()[..] else { panic!("one") };
    assert_eq!((unfinished.id, &unfinished.operation), (id, &begun));
    assert!(unfinished.operation.outcome.was_interrupted(|found| *found != owner));
    assert!(!unfinished.operation.outcome.was_interrupted(|found| *found == owner));

    let ended = operation(&one, Outcome::Failed("no room".into()));
    registry.finish(id, &ended).unwrap();
    assert_eq!(registry.unfinished().unwrap(), []);
    let all = registry.operations(None, 10).unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(all[1].operation, ended);
    assert_eq!(registry.operations(Some(two.uuid), 10).unwrap()[..], all[..1]);
    assert_eq!(registry.operations(None, 1).unwrap()[..], all[..1]);
    assert!(matches!(
        registry.finish(OperationId(99), &ended),
        Err(RegistryError::NoOperation(99))
    ));
}

/// A refusal is noted without waiting for the disk, which on a busy one takes seconds: the log alone grows, until a change
/// is synced anyway, or it is long.
#[test]
fn notes_leave_the_file_alone() {
    let place = Place::new();
    let mut registry = place.open();
    add(&mut registry, &guest(1));
    let file = || std::fs::read(place.path()).unwrap();
    let refused = operation(&guest(1), Outcome::Failed("no".into()));
    let before = file();
    for _ in 0..60 {
        registry.record(&refused).unwrap();
    }
    assert!(file() == before, "notes were moved to the file");
    add(&mut registry, &guest(2));
    let moved = file();
    assert!(moved != before, "a change moves them");
    for _ in 0..500 {
        registry.record(&refused).unwrap();
    }
    assert!(file() != moved, "a long log is moved");
}

#[test]
fn old_operations_go_by_count_and_by_age() {
    let place = Place::new();
    let mut registry = place.open();
    let one = guest(1);
    let mut old = operation(&one, Outcome::Done);
    old.at = Timestamp::UNIX_EPOCH;
    (old.before, old.after) = (None, None);
    let change = registry.change().unwrap();
    for _ in 0..3 {
        change.record(&old).unwrap();
    }
    assert_eq!(change.operations(None, 10).unwrap().len(), 3);
    let mut new = operation(&one, Outcome::Done);
    (new.before, new.after) = (None, None);
    change.record(&new).unwrap();
    assert_eq!(change.operations(None, 10).unwrap().len(), 1);
    for _ in 0..10_050 {
        change.record(&new).unwrap();
    }
    let kept = change.operations(None, usize::MAX).unwrap();
    assert_eq!(kept.len(), 10_000);
    assert_eq!(kept[0].id.0 - kept[9_999].id.0, 9_999);
}
