//! What refuses a change, what only warns, and what refuses a start.

mod common;

use std::collections::BTreeMap;

use common::*;
use hpvm_model::limits::LimitsTable;
use hpvm_model::*;
use hpvm_plan::facts::*;
use hpvm_plan::judge::{Purpose, problems};

#[test]
fn a_good_guest_has_no_problems() {
    let config = guest(&["disk:scsi:0,0,0:file:/a", "dvd:avio_stor:0,1,0:null:/"]);
    assert_eq!(lines(&config, &host(&config), CREATE), Vec::<String>::new());
    let facts = HostFacts { start: Some(ready()), ..host(&config) };
    assert_eq!(lines(&config, &facts, Purpose::Start), Vec::<String>::new());
}

/// Settles 77: what was wrong before only warns, what the change causes refuses it, and each is said once.
#[test]
fn a_file_gone_since_warns_and_a_missing_one_named_now_refuses() {
    let before = guest(&["disk:avio_stor:0,0,0:file:/gone"]);
    let after = guest(&["disk:avio_stor:0,0,0:file:/gone", "disk:avio_stor:0,0,1:file:/never"]);
    let mut facts = host(&after);
    facts.files.insert("/gone".into(), FileFact::Missing);
    facts.files.insert("/never".into(), FileFact::Missing);
    let said = lines(&after, &facts, Purpose::Change { before: Some(&before) });
    assert_eq!(
        said,
        [
            "ERROR: the disk's file '/never' does not exist",
            "WARNING: the disk's file '/gone' does not exist"
        ]
    );
    let start = HostFacts { start: Some(ready()), ..facts };
    assert!(problems(&after, &start, Purpose::Start).iter().all(|p| p.severity == Severity::Error));
}

#[test]
fn an_entitlement_has_the_same_least_in_cycles() {
    let mut config = guest(&[]);
    let facts = HostFacts { processor_mhz: Some(2601), ..host(&config) };
    let mut told = |cycles: &str| {
        config.entitlement = Entitlement::parse_cycles(cycles).unwrap();
        lines(&config, &facts, CREATE)
    };
    assert!(told("130:800")[0].contains("least of 5%, which is 131 MHz of the 2601 MHz"));
    assert_eq!(told("131"), Vec::<String>::new());
    assert!(told("131:2602")[0].contains("more than the 2601 MHz"));
    config.entitlement = Entitlement::parse_cycles("130").unwrap();
    let slower = GuestConfig { label: "of a slower VM Host".parse().unwrap(), ..config.clone() };
    let change = Purpose::Change { before: Some(&config) };
    assert_eq!(lines(&slower, &facts, change), Vec::<String>::new());
}

/// Settles 33: maxima follow the host, and the table of A.03.50 comes back on request.
#[test]
fn limits_follow_the_host_or_the_old_table() {
    let mut config = guest(&[]);
    config.vcpus = Vcpus::try_from(5).unwrap();
    let mut facts = host(&config);
    facts.processors = 64;
    assert_eq!(lines(&config, &facts, CREATE), Vec::<String>::new());
    facts.limits = LimitsTable::A0350;
    assert!(lines(&config, &facts, CREATE)[0].starts_with("ERROR: 5 vCPUs are more than the 4"));
    config.vcpus = Vcpus::ONE;
    config.memory = Memory::at_least(Bytes(65 << 30)).unwrap();
    assert!(lines(&config, &facts, CREATE)[0].contains("more than the 64 GB"));
    config.memory = Memory::at_least(Bytes(64 << 20)).unwrap();
    assert!(lines(&config, &facts, CREATE)[0].contains("less than the 512 MB"));
}

/// Settles 134: how many devices a guest can have follows the machine, and one too many is told with the bound.
#[test]
fn one_device_too_many_is_told_with_the_bound() {
    let statements: Vec<String> = (0..129)
        .map(|n| format!("disk:avio_stor:{},{},{}:file:/{n}", n / 40, n % 2, n % 40))
        .collect();
    let config = guest(&statements.iter().map(String::as_str).collect::<Vec<_>>());
    let mut facts = host(&config);
    assert_eq!(lines(&config, &facts, CREATE), Vec::<String>::new());
    facts.limits = LimitsTable::A0350;
    let said = lines(&config, &facts, CREATE);
    assert!(said[0].starts_with("ERROR: 129 devices are more than the 128"), "{said:?}");
}

