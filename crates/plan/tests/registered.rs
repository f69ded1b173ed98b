//! What the device database says decides: what is restricted, kept for another use, or another device than before.

mod common;

use common::*;
use hpvm_model::*;
use hpvm_plan::facts::*;
use hpvm_plan::judge::{Purpose, problems};
use hpvm_plan::record::{Access, Sharing};
use proptest::prelude::*;

const PATH: &str = "/d";

fn said_of(statement: &str, known: Registered, purpose: Purpose<'_>) -> Vec<String> {
    let config = guest(&[statement]);
    let mut facts = host(&config);
    facts.files.entry(PATH.into()).or_insert(FileFact::Folder(Listing::Open));
    facts.registered.insert(PATH.into(), known);
    let found = problems(&config, &facts, purpose);
    found.iter().map(|p| format!("{}: {}", p.severity, p.text)).collect()
}

fn restricted(restriction: Restriction) -> Registered {
    Registered { restriction, ..Registered::default() }
}

#[test]
fn what_is_restricted_is_no_guests() {
    let name = || "/x".to_owned();
    for (restriction, words) in [
        (Restriction::Entry { name: name() }, "rdev:/x restricts it"),
        (Restriction::Below { folder: name() }, "rdev:/x restricts what lies below it"),
        (Restriction::HostFolder { folder: name() }, "/x is a folder of this VM Host itself"),
        (Restriction::OwnFolder, "by --layer STORAGE:LOCATION"),
        (Restriction::HostFile { file: name() }, "it is /x, a file of this VM Host itself"),
        (
            Restriction::Signature { name: name(), reason: "it holds swap space".into() },
            "it holds swap space, as hpvmhostrdev read",
        ),
    ] {
        for statement in
            ["disk:scsi:0,0,0:file:/d", "dvd:scsi:0,0,0:file:/d", "dvd:scsi:0,0,0:null:/d"]
        {
            for purpose in [CREATE, Purpose::Start] {
                let said = said_of(statement, restricted(restriction.clone()), purpose);
                assert_eq!(said.len(), 1, "{said:?}");
                assert!(said[0].starts_with("ERROR: '/d' is restricted"), "{said:?}");
                assert!(said[0].contains(words), "{said:?}");
            }
        }
    }
}

#[test]
fn a_folder_that_holds_what_is_restricted_is_not_to_be_chosen_from() {
    let holds = |held| Registered { not_to_choose: Some(held), ..Registered::default() };
    let known = || holds(NotToChoose::Restricted { name: "/d/x".into() });
    let said = said_of("dvd:scsi:0,0,0:null:/d", known(), CREATE);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("ERROR: '/d' is a folder to choose images from"), "{said:?}");
    assert!(said[0].contains("rdev:/d/x restricts what lies below it"), "{said:?}");
    let said = said_of("disk:scsi:0,0,0:null:/d", known(), CREATE);
    assert!(said.len() == 1 && said[0].contains("which only a dvd can have"), "{said:?}");
    let (name, file) = ("/d/x.iso".into(), "/var/opt/hpvm/hpvm.db".into());
    let said =
        said_of("dvd:scsi:0,0,0:null:/d", holds(NotToChoose::HostFile { name, file }), CREATE);
    let told = "/d/x.iso is /var/opt/hpvm/hpvm.db, a file of this VM Host itself";
    assert!(
        said.len() == 1 && said[0].starts_with("ERROR: ") && said[0].contains(told),
        "{said:?}"
    );
    let known = holds(NotToChoose::OtherUse { name: "/d/x".into(), usage: DeviceKind::Disk });
    let said = said_of("dvd:scsi:0,0,0:null:/d", known, CREATE);
    assert!(said[0].contains("and gdev:/d/x below it says USAGE=DISK"), "{said:?}");
}

