//! The boot record as a file, and what a worker that takes a guest over makes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use hpvm_engine::devices::present::{Present, Repair, repairs};
use hpvm_engine::record_file::RecordFile;
use hpvm_model::*;
use hpvm_plan::facts::Engine;
use hpvm_plan::record::*;

fn attached(kind: DeviceKind, address: &str, path: &str) -> Attached {
    let address: StorageAddress = address.parse().unwrap();
    let id = DiskId::from_random(u64::from(address.target));
    let (adapter, backing) = (AdapterKind::AvioStor, Backing::new(StorageType::File, path));
    Attached::of(StorageDevice { kind, adapter, address, backing, layers: Vec::new(), id })
}

fn record(storage: Vec<Attached>) -> BootRecord {
    BootRecord {
        format: FORMAT,
        uuid: GuestUuid(uuid::Uuid::from_u128(7)),
        number: GuestNumber::new(7).unwrap(),
        name: "guest1".parse().unwrap(),
        serial_number: "VM02647001".into(),
        boot_id: "0f6b7a52".into(),
        started_at: "2026-11-24T08:00:00Z".into(),
        engine: Engine { program: "/bin/qemu".into(), version: "10.0.2".into() },
        machine_type: "pc-q35-10.0".into(),
        accelerator: Accelerator::Tcg,
        vcpus: Vcpus::try_from(1).unwrap(),
        memory: Memory::at_least(Bytes(1 << 30)).unwrap(),
        firmware_code: "/code".into(),
        option_rom: None,
        lan_rom: None,
        ports: vec![PciSlot::new(0, 0).unwrap(), PciSlot::new(0, 1).unwrap()],
        storage,
        nics: Vec::new(),
        agent: AgentChannel::Present,
        avio_service: AvioService::Processor,
        reservations: None,
        owner: None,
    }
}

struct OnDisk {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl OnDisk {
    fn new(text: &str) -> OnDisk {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boot.record");
        fs::write(&path, text).unwrap();
        OnDisk { _folder: folder, path }
    }

