//! What refuses or warns of a store: one that is not there or not what it is said to be, that is used twice, or that others have.

mod common;

use common::*;
use hpvm_model::*;
use hpvm_plan::facts::*;
use hpvm_plan::judge::{Purpose, problems};
use hpvm_plan::record::Access;

/// Settles 141, 147: a place holder without a path is told of, and keeps nobody from starting.
#[test]
fn a_missing_place_holder_is_a_warning() {
    let config = guest(&["dvd:scsi:0,0,0:null:/gone"]);
    let mut facts = HostFacts { start: Some(ready()), ..host(&config) };
    facts.files.insert("/gone".into(), FileFact::Missing);
    for purpose in [CREATE, Purpose::Start] {
        let said = lines(&config, &facts, purpose);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with("WARNING: '/gone' does not exist"), "{said:?}");
    }
}

/// One line each, with what to do, and none keeps the guest from starting.
#[test]
fn an_empty_drive_into_which_nothing_can_be_put_is_a_warning() {
    let sock = FileFact::Special("socket");
    let shut = FileFact::Folder(Listing::Closed);
    for (path, fact, why, remedy) in [
        (
            "/s",
            FileFact::Missing,
            "does not exist",
            "hpvmmodify -P guest1 -m dvd:scsi:0,0,0:null:FOLDER",
        ),
        ("/dev/sr9", FileFact::Missing, "does not exist", "until this VM Host has that device"),
        ("/s", regular(5, 1 << 20), "is a file", "hpvmmodify -P guest1 -m dvd:scsi:0,0,0:file:/s"),
        ("/s", sock, "is a socket", "name a folder of images"),
        (
            "/s",
            FileFact::Unreadable("it hangs".into()),
            "cannot be looked at (it hangs)",
            "name a folder of images",
        ),
        ("/s", shut, "cannot be read by the guest's worker", "chmod a+rx /s"),
    ] {
        let config = guest(&[&format!("dvd:scsi:0,0,0:null:{path}")]);
        let mut facts = HostFacts { start: Some(ready()), ..host(&config) };
        facts.files.insert(path.into(), fact);
        for purpose in [CREATE, Purpose::Start] {
            let said = lines(&config, &facts, purpose);
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].starts_with(&format!("WARNING: '{path}' {why}")), "{said:?}");
            assert!(said[0].contains(remedy), "{said:?}");
        }
    }
}

/// Settles 140: what a storage type does not take is refused with the type that would be right.
#[test]
fn a_store_is_what_its_storage_type_says() {
    let block = |kind| {
        FileFact::Block(BlockFact {
            identity: FileIdentity::of_device(0x800),
            size: Bytes(1 << 30),
            writable: Writable::Yes,
            kind,
            reservations: Reservations::Never,
        })
    };
    let generic =
        |peripheral| FileFact::Generic { identity: FileIdentity::of_device(0x1500), peripheral };
    for (statement, fact, word) in [
        ("disk:scsi:0,0,0:file:/s", block(BlockKind::Other), "its storage type is disk"),
        ("disk:scsi:0,0,0:file:/s", block(BlockKind::Volume), "its storage type is lv"),
        ("disk:scsi:0,0,0:disk:/s", regular(1, 4096), "its storage type is file"),
        ("disk:scsi:0,0,0:lv:/s", block(BlockKind::Other), "no logical volume"),
        ("disk:scsi:0,0,0:disk:/s", block(BlockKind::Optical), "optical media"),
        ("disk:scsi:0,0,0:disk:/s", block(BlockKind::EmptyDrive), "optical media"),
        ("dvd:scsi:0,0,0:disk:/s", block(BlockKind::Other), "no drive of optical media"),
        ("dvd:scsi:0,0,0:file:/s", FileFact::Folder(Listing::Open), "dvd:scsi::null:/s"),
        ("disk:scsi:0,0,0:qcow2:/s", FileFact::Special("named pipe"), "is a named pipe"),
        ("tape:scsi:0,0,0:attach:/s", regular(1, 4096), "/dev/sg0"),
        ("tape:scsi:0,0,0:attach:/s", generic(Peripheral::Changer), "is a changer"),
        ("burner:scsi:0,0,0:attach:/s", generic(Peripheral::Tape), "attached as a burner"),
    ] {
        let config = guest(&[statement]);
        let mut facts = host(&config);
        facts.files.insert("/s".into(), fact);
        let said = lines(&config, &facts, CREATE);
        assert_eq!(said.len(), 1, "{statement}: {said:?}");
        assert!(said[0].starts_with("ERROR") && said[0].contains(word), "{statement}: {said:?}");
    }
    for (statement, fact) in [
        ("disk:scsi:0,0,0:disk:/s", block(BlockKind::Volume)),
        ("disk:avio_stor:0,0,0:lv:/s", block(BlockKind::Volume)),
        ("dvd:avio_stor:0,0,0:disk:/s", block(BlockKind::Optical)),
        ("changer:scsi:0,0,0:attach:/s", generic(Peripheral::Changer)),
    ] {
        let config = guest(&[statement]);
        let mut facts = host(&config);
        facts.files.insert("/s".into(), fact);
        assert_eq!(lines(&config, &facts, CREATE), Vec::<String>::new(), "{statement}");
    }
}