#[test]
fn what_was_restricted_after_the_guest_got_it_only_warns_until_the_start() {
    let before = guest(&["disk:scsi:0,0,0:file:/d"]);
    let known = restricted(Restriction::Entry { name: "/d".into() });
    let purpose = Purpose::Change { before: Some(&before) };
    let said = said_of("disk:scsi:0,0,0:file:/d", known, purpose);
    assert!(said[0].starts_with("WARNING: '/d' is restricted"), "{said:?}");
}

fn swap() -> HostUse {
    let (what, ended_by) = ("it is swap space".into(), vec!["swapoff /d".into()]);
    HostUse { what, is_read_only: false, ended_by }
}

/// Each command once, and what both uses lie on behind both.
#[test]
fn what_the_host_uses_can_be_taken_from_it_by_one_line() {
    let mounted = |at: &str, ended_by: &[&str]| {
        let ended_by = ended_by.iter().map(|&command| command.to_owned()).collect();
        HostUse { what: format!("it is mounted at {at}"), is_read_only: false, ended_by }
    };
    let volumes =
        [("/a", ["umount /a", "vgchange -an v"]), ("/b", ["umount /b", "vgchange -an v"])];
    let volumes = volumes.map(|(at, commands)| mounted(at, &commands));
    for (uses, line) in [
        (vec![swap()], Some("swapoff /d")),
        (volumes.to_vec(), Some("umount /a && umount /b && vgchange -an v")),
        (vec![swap(), mounted("/", &[])], None),
    ] {
        let config = guest(&["disk:scsi:0,0,0:file:/d"]);
        let mut facts = host(&config);
        facts.used_by_host.insert(PATH.into(), uses);
        let remedy = problems(&config, &facts, Purpose::Start)[0].remedy.clone();
        let ask = remedy.and_then(|remedy| remedy.ask);
        assert_eq!(ask.as_ref().and_then(|ask| ask.split('`').nth(1)), line);
    }
}

/// What is read is no secret, and what is written may be one, whoever looks.
#[test]
fn an_image_that_the_host_writes_to_is_no_guests() {
    let what = "it is mounted read-only at /m".into();
    let mounted = HostUse { what, is_read_only: true, ended_by: vec!["umount /m".into()] };
    for (resource, uses, refused) in [
        ("dvd:scsi:0,0,0:file:/d", vec![mounted.clone()], None),
        ("dvd:scsi:0,0,0:file:/d", vec![mounted.clone(), swap()], Some(": it is swap space")),
        ("disk:scsi:0,0,0:file:/d", vec![mounted], Some(": it is mounted read-only at /m")),
    ] {
        let config = guest(&[resource]);
        let mut facts = host(&config);
        facts.used_by_host.insert(PATH.into(), uses);
        let found = problems(&config, &facts, CREATE);
        assert_eq!(found.len(), usize::from(refused.is_some()), "{found:?}");
        assert!(refused.is_none_or(|words| found[0].text.ends_with(words)), "{found:?}");
    }
}

#[test]
fn only_an_entry_that_says_so_gives_away_what_the_host_uses() {
    let config = guest(&["disk:scsi:0,0,0:file:/d"]);
    let mut facts = host(&config);
    facts.used_by_host.insert(PATH.into(), vec![swap()]);
    // Also of a guest that had it before the VM Host came to use it.
    for purpose in [CREATE, Purpose::Start] {
        assert_eq!(problems(&config, &facts, purpose)[0].severity, Severity::Error);
    }
    facts.registered.insert(PATH.into(), restricted(Restriction::Lifted { name: "/d".into() }));
    let found = problems(&config, &facts, CREATE);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].severity, Severity::Warning);
    assert!(found[0].text.contains("rdev:/d says ALLOW=GUEST: it is swap space"), "{found:?}");
    // And it is opened so that this comes true.
    assert_eq!(facts.attach(&config.storage[0]).sharing, Sharing::WithHost);
    facts.registered.clear();
    assert_eq!(facts.attach(&config.storage[0]).sharing, Sharing::Alone);
}

