//! What a request makes of a configuration.

mod common;

use common::*;
use hpvm_model::*;
use hpvm_plan::request::{DeviceRequest, Request, apply, removals_again};

fn statement(text: &str, form: StatementForm) -> Statement {
    Statement::parse(text, form).unwrap()
}

fn after(config: &GuestConfig, devices: Vec<DeviceRequest>) -> Result<Vec<String>, String> {
    let mut next = 0;
    let mut random = || {
        next += 1;
        next
    };
    apply(config, None, &Request { devices, ..Request::default() }, &networks(config), &mut random)
        .map(|c| c.storage.iter().map(ToString::to_string).collect())
        .map_err(|e| e.to_string())
}

#[test]
fn devices_are_added_at_the_next_place() {
    let add = |t| DeviceRequest::Add(statement(t, StatementForm::Add));
    let devices =
        vec![add("disk:scsi::file:/a"), add("dvd:scsi::null:/i"), add("disk:avio_stor::file:/b")];
    assert_eq!(
        after(&guest(&[]), devices).unwrap(),
        ["disk:scsi:0,0,0:file:/a", "dvd:scsi:0,0,1:null:/i", "disk:avio_stor:0,1,0:file:/b"]
    );
}

#[test]
fn what_leaves_makes_room_for_what_comes() {
    let config = guest(&["disk:scsi:0,0,0:file:/a"]);
    let devices = vec![
        DeviceRequest::Add(statement("disk:scsi:0,0,0:file:/b", StatementForm::Add)),
        DeviceRequest::Delete(statement("disk:scsi::file:/a", StatementForm::Delete)),
    ];
    assert_eq!(after(&config, devices).unwrap(), ["disk:scsi:0,0,0:file:/b"]);
}

#[test]
fn a_device_that_is_not_there_is_said_with_the_command_that_lists_them() {
    let config = guest(&["disk:scsi:0,0,0:file:/a", "disk:scsi:0,0,1:file:/a"]);
    for (text, form, word) in [
        ("disk:scsi:0,1,0", StatementForm::Delete, "no device at 0,1,0"),
        ("disk:scsi::file:/zz", StatementForm::Delete, "backed by '/zz'"),
        ("disk:scsi::file:/a", StatementForm::Delete, "several devices"),
    ] {
        let error = after(&config, vec![DeviceRequest::Delete(statement(text, form))]).unwrap_err();
        assert!(error.contains(word), "{error}");
    }
    let dvd = DeviceRequest::Modify(statement("dvd:scsi:0,0,0:file:/b", StatementForm::Modify));
    assert!(after(&config, vec![dvd]).unwrap_err().contains("is a disk"));
}

#[test]
fn a_disk_keeps_its_identity_over_a_change_of_backing_and_adapter() {
    let config = guest(&["disk:scsi:0,0,0:file:/a"]);
    let statement = statement("disk:avio_stor:0,0,0:file:/b", StatementForm::Modify);
    let request = Request { devices: vec![DeviceRequest::Modify(statement)], ..Request::default() };
    let next = apply(&config, None, &request, &networks(&config), &mut || 99).unwrap();
    assert_eq!(next.storage[0].id, config.storage[0].id);
    assert_eq!(next.storage[0].to_string(), "disk:avio_stor:0,0,0:file:/b");
}

#[test]
fn what_the_running_guest_still_has_is_taken_back_as_it_is() {
    let before = guest(&["disk:avio_stor:0,1,0:file:/a"]);
    let with_dvd = guest(&["disk:avio_stor:0,1,0:file:/a", "dvd:avio_stor:0,2,0:null:/i"]);
    let machine = hpvm_plan::record::Machine::new(record(&with_dvd));
    let devices = |text| {
        let add = vec![DeviceRequest::Add(statement(text, StatementForm::Add))];
        let request = Request { devices: add, ..Request::default() };
        apply(&before, Some(&machine), &request, &networks(&before), &mut || 99).unwrap().storage
    };
    assert_eq!(devices("dvd:avio_stor:0,2,0:null:/i"), with_dvd.storage);
    assert_eq!(devices("dvd:avio_stor::null:/i"), with_dvd.storage);
    assert_eq!(devices("dvd:avio_stor::null:/j")[1].id, DiskId::from_random(99));
    assert_eq!(devices("dvd:avio_stor:0,4,0:null:/i")[1].id, DiskId::from_random(99));
}