/// What is declared is held against the file's head, and nothing is concluded from that.
#[test]
fn an_image_is_one_and_a_file_ends_with_a_block() {
    let file = |ending, content| {
        let (identity, size) = (FileIdentity { device: 1, inode: 5 }, Bytes(12_345 << 10));
        let (writable, cache) = (Writable::Yes, hpvm_plan::record::Cache::Direct);
        FileFact::Regular { identity, size, writable, cache, ending, content }
    };
    let is_refused = |statement: &str, fact: &FileFact| {
        let config = guest(&[statement]);
        let mut facts = host(&config);
        facts.files.insert("/s".into(), fact.clone());
        let at_start = HostFacts { start: Some(ready()), ..facts.clone() };
        let found = problems(&config, &facts, CREATE);
        assert_eq!(found, problems(&config, &at_start, Purpose::Start), "{statement}");
        found.into_iter().next()
    };
    let (raw, image) = (Content::Other, Content::Qcow2(Below::Nothing));
    let odd = file(Ending::WithinBlock, raw);
    let refused = is_refused("disk:scsi:0,0,0:file:/s", &odd).unwrap();
    assert!(refused.text.contains("12641280 bytes"), "{refused:?}");
    assert_eq!(refused.remedy.unwrap().command, "hpvmdevmgmt -S 12348K /s");
    assert_eq!(is_refused("dvd:scsi:0,0,0:file:/s", &odd), None, "nobody writes to it");
    let refused = is_refused("disk:scsi:0,0,0:qcow2:/s", &odd).unwrap();
    assert!(refused.text.contains("no qcow2 image; its storage type is file"), "{refused:?}");
    assert_eq!(is_refused("disk:scsi:0,0,0:qcow2:/s", &file(Ending::WithinBlock, image)), None);
}

/// A guest may have written an image into a raw disk that it has: only whoever names such a file for a disk is told.
#[test]
fn an_image_named_as_a_raw_disk_is_a_warning_to_whoever_names_it() {
    let (raw, other) = ("disk:scsi:0,0,0:file:/s", "dvd:scsi:0,0,1:file:/s");
    let (before, none) = (guest(&[raw]), guest(&[]));
    let mut facts = host(&before);
    let fact = |content| match regular(5, 1 << 20) {
        FileFact::Regular { identity, size, writable, cache, ending, .. } => {
            FileFact::Regular { identity, size, writable, cache, ending, content }
        }
        other => other,
    };
    let told = |after: &GuestConfig, facts: &HostFacts, purpose| lines(after, facts, purpose);
    for content in [Content::Qcow2(Below::Named), Content::Unusable("it is old".into())] {
        facts.files.insert("/s".into(), fact(content));
        for purpose in [
            CREATE,
            Purpose::Change { before: Some(&none) },
            Purpose::ChangeOfRunning { before: &none },
        ] {
            let said = told(&before, &facts, purpose);
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].starts_with("WARNING: '/s' holds a qcow2 image"), "{said:?}");
        }
        let unnamed = Purpose::Change { before: Some(&before) };
        assert_eq!(told(&before, &facts, unnamed), Vec::<String>::new());
        let started = HostFacts { start: Some(ready()), ..facts.clone() };
        assert_eq!(told(&before, &started, Purpose::Start), Vec::<String>::new());
        assert_eq!(told(&guest(&[other]), &facts, CREATE), Vec::<String>::new());
    }
    for content in [Content::Other, Content::Unread] {
        facts.files.insert("/s".into(), fact(content));
        assert_eq!(told(&before, &facts, CREATE), Vec::<String>::new());
    }
}

