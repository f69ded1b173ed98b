//! The worker on QEMU itself, with firmware and no operating system: that the fake engine did not lie.

use std::time::{Duration, Instant};

use hpvm_app::protocol::*;
use hpvm_app::snapshot::*;
use hpvm_host::process::Signal;
use hpvm_host::users::{self, Ids};
use hpvm_model::*;
use hpvm_plan::record::*;

use crate::guest::{Guest, open, signal};

fn done() -> Reply {
    Reply::Changed { results: vec![ChangeResult::Done] }
}

/// Devices as hpvmmodify would change them, each with what the engine then has.
#[test]
fn a_guest_lives_through_changes_kills_and_its_end() {
    let guest = Guest::real();
    let dvd = guest.device(DeviceKind::Dvd, AdapterKind::AvioStor, "0,0,0");
    let mut guest = guest.with(|record| record.storage = vec![dvd.clone()]);
    if users::is_root() {
        // As hpvmstart does it: users of their own for QEMU and worker.
        let ids = |id| Some(Ids { uid: id, gid: id });
        guest.places.qemu_ids = ids(1_000_000 + guest.record.number.get());
        guest.places.worker_ids = ids(1_500_000 + guest.record.number.get());
        guest.places.lock_ids = guest.places.worker_ids;
    }
    let began = Instant::now();
    let guest = guest.start();
    println!("started after {:?}", began.elapsed());

    other_media(&guest, dvd);
    let slot = disks_on_one_adapter(&guest, 3);
    a_vio_disk(&guest);
    others_take_over(&guest);

    // The firmware lets nothing go before the next reset, however often it is asked.
    for _ in 0..2 {
        let reply = guest.ask(&change(DeviceChange::DetachAdapter { slot }));
        let Reply::Changed { results } = &reply else { panic!("{reply:?}") };
        assert!(matches!(results[..], [ChangeResult::Pending | ChangeResult::Done]), "{results:?}");
        if results[..] == [ChangeResult::Done] {
            break;
        }
    }

    let began = Instant::now();
    guest.stop();
    println!("stopped by a successor's worker after {:?}", began.elapsed());
    assert_eq!(guest.snapshot().unwrap().phase, Phase::Ended { how: Ending::StoppedHard });
    guest.until_gone();
}

fn change(change: DeviceChange) -> Request {
    Request::change(vec![change])
}

/// Another medium, and none.
fn other_media(guest: &Guest, mut dvd: Attached) {
    let other = guest.path("other.iso");
    std::fs::File::create(&other).and_then(|file| file.set_len(1 << 20)).unwrap();
    for (backing, media) in [
        (
            Backing::new(StorageType::File, other.display().to_string()),
            vec![std::fs::File::open(&other).unwrap()],
        ),
        (Backing::new(StorageType::Null, "/iso"), Vec::new()),
        (
            Backing::new(StorageType::File, other.display().to_string()),
            vec![std::fs::File::open(&other).unwrap()],
        ),
    ] {
        dvd.device.backing = backing;
        let request =
            change(DeviceChange::Medium { attached: dvd.clone(), by: ChangedBy::Command });
        assert_eq!(guest.ask_with(&request, &media), done(), "{}", guest.story());
    }
}

/// A disk on a new adapter, another beside it, which leaves alone; the guest has so many devices with both. Gives the adapter's
/// place.
fn disks_on_one_adapter(guest: &Guest, devices: usize) -> PciSlot {
    let disks: Vec<Attached> = ["0,1,0", "0,1,1"]
        .map(|address| guest.device(DeviceKind::Disk, AdapterKind::AvioStor, address))
        .into();
    let slot = disks[0].device.address.slot;
    for (disk, adapter) in disks.iter().zip([AdapterPresence::New, AdapterPresence::Present]) {
        let devices = vec![disk.clone()];
        let media = [open(&disk.device.backing.path)];
        let attach = DeviceChange::Attach { slot, kind: AdapterKind::AvioStor, adapter, devices };
        assert_eq!(guest.ask_with(&change(attach), &media), done(), "{}", guest.story());
    }
    let Reply::Idle { idle_ms, .. } = guest.ask(&Request::Idle) else {
        panic!("{}", guest.story())
    };
    assert_eq!(idle_ms.len(), devices, "{idle_ms:?}");
    let detach = DeviceChange::Detach { address: disks[1].device.address, consent: Consent::Given };
    assert_eq!(guest.ask(&change(detach)), done(), "{}", guest.story());
    slot
}

/// A VIO adapter comes with its disk while the guest is held, which runs on afterwards.
fn a_vio_disk(guest: &Guest) {
    let vio = guest.device(DeviceKind::Disk, AdapterKind::Scsi, "0,2,0");
    let media = [open(&vio.device.backing.path)];
    let attach = DeviceChange::Attach {
        slot: vio.device.address.slot,
        kind: AdapterKind::Scsi,
        adapter: AdapterPresence::New,
        devices: vec![vio],
    };
    let began = Instant::now();
    assert_eq!(guest.ask_with(&change(attach), &media), done(), "{}", guest.story());
    println!("a VIO disk came after {:?}", began.elapsed());
    assert!(matches!(guest.snapshot().unwrap().phase, Phase::Running { .. }));
}

/// Keeper and worker die; the next worker finds the same devices.
fn others_take_over(guest: &Guest) {
    let before = guest.machine();
    signal(guest.keeper(), Signal::KILL);
    guest.until(|snapshot| snapshot.adoptions == 1);
    guest.wait("an answer", || guest.try_ask(&Request::Ping, &[]).is_ok());
    signal(guest.worker().unwrap(), Signal::KILL);
    guest.until(|snapshot| snapshot.adoptions == 2);
    guest.wait("an answer", || guest.try_ask(&Request::Ping, &[]).is_ok());
    guest.until(|snapshot| matches!(snapshot.phase, Phase::Running { .. }));
    assert_eq!(guest.machine().storage, before.storage, "{}", guest.story());
}

/// QEMU takes a device apart when the processor comes out of the guest's code, which this one does for nothing.
#[test]
fn a_disk_leaves_a_guest_that_hangs() {
    let guest = Guest::hung().start();
    let began = Instant::now();
    disks_on_one_adapter(&guest, 2);
    println!("two disks came and one left after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(5), "{}", guest.story());
    assert!(matches!(guest.snapshot().unwrap().phase, Phase::Running { .. }), "{}", guest.story());
    guest.stop();
}

#[test]
fn a_hard_stop_is_quick() {
    let guest = Guest::real().start();
    guest.wait("the firmware's first byte", || {
        std::fs::metadata(guest.path("console.log")).is_ok_and(|log| log.len() > 0)
    });
    let began = Instant::now();
    guest.stop();
    println!("stopped after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn a_start_that_qemu_refuses_says_its_words() {
    let guest = Guest::real().with(|record| record.machine_type = "pc-q35-99.9".into());
    let error = guest.try_start().expect_err("no such machine").to_string();
    assert!(error.contains("99.9"), "{error}");
    guest.until_gone();
}
