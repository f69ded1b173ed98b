//! A lost or damaged registry comes back from the guests' own texts; what was there is kept, whatever it was.

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};

use common::{Place, add, files, guest, name, number, player, role};
use hpvm_model::Choice;
use hpvm_registry::{
    Access, Entry, Found, Outcome, Part, Rebuild, Rebuilt, Registry, RegistryError, RemovedGuest,
    Sources, Step, portable, rebuild, rehearse,
};
use jiff::Timestamp;

fn found(n: u32) -> Found {
    Found::Guest(guest(n), files(&guest(n)))
}

fn guests(guests: impl IntoIterator<Item = Found>) -> Sources {
    Sources { guests: guests.into_iter().collect(), switches: Vec::new() }
}

fn rebuilt(path: &Path, found: impl IntoIterator<Item = Found>) -> Result<Rebuilt, RegistryError> {
    match rebuild(path, || guests(found), |_| true)? {
        Rebuild::Done(rebuilt) => Ok(rebuilt),
        Rebuild::NotWanted(_) => unreachable!("it is"),
    }
}

fn damaged_files(place: &Place) -> Vec<PathBuf> {
    let mut names: Vec<PathBuf> = fs::read_dir(place.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains(".damaged-"))
        .collect();
    names.sort();
    names
}

#[test]
fn a_damaged_registry_is_replaced_and_kept() {
    let place = Place::new();
    fs::write(place.path(), "no database").unwrap();
    let removed = RemovedGuest {
        config: {
            let mut gone = guest(2);
            gone.name = name("guest1");
            gone
        },
        removed_at: Timestamp::from_second(100).unwrap(),
        keep_until: Timestamp::from_second(200).unwrap(),
    };
    let gone = Found::Removed(removed.clone(), files(&removed.config));
    let rebuilt = rebuilt(&place.path(), [found(1), gone, found(3)]).unwrap();
    assert_eq!(rebuilt.guests, [number(1), number(3)]);
    assert_eq!(rebuilt.removed, [number(2)]);
    assert!(rebuilt.skipped.is_empty());
    let parts: Vec<Part> = rebuilt.lost.iter().map(|lost| lost.part).collect();
    assert_eq!(parts, [Part::DeviceDatabase, Part::Operations, Part::Removals]);
    let kept = rebuilt.damaged.unwrap();
    assert_eq!(fs::read_to_string(&kept).unwrap(), "no database");
    assert_eq!(damaged_files(&place), [kept]);
    let registry = place.reader();
    assert_eq!(registry.all().unwrap(), [guest(1), guest(3)]);
    assert_eq!(registry.removed().unwrap(), [removed]);
    assert_eq!(registry.check().unwrap(), Vec::<String>::new());
    add(&mut place.open(), &guest(4));
}

#[test]
fn each_kind_of_wreck_is_put_aside() {
    type Wreck = fn(&Place);
    let wrecks: [(Wreck, usize); 5] = [
        (|_| {}, 0),
        (|place| fs::create_dir(place.path()).unwrap(), 1),
        (|place| fs::write(place.path(), "").unwrap(), 1),
        (|place| add(&mut place.open(), &guest(9)), 3),
        // Gone but for its log, which must not be taken for the new file's.
        (
            |place| {
                add(&mut place.open(), &guest(9));
                fs::remove_file(place.path()).unwrap();
            },
            2,
        ),
    ];
    for (wreck, left) in wrecks {
        let place = Place::new();
        wreck(&place);
        rebuilt(&place.path(), [found(1)]).unwrap();
        assert_eq!(damaged_files(&place).len(), left, "{:?}", damaged_files(&place));
        assert_eq!(place.reader().all().unwrap(), [guest(1)]);
        rebuilt(&place.path(), [found(2)]).unwrap();
        assert_eq!(place.reader().all().unwrap(), [guest(2)]);
        assert!(damaged_files(&place).len() > left);
    }
}

#[test]
fn a_guest_that_only_the_old_registry_knows_is_named() {
    let place = Place::new();
    {
        let mut registry = place.open();
        add(&mut registry, &guest(1));
        add(&mut registry, &guest(2));
    }
    assert_eq!(rehearse(&place.path(), guests([found(2)])).unwrap().unfound, [guest(1)]);
    let rebuilt = rebuilt(&place.path(), [found(2)]).unwrap();
    assert_eq!((rebuilt.unfound, place.reader().all().unwrap()), (vec![guest(1)], vec![guest(2)]));
}

#[test]
fn a_rebuild_that_is_not_wanted_leaves_the_old_registry() {
    let place = Place::new();
    let mut registry = place.open();
    add(&mut registry, &guest(1));
    let rebuild = rebuild(&place.path(), || guests([]), |would| would.unfound.is_empty()).unwrap();
    assert!(matches!(rebuild, Rebuild::NotWanted(would) if would.unfound == [guest(1)]));
    assert_eq!(damaged_files(&place), Vec::<PathBuf>::new());
    add(&mut registry, &guest(2));
    assert_eq!(place.reader().all().unwrap(), [guest(1), guest(2)]);
}