/// Whoever means an image names the wrong storage type.
#[test]
fn an_empty_drive_that_names_a_file_is_a_warning() {
    for (statement, count) in [("dvd:scsi:0,0,0:null:/s", 1), ("disk:scsi:0,0,0:null:/s", 0)] {
        let config = guest(&[statement]);
        let mut facts = host(&config);
        facts.files.insert("/s".into(), regular(5, 1 << 20));
        let said = lines(&config, &facts, CREATE);
        assert_eq!(said.len(), count, "{said:?}");
        assert!(said.iter().all(|line| line.starts_with("WARNING: '/s' is a file")), "{said:?}");
        facts.files.insert("/s".into(), FileFact::Folder(Listing::Open));
        let said = lines(&config, &facts, CREATE);
        assert_eq!(said.len(), 1 - count, "{said:?}");
        let refused = "ERROR: '/s' is a folder, which only a dvd can have: dvd:scsi::null:/s;";
        assert!(said.iter().all(|line| line.starts_with(refused)), "{said:?}");
        let had = Purpose::Change { before: Some(&config) };
        assert_eq!(lines(&config, &facts, had), Vec::<String>::new());
        let start = HostFacts { start: Some(ready()), ..facts };
        assert_eq!(lines(&config, &start, Purpose::Start), Vec::<String>::new());
    }
}

#[test]
fn an_image_that_could_never_be_used_is_refused_in_its_own_words() {
    let config = guest(&["disk:scsi:0,0,0:qcow2:/s"]);
    let mut facts = host(&config);
    let mut said = |content| {
        let Some(FileFact::Regular { content: of, .. }) = facts.files.get_mut("/s") else {
            panic!("a file")
        };
        *of = content;
        lines(&config, &facts, CREATE)
    };
    for usable in [Content::Qcow2(Below::Nothing), Content::Unread] {
        assert_eq!(said(usable), Vec::<String>::new());
    }
    let refused = said(Content::Unusable("it is of version 9".into()));
    assert_eq!(refused, ["ERROR: the image '/s' cannot be used: it is of version 9"]);
    let refused = said(Content::Qcow2(Below::Named));
    assert!(refused[0].starts_with("ERROR: '/s' needs a backing file"), "{refused:?}");
}

/// With one left out the guest would find zeroes where its data are, and with one too many what it never wrote.
#[test]
fn what_lies_under_an_image_is_as_much_as_its_header_says() {
    let mut config = guest(&["disk:scsi:0,0,0:qcow2:/top"]);
    config.storage[0].layers = vec![Backing::new(StorageType::Qcow2, "/middle")];
    let image = |inode, below| {
        let FileFact::Regular { identity, size, writable, cache, ending, .. } =
            regular(inode, 1 << 30)
        else {
            panic!("a file")
        };
        let content = Content::Qcow2(below);
        FileFact::Regular { identity, size, writable, cache, ending, content }
    };
    let said = |config: &GuestConfig, top, middle| {
        let mut facts = host(config);
        facts.files.insert("/top".into(), image(1, top));
        facts.files.insert("/middle".into(), image(2, middle));
        facts.files.insert("/base".into(), regular(3, 1 << 30));
        lines(config, &facts, CREATE)
    };
    assert_eq!(said(&config, Below::Named, Below::Nothing), Vec::<String>::new());
    let short = said(&config, Below::Named, Below::Named);
    assert!(short[0].starts_with("ERROR: '/middle' needs a backing file"), "{short:?}");
    let alone = said(&config, Below::Nothing, Below::Nothing);
    let told =
        "ERROR: '/top' says that nothing lies below it, and was given with --layer over '/middle'";
    assert!(alone[0].starts_with(told), "{alone:?}");
    assert!(alone[0].contains("`qemu-img rebase -u -F qcow2 -b /middle /top`"), "{alone:?}");
    assert_eq!([&short, &alone].map(Vec::len), [1, 1], "{short:?} {alone:?}");

    config.storage[0].layers.push(Backing::new(StorageType::File, "/base"));
    assert_eq!(said(&config, Below::Named, Below::Named), Vec::<String>::new());
    let long = said(&config, Below::Named, Below::Nothing);
    assert!(long[0].starts_with("ERROR: '/middle' says that nothing lies below it"), "{long:?}");
    assert!(long[0].contains("-F raw -b /base /middle`"), "{long:?}");
}

