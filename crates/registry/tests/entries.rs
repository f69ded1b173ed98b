//! The device database as rows: what goes in comes out, what nobody needs goes, and what a registry of version 1 becomes.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Place, add, guest, number, operation};
use hpvm_model::{
    Attributes, Bytes, Choice, DeviceKind, EntryId, EntryType, FileIdentity, Origin, StoreIdentity,
};
use hpvm_registry::{Entry, Keys, Outcome, Registry};
use proptest::prelude::*;
use rusqlite::Connection;

fn id(entry: EntryType, name: &str) -> EntryId {
    EntryId::new(entry, name).unwrap()
}

fn of_guest(path: &str) -> Entry {
    let id = id(EntryType::Guest, path);
    Entry { origin: Origin::Guest, ..Entry::by_hand(id, path.into()) }
}

fn put(registry: &mut Registry, entries: &[Entry]) {
    let change = registry.change().unwrap();
    for entry in entries {
        change.put_entry(entry).unwrap();
    }
    change.commit().unwrap();
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let entry = prop_oneof![Just(EntryType::Guest), Just(EntryType::Restricted)];
    let origin = prop_oneof![Just(Origin::Hand), Just(Origin::Guest), Just(Origin::Host)];
    let choice = || prop_oneof![Just(Choice::Yes), Just(Choice::No)];
    let identity = proptest::option::of((proptest::option::of("[a-z:]{1,9}"), any::<u64>()));
    let file = proptest::option::of((any::<u64>(), any::<u64>()));
    let usage = proptest::option::of(proptest::sample::select(&DeviceKind::ALL[..]));
    (entry, "/[!-~]{1,20}", origin, identity, file, (choice(), choice(), choice(), usage)).prop_map(
        |(entry, name, origin, identity, file, (share, preserve, read_only, usage))| Entry {
            id: id(entry, &name),
            real_path: name,
            origin,
            reason: Some("it is mounted at /".into()),
            identity: identity
                .map(|(identifier, size)| StoreIdentity { identifier, size: Bytes(size) }),
            attributes: Attributes { share, preserve, read_only, usage, allow_guests: share },
            file: file.map(|(device, inode)| FileIdentity { device, inode }),
        },
    )
}

#[test]
fn a_disk_is_found_by_its_name_and_by_its_parts() {
    let place = Place::new();
    let known = |path: &str, identifier: &str| {
        let identity = StoreIdentity { identifier: Some(identifier.into()), size: Bytes(512) };
        Entry { identity: Some(identity), ..of_guest(path) }
    };
    let mut registry = place.open();
    put(
        &mut registry,
        &[
            known("/dev/sda", "wwid:naa.1"),
            known("/dev/sda2", "wwid:naa.1-part2"),
            known("/dev/sda12", "wwid:naa.1-part12"),
            known("/dev/sdb", "wwid:naa.12"),
            known("/dev/sdb1", "wwid:naa.12-part1"),
            known("/dev/sdc", "wwid:naa.1-party"),
        ],
    );
    let found = registry.entries_of_disk(EntryType::Guest, "wwid:naa.1").unwrap();
    let mut paths: Vec<&str> = found.iter().map(|entry| entry.id.name()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["/dev/sda", "/dev/sda12", "/dev/sda2"]);
    assert_eq!(registry.entries_of_disk(EntryType::Restricted, "wwid:naa.1").unwrap(), []);
}

fn restricting(path: &str) -> Entry {
    Entry::by_hand(id(EntryType::Restricted, path), path.into())
}

#[test]
fn what_lies_below_a_folder_is_found() {
    for (path, is_below) in [
        ("/iso", false),
        ("/iso/a.iso", true),
        ("/iso/sub/b.iso", true),
        ("/iso-old/c.iso", false),
        ("/iso0", false),
        ("/isa/d.iso", false),
    ] {
        let place = Place::new();
        let mut registry = place.open();
        let attributes = Attributes { usage: Some(DeviceKind::Disk), ..Attributes::default() };
        let kept = Entry { attributes, ..of_guest(path) };
        put(&mut registry, &[restricting(path), kept]);
        for folder in ["/iso", "/iso/"] {
            let named = path.to_owned();
            let expected = is_below.then(|| (named.clone(), (named, DeviceKind::Disk)));
            let found = registry.restricting_below(folder).unwrap();
            assert_eq!(found.zip(registry.kept_for_another_below(folder).unwrap()), expected);
        }
        assert_eq!(registry.restricting_below("/").unwrap().as_deref(), Some(path));
    }
}

