//! Many commands at once, each a process with a registry of its own: nobody fails, nothing is lost, and readers see the
//! state before a change or after it.

mod common;

use std::cell::Cell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{
    Place, add, files, guest, name, next_number, number, operation, player, random, role,
};
use hpvm_model::{GuestConfig, GuestUuid, Label};
use hpvm_registry::{Access, Outcome, Registry, RegistryError, Selector};
use jiff::Timestamp;

const PROCESSES: usize = 8;
/// Each round creates a guest, changes the common one, and lists: 8 × 42 × 3 is more than a thousand.
const ROUNDS: usize = 42;

/// Plays one of the processes; in the test's own process there is nothing to play.
/// Who may give up waits for nobody, is told of it by its own word, and leaves nothing open; who had the turn keeps it.
#[test]
fn who_may_give_up_waits_no_longer() {
    #[derive(Debug)]
    enum Refused {
        GivenUp,
        #[expect(dead_code, reason = "for who reads a failed assertion")]
        Registry(RegistryError),
    }
    impl From<RegistryError> for Refused {
        fn from(error: RegistryError) -> Refused {
            Refused::Registry(error)
        }
    }
    let place = Place::new();
    let (mut holder, mut waiter) = (place.open(), place.open());
    let asked = Cell::new(0);
    let third_time = || {
        asked.set(asked.get() + 1);
        if asked.get() < 3 { Ok(()) } else { Err(Refused::GivenUp) }
    };
    let change = holder.change().unwrap();
    assert!(matches!(waiter.change_unless(third_time), Err(Refused::GivenUp)));
    drop(change);
    assert!(matches!(waiter.change_unless(third_time), Err(Refused::GivenUp)), "its turn, unused");
    add(&mut holder, &guest(1));
    let change = waiter.change_unless(|| Ok::<(), Refused>(())).unwrap();
    change.insert(&guest(2), &files(&guest(2))).unwrap();
    change.commit().unwrap();
    assert_eq!(holder.list().unwrap().len(), 2);
}

#[test]
fn play() {
    if let Some((role, path)) = role() {
        for round in 0..ROUNDS {
            create(&path, &format!("p{role}-{round}"));
            count(&path);
            let registry = Registry::open(&path, Access::ReadOnly).unwrap();
            assert!(registry.list().unwrap().len() > round);
        }
    }
}

fn create(path: &Path, name_text: &str) {
    let mut registry = Registry::open(path, Access::ReadWrite).unwrap();
    let change = registry.change().unwrap();
    let mut new = guest(1);
    new.number = next_number(&change);
    new.uuid = GuestUuid(uuid::Uuid::from_u64_pair(random(), random()));
    new.name = name(name_text);
    change.insert(&new, &files(&new)).unwrap();
    change.record(&operation(&new, Outcome::Done)).unwrap();
    change.commit().unwrap();
}

/// One more in the label of the common guest.
fn count(path: &Path) {
    let mut registry = Registry::open(path, Access::ReadWrite).unwrap();
    let change = registry.change().unwrap();
    let mut common = change.guest(&Selector::Number(number(1))).unwrap().unwrap();
    common.label = label(counted(&common) + 1);
    change.update(&common, &files(&common)).unwrap();
    change.commit().unwrap();
}

fn counted(guest: &GuestConfig) -> usize {
    guest.label.as_str().parse().unwrap()
}

fn label(count: usize) -> Label {
    count.to_string().parse().unwrap()
}

#[test]
fn eight_processes_do_a_thousand_operations() {
    let place = Place::new();
    let mut common = guest(1);
    common.label = label(0);
    add(&mut place.open(), &common);
    let players: Vec<_> = (0..PROCESSES)
        .map(|n| player("play", &n.to_string(), &place.path()).spawn().unwrap())
        .collect();
    for mut player in players {
        assert!(player.wait().unwrap().success());
    }
    let registry = place.reader();
    let guests = registry.all().unwrap();
    assert_eq!(guests.len(), 1 + PROCESSES * ROUNDS);
    assert_eq!(counted(&guests[0]), PROCESSES * ROUNDS);
    assert_eq!(registry.operations(None, usize::MAX).unwrap().len(), PROCESSES * ROUNDS);
    assert_eq!(registry.check().unwrap(), Vec::<String>::new());
}

#[test]
fn many_may_make_the_registry_at_once() {
    let place = Place::new();
    thread::scope(|scope| {
        for n in 0..PROCESSES {
            let place = &place;
            scope.spawn(move || create(&place.path(), &format!("first{n}")));
        }
    });
    assert_eq!(place.reader().list().unwrap().len(), PROCESSES);
    let names: Vec<_> = std::fs::read_dir(place.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains(".new-"))
        .collect();
    assert_eq!(names, Vec::<String>::new());
}

/// Settles 80: a guest that is being changed, renamed among it, is there for every reader, as it was or as it will be.
#[test]
fn a_guest_under_change_is_never_missing() {
    let place = Place::new();
    let (old, new) = (guest(1), renamed(guest(1)));
    add(&mut place.open(), &old);
    while_writing(
        |turn| {
            let wanted = if turn % 2 == 0 { &new } else { &old };
            let mut registry = place.open();
            let change = registry.change().unwrap();
            change.update(wanted, &files(wanted)).unwrap();
            change.commit().unwrap();
        },
        || {
            let registry = place.reader();
            let seen = registry.guest(&Selector::Number(number(1))).unwrap();
            assert!(seen.as_ref() == Some(&old) || seen.as_ref() == Some(&new), "{seen:?}");
            let listed = registry.list().unwrap();
            let expected = if listed[0].name == old.name { &old } else { &new };
            assert_eq!(listed[0].devices as usize, expected.storage.len());
            let all = registry.all().unwrap();
            assert!(all == [old.clone()] || all == [new.clone()], "{all:?}");
        },
    );
}

fn renamed(mut guest: GuestConfig) -> GuestConfig {
    guest.name = name("renamed");
    guest.storage.truncate(1);
    guest
}

#[test]
fn a_guest_under_removal_is_whole_or_gone() {
    let place = Place::new();
    let kept = guest(1);
    add(&mut place.open(), &kept);
    while_writing(
        |turn| {
            let mut registry = place.open();
            let change = registry.change().unwrap();
            match turn % 4 {
                0 | 2 => change.remove(kept.number, Timestamp::MAX).unwrap(),
                1 => change.undelete(kept.number, None).unwrap(),
                _ => {
                    change.purge(kept.number).unwrap();
                    change.insert(&kept, &files(&kept)).unwrap();
                }
            }
            change.commit().unwrap();
        },
        || {
            let registry = place.reader();
            let seen = registry.guest(&Selector::Name(kept.name.clone())).unwrap();
            assert!(seen.is_none() || seen.as_ref() == Some(&kept), "{seen:?}");
            let removed = registry.removed().unwrap();
            assert!(removed.iter().all(|removed| removed.config == kept), "{removed:?}");
        },
    );
}

/// Readers in two threads look for as long as a writer takes 200 turns.
fn while_writing(write: impl Fn(usize) + Sync, read: impl Fn() + Sync) {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    read();
                }
            });
        }
        // Over however the turns end: a panic there must not leave the readers reading.
        let turns = scope.spawn(|| (0..200).for_each(&write));
        let result = turns.join();
        is_over.store(true, Ordering::Relaxed);
        result.unwrap();
    });
}