/// Settles 86.
#[test]
fn an_empty_file_is_one_warning() {
    for statement in ["disk:scsi:0,0,0:file:/empty", "disk:avio_stor:0,0,0:file:/empty"] {
        let config = guest(&[statement]);
        let mut facts = host(&config);
        facts.files.insert("/empty".into(), regular(5, 0));
        let said = lines(&config, &facts, CREATE);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with("WARNING: File size of: 0 (bytes)"), "{said:?}");
    }
}

/// Firmware hangs on a medium without a block, on scsi alone, and QEMU rounds a file up to 512 bytes.
#[test]
fn what_firmware_hangs_on_is_not_started_and_not_taken_on() {
    let empty = guest(&[]);
    let judged = |statement: &str, bytes| {
        let config = guest(&[statement]);
        let mut facts = HostFacts { start: Some(ready()), ..host(&config) };
        facts.files.insert("/s".into(), regular(5, bytes));
        let said = |purpose| lines(&config, &facts, purpose);
        [Purpose::Start, Purpose::ChangeOfRunning { before: &empty }].map(said)
    };
    for (statement, bytes, remedy) in [
        ("disk:scsi:0,0,0:file:/s", 0, "`hpvmdevmgmt -S SIZE /s`"),
        ("dvd:scsi:0,0,0:file:/s", 0, "give the dvd a store of that size"),
        ("dvd:scsi:0,0,0:file:/s", 1000, "avio_stor"),
    ] {
        for said in judged(statement, bytes) {
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].starts_with(&format!("ERROR: File size of: {bytes} (bytes)")));
            assert!(said[0].contains(remedy) && said[0].contains(": /s "), "{said:?}");
        }
    }
    for (statement, bytes) in [
        ("disk:scsi:0,0,0:file:/s", 100),
        ("disk:avio_stor:0,0,0:file:/s", 0),
        ("dvd:avio_stor:0,0,0:file:/s", 1000),
    ] {
        for said in judged(statement, bytes) {
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].starts_with("WARNING: File size of:"), "{said:?}");
            assert!(said[0].ends_with("may not show up in the guest when booted."), "{said:?}");
        }
    }
    let had = guest(&["disk:scsi:0,0,0:file:/s"]);
    let mut facts = host(&had);
    facts.files.insert("/s".into(), regular(5, 0));
    let said = lines(&had, &facts, Purpose::ChangeOfRunning { before: &had });
    assert!(said[0].starts_with("WARNING"), "what it has keeps no other change: {said:?}");
}

#[test]
fn one_place_takes_one_device_and_one_slot_one_kind_of_adapter() {
    let double = guest(&["disk:scsi:0,0,0:file:/a", "disk:scsi:0,0,0:file:/b"]);
    assert!(
        lines(&double, &host(&double), CREATE)[0]
            .contains("two devices; disk:scsi:0,0,0:file:/a has it")
    );
    let mixed = guest(&["disk:scsi:0,0,0:file:/a", "disk:avio_stor:0,0,1:file:/b"]);
    assert!(lines(&mixed, &host(&mixed), CREATE)[0].contains("bus,device of its own"));
}

#[test]
fn a_file_is_used_once_in_a_guest_unless_both_are_dvds() {
    let same = |config: &GuestConfig| {
        let mut facts = host(config);
        facts.files.values_mut().for_each(|fact| *fact = regular(9, 4096));
        lines(config, &facts, CREATE)
    };
    let disks = guest(&["disk:scsi:0,0,0:file:/a", "disk:scsi:0,0,1:file:/link-to-a"]);
    assert!(same(&disks)[0].contains("used once"), "{:?}", same(&disks));
    let dvds = guest(&["dvd:scsi:0,0,0:file:/a", "dvd:scsi:0,0,1:file:/b"]);
    assert_eq!(same(&dvds), Vec::<String>::new());
}