/// So whatever is found is as the registry had it that is replaced.
#[test]
fn nobody_changes_the_old_registry_from_the_look_on() {
    let place = Place::new();
    let mut other = place.open();
    add(&mut other, &guest(1));
    other.hurry().unwrap();
    let look = || {
        assert!(matches!(other.change(), Err(RegistryError::Busy { .. })));
        guests([found(1)])
    };
    rebuild(&place.path(), look, |_| true).unwrap();
}

/// A link may lead anywhere, to a device of the VM Host too: what is no registry is not put aside.
#[test]
fn what_a_link_leads_to_is_left_alone_unless_it_is_a_file() {
    let place = Place::new();
    let pipe = place.path().with_file_name("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
    symlink(&pipe, place.path()).unwrap();
    let refused = rebuilt(&place.path(), [found(1)]).unwrap_err().to_string();
    assert!(refused.contains("which is no plain file"), "{refused}");
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
}

#[test]
fn contradicting_guests_are_named_and_the_first_is_kept() {
    let place = Place::new();
    let mut twin = guest(2);
    twin.name = name("guest1");
    let mut double = guest(1);
    double.name = name("double");
    let found =
        [found(1), Found::Guest(twin.clone(), files(&twin)), Found::Guest(double, files(&twin))];
    let rebuilt = rebuilt(&place.path(), found).unwrap();
    assert_eq!(rebuilt.guests, [number(1)]);
    let [first, second] = &rebuilt.skipped[..] else { panic!("two") };
    assert_eq!(first.config, twin);
    assert!(matches!(first.why, RegistryError::NameTaken { .. }), "{}", first.why);
    assert!(matches!(second.why, RegistryError::IdentityTaken { .. }), "{}", second.why);
}

/// A registry with a restriction, a record, and a guest that was removed at some time.
fn with_memories(place: &Place) -> (Entry, RemovedGuest) {
    let mut registry = place.open();
    add(&mut registry, &guest(1));
    add(&mut registry, &guest(2));
    let entry = Entry::by_hand("rdev:/media".parse().unwrap(), "/media".into());
    let change = registry.change().unwrap();
    change.put_entry(&entry).unwrap();
    change.back_entries_up().unwrap();
    change.set_hostrdev_at_start(Choice::No).unwrap();
    change.remove(number(2), Timestamp::from_second(86_400).unwrap()).unwrap();
    change.record(&common::operation(&guest(1), Outcome::Done)).unwrap();
    change.record(&common::operation(&guest(2), Outcome::Failed("no".into()))).unwrap();
    change.commit().unwrap();
    let removed = registry.removed().unwrap().pop().unwrap();
    (entry, removed)
}

/// As folders tell it: removed at a time that nobody knows.
fn found_removed(n: u32) -> Found {
    let (removed_at, keep_until) = (Timestamp::now(), Timestamp::now());
    let removed = RemovedGuest { config: guest(n), removed_at, keep_until };
    Found::Removed(removed, files(&guest(n)))
}

#[test]
fn what_folders_do_not_know_comes_from_the_old_registry() {
    let place = Place::new();
    let (entry, removed) = with_memories(&place);
    let operations = place.reader().operations(None, 10).unwrap();
    let export = place.reader().export().unwrap();
    let rehearsed = rehearse(&place.path(), guests([found(1)])).unwrap();
    assert_eq!((rehearsed.entries_count, rehearsed.operations_count), (1, 2));
    assert_eq!(place.reader().export().unwrap(), export);
    assert_eq!(fs::read_dir(place.folder.path()).unwrap().count(), 3, "it, its log, its index");

    let rebuilt = rebuilt(&place.path(), [found(1), found_removed(2)]).unwrap();
    assert_eq!(rebuilt.lost, []);
    let registry = place.reader();
    assert_eq!(registry.entries().unwrap(), [entry]);
    assert_eq!(registry.hostrdev_at_start().unwrap(), Choice::No);
    assert_eq!(registry.removed().unwrap(), [removed]);
    assert_eq!(registry.operations(None, 10).unwrap(), operations);
}

#[test]
fn each_part_that_cannot_be_read_is_named_and_the_others_are_taken_over() {
    let place = Place::new();
    with_memories(&place);
    let raw = rusqlite::Connection::open(place.path()).unwrap();
    raw.execute_batch("UPDATE operation SET guest_name = '../x'").unwrap();
    drop(raw);
    let rebuilt = rebuilt(&place.path(), [found(1), found_removed(2)]).unwrap();
    let [lost] = &rebuilt.lost[..] else { panic!("{:?}", rebuilt.lost) };
    assert_eq!(lost.part, Part::Operations);
    assert_eq!((rebuilt.entries_count, rebuilt.operations_count), (1, 0));
    assert_eq!(place.reader().operations(None, 10).unwrap(), []);
}

#[test]
fn who_had_the_old_file_open_is_told_instead_of_losing_a_change() {
    let place = Place::new();
    let mut registry = place.open();
    add(&mut registry, &guest(9));
    rebuilt(&place.path(), [found(1)]).unwrap();
    let error = registry.change().unwrap_err();
    assert!(matches!(error, RegistryError::Replaced { .. }), "{error:?}");
    // Its end must not take the new file's log away.
    add(&mut place.open(), &guest(2));
    drop(registry);
    assert_eq!(place.reader().list().unwrap().len(), 2);
}

/// Plays a rebuild that aborts at a step; in the test's own process there is nothing to play.
#[test]
fn play() {
    if let Some((_, path)) = role() {
        rebuilt(&path, [found(1), found(2)]).unwrap();
    }
}

#[test]
fn a_rebuild_killed_at_any_step_can_be_done_again() {
    for step in [Step::DoctorWritten, Step::DoctorSaved, Step::DoctorReplaced] {
        let place = Place::new();
        add(&mut place.open(), &guest(1));
        let mut player = player("play", "rebuild", &place.path());
        let status = player.env("HPVM_ABORT_AT", step.name()).status().unwrap();
        assert!(!status.success(), "nothing aborted at {step}");
        let between = Registry::open(&place.path(), Access::ReadOnly).unwrap().list();
        assert!(between.is_ok(), "{step}: {between:?}");
        rebuilt(&place.path(), [found(1), found(2)]).unwrap();
        assert_eq!(place.reader().all().unwrap(), [guest(1), guest(2)], "{step}");
    }
}

#[test]
fn a_guests_text_is_as_it_always_was() {
    let mut short = guest(1);
    short.storage.truncate(1);
    short.ports.truncate(1);
    let text = portable::write(&short);
    let golden = r#"{
  "version": 1,
  "number": 1,
  "uuid": "4a5e0000-0000-4000-8000-000000000001",
  "name": "guest1",
  "label": "the guest number 1",
  "serial_number": "VM02648001",
  "os": {
    "family": "LINUX",
    "version": "12"
  },
  "vcpus": 2,
  "entitlement": {
    "unit": "percent",
    "entitled": 125,
    "maximum": 500
  },
  "memory_bytes": 2147483648,
  "auto_start": "auto",
  "runnable": "disabled",
  "storage": [
    {
      "kind": "disk",
      "adapter": "avio_stor",
      "address": "0,1,0",
      "backing": {
        "storage": "file",
        "path": "/srv/disks/guest1/disk0.img"
      },
      "id": "000000000000010"
    }
  ],
  "ports": [
    [
      0,
      0
    ]
  ]
}
"#;
    assert_eq!(text, golden);
    assert_eq!(portable::read(golden).unwrap(), short);
}