    fn open(&self) -> RecordFile {
        let file = File::options().read(true).append(true).open(&self.path).unwrap();
        RecordFile::open(file).unwrap()
    }
}

fn slot() -> PciSlot {
    PciSlot::new(0, 1).unwrap()
}

#[test]
fn what_was_asked_and_settled_is_read_back() {
    let disk = OnDisk::new(&record(Vec::new()).to_line());
    let mut file = disk.open();
    let devices = vec![attached(DeviceKind::Disk, "0,1,0", "/a")];
    let adapter = AdapterPresence::New;
    let change =
        DeviceChange::Attach { slot: slot(), kind: AdapterKind::AvioStor, adapter, devices };
    let seq = file.asked("t", change).unwrap();
    assert_eq!(disk.open().machine().pending.len(), 1);
    file.settled("t", seq, Outcome::Done).unwrap();
    assert_eq!(disk.open().machine(), file.machine());
    assert_eq!(file.machine().storage.len(), 1);
}

#[test]
fn a_line_cut_by_a_power_failure_does_not_spoil_the_next() {
    let disk = OnDisk::new(&record(Vec::new()).to_line());
    let away = || DeviceChange::DetachAdapter { slot: slot() };
    disk.open().asked("t", away()).unwrap();
    let whole = fs::read(&disk.path).unwrap();
    File::options().append(true).open(&disk.path).unwrap().write_all(b"{\"line\":\"set").unwrap();
    let mut file = disk.open();
    assert_eq!(fs::read(&disk.path).unwrap(), whole, "the cut part is gone");
    assert_eq!(file.asked("t", away()).unwrap(), 2);
    assert_eq!(disk.open().machine().pending.len(), 2);
}

fn present(devices: &[&str], media: &[(&str, &str)]) -> Present {
    Present {
        devices: devices.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>(),
        media: media
            .iter()
            .map(|(id, node)| ((*id).to_owned(), (*node).to_owned()))
            .collect::<BTreeMap<_, _>>(),
        nodes: media.iter().map(|(_, node)| (*node).to_owned()).collect(),
    }
}

fn pending(change: &DeviceChange, storage: Vec<Attached>) -> Machine {
    let mut machine = Machine::new(record(storage));
    machine.replay(JournalLine::Asked {
        seq: 1,
        at: "t".into(),
        change: change.clone(),
        due: Due::Now,
    });
    machine
}

/// A drive that comes without a medium in the place of a disk is known by that.
#[test]
fn what_waits_for_a_reset_is_seen_to_be_made() {
    let disk = attached(DeviceKind::Disk, "0,1,0", "/a");
    let mut drive = attached(DeviceKind::Dvd, "0,1,0", "/srv");
    drive.device.backing = Backing::new(StorageType::Null, "/srv");
    let later = attached(DeviceKind::Disk, "0,1,0", "/b");
    for (comes, before, after) in [
        (drive, &[("device-0-1-0", "medium-0-1-0")][..], &[][..]),
        (later, &[("device-0-1-0", "medium-0-1-0")], &[("device-0-1-0", "medium-0-1-0-1")]),
    ] {
        let mut machine = Machine::new(record(vec![disk.clone()]));
        let (kind, adapter) = (AdapterKind::AvioStor, AdapterPresence::Present);
        let attach = DeviceChange::Attach { slot: slot(), kind, adapter, devices: vec![comes] };
        let (address, consent) = (disk.device.address, Consent::Given);
        for (seq, change) in [(1, attach), (2, DeviceChange::Detach { address, consent })] {
            let (at, due) = (String::new(), Due::NextReset);
            machine.replay(JournalLine::Asked { seq, at, change, due });
        }
        let devices = ["adapter-0-1", "device-0-1-0"];
        let has_store = machine.comes_at_reset(address).unwrap().device.backing.store().is_some();
        let mut prepared = present(&devices, before);
        // Never opened, it can never come, and what is to leave for it stays.
        let void = |seq| {
            let outcome = Outcome::Failed(hpvm_engine::devices::present::REPLACED.into());
            Repair::Settle { seq, outcome }
        };
        let expected = if has_store { vec![void(1), void(2)] } else { Vec::new() };
        assert_eq!(repairs(&machine, &prepared), expected);
        prepared.nodes.insert("medium-0-1-0-1".into());
        assert_eq!(repairs(&machine, &prepared), []);
        let made = Repair::Settle { seq: 1, outcome: Outcome::Done };
        assert_eq!(repairs(&machine, &present(&devices, after)), [made]);
    }
}

#[test]
fn a_worker_that_takes_over_settles_what_it_can_see() {
    let disk = attached(DeviceKind::Disk, "0,1,0", "/a");
    let done = vec![Repair::Settle { seq: 1, outcome: Outcome::Done }];
    let failed = |repairs: &[Repair]| {
        matches!(repairs, [Repair::Settle { seq: 1, outcome: Outcome::Failed(_) }])
    };

    let attach = DeviceChange::Attach {
        slot: slot(),
        kind: AdapterKind::AvioStor,
        adapter: AdapterPresence::New,
        devices: vec![disk.clone()],
    };
    let machine = pending(&attach, Vec::new());
    assert_eq!(repairs(&machine, &present(&["adapter-0-1", "device-0-1-0"], &[])), done);
    let half = repairs(&machine, &present(&["adapter-0-1"], &[]));
    let (adapter, devices) = (AdapterPresence::New, vec![disk.clone()]);
    assert_eq!(half, [Repair::Undo { seq: 1, slot: slot(), adapter, devices }]);

    let detach = DeviceChange::Detach { address: disk.device.address, consent: Consent::Given };
    let machine = pending(&detach, vec![disk.clone()]);
    assert_eq!(repairs(&machine, &present(&["adapter-0-1"], &[])), done);
    assert!(failed(&repairs(&machine, &present(&["device-0-1-0"], &[]))));

    let detach = DeviceChange::DetachAdapter { slot: slot() };
    let machine = pending(&detach, vec![disk.clone()]);
    assert_eq!(repairs(&machine, &present(&[], &[])), done);
    let still = repairs(&machine, &present(&["adapter-0-1", "device-0-1-0"], &[]));
    assert_eq!(still, [Repair::AskAgain { seq: 1, slot: slot() }]);
}

#[test]
fn a_medium_is_known_by_the_number_of_its_change() {
    let dvd = attached(DeviceKind::Dvd, "0,1,0", "/new.iso");
    let machine =
        pending(&DeviceChange::Medium { attached: dvd.clone(), by: ChangedBy::Command }, vec![dvd]);
    let with = |node| repairs(&machine, &present(&["device-0-1-0"], &[("device-0-1-0", node)]));
    let done = Repair::Settle { seq: 1, outcome: Outcome::Done };
    assert_eq!(with("medium-0-1-0-1"), [done]);
    assert!(matches!(
        with("medium-0-1-0")[..],
        [Repair::Settle { outcome: Outcome::Failed(_), .. }]
    ));
}

#[test]
fn a_device_that_vanished_is_noted() {
    let disk = attached(DeviceKind::Disk, "0,1,0", "/a");
    let machine = Machine::new(record(vec![disk.clone()]));
    assert_eq!(repairs(&machine, &present(&["device-0-1-0"], &[])), []);
    let gone = Repair::Gone { address: disk.device.address };
    assert_eq!(repairs(&machine, &present(&[], &[])), [gone]);
}