#[test]
fn what_is_used_or_given_away_restricts_no_folder() {
    let place = Place::new();
    let mut registry = place.open();
    let attributes = Attributes { allow_guests: Choice::Yes, ..Attributes::default() };
    let given_away = Entry { attributes, ..restricting("/iso/a") };
    let used = Entry { origin: Origin::Host, ..restricting("/iso/b") };
    put(&mut registry, &[given_away, used, of_guest("/iso/c")]);
    assert_eq!(registry.restricting_below("/iso").unwrap(), None);
    assert_eq!(registry.kept_for_another_below("/iso").unwrap(), None);
    let read = Entry { origin: Origin::Signature, ..restricting("/iso/z") };
    put(&mut registry, &[restricting("/iso/zz"), read]);
    assert_eq!(registry.restricting_below("/iso").unwrap().as_deref(), Some("/iso/z"), "the first");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn an_entry_comes_out_as_it_went_in(entry in any_entry()) {
        let place = Place::new();
        put(&mut place.open(), std::slice::from_ref(&entry));
        let registry = place.reader();
        prop_assert_eq!(registry.entries().unwrap(), vec![entry.clone()]);
        prop_assert_eq!(registry.entry(&entry.id, "").unwrap(), Some(entry.clone()));
        let mut keys = vec![Keys { paths: [entry.real_path.clone()].into(), ..Keys::default() }];
        let identifier = entry.identity.as_ref().and_then(|identity| identity.identifier.clone());
        keys.extend(identifier.map(|i| Keys { identifiers: [i].into(), ..Keys::default() }));
        keys.extend(entry.file.map(|file| Keys { files: [file].into(), ..Keys::default() }));
        for keys in keys {
            prop_assert_eq!(registry.entries_by(entry.id.entry, &keys).unwrap(), vec![entry.clone()]);
            prop_assert_eq!(registry.entries_by(EntryType::Server, &keys).unwrap(), Vec::new());
        }
    }
}

#[test]
fn an_entry_goes_with_its_last_device_unless_it_says_something() {
    let place = Place::new();
    let mut registry = place.open();
    add(&mut registry, &guest(1));
    let path = guest(1).storage[0].backing.path.clone();
    let marked = Attributes { preserve: Choice::Yes, ..Attributes::default() };
    let kept = [
        of_guest(&path),
        Entry { attributes: marked, ..of_guest("/marked") },
        Entry { origin: Origin::Hand, ..of_guest("/by-hand") },
    ];
    put(&mut registry, &kept);
    put(&mut registry, &[of_guest("/nobody's")]);
    let change = registry.change().unwrap();
    change.delete_unused_entry(&path).unwrap();
    assert_eq!(change.delete_unused_entries().unwrap(), 1, "only nobody's goes");
    assert_eq!(change.entries().unwrap().len(), kept.len());
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    change.remove(number(1), later).unwrap();
    change.delete_unused_entry(&path).unwrap();
    assert_eq!(change.entries().unwrap().len(), kept.len(), "the guest may come back");
    assert!(!change.is_used_by_others(&path, None).unwrap(), "and is nobody's dependent till then");
    change.purge(number(1)).unwrap();
    change.delete_unused_entry(&path).unwrap();
    assert_eq!(change.entries().unwrap().len(), kept.len() - 1);
}

#[test]
fn what_lies_under_a_device_is_needed_as_the_device_is() {
    let place = Place::new();
    let mut registry = place.open();
    add(&mut registry, &guest(1));
    let base =
        guest(1).storage.iter().find_map(|device| device.layers.last()).unwrap().path.clone();
    put(&mut registry, &[of_guest(&base)]);
    let change = registry.change().unwrap();
    change.delete_unused_entry(&base).unwrap();
    assert_eq!(change.delete_unused_entries().unwrap(), 0);
    assert_eq!(change.entries().unwrap(), [of_guest(&base)]);
    assert!(change.is_used_by_others(&base, None).unwrap());
    assert!(!change.is_used_by_others(&base, Some(number(1))).unwrap());
}