#[test]
fn a_guests_text_may_have_more_and_lack_what_has_a_default() {
    let text = portable::write(&guest(5));
    let more = text.replacen('{', "{\n  \"colour\": [\"blue\"],", 1);
    assert_eq!(portable::read(&more).unwrap(), guest(5));
    let fewer = text.replace("  \"label\": \"the guest number 5\",\n", "");
    assert_eq!(portable::read(&fewer).unwrap().label.as_str(), "");
    let newer = text.replace("\"version\": 1,", "\"version\": 2,");
    assert!(portable::read(&newer).unwrap_err().to_string().contains("version 2"));
    for bad in
        ["", "{}", "[]", "null", &text[..text.len() / 2], &text.replace("guest5\"", "../x\"")]
    {
        assert!(portable::read(bad).is_err(), "{bad}");
    }
}

#[test]
fn an_export_has_everything_and_differs_only_where_the_registries_do() {
    let place = Place::new();
    let mut registry = place.open();
    for n in 1..=3 {
        add(&mut registry, &guest(n));
    }
    let change = registry.change().unwrap();
    change.remove(number(3), Timestamp::from_second(86_400).unwrap()).unwrap();
    change.record(&common::operation(&guest(3), hpvm_registry::Outcome::Done)).unwrap();
    change.commit().unwrap();
    let text = place.reader().export().unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["guests"].as_array().unwrap().len(), 2);
    assert_eq!(value["removed"][0]["guest"]["name"], "guest3");
    assert_eq!(value["removed"][0]["keep_until"], "1970-01-02T00:00:00Z");
    assert_eq!(value["operations"][0]["command_line"], "hpvmmodify -P guest3 -c 4");
    assert_eq!(portable::read(&value["guests"][1].to_string()).unwrap(), guest(2));
    assert_eq!(text, place.reader().export().unwrap());
}
