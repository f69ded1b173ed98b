//! What users of the console change in drives, and how it becomes part of the configuration.

mod common;

use common::{device, guest, host, record};
use hpvm_model::{Backing, GuestConfig};
use hpvm_plan::drives::{
    Image, folder, folders, folders_that_wait, given_back, take_over, with_medium,
};
use hpvm_plan::facts::{FileFact, FileIdentity, Listing};
use hpvm_plan::hotplug::{Place, Planned, When};
use hpvm_plan::record::{ChangedBy, DeviceChange, Due, JournalLine, Machine, Outcome};
use proptest::prelude::*;

const DRIVE: &str = "dvd:scsi:0,1,0:null:/isos";

fn image(name: &str) -> Image {
    Image { name: name.into(), identity: FileIdentity { device: 1, inode: 2 } }
}

fn console() -> ChangedBy {
    ChangedBy::Console { user: "ann".into() }
}

/// The machine after somebody put something into its drive, or emptied it.
fn changed(mut machine: Machine, name: Option<&str>, by: ChangedBy, outcome: Outcome) -> Machine {
    let drive = &machine.storage[0].device;
    let attached = with_medium(drive, name.map(image).as_ref());
    let (seq, at) = (machine.next_seq, "2026-11-24T09:00:00Z".to_owned());
    let change = DeviceChange::Medium { attached, by };
    machine.replay(JournalLine::Asked { seq, at: at.clone(), change, due: Due::Now });
    machine.replay(JournalLine::Settled { seq, at, outcome });
    machine
}

fn drive_of(config: &GuestConfig) -> String {
    config.storage[0].to_string()
}

#[test]
fn the_folder_stays_whatever_comes_and_goes() {
    let empty = device(DRIVE);
    assert_eq!(folder(&empty), Some("/isos"));
    let full = with_medium(&empty, Some(&image("a.iso"))).device;
    assert_eq!(full.to_string(), "dvd:scsi:0,1,0:file:/isos/a.iso");
    assert_eq!(folder(&full), Some("/isos"));
    assert_eq!(with_medium(&full, None).device, empty);
    assert_eq!(folder(&device("disk:scsi:0,1,0:file:/isos/a.img")), None);
    let machine = Machine::new(record(&guest(&[DRIVE, "dvd:scsi:0,1,1:file:/isos/b.iso"])));
    assert_eq!(folders(&machine).into_iter().collect::<Vec<_>>(), ["/isos"]);
}

#[test]
fn a_folder_that_comes_to_a_running_guest_waits_for_the_next_start() {
    let before = guest(&[DRIVE]);
    let machine = Machine::new(record(&before));
    let told_beside = |devices: &[&str], planned: &[Planned]| -> Vec<(String, String)> {
        let after = guest(devices);
        let mut facts = host(&after);
        for folder in ["/isos", "/more"] {
            facts.files.insert(folder.into(), FileFact::Folder(Listing::Open));
        }
        let problems = folders_that_wait(&before, &after, &machine, planned, &facts);
        problems.into_iter().map(|problem| (problem.item, problem.text)).collect()
    };
    let told = |devices: &[&str]| told_beside(devices, &[]);
    let waits = |at: &str, folder: &str| {
        let text = format!(
            "users of the console choose from '{folder}' from the guest's next start on; until then put an image in with `hpvmmodify -P guest1 -m dvd:scsi:{at}:file:IMAGE`"
        );
        vec![(at.to_owned(), text)]
    };
    assert_eq!(told(&[DRIVE]), []);
    assert_eq!(told(&[DRIVE, "dvd:scsi:0,1,1:null:/more"]), waits("0,1,1", "/more"));
    assert_eq!(told(&["dvd:scsi:0,1,0:null:/more"]), waits("0,1,0", "/more"));
    assert_eq!(told(&[DRIVE, "dvd:scsi:0,1,1:null:/isos"]), [], "the worker holds that one");
    assert_eq!(told(&[DRIVE, "dvd:scsi:0,1,1:file:/more/a.iso"]), [], "it has its medium");
    assert_eq!(told(&[DRIVE, "dvd:scsi:0,1,1:null:/none"]), [], "it is told what is wrong there");
    let later = Planned {
        place: Place::Storage("0,1,1".parse().unwrap()),
        when: When::NextStart("there is no port".into()),
    };
    let waiting = told_beside(&[DRIVE, "dvd:scsi:0,1,1:null:/more"], &[later]);
    assert_eq!(waiting, [], "so does the drive");
}

#[test]
fn what_the_console_changed_is_taken_over_once() {
    let config = guest(&[DRIVE]);
    let machine = Machine::new(record(&config));
    assert_eq!(take_over(&config, &machine), None);
    let failed = Outcome::Failed("the tray is locked".into());
    let machine = changed(machine, Some("a.iso"), console(), failed);
    assert_eq!(take_over(&config, &machine), None);

    let mut machine = changed(machine, Some("b.iso"), console(), Outcome::Done);
    let taken = take_over(&config, &machine).unwrap();
    assert_eq!(drive_of(&taken.config), "dvd:scsi:0,1,0:file:/isos/b.iso");
    assert_eq!(
        taken.reasons,
        ["ann put '/isos/b.iso' into the drive at 0,1,0 at the console, 2026-11-24T09:00:00Z"]
    );
    let again = take_over(&taken.config, &machine).unwrap();
    assert_eq!((again.config, again.reasons), (taken.config.clone(), vec![]));
    // After the mark the administrator's word counts.
    let through_seq = taken.through_seq;
    machine.replay(JournalLine::TakenOver { through_seq, at: String::new() });
    assert_eq!(take_over(&config, &machine), None);
    let machine = changed(machine, None, console(), Outcome::Done);
    let taken = take_over(&taken.config, &machine).unwrap();
    assert_eq!(drive_of(&taken.config), DRIVE);
    assert!(taken.reasons[0].starts_with("ann emptied the drive at 0,1,0"));
}