/// What is kept of removed clones is purged from the top, unless a clone that is there makes that useless.
#[test]
fn no_linked_clone_that_is_there_is_to_be_removed() {
    let config = guest(&["disk:scsi:0,0,0:file:/a"]);
    let mut facts = HostFacts { start: Some(ready()), ..host(&config) };
    let identity = facts.identity("/a").unwrap();
    let clone = |name: &str, standing| Sharer {
        guest: name.parse().unwrap(),
        address: "0,0,0".parse().unwrap(),
        held_for: None,
        role: StoreRole::Layer,
        standing,
        tenancy: Tenancy::Alone,
    };
    let kept = |number, needed_by: &[u32]| {
        let numbers = needed_by.iter().map(|number| GuestNumber::new(*number).unwrap());
        let number = GuestNumber::new(number).unwrap();
        Standing::Removed(Kept { number, needed_by: numbers.collect() })
    };
    let commands = |facts: &HostFacts| -> Vec<String> {
        let found = problems(&config, facts, Purpose::Start);
        found.into_iter().map(|problem| problem.remedy.expect("a way out").command).collect()
    };
    let sharers = vec![
        clone("low", kept(2, &[3, 9])),
        clone("top", kept(9, &[])),
        clone("mid", kept(3, &[9])),
    ];
    facts.sharers.insert(identity, sharers.clone());
    let purges = [9, 3, 2].map(|number| format!("hpvmremove -p {number} --purge"));
    assert_eq!(commands(&facts), purges);
    for (name, stays) in [("there", Standing::Present), ("needed", kept(4, &[5]))] {
        let more = vec![clone(name, stays)];
        facts.sharers.insert(identity, [&sharers[..], &more].concat());
        assert_eq!(commands(&facts), ["hpvmstart -P guest1"; 4], "{name}");
    }
}

#[test]
fn who_gives_a_store_a_second_time_is_told_where_it_is_already() {
    let before = guest(&["disk:scsi:0,0,4:file:/a"]);
    let after = guest(&["disk:scsi:0,0,0:file:/a", "disk:scsi:0,0,4:file:/a"]);
    let facts = host(&after);
    let of_change = lines(&after, &facts, Purpose::Change { before: Some(&before) });
    assert!(of_change[0].contains("'/a' backs 0,0,4 already"), "{of_change:?}");
    let of_new = lines(&after, &facts, CREATE);
    assert!(of_new[0].contains("'/a' backs both 0,0,0 and 0,0,4"), "{of_new:?}");
    let unchanged = lines(&after, &facts, Purpose::Change { before: Some(&after) });
    assert!(
        unchanged[0].starts_with("WARNING") && unchanged[0].contains("0,0,0 already"),
        "{unchanged:?}"
    );
}