/// Settles 135: a boot disk that the guest's system cannot be expected to drive is told of, with what to do, whenever the guest
/// is changed or started; a data disk is not, nor a system that brings the driver.
#[test]
fn a_boot_disk_without_a_driver_in_the_guest_is_told() {
    let avio = ["dvd:avio_stor:0,0,0:null:/", "disk:avio_stor:0,0,1:file:/a"];
    let alone = ["disk:avio_stor:0,2,7:file:/it's a", "dvd:scsi:0,4,0:null:/"];
    let scsi_first = ["disk:scsi:0,0,0:file:/a", "disk:avio_stor:0,1,0:file:/b"];
    let beyond = ["disk:avio_stor:0,0,9:file:/a", "disk:avio_stor:0,0,15:file:/b"];
    for (os, statements, way_out) in [
        ("windows:2022", &avio, Some("-m dvd:scsi:0,0,0:null:/ -m disk:scsi:0,0,1:file:/a")),
        ("hpux", &alone, Some(r"-m 'disk:scsi:0,2,7:file:/it'\''s a'")),
        (
            "windows",
            &beyond,
            Some(
                "-d disk:avio_stor:0,0,9:file:/a -a disk:scsi:0,0,0:file:/a \
                 -d disk:avio_stor:0,0,15:file:/b -a disk:scsi:0,0,1:file:/b",
            ),
        ),
        ("linux", &avio, None),
        ("unknown", &avio, None),
        ("windows", &scsi_first, None),
    ] {
        let config = GuestConfig { os: os.parse().unwrap(), ..guest(statements) };
        let start = HostFacts { start: Some(ready()), ..host(&config) };
        for (facts, purpose) in [(&host(&config), CREATE), (&start, Purpose::Start)] {
            let found = problems(&config, facts, purpose);
            assert_eq!(found.len(), way_out.iter().len(), "{os} {statements:?}: {found:?}");
            let (Some(told), Some(way_out)) = (found.first(), way_out) else { continue };
            assert_eq!(told.severity, Severity::Warning);
            assert!(told.text.contains("is on avio_stor, for which"), "{told:?}");
            let remedy = told.remedy.as_ref().expect("a way out");
            assert!(remedy.ask.as_ref().is_some_and(|ask| ask.contains("driver")), "{told:?}");
            assert_eq!(remedy.command, format!("hpvmmodify -P guest1 {way_out}"));
        }
    }
}

/// Settles 36: memory is what a start asks for, swap plays no part; what is not free now refuses the start alone.
#[test]
fn memory_that_is_not_free_refuses_the_start_only() {
    let config = guest(&[]);
    let mut start = ready();
    start.memory_available = Bytes(1 << 30);
    let facts = HostFacts { start: Some(start), ..host(&config) };
    let found = problems(&config, &facts, Purpose::Start);
    assert_eq!(found[0].severity, Severity::Error);
    assert_eq!(found[0].remedy.as_ref().unwrap().command, "hpvmmodify -P guest1 -r 512M");
    assert_eq!(problems(&config, &host(&config), CREATE), []);
}

/// As large as is wise, and never so small that hpvmmodify refuses it.
#[test]
fn a_smaller_memory_that_is_named_is_enough_for_the_guest() {
    for (os, available_mib, way_out) in [
        ("linux", 2000, "hpvmmodify -P guest1 -r 960M"),
        ("linux", 900, "hpvmmodify -P guest1 -r 512M"),
        ("windows", 512, "hpvmmodify -P guest1 -r 512M"),
        ("linux", 511, "hpvmstart -P guest1"),
        ("unknown", 511, "hpvmmodify -P guest1 -r 192M"),
        ("unknown", 100, "hpvmmodify -P guest1 -r 64M"),
        ("unknown", 63, "hpvmstart -P guest1"),
    ] {
        let config = GuestConfig { os: os.parse().unwrap(), ..guest(&[]) };
        let available = Bytes(available_mib << 20);
        let short_now = HostFacts {
            start: Some(StartFacts { memory_available: available, ..ready() }),
            ..host(&config)
        };
        let short_ever = HostFacts { memory_total: available, ..host(&config) };
        for facts in [short_now, short_ever] {
            let found = problems(&config, &facts, Purpose::Start);
            let remedy = found[0].remedy.as_ref().expect("a way out");
            assert_eq!(remedy.command, way_out, "{os} {available_mib}");
            assert_eq!(remedy.ask.is_some(), way_out.starts_with("hpvmstart"), "{remedy:?}");
            let Some((_, size)) = way_out.split_once(" -r ") else { continue };
            let memory = size.parse::<bytes::AskedMemory>().unwrap().memory;
            let smaller = GuestConfig { memory, ..config.clone() };
            assert_eq!(problems(&smaller, &facts, Purpose::Start), [], "{os} {available_mib}");
        }
    }
}