/// Another storage type would not help.
#[test]
fn what_is_restricted_is_not_said_to_be_of_another_type() {
    for statement in ["disk:scsi:0,0,0:qcow2:/d", "disk:scsi:0,0,0:disk:/d"] {
        let known = restricted(Restriction::HostFolder { folder: "/etc".into() });
        let said = said_of(statement, known, CREATE);
        assert_eq!(
            said,
            [
                "ERROR: '/d' is restricted and is not given to a guest: /etc is a folder of this VM Host itself"
            ],
            "{statement}"
        );
    }
}

#[test]
fn a_file_that_may_have_a_restricted_name_is_told() {
    let folders = vec!["/etc".to_owned(), "/kept".to_owned()];
    let other_names = Some(OtherNames { names: 2, file: "/e f".into(), folders });
    let known = Registered { other_names, ..Registered::default() };
    for device in ["dvd:scsi:0,0,0:file:/d", "disk:scsi:0,0,0:file:/d"] {
        assert_eq!(
            said_of(device, known.clone(), CREATE),
            [
                "WARNING: '/d' leads to a file with 2 names (hard links), and what guests are kept from may be one of them: `find /etc /kept -xdev -samefile '/e f'` tells; where it finds one, give the guest a copy"
            ]
        );
    }
}

/// Nobody could make it go but by a copy, and a guest is changed often.
#[test]
fn that_a_file_may_have_a_restricted_name_is_told_when_it_comes_and_at_a_start() {
    let before = guest(&["disk:scsi:0,0,0:file:/d"]);
    let other_names = || Some(OtherNames { names: 2, file: "/d".into(), folders: Vec::new() });
    let mut facts = host(&guest(&["disk:scsi:0,0,0:file:/d", "disk:scsi:0,0,1:file:/e"]));
    for path in ["/d", "/e"] {
        let known = Registered { other_names: other_names(), ..Registered::default() };
        facts.registered.insert(path.into(), known);
    }
    let told = |config: &GuestConfig, purpose| {
        let found = problems(config, &facts, purpose).into_iter();
        let told = found.filter(|problem| problem.text.contains("hard links"));
        told.map(|problem| problem.item).collect::<Vec<String>>()
    };
    let change = Purpose::Change { before: Some(&before) };
    let of_running = Purpose::ChangeOfRunning { before: &before };
    let relabelled = GuestConfig { label: "x".parse().unwrap(), ..before.clone() };
    let added = guest(&["disk:scsi:0,0,0:file:/d", "disk:scsi:0,0,1:file:/e"]);
    let exchanged = guest(&["disk:scsi:0,0,0:file:/e"]);
    for purpose in [change, of_running] {
        assert_eq!(told(&relabelled, purpose), [""; 0]);
        assert_eq!(told(&added, purpose), ["/e"]);
        assert_eq!(told(&exchanged, purpose), ["/e"]);
    }
    assert_eq!(told(&before, CREATE), ["/d"]);
    assert_eq!(told(&relabelled, Purpose::Start), ["/d"]);
}

#[test]
fn what_is_kept_for_a_dvd_is_no_disk() {
    let known = Registered { usage: Some(DeviceKind::Dvd), ..Registered::default() };
    assert_eq!(said_of("dvd:scsi:0,0,0:file:/d", known.clone(), CREATE), [""; 0]);
    let said = said_of("disk:scsi:0,0,0:file:/d", known, CREATE);
    assert_eq!(said, ["ERROR: '/d' is kept for a dvd (USAGE=DVD) and cannot back a disk"]);
}

#[test]
fn what_is_marked_shared_is_no_disk() {
    let known = Registered { share: Choice::Yes, ..Registered::default() };
    assert_eq!(said_of("dvd:scsi:0,0,0:file:/d", known.clone(), CREATE), [""; 0]);
    let said = said_of("disk:scsi:0,0,0:file:/d", known, CREATE);
    assert!(said[0].starts_with("ERROR: '/d' is marked SHARE=YES"), "{said:?}");
}

