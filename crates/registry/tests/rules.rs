//! Random sequences of changes against a model that a page explains: names are free after removal; numbers and UUIDs stay
//! taken until a purge; what is refused changes nothing; what is dropped never was.

mod common;

use std::collections::BTreeMap;

use common::{Place, files, guest, name, next_number, number};
use hpvm_model::{GuestConfig, GuestNumber, GuestUuid};
use hpvm_registry::{Change, RegistryError, Selector};
use jiff::Timestamp;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Action {
    Insert { name: usize },
    InsertTaken { number: usize },
    Rename { guest: usize, name: usize },
    Remove { guest: usize, keep_until: i64 },
    Undelete { guest: usize, new_name: Option<usize> },
    Purge { guest: usize },
}

/// One transaction, and whether it is committed.
#[derive(Clone, Debug)]
struct Step {
    actions: Vec<Action>,
    is_committed: bool,
}

fn action() -> impl Strategy<Value = Action> {
    let guest = 0..6usize;
    let a_name = 0..4usize;
    prop_oneof![
        4 => a_name.clone().prop_map(|name| Action::Insert { name }),
        1 => guest.clone().prop_map(|number| Action::InsertTaken { number }),
        2 => (guest.clone(), a_name.clone()).prop_map(|(guest, name)| Action::Rename { guest, name }),
        3 => (guest.clone(), 0..100i64)
            .prop_map(|(guest, keep_until)| Action::Remove { guest, keep_until }),
        2 => (guest.clone(), prop::option::of(a_name))
            .prop_map(|(guest, new_name)| Action::Undelete { guest, new_name }),
        2 => guest.prop_map(|guest| Action::Purge { guest }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    (prop::collection::vec(action(), 1..5), prop::bool::weighted(0.8))
        .prop_map(|(actions, is_committed)| Step { actions, is_committed })
}

/// What the registry should hold.
#[derive(Clone, Debug, Default)]
struct Model {
    guests: BTreeMap<GuestNumber, Entry>,
    /// UUIDs are never given twice by whoever makes guests.
    made: u32,
}

#[derive(Clone, Debug)]
struct Entry {
    config: GuestConfig,
    keep_until: Option<Timestamp>,
}

impl Model {
    fn holder(&self, wanted: usize) -> Option<GuestNumber> {
        let wanted = pool(wanted);
        self.guests
            .values()
            .find(|entry| entry.keep_until.is_none() && entry.config.name == wanted)
            .map(|entry| entry.config.number)
    }

    /// The guest at a place among all, so that most actions meet one.
    fn pick(&self, place: usize) -> GuestNumber {
        let numbers: Vec<GuestNumber> = self.guests.keys().copied().collect();
        match numbers.len() {
            0 => number(1),
            length => numbers[place % length],
        }
    }

    fn is_removed(&self, number: GuestNumber) -> Option<bool> {
        self.guests.get(&number).map(|entry| entry.keep_until.is_some())
    }

    fn next_number(&self) -> GuestNumber {
        number(self.guests.keys().last().map_or(1, |highest| highest.get() + 1))
    }

    fn existing(&self) -> Vec<GuestConfig> {
        let existing = self.guests.values().filter(|entry| entry.keep_until.is_none());
        existing.map(|entry| entry.config.clone()).collect()
    }

    fn due(&self, now: Timestamp) -> Vec<GuestNumber> {
        let due = self.guests.values().filter(|e| e.keep_until.is_some_and(|until| until <= now));
        due.map(|entry| entry.config.number).collect()
    }
}

fn pool(index: usize) -> hpvm_model::GuestName {
    name(["a", "b", "c", "d"][index])
}

fn new_guest(model: &mut Model, number: GuestNumber, name: usize) -> GuestConfig {
    model.made += 1;
    let mut config = guest(number.get());
    config.uuid = GuestUuid(uuid::Uuid::from_u128(u128::from(model.made)));
    config.name = pool(name);
    config.storage.truncate(model.made as usize % 5);
    config
}

/// Performs an action on both; fails when one takes what the other refuses, or for another reason.
fn perform(action: &Action, change: &Change<'_>, model: &mut Model) {
    match *action {
        Action::Insert { name } => insert(change, model, name),
        Action::InsertTaken { number } => insert_taken(change, model, number),
        Action::Rename { guest, name } => rename(change, model, guest, name),
        Action::Remove { guest, keep_until } => remove(change, model, guest, keep_until),
        Action::Undelete { guest, new_name } => undelete(change, model, guest, new_name),
        Action::Purge { guest } => purge(change, model, guest),
    }
}

fn insert(change: &Change<'_>, model: &mut Model, name: usize) {
    let number = next_number(change);
    assert_eq!(number, model.next_number());
    let config = new_guest(model, number, name);
    let result = change.insert(&config, &files(&config));
    match model.holder(name) {
        Some(holder) => assert_name_taken(result, holder),
        None => {
            result.unwrap();
            model.guests.insert(number, Entry { config, keep_until: None });
        }
    }
}

fn insert_taken(change: &Change<'_>, model: &mut Model, place: usize) {
    let number = model.pick(place);
    let mut config = new_guest(model, number, 0);
    config.name = name("nobody");
    if model.guests.contains_key(&number) {
        let refused = change.insert(&config, &files(&config)).unwrap_err();
        assert!(matches!(refused, RegistryError::IdentityTaken { .. }), "{refused}");
    }
}

fn rename(change: &Change<'_>, model: &mut Model, guest: usize, name: usize) {
    let number = model.pick(guest);
    let Some(entry) = model.guests.get(&number) else { return };
    let config = GuestConfig { name: pool(name), ..entry.config.clone() };
    let result = change.update(&config, &files(&config));
    match (model.is_removed(number), model.holder(name)) {
        (_, Some(holder)) if holder != number => assert_name_taken(result, holder),
        (Some(false), _) => {
            result.unwrap();
            model.guests.get_mut(&number).unwrap().config = config;
        }
        _ => assert!(matches!(result, Err(RegistryError::NoGuest(n)) if n == number)),
    }
}

fn remove(change: &Change<'_>, model: &mut Model, guest: usize, keep_until: i64) {
    let number = model.pick(guest);
    let keep_until = Timestamp::from_second(keep_until).unwrap();
    let result = change.remove(number, keep_until);
    match model.guests.get_mut(&number) {
        Some(entry) if entry.keep_until.is_none() => {
            result.unwrap();
            entry.keep_until = Some(keep_until);
        }
        _ => assert!(matches!(result, Err(RegistryError::NoGuest(n)) if n == number)),
    }
}

fn undelete(change: &Change<'_>, model: &mut Model, guest: usize, new_name: Option<usize>) {
    let number = model.pick(guest);
    let new_name = new_name.map(pool);
    let result = change.undelete(number, new_name.as_ref());
    if model.is_removed(number) != Some(true) {
        assert!(matches!(result, Err(RegistryError::NotRemoved(n)) if n == number));
        return;
    }
    let wanted = new_name.unwrap_or_else(|| model.guests[&number].config.name.clone());
    let existing = model.existing();
    match existing.iter().find(|config| config.name == wanted) {
        Some(holder) => assert_name_taken(result, holder.number),
        None => {
            result.unwrap();
            let entry = model.guests.get_mut(&number).unwrap();
            entry.config.name = wanted;
            entry.keep_until = None;
        }
    }
}

fn purge(change: &Change<'_>, model: &mut Model, guest: usize) {
    let number = model.pick(guest);
    let result = change.purge(number);
    if model.is_removed(number) == Some(true) {
        result.unwrap();
        model.guests.remove(&number);
    } else {
        assert!(matches!(result, Err(RegistryError::NotRemoved(n)) if n == number));
    }
}

fn assert_name_taken(result: Result<(), RegistryError>, holder: GuestNumber) {
    match result {
        Err(RegistryError::NameTaken { number, .. }) => assert_eq!(number, holder),
        other => panic!("the name belongs to {holder}, and the answer was {other:?}"),
    }
}

fn compare(registry: &hpvm_registry::Registry, model: &Model) {
    let existing = model.existing();
    assert_eq!(registry.all().unwrap(), existing);
    let listed: Vec<_> =
        registry.list().unwrap().into_iter().map(|g| (g.number, g.name, g.devices)).collect();
    let expected: Vec<_> =
        existing.iter().map(|g| (g.number, g.name.clone(), g.storage.len() as u32)).collect();
    assert_eq!(listed, expected);
    for config in &existing {
        let found = registry.guest(&Selector::Name(config.name.clone())).unwrap();
        assert_eq!(found.as_ref(), Some(config));
    }
    let mut removed: Vec<_> = registry.removed().unwrap();
    removed.sort_by_key(|removed| removed.config.number);
    let expected: Vec<_> = model.guests.values().filter(|e| e.keep_until.is_some()).collect();
    assert_eq!(removed.len(), expected.len());
    for (removed, expected) in removed.iter().zip(expected) {
        assert_eq!(removed.config, expected.config);
        assert_eq!(Some(removed.keep_until), expected.keep_until);
    }
    let now = Timestamp::from_second(50).unwrap();
    let mut due: Vec<_> =
        registry.due(now).unwrap().into_iter().map(|removed| removed.config.number).collect();
    due.sort_unstable();
    assert_eq!(due, model.due(now));
    assert_eq!(registry.check().unwrap(), Vec::<String>::new());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_registry_keeps_to_the_model(steps in prop::collection::vec(step(), 1..16)) {
        let place = Place::new();
        let mut registry = place.open();
        let mut model = Model::default();
        for Step { actions, is_committed } in steps {
            let mut after = model.clone();
            let change = registry.change().unwrap();
            for action in &actions {
                perform(action, &change, &mut after);
            }
            compare(&change, &after);
            if is_committed {
                change.commit().unwrap();
                model = after;
            } else {
                drop(change);
            }
            compare(&place.reader(), &model);
        }
    }
}