/// A file as version 1 made it.
fn of_version_1(place: &Place) {
    let mut registry = place.open();
    add(&mut registry, &without_layers());
    drop(registry);
    let old = Connection::open(place.path()).unwrap();
    old.execute_batch(
        "DROP TABLE entry; DROP TABLE entry_backup; DROP TABLE layer; DROP TABLE hostrdev; DROP INDEX device_path;
         DROP TABLE nic; DROP TABLE switch_port; DROP TABLE forward; DROP TABLE vswitch;
         ALTER TABLE guest DROP COLUMN nic_count;
         PRAGMA user_version = 1; PRAGMA wal_checkpoint(TRUNCATE);",
    )
    .unwrap();
}

fn version(path: &std::path::Path) -> i64 {
    let connection = Connection::open(path).unwrap();
    connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
}

/// Settles 21.
#[test]
fn a_registry_of_version_1_is_upgraded_by_the_first_change_and_a_copy_is_kept() {
    let place = Place::new();
    of_version_1(&place);
    let reader = place.reader();
    assert_eq!(reader.all().unwrap(), [without_layers()], "readers take it as it is");
    assert_eq!(reader.entries().unwrap(), []);
    drop(reader);
    assert_eq!(version(&place.path()), 1);

    let mut registry = place.open();
    assert_eq!(registry.all().unwrap(), [without_layers()]);
    put(&mut registry, &[of_guest("/dev/sdb")]);
    assert_eq!(registry.entries().unwrap(), [of_guest("/dev/sdb")]);
    assert_eq!(registry.check().unwrap(), Vec::<String>::new());
    drop(registry);
    assert_eq!(version(&place.path()), 4);

    let copy = place.path().with_file_name("hpvm.db.version-1");
    assert_eq!(version(&copy), 1, "an older hpvm can go on from the copy");
    let kept: i64 = Connection::open(&copy)
        .unwrap()
        .query_row("SELECT count(*) FROM guest", [], |row| row.get(0))
        .unwrap();
    assert_eq!(kept, 1);
    let of = |path: &std::path::Path| fs::metadata(path).unwrap().modified().unwrap();
    let before = of(&copy);
    put(&mut place.open(), &[of_guest("/dev/sdc")]);
    assert_eq!(of(&copy), before, "done once");
}

/// As a dry run's, and as the note of a refusal.
#[test]
fn what_changes_nothing_leaves_a_registry_of_version_1() {
    let place = Place::new();
    of_version_1(&place);
    let mut registry = place.open();
    let change = registry.change().unwrap();
    change.put_entry(&of_guest("/dev/sdb")).unwrap();
    change.update(&guest(1), &hpvm_registry::Identities::new()).unwrap();
    assert_eq!(change.all().unwrap(), [guest(1)], "within it all is this version's");
    assert_eq!(change.entries().unwrap(), [of_guest("/dev/sdb")]);
    drop(change);
    let recorded = registry.record(&operation(&without_layers(), Outcome::Done)).unwrap();
    assert_eq!(registry.operations(None, 1).unwrap()[0].id, recorded);
    assert_eq!(registry.all().unwrap(), [without_layers()]);
    assert_eq!(registry.entries().unwrap(), []);
    drop(registry);
    assert_eq!(version(&place.path()), 1);
    assert!(!place.path().with_file_name("hpvm.db.version-1").exists());
}

#[test]
fn an_upgrade_that_fails_leaves_version_1_and_is_done_by_the_next() {
    let place = Place::new();
    of_version_1(&place);
    // The copy's place is taken by what cannot be replaced.
    let taken = place.path().with_file_name("hpvm.db.version-1");
    fs::create_dir_all(taken.join("full")).unwrap();
    let mut registry = place.open();
    let change = registry.change().unwrap();
    change.put_entry(&of_guest("/dev/sdb")).unwrap();
    let error = change.commit().unwrap_err();
    assert!(error.to_string().contains("version-1"), "{error}");
    assert_eq!(version(&place.path()), 1);
    assert_eq!(place.reader().all().unwrap(), [without_layers()]);
    assert_eq!(registry.all().unwrap(), [without_layers()]);
    fs::remove_dir_all(&taken).unwrap();
    put(&mut place.open(), &[of_guest("/dev/sdc")]);
    assert_eq!(registry.change().unwrap().entries().unwrap(), [of_guest("/dev/sdc")]);
    assert_eq!(version(&place.path()), 4);
}