#[test]
fn bytes_are_used_once_in_a_guest_whatever_leads_to_them() {
    let (file, attached) = ("disk:scsi:0,0,0:file:/a", "disk:scsi:0,0,4:file:/loop");
    let sharing = |config: &GuestConfig| {
        let mut facts = host(config);
        let stores = ["/a", "/loop"].map(|path| facts.identity(path).unwrap());
        let [one, other] = stores;
        facts.overlaps = [(one, [other].into()), (other, [one].into())].into();
        facts
    };
    let both = guest(&[file, attached]);
    let facts = sharing(&both);
    let of_new = lines(&both, &facts, CREATE);
    let told = "'/loop' for 0,0,4 shares bytes with '/a' for 0,0,0; a backing store is used";
    assert!(of_new[0].starts_with("ERROR") && of_new[0].contains(told), "{of_new:?}");

    let before = guest(&[attached]);
    let comes = Purpose::ChangeOfRunning { before: &before };
    let of_change = lines(&both, &facts, comes);
    let told = "'/a' shares bytes with '/loop', which backs 0,0,4 already";
    assert!(of_change[0].starts_with("ERROR") && of_change[0].contains(told), "{of_change:?}");

    let old = HostFacts { start: Some(ready()), ..facts };
    let of_start = problems(&both, &old, Purpose::Start);
    assert_eq!(of_start[0].severity, Severity::Error);
    let ask = of_start[0].remedy.as_ref().and_then(|remedy| remedy.ask.as_ref());
    assert!(ask.unwrap().contains(&format!("hpvmmodify -P guest1 -d {attached}")), "{ask:?}");
    let unchanged = lines(&both, &old, Purpose::Change { before: Some(&both) });
    assert!(unchanged.iter().all(|line| line.starts_with("WARNING")), "{unchanged:?}");

    let mut layered = guest(&["disk:scsi:0,0,2:qcow2:/over", file, attached]);
    layered.storage.retain(|device| device.backing.path != "/a");
    layered.storage[0].layers = vec![Backing::new(StorageType::File, "/a")];
    let mut facts = sharing(&guest(&[file, attached]));
    facts.files.insert("/over".into(), regular(7, 1 << 30));
    let of_layer = lines(&layered, &facts, CREATE);
    let told = "'/a', on which the disk 0,0,2 is built, is the guest's disk at 0,0,4 too";
    assert!(of_layer.iter().any(|line| line.contains(told)), "{of_layer:?}");
}

#[test]
fn images_are_read_twice_and_a_shared_disk_is_had_by_two_paths() {
    let overlapping = |config: &GuestConfig| {
        let mut facts = host(config);
        let stores = config.storage.iter().map(|d| facts.identity(&d.backing.path).unwrap());
        let [one, other] = stores.collect::<Vec<_>>().try_into().unwrap();
        facts.overlaps = [(one, [other].into()), (other, [one].into())].into();
        facts
    };
    let twice = |config: &GuestConfig, facts: &HostFacts| {
        lines(config, facts, CREATE).iter().any(|line| line.contains("shares bytes"))
    };
    let images = guest(&["dvd:scsi:0,0,0:file:/i", "dvd:scsi:0,0,4:file:/i2"]);
    assert!(!twice(&images, &overlapping(&images)));
    let written = guest(&["dvd:scsi:0,0,0:file:/i", "disk:scsi:0,0,4:disk:/dev/loop1"]);
    assert!(twice(&written, &overlapping(&written)));
    let paths = guest(&["disk:scsi:0,0,0:disk:/dev/sda", "disk:scsi:0,0,4:disk:/dev/sdb"]);
    let mut facts = overlapping(&paths);
    assert!(twice(&paths, &facts));
    for path in ["/dev/sda", "/dev/sdb"] {
        let share = Registered { share: Choice::Yes, ..Registered::default() };
        facts.registered.insert(path.into(), share);
    }
    assert!(!twice(&paths, &facts));
}

#[test]
fn another_guests_file_warns_when_configured_and_refuses_while_the_other_runs() {
    let config = guest(&["disk:scsi:0,0,0:file:/a"]);
    let mut facts = HostFacts { start: Some(ready()), ..host(&config) };
    let identity = facts.identity("/a").unwrap();
    for (holds_it, severity) in [(false, Severity::Warning), (true, Severity::Error)] {
        let address = "0,0,0".parse().unwrap();
        let sharer = Sharer {
            guest: "other".parse().unwrap(),
            address,
            held_for: holds_it.then_some(Access::ReadWrite),
            role: StoreRole::Store,
            standing: Standing::Present,
            tenancy: Tenancy::Alone,
        };
        facts.sharers.insert(identity, vec![sharer]);
        let found = problems(&config, &facts, Purpose::Start);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].severity, severity);
        assert!(found[0].text.contains("'other'"));
        let changed = problems(&config, &facts, CREATE);
        assert_eq!(changed[0].severity, Severity::Warning);
        let bare = guest(&[]);
        let hot = problems(&config, &facts, Purpose::ChangeOfRunning { before: &bare });
        assert_eq!(hot[0].severity, severity, "a running guest takes a new disk at once");
        let kept = problems(&config, &facts, Purpose::ChangeOfRunning { before: &config });
        assert_eq!(kept[0].severity, Severity::Warning, "it was there before");
    }
}