/// A running guest does not get what a program that is no guest of ours has; what it has already is not asked about.
#[test]
fn a_disk_that_another_program_has_is_refused_to_a_running_guest() {
    let before = guest(&["disk:scsi:0,0,0:file:/a"]);
    let after = guest(&["disk:scsi:0,0,0:file:/a", "disk:scsi:0,0,1:file:/b"]);
    let mut facts = host(&after);
    facts.locked = [("/b".into(), Lock::Program { who: "process 7 (qemu-nbd)".into() })].into();
    let said = lines(&after, &facts, Purpose::ChangeOfRunning { before: &before });
    assert_eq!(
        said,
        ["ERROR: '/b' is in use by another program: process 7 (qemu-nbd) has a lock on it"]
    );
    let (guest, who) = ("web".parse().unwrap(), "process 7".into());
    facts.locked = [("/b".into(), Lock::Guest { guest, who })].into();
    let found = problems(&after, &facts, Purpose::Start);
    assert_eq!(
        found[0].text,
        "'/b' is in use by guest 'web': its QEMU, process 7, has a lock on it"
    );
    let ask = found[0].remedy.as_ref().and_then(|remedy| remedy.ask.as_deref());
    assert!(ask.is_some_and(|ask| ask.contains("`hpvm why -P web`")), "{ask:?}");
    assert_eq!(lines(&before, &facts, Purpose::Start), Vec::<String>::new());
}

#[test]
fn every_lack_of_the_host_names_a_way_out() {
    let config = guest(&["disk:scsi:0,0,0:file:/a"]);
    let lack = |path: &str| Provision { path: path.into(), missing: Some("not there".into()) };
    let start = StartFacts {
        engine: Err("not installed".into()),
        accelerator: Err("no vmx or svm".into()),
        firmware: lack("/fw"),
        nvram: lack("/nvram"),
        shut: vec![
            ShutFolder { path: "/g".into(), why: Shut::Full { needed: Bytes(1 << 20) } },
            ShutFolder { path: "/h".into(), why: Shut::ReadOnly },
        ],
        ..ready()
    };
    let mut facts = HostFacts { start: Some(start), option_rom: lack("/rom"), ..host(&config) };
    facts.locked = [("/a".into(), Lock::Program { who: "process 7 (qemu-nbd)".into() })].into();
    let found = problems(&config, &facts, Purpose::Start);
    assert_eq!(found.len(), 8);
    assert!(found.iter().all(|p| p.severity == Severity::Error && p.remedy.is_some()));
    (facts.start, facts.locked) = (None, BTreeMap::new());
    let said = lines(&config, &facts, CREATE);
    assert!(
        said.len() == 1 && said[0].starts_with("WARNING: the firmware driver of scsi"),
        "{said:?}"
    );
}

/// They may be good, and replaced would be lost.
#[test]
fn variables_that_may_not_be_read_are_not_replaced() {
    let config = guest(&[]);
    let nvram = Provision { path: "/nvram".into(), missing: Some(Lack::Forbidden) };
    let facts = HostFacts { start: Some(StartFacts { nvram, ..ready() }), ..host(&config) };
    let found = problems(&config, &facts, Purpose::Start);
    let remedy = found[0].remedy.as_ref().expect("a way out");
    assert!(found[0].text.ends_with("cannot be used: this user may not read it"), "{found:?}");
    assert!(remedy.command.starts_with("hpvmstart") && remedy.ask.is_some(), "{remedy:?}");
}