#[test]
fn a_command_after_the_console_wins_and_so_does_another_drive() {
    let config = guest(&[DRIVE]);
    let machine = Machine::new(record(&config));
    let machine = changed(machine, Some("a.iso"), console(), Outcome::Done);
    let other = guest(&["dvd:avio_stor:0,1,0:null:/isos"]);
    assert_eq!(take_over(&other, &machine).unwrap().config, other, "it has another adapter now");
    let machine = changed(machine, Some("b.iso"), ChangedBy::Command, Outcome::Done);
    assert_eq!(take_over(&config, &machine), None);
}

/// The worker writes the record, and could name any file: the next command would open it as root.
#[test]
fn only_what_the_console_lets_choose_is_taken_over() {
    let config = guest(&[DRIVE]);
    for chosen in [
        "file:/root/.ssh/id_rsa",
        "file:/isos/../etc/shadow",
        "file:/isos/..",
        "file:/isos/older/c.iso",
        "file:/isos",
        "file:isos/a.iso",
        "null:/etc",
        "disk:/dev/sda",
        "disk:/isos/a.iso",
    ] {
        let (storage, path) = chosen.split_once(':').unwrap();
        let mut attached = with_medium(&config.storage[0], None);
        attached.device.backing = Backing::new(storage.parse().unwrap(), path);
        let mut machine = Machine::new(record(&config));
        let change = DeviceChange::Medium { attached, by: console() };
        machine.replay(JournalLine::Asked { seq: 1, at: "t".into(), change, due: Due::Now });
        let outcome = Outcome::Done;
        machine.replay(JournalLine::Settled { seq: 1, at: "t".into(), outcome });
        let taken = take_over(&config, &machine).unwrap();
        assert_eq!((&taken.config, taken.reasons.len()), (&config, 0), "{chosen}");
        assert!(taken.refused[0].text.contains(path), "{chosen}: {:?}", taken.refused);
    }
}

/// A drive of the VM Host, which the console empties and has given back.
#[test]
fn an_emptied_drive_of_the_vm_host_is_taken_over() {
    let config = guest(&["dvd:scsi:0,1,0:disk:/dev/sr0"]);
    let machine = changed(Machine::new(record(&config)), None, console(), Outcome::Done);
    let taken = take_over(&config, &machine).unwrap();
    assert_eq!(drive_of(&taken.config), "dvd:scsi:0,1,0:null:/dev/sr0");
    assert_eq!(taken.refused, []);
    let emptied = &taken.config.storage[0];
    assert_eq!(folder(emptied), None, "nothing in it can be chosen");
    let back = given_back(emptied).and_then(|statement| statement.backing);
    assert_eq!(back.as_ref(), Some(&config.storage[0].backing));
    for other in [DRIVE, "dvd:scsi:0,1,0:null:/dev/shm/isos", "dvd:scsi:0,1,0:disk:/dev/sr0"] {
        assert_eq!(given_back(&device(other)), None, "{other}");
    }
}

/// A record written before the console could change anything.
#[test]
fn a_change_without_its_author_is_a_command_s() {
    let line = r#"{"line":"asked","seq":1,"at":"t","change":{"do":"medium","attached":ATTACHED}}"#;
    let attached = serde_json::to_string(&with_medium(&device(DRIVE), None)).unwrap();
    let line: JournalLine = serde_json::from_str(&line.replace("ATTACHED", &attached)).unwrap();
    let JournalLine::Asked { change: DeviceChange::Medium { by, .. }, .. } = line else {
        panic!("{line:?}");
    };
    assert_eq!(by, ChangedBy::Command);
}

proptest! {
    /// Whatever order: the configuration after taking over has what is in the drive, if the console was the last to change
    /// it since the last mark; else it stays.
    #[test]
    fn the_last_word_counts(steps in prop::collection::vec((0u8..3, any::<bool>()), 0..12)) {
        let config = guest(&[DRIVE]);
        let mut machine = Machine::new(record(&config));
        let mut wanted = None;
        for (step, full) in steps {
            let name = full.then_some("x.iso");
            match step {
                0 => {
                    machine = changed(machine, name, console(), Outcome::Done);
                    wanted = Some(machine.storage[0].device.backing.clone());
                }
                1 => {
                    machine = changed(machine, name, ChangedBy::Command, Outcome::Done);
                    wanted = None;
                }
                _ => {
                    let through_seq = machine.next_seq - 1;
                    machine.replay(JournalLine::TakenOver { through_seq, at: String::new() });
                    wanted = None;
                }
            }
        }
        let taken = take_over(&config, &machine).map(|taken| taken.config.storage[0].backing.clone());
        prop_assert_eq!(taken, wanted);
    }
}