/// Settles 143: a store that may not be written is no disk, unless its entry says that the disk is read only; then the
/// guest can read it and not write it.
#[test]
fn a_disk_is_written_or_said_to_be_read_only() {
    let config = guest(&["disk:scsi:0,0,0:file:/d", "disk:scsi:0,0,1:file:/e"]);
    let mut facts = host(&config);
    let identity = FileIdentity { device: 1, inode: 1 };
    let (size, writable, cache) = (Bytes(1 << 20), Writable::No, hpvm_plan::record::Cache::Page);
    let (ending, content) = (Ending::WithBlock, Content::Other);
    let fact = FileFact::Regular { identity, size, writable, cache, ending, content };
    facts.files.insert(PATH.into(), fact);
    let found = problems(&config, &facts, CREATE);
    assert_eq!(found[0].severity, Severity::Error);
    assert!(found[0].text.contains("may not be written") && found[0].text.contains("READONLY=YES"));
    assert_eq!(facts.attach(&config.storage[0]).access, Access::ReadWrite);

    let known = Registered { read_only: Choice::Yes, ..Registered::default() };
    facts.registered.insert(PATH.into(), known);
    assert_eq!(problems(&config, &facts, CREATE), []);
    assert_eq!(facts.attach(&config.storage[0]).access, Access::ReadOnly);
    assert_eq!(facts.attach(&config.storage[1]).access, Access::ReadWrite, "the other is written");
}

/// A base that was exchanged is not what the image over it was made for.
#[test]
fn what_lies_under_a_disk_is_the_device_it_was() {
    let mut config = guest(&["disk:scsi:0,0,0:qcow2:/top"]);
    config.storage[0].layers = vec![Backing::new(StorageType::Disk, PATH)];
    let mut facts = host(&config);
    let (kept, found) = (Some(identity(Some("wwid:a".into()), 1)), Some(identity(None, 1)));
    facts.registered.insert(PATH.into(), Registered { kept, found, ..Registered::default() });
    let starts = problems(&config, &facts, Purpose::Start);
    let told = |problem: &Problem| problem.text.starts_with("'/d' is another device than");
    assert!(starts.iter().any(told), "{starts:?}");
}

fn identity(identifier: Option<String>, size: u64) -> StoreIdentity {
    StoreIdentity { identifier, size: Bytes(size) }
}

fn any_identity() -> impl Strategy<Value = StoreIdentity> {
    (proptest::option::of("wwid:[ab]"), 1u64..4).prop_map(|(name, size)| identity(name, size))
}

proptest! {
    /// Settles 154: a guest does not start on another device than the one it was given, nor takes it on while it runs, and is
    /// told the command that accepts it. No other change of the guest is refused for that.
    #[test]
    fn a_guest_starts_on_the_device_it_was_given(kept in any_identity(), found in any_identity()) {
        let is_same = match (&kept.identifier, &found.identifier) {
            (Some(kept_name), Some(name)) => kept_name == name && found.size >= kept.size,
            (None, None) => kept.size == found.size,
            _ => false,
        };
        let known = Registered { kept: Some(kept), found: Some(found), ..Registered::default() };
        let config = guest(&["disk:scsi:0,0,0:file:/d"]);
        let mut facts = host(&config);
        facts.registered.insert(PATH.into(), known);
        let starts = problems(&config, &facts, Purpose::Start);
        let without = guest(&[]);
        let comes = problems(&config, &facts, Purpose::ChangeOfRunning { before: &without });
        prop_assert_eq!(starts.is_empty(), is_same, "{:?}", starts);
        prop_assert_eq!(comes.is_empty(), is_same, "{:?}", comes);
        for problem in starts.iter().chain(&comes) {
            prop_assert_eq!(problem.severity, Severity::Error);
            let remedy = problem.remedy.as_ref().expect("a way out");
            prop_assert_eq!(&remedy.command, "hpvmdevmgmt -m gdev:/d:attr:IDENTIFIER=ACCEPT");
        }
        let stays = problems(&config, &facts, Purpose::ChangeOfRunning { before: &config });
        for problem in problems(&config, &facts, CREATE).iter().chain(&stays) {
            prop_assert_eq!(problem.severity, Severity::Warning);
        }
    }
}
