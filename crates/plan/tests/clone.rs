//! What is asked of a clone, and the devices and the work that come of it.

mod common;

use common::{guest, networks};
use hpvm_model::{Backing, GuestUuid, Statement, StatementForm, StorageType};
use hpvm_plan::clone::{CloneError, CloneRequest, Design, Disks, How, Inheritance, Place, design};
use hpvm_plan::request::{DeviceRequest, Request};
use proptest::prelude::*;

const SOURCE: [&str; 4] = [
    "disk:avio_stor:0,0,0:file:/vm/root",
    "disk:scsi:0,2,0:lv:/dev/vg0/data",
    "disk:avio_stor:0,0,1:qcow2:/vm/image",
    "dvd:avio_stor:0,0,2:file:/iso/x.iso",
];

fn asked(copies: &[&str], devices: Vec<DeviceRequest>, disks: Disks) -> CloneRequest {
    let parse = |text: &&str| Statement::parse(text, StatementForm::Modify).unwrap();
    CloneRequest {
        name: "new".parse().unwrap(),
        request: Request { devices, ..Request::default() },
        copies: copies.iter().map(parse).collect(),
        disks,
        macs: Inheritance::New,
        serial_number: Inheritance::New,
    }
}

fn add(text: &str) -> DeviceRequest {
    DeviceRequest::Add(Statement::parse(text, StatementForm::Add).unwrap())
}

fn delete(text: &str) -> DeviceRequest {
    DeviceRequest::Delete(Statement::parse(text, StatementForm::Delete).unwrap())
}

fn designed(asked: &CloneRequest) -> Result<Design, CloneError> {
    let mut random = 100..;
    let own_image = |address| format!("/own/{address}");
    let uuid = GuestUuid(uuid::Uuid::from_u128(7));
    design(&guest(&SOURCE), asked, uuid, &own_image, &networks(&guest(&SOURCE)), &mut || {
        random.next().unwrap()
    })
}

fn statements(design: &Design) -> Vec<String> {
    design.config.storage.iter().map(ToString::to_string).collect()
}

#[test]
fn without_more_all_is_kept_under_a_new_identity() {
    let source = guest(&SOURCE);
    let made = designed(&asked(&[], vec![], Disks::Kept)).unwrap();
    assert_eq!(made.work, []);
    assert_ne!(made.config.uuid, source.uuid);
    assert_eq!(made.config.serial_number, "", "it follows from the number, which is given later");
    assert_eq!(made.config.ports, source.ports);
    for (ours, theirs) in made.config.storage.iter().zip(&source.storage) {
        assert_eq!(ours.to_string(), theirs.to_string());
        assert_ne!(ours.id, theirs.id);
    }
}

/// There is no clone yet whose devices could be listed.
#[test]
fn who_names_no_device_is_told_where_the_sources_are_listed() {
    let asked = asked(&[], vec![delete("disk:avio_stor:0,0,5")], Disks::Kept);
    let error = designed(&asked).unwrap_err().to_string();
    let source = guest(&SOURCE).name;
    assert!(error.contains(&format!("`hpvmstatus -P {source} -d`")), "{error}");
}

/// `-b` alone, with the `-d` of A.03.50, and with `-a` and `-d`: the same.
#[test]
fn a_copy_takes_its_place() {
    let copy = "disk:avio_stor:0,0,0:file:/new/root";
    for devices in [
        vec![],
        vec![delete("disk:avio_stor:0,0,0")],
        vec![delete("disk:avio_stor::file:/vm/root"), add(copy)],
        vec![add("disk:avio_stor:0,0,0:file:/new/root")],
    ] {
        let made = designed(&asked(&[copy], devices, Disks::Kept)).unwrap();
        assert_eq!(statements(&made)[0], copy);
        assert_eq!(made.config.storage.len(), 4);
        assert_eq!(made.work.len(), 1);
        let work = &made.work[0];
        assert_eq!((work.from.path.as_str(), work.to.path.as_str()), ("/vm/root", "/new/root"));
        assert_eq!(work.how, How::Copy);
    }
}

#[test]
fn a_linked_clone_lies_over_each_disk_that_is_kept() {
    let named = "disk:avio_stor:0,0,0:qcow2:/new/root";
    let devices = vec![delete("disk:scsi:0,2,0"), add("disk:avio_stor:0,5,0:file:/more")];
    let made = designed(&asked(&[named], devices, Disks::Linked)).unwrap();
    assert_eq!(
        statements(&made),
        [
            named,
            "disk:avio_stor:0,0,1:qcow2:/own/0,0,1",
            "dvd:avio_stor:0,0,2:file:/iso/x.iso",
            "disk:avio_stor:0,5,0:file:/more",
        ]
    );
    let hows: Vec<How> = made.work.iter().map(|work| work.how).collect();
    assert_eq!(hows, [How::Overlay(Place::Named), How::Overlay(Place::Own)]);
    let root = [Backing::new(StorageType::File, "/vm/root")];
    assert_eq!(made.config.storage[0].layers, root);
    assert_eq!(made.config.storage[3].layers, []);
}

proptest! {
    /// Whatever is asked, the source's stores are never what is written.
    #[test]
    fn no_work_writes_to_the_source(copies in prop::collection::vec((0usize..4, 0usize..3), 0..4), linked: bool) {
        let stores = ["file:/new/a", "qcow2:/new/b", "lv:/dev/vg0/new"];
        let heads = ["disk:avio_stor:0,0,0", "disk:scsi:0,2,0", "disk:avio_stor:0,0,1", "dvd:avio_stor:0,0,2"];
        let texts: Vec<String> =
            copies.iter().map(|(head, store)| format!("{}:{}", heads[*head], stores[*store])).collect();
        prop_assume!(texts.iter().all(|text| Statement::parse(text, StatementForm::Modify).is_ok()));
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let disks = if linked { Disks::Linked } else { Disks::Kept };
        if let Ok(made) = designed(&asked(&texts, vec![], disks)) {
            let source = guest(&SOURCE);
            for work in &made.work {
                prop_assert!(source.storage.iter().all(|device| device.backing != work.to));
                let device = made.config.device_at(work.address).unwrap();
                prop_assert_eq!(&device.backing, &work.to);
                prop_assert_eq!(device.layers.first() == Some(&work.from), work.how != How::Copy);
            }
        }
    }
}