/// A removal that waits can be asked for again, by address and by what backs the device, until it was taken back.
#[test]
fn what_waits_to_leave_is_removed_once_more() {
    let one = ["disk:avio_stor:0,0,0:file:/a"];
    let config = guest(&one);
    let machine = hpvm_plan::record::Machine::new(record(&guest(&[
        one[0],
        "disk:avio_stor:0,0,1:file:/b",
        "disk:avio_stor:0,0,2:file:/c",
    ])));
    let asked = |texts: &[&str]| {
        let delete = |text: &&str| DeviceRequest::Delete(statement(text, StatementForm::Delete));
        let request = Request { devices: texts.iter().map(delete).collect(), ..Request::default() };
        let after =
            apply(&config, Some(&machine), &request, &networks(&config), &mut || 99).unwrap();
        let again = removals_again(&config, &machine, &request);
        let left: Vec<String> = after.storage.iter().map(ToString::to_string).collect();
        (left, again.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let one = one.map(str::to_owned).to_vec();
    for text in ["disk:avio_stor:0,0,1", "disk:avio_stor::file:/b"] {
        assert_eq!(asked(&[text]), (one.clone(), vec!["0,0,1".into()]));
    }
    assert_eq!(asked(&[]), (one, vec![]));
    assert_eq!(asked(&["disk:avio_stor:0,0,0"]), (vec![], vec![]));
    let gone = Request {
        devices: vec![DeviceRequest::Delete(statement(
            "disk:avio_stor:0,0,3",
            StatementForm::Delete,
        ))],
        ..Request::default()
    };
    let error = apply(&config, Some(&machine), &gone, &networks(&config), &mut || 99).unwrap_err();
    assert!(error.to_string().contains("no device at 0,0,3"), "{error}");
    let other = statement("disk:avio_stor:0,0,1:file:/c", StatementForm::Delete);
    let other = Request { devices: vec![DeviceRequest::Delete(other)], ..Request::default() };
    let error = apply(&config, Some(&machine), &other, &networks(&config), &mut || 99).unwrap_err();
    assert!(error.to_string().contains("0,0,1:file:/b' there, which is not what"), "{error}");
    let there = statement("disk:avio_stor:0,0,1:file:/b", StatementForm::Modify);
    let change = Request { devices: vec![DeviceRequest::Modify(there)], ..Request::default() };
    let error = apply(&config, Some(&machine), &change, &networks(&config), &mut || 99);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("0,0,1:file:/b' was deleted and has not left"), "{error}");
}

/// Who mistypes an address loses no other device.
#[test]
fn a_removal_is_of_what_the_statement_says() {
    let config = guest(&["disk:avio_stor:0,0,0:file:/a", "dvd:scsi:0,1,0:file:/isos/x.iso"]);
    let delete = |text: &str| {
        after(&config, vec![DeviceRequest::Delete(statement(text, StatementForm::Delete))])
    };
    for text in [
        "disk:avio_stor:0,0,0:file:/b",
        "disk:avio_stor:0,0,0:qcow2:/a",
        "disk:scsi:0,0,0",
        "dvd:avio_stor:0,0,0",
        "dvd:avio_stor:0,1,0",
    ] {
        let error = delete(text).unwrap_err().to_string();
        assert!(error.contains("which is not what -d says"), "{text}: {error}");
    }
    for text in ["disk:avio_stor:0,0,0", "disk:avio_stor:0,0,0:file:/a"] {
        assert_eq!(delete(text).unwrap(), ["dvd:scsi:0,1,0:file:/isos/x.iso"]);
    }
    // The medium may be another by now.
    assert_eq!(delete("dvd:scsi:0,1,0:null:/isos").unwrap(), ["disk:avio_stor:0,0,0:file:/a"]);
}

/// The short command for the next disc of several. Settles 49.
#[test]
fn the_only_drive_of_a_guest_is_meant_without_its_address() {
    let quick = |text: &str| DeviceRequest::Modify(statement(text, StatementForm::Modify));
    let one = guest(&["disk:avio_stor:0,0,0:file:/a", "dvd:scsi:0,1,0:null:/isos"]);
    assert_eq!(
        after(&one, vec![quick("dvd:scsi::file:/isos/x.iso")]).unwrap()[1],
        "dvd:scsi:0,1,0:file:/isos/x.iso"
    );
    let refused = |config: &GuestConfig, text: &str| after(config, vec![quick(text)]).unwrap_err();
    assert!(refused(&one, "dvd:avio_stor::file:/x.iso").contains("dvd:scsi:0,1,0:null:/isos"));
    let none = guest(&["disk:avio_stor:0,0,0:file:/a"]);
    assert!(refused(&none, "dvd:scsi::file:/x.iso").contains("has no dvd"));
    let two = guest(&["dvd:scsi:0,1,0:null:/isos", "dvd:scsi:0,1,1:null:/isos"]);
    assert!(refused(&two, "dvd:scsi::file:/x.iso").contains("0,1,0:null:/isos, dvd:scsi:0,1,1"));
    assert!(Statement::parse("disk:scsi::file:/x", StatementForm::Modify).is_err());
}

/// What stands later does not simply count: nobody would have written both.
#[test]
fn one_command_names_a_device_once() {
    let add = |text: &str| DeviceRequest::Add(statement(text, StatementForm::Add));
    let modify = |text: &str| DeviceRequest::Modify(statement(text, StatementForm::Modify));
    let delete = |text: &str| DeviceRequest::Delete(statement(text, StatementForm::Delete));
    let config = guest(&["disk:scsi:0,0,0:file:/a", "dvd:scsi:0,1,0:null:/isos"]);
    for (devices, refused) in [
        (
            [modify("disk:scsi:0,0,0:file:/b"), modify("disk:avio_stor:0,0,0:file:/c")],
            "'-m disk:scsi:0,0,0:file:/b' and '-m disk:avio_stor:0,0,0:file:/c' both name 0,0,0; name it once",
        ),
        (
            [modify("dvd:scsi::file:/x"), modify("dvd:scsi:0,1,0:file:/y")],
            "'-m dvd:scsi::file:/x' and '-m dvd:scsi:0,1,0:file:/y' both name 0,1,0; name it once",
        ),
        (
            [add("disk:scsi:0,0,1:file:/b"), add("disk:scsi:0,0,1:file:/c")],
            "'-a disk:scsi:0,0,1:file:/b' and '-a disk:scsi:0,0,1:file:/c' both name 0,0,1; name it once",
        ),
        (
            [modify("disk:scsi:0,0,0:file:/b"), delete("disk:scsi::file:/a")],
            "'-m disk:scsi:0,0,0:file:/b' and '-d disk:scsi::file:/a' both name 0,0,0; name it once",
        ),
        (
            [delete("disk:scsi:0,0,0"), delete("disk:scsi::file:/a")],
            "'-d disk:scsi:0,0,0' and '-d disk:scsi::file:/a' both name 0,0,0; name it once",
        ),
    ] {
        assert_eq!(after(&config, devices.to_vec()), Err(refused.into()));
    }
    let replaced = [delete("disk:scsi::file:/a"), add("disk:avio_stor:0,0,0:file:/b")];
    assert_eq!(after(&config, replaced.to_vec()).unwrap()[0], "disk:avio_stor:0,0,0:file:/b");
}
