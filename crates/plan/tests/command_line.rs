//! The QEMU command line, as text: one golden file per kind of guest, to be read at review.

mod common;

use common::*;
use hpvm_model::{Accelerator, AvioService, Backing, StorageType};
use hpvm_plan::command_line::{Role, arguments, descriptors};
use hpvm_plan::record::{AgentChannel, BootRecord, Machine, NicBoot, OptionRom};
use snapbox::{assert_data_eq, file};

fn line(statements: &[&str]) -> String {
    text(&record(&guest(statements)))
}

fn text(record: &BootRecord) -> String {
    let arguments = arguments(record);
    let mut text = String::new();
    for argument in arguments {
        text.push_str(if argument.starts_with('-') && !text.is_empty() { "\n" } else { " " });
        text.push_str(&argument);
    }
    text.trim_start().to_owned() + "\n"
}

#[test]
fn a_guest_without_devices() {
    assert_data_eq!(line(&[]), file!["golden/no-devices.txt"]);
}

#[test]
fn a_guest_on_avio() {
    let statements = ["disk:avio_stor:0,0,0:file:/vm/a,b", "dvd:avio_stor:0,0,1:file:/iso/x.iso"];
    assert_data_eq!(line(&statements), file!["golden/avio.txt"]);
}

#[test]
fn a_guest_on_vio_with_an_empty_drive_and_a_place_holder() {
    let statements = [
        "disk:scsi:0,2,0:file:/vm/root",
        "dvd:scsi:0,2,1:null:/iso",
        "disk:scsi:0,2,2:null:/later",
        "disk:scsi:2,5,7:file:/vm/data",
    ];
    assert_data_eq!(line(&statements), file!["golden/vio.txt"]);
}

/// Targets from 8 on are a second function's, which is found by the first, also where that has nothing else.
#[test]
fn a_guest_on_vio_with_more_targets_than_an_adapter_has_ports() {
    let statements = [
        "disk:scsi:0,2,0:file:/vm/root",
        "disk:scsi:0,2,8:file:/vm/data",
        "disk:scsi:1,0,14:file:/vm/alone",
        "disk:avio_stor:1,1,14:file:/vm/avio",
    ];
    assert_data_eq!(line(&statements), file!["golden/vio-second.txt"]);
}

#[test]
fn a_guest_on_networks_of_both_kinds() {
    let config = with_nics(guest(&[]), &NICS);
    let mut record = record(&config);
    record.nics[1].mtu = Some(9000);
    assert_data_eq!(text(&record), file!["golden/nics.txt"]);
}

/// After the disks, in their order, and only those that are to; the firmware brings no driver of a lan NIC.
#[test]
fn a_guest_that_boots_over_its_nics() {
    let nics = [NICS[0], NICS[1], "network:lan:1,1,0x56e9e3096a23:vswitch:sw1:portid:3"];
    let disks = guest(&["disk:avio_stor:0,0,0:file:/a", "disk:avio_stor:0,0,1:null:/later"]);
    let mut record = record(&with_nics(disks, &nics));
    let device = |record: &BootRecord, slot: &str| {
        let id = format!(",id=nic-{slot},");
        let text = text(record);
        let line = text.lines().find(|line| line.contains(&id)).expect("a device").to_owned();
        let end = line.split("romfile=").nth(1).expect("every NIC says it");
        end.split(",rx_queue").next().expect("a part").to_owned()
    };
    let slots = ["0-1", "1-0", "1-1"];
    assert_eq!(slots.map(|slot| device(&record, slot)), ["", "", ""]);
    record.nics[1].boot = NicBoot::AfterDisks;
    record.nics[2].boot = NicBoot::AfterDisks;
    assert_eq!(
        slots.map(|slot| device(&record, slot)),
        ["", ",bootindex=30000", ",bootindex=30001"]
    );
    record.lan_rom = Some(OptionRom { path: "/run/hpvm/e1000.rom".into(), digest: "00".into() });
    let last = "/run/hpvm/e1000.rom,bootindex=30001";
    assert_eq!(slots.map(|slot| device(&record, slot)), ["", ",bootindex=30000", last]);
}

const NICS: [&str; 2] = [
    "network:lan:0,1,0x56e9e3096a22:vswitch:localnet:portid:1",
    "network:avio_lan:1,0,0x52b2aef63e66:vswitch:sw1:portid:2",
];

#[test]
fn a_guest_on_every_kind_of_store() {
    let statements = [
        "disk:avio_stor:0,0,0:disk:/dev/disk/by-id/wwn-1",
        "disk:avio_stor:0,0,1:lv:/dev/vg0/data",
        "disk:avio_stor:0,0,2:qcow2:/vm/image.qcow2",
        "dvd:avio_stor:0,0,3:disk:/dev/sr0",
        "tape:avio_stor:0,1,0:attach:/dev/sg3",
    ];
    let config = guest(&statements);
    let mut record = record(&config);
    record.storage = config.storage.iter().map(|device| direct(&config).attach(device)).collect();
    assert_data_eq!(text(&record), file!["golden/stores.txt"]);
}