#[test]
fn many_upgrade_at_once_and_one_does_it() {
    let place = Place::new();
    of_version_1(&place);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut registry = place.open();
                assert_eq!(registry.all().unwrap(), [without_layers()]);
                put(&mut registry, &[of_guest("/dev/sdb")]);
            });
        }
    });
    assert_eq!(version(&place.path()), 4);
    assert_eq!(place.open().check().unwrap(), Vec::<String>::new());
}

/// What an older version could hold of it.
fn without_layers() -> hpvm_model::GuestConfig {
    let mut guest = guest(1);
    guest.storage.iter_mut().for_each(|device| device.layers.clear());
    guest
}

/// Of version 2: with the device database, and without layers.
#[test]
fn a_registry_of_version_2_gets_layers() {
    let place = Place::new();
    let mut registry = place.open();
    add(&mut registry, &without_layers());
    drop(registry);
    let old = Connection::open(place.path()).unwrap();
    old.execute_batch(
        "DROP TABLE layer; DROP TABLE nic; DROP TABLE switch_port; DROP TABLE forward; DROP TABLE vswitch;
         ALTER TABLE guest DROP COLUMN nic_count; PRAGMA user_version = 2; PRAGMA wal_checkpoint(TRUNCATE);",
    )
    .unwrap();
    drop(old);
    assert_eq!(place.reader().all().unwrap(), [without_layers()], "readers take it as it is");
    let mut registry = place.open();
    let change = registry.change().unwrap();
    change.update(&guest(1), &hpvm_registry::Identities::new()).unwrap();
    change.commit().unwrap();
    assert_eq!(version(&place.path()), 4);
    assert_eq!(registry.all().unwrap(), [guest(1)]);
    assert_eq!(version(&place.path().with_file_name("hpvm.db.version-2")), 2);
}

/// Looking a guest's stores up costs the same with 10,000 entries: what takes longer than this reads them all.
#[test]
fn judging_does_not_read_all_entries() {
    const BOUND: Duration = Duration::from_millis(8);
    let place = Place::new();
    let mut registry = place.open();
    let entry = |n: u64| Entry {
        identity: Some(StoreIdentity { identifier: Some(format!("wwid:{n}")), size: Bytes(n) }),
        file: Some(FileIdentity { device: 0, inode: n }),
        ..of_guest(&format!("/dev/disk{n}"))
    };
    put(&mut registry, &(0..10_000).map(entry).collect::<Vec<_>>());
    let keys = Keys {
        paths: (0..16).map(|n| format!("/dev/disk{}", n * 7)).collect(),
        identifiers: (0..16).map(|n| format!("wwid:{}", n * 11)).collect(),
        files: (0..16).map(|n| FileIdentity { device: 0, inode: n * 13 }).collect(),
    };
    let look = || {
        let begun = Instant::now();
        assert!(registry.entries_by(EntryType::Guest, &keys).unwrap().len() > 40);
        begun.elapsed()
    };
    // The first reads pages from the file; the quickest of a few is what the work costs.
    let took = (0..5).map(|_| look()).min().unwrap();
    assert!(took < BOUND, "{took:?}");
    let plan = "EXPLAIN QUERY PLAN SELECT 1 FROM entry WHERE name = 'x' AND type = 'gdev'
         AND origin = 'guest' AND NOT EXISTS (SELECT 1 FROM device WHERE path = entry.name)
         AND NOT EXISTS (SELECT 1 FROM layer WHERE path = entry.name)";
    let connection = Connection::open(place.path()).unwrap();
    let mut statement = connection.prepare(plan).unwrap();
    let steps = statement.query_map([], |row| row.get::<_, String>(3)).unwrap();
    let steps: Vec<String> = steps.map(Result::unwrap).collect();
    assert!(steps.iter().all(|step| !step.contains("SCAN")), "{steps:?}");
}