/// Each layer is a node of its own on a descriptor of its own, and only read; no image is asked for a name.
#[test]
fn a_linked_clone_of_a_linked_clone() {
    let mut config = guest(&["disk:avio_stor:0,0,0:qcow2:/vm/top.qcow2"]);
    config.storage[0].layers = vec![
        Backing::new(StorageType::Qcow2, "/vm/middle.qcow2"),
        Backing::new(StorageType::Lv, "/dev/vg0/base"),
    ];
    let mut record = record(&config);
    record.storage = config.storage.iter().map(|device| direct(&config).attach(device)).collect();
    let text = text(&record);
    assert_data_eq!(&text, file!["golden/layers.txt"]);
    assert!(!text.contains("/vm/") && !text.contains("/dev/vg0"), "{text}");
    let roles: Vec<Role> = descriptors(&record).into_iter().skip(7).map(|d| d.role).collect();
    let address = config.storage[0].address;
    assert_eq!(roles, [Role::Medium(address), Role::Layer(address, 0), Role::Layer(address, 1)]);
}

/// A host whose file systems all take direct I/O.
fn direct(config: &hpvm_model::GuestConfig) -> hpvm_plan::facts::HostFacts {
    let mut facts = host(config);
    for fact in facts.files.values_mut() {
        if let hpvm_plan::facts::FileFact::Regular { cache, .. } = fact {
            *cache = hpvm_plan::record::Cache::Direct;
        }
    }
    facts
}

/// Settles 15: what the guest sees of a disk is its own short identity, whatever backs it.
#[test]
fn a_guest_sees_nothing_of_a_store_s_path() {
    let line = line(&["disk:avio_stor:0,0,0:file:/vm/secret-customer/disk.img"]);
    assert!(!line.contains("secret-customer"), "{line}");
    assert!(line.contains("serial=000000000000000,"), "{line}");
}

/// The guest's own user has no right to open /dev/kvm.
#[test]
fn a_guest_on_kvm_gets_it_as_a_descriptor() {
    let mut record = record(&guest(&["disk:avio_stor:0,0,0:file:/vm/a"]));
    record.accelerator = Accelerator::Kvm;
    let text = text(&record);
    assert!(text.contains("-add-fd fd=17,set=17,opaque=kvm\n-accel kvm,device=/dev/fdset/17\n"));
    assert!(text.contains("-cpu host\n") && text.contains("-add-fd fd=18,set=18\n"), "{text}");
}

/// The thread is there before the adapters, and whether or not there are any: one may be plugged in.
#[test]
fn avio_adapters_share_a_thread_where_one_serves_them() {
    let on = |accelerator, statements| {
        let avio_service = AvioService::Thread;
        text(&BootRecord { avio_service, accelerator, ..record(&guest(statements)) })
    };
    let with = |statements| on(Accelerator::Kvm, statements);
    assert!(with(&[]).contains("-object iothread,id=avio\n"));
    let line = with(&["disk:avio_stor:0,0,0:file:/vm/a", "disk:avio_stor:0,1,0:file:/vm/b"]);
    let (before, after) = line.split_once("-object iothread,id=avio\n").unwrap();
    assert!(!before.contains("virtio-scsi") && after.matches(",iothread=avio\n").count() == 2);
    assert!(!with(&["disk:scsi:0,0,0:file:/vm/a"]).contains(",iothread=avio"));
    let emulated = on(Accelerator::Tcg, &[]);
    assert!(emulated.contains("-object iothread,id=avio,poll-max-ns=0\n"), "{emulated}");
}

/// The machine of a record from before there were agents, and before AVIO adapters were told who serves them, is what it
/// was, to the descriptor.
#[test]
fn a_guest_of_an_earlier_hpvm() {
    let record = record(&guest(&["disk:avio_stor:0,0,0:file:/vm/a"]));
    let earlier = record.to_line().replace(r#","agent":"present","avio_service":"processor""#, "");
    let earlier = Machine::read(&earlier).unwrap().base;
    assert_eq!(
        (earlier.agent, earlier.avio_service),
        (AgentChannel::Absent, AvioService::MainLoop)
    );
    assert_data_eq!(text(&earlier), file!["golden/earlier.txt"]);
}

/// A place holder has no descriptor and an empty drive neither; numbers are without gaps.
#[test]
fn descriptors_follow_the_media() {
    let record = record(&guest(&[
        "disk:scsi:0,2,0:file:/vm/root",
        "dvd:scsi:0,2,1:null:/iso",
        "disk:scsi:0,2,2:file:/vm/data",
    ]));
    let descriptors = descriptors(&record);
    let numbers: Vec<i32> = descriptors.iter().map(|d| d.number).collect();
    assert_eq!(numbers, (10..19).collect::<Vec<_>>());
    let media = descriptors.iter().filter(|d| matches!(d.role, Role::Medium(_))).count();
    assert_eq!(media, 2);
}
