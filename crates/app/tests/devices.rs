//! Disks and NICs that come to a running guest and go, on the fake engine.

use std::os::fd::{AsFd, BorrowedFd};

use hpvm_app::client::{self, ClientError};
use hpvm_app::protocol::*;
use hpvm_app::snapshot::*;
use hpvm_host::process::Signal;
use hpvm_model::*;
use hpvm_plan::record::*;

use crate::agents::with_agent;
use crate::guest::{Guest, PATIENCE, open, signal};

fn attach(slot: &str, adapter: AdapterPresence, devices: Vec<Attached>) -> DeviceChange {
    let slot = format!("{slot},0").parse::<StorageAddress>().unwrap().slot;
    let kind = devices[0].device.adapter;
    DeviceChange::Attach { slot, kind, adapter, devices }
}

fn media_of(devices: &[Attached]) -> Vec<std::fs::File> {
    devices.iter().map(|a| open(&a.device.backing.path)).collect()
}

#[test]
fn disks_come_and_go_and_the_record_says_so() {
    let guest = Guest::fake("delete=50").start();
    guest.until_os();
    let disks: Vec<Attached> = ["0,1,0", "0,1,1"]
        .map(|address| guest.device(DeviceKind::Disk, AdapterKind::AvioStor, address))
        .into();
    let change = Request::change(vec![attach("0,1", AdapterPresence::New, disks.clone())]);
    let reply = guest.ask_with(&change, &media_of(&disks));
    assert_eq!(reply, Reply::Changed { results: vec![ChangeResult::Done] }, "{}", guest.story());
    assert_eq!(guest.machine().storage, disks);

    let away =
        vec![DeviceChange::Detach { address: disks[1].device.address, consent: Consent::Given }];
    let reply = guest.ask(&Request::change(away));
    assert_eq!(reply, Reply::Changed { results: vec![ChangeResult::Done] }, "{}", guest.story());

    let slot = disks[0].device.address.slot;
    let away = vec![DeviceChange::DetachAdapter { slot }];
    let reply = guest.ask(&Request::change(away));
    assert_eq!(reply, Reply::Changed { results: vec![ChangeResult::Done] }, "{}", guest.story());
    assert_eq!(guest.machine().storage, []);
    assert_eq!(guest.machine().pending, []);
    // Address and names are free again.
    let reply = guest.ask_with(&change, &media_of(&disks));
    assert_eq!(reply, Reply::Changed { results: vec![ChangeResult::Done] }, "{}", guest.story());
}

/// Firmware lets nothing go; the system that follows was never asked.
#[test]
fn an_adapter_is_asked_for_again_under_its_number() {
    let guest = Guest::fake("boot=os:4000");
    let disk = guest.device(DeviceKind::Disk, AdapterKind::AvioStor, "0,1,0");
    let slot = disk.device.address.slot;
    let guest = guest.with(|record| record.storage = vec![disk]).start();
    let away = Request::change(vec![DeviceChange::DetachAdapter { slot }]);
    let waits = Reply::Changed { results: vec![ChangeResult::Pending] };
    assert_eq!(guest.ask(&away), waits, "{}", guest.story());
    let asked = guest.machine().pending;
    guest.until_os();
    assert_eq!(guest.machine().pending, asked, "{}", guest.story());
    let done = Reply::Changed { results: vec![ChangeResult::Done] };
    assert_eq!(guest.ask(&away), done, "{}", guest.story());
    let after = guest.machine();
    assert_eq!((after.storage, after.pending, after.next_seq), (vec![], vec![], 2));
}

#[test]
fn an_adapter_that_the_guest_keeps_is_pending_until_the_next_reset() {
    let guest = Guest::fake("boot=firmware,reboot=6000").start();
    let disk = guest.device(DeviceKind::Disk, AdapterKind::AvioStor, "0,1,0");
    let slot = disk.device.address.slot;
    let media = media_of(std::slice::from_ref(&disk));
    let changes = vec![attach("0,1", AdapterPresence::New, vec![disk])];
    guest.ask_with(&Request::change(changes), &media);
    let changes = vec![DeviceChange::DetachAdapter { slot }];
    let reply = guest.ask(&Request::change(changes));
    assert_eq!(reply, Reply::Changed { results: vec![ChangeResult::Pending] }, "{}", guest.story());
    assert!(guest.machine().is_leaving(slot));
    signal(guest.worker().unwrap(), Signal::KILL);
    guest.until(|snapshot| snapshot.adoptions == 1);
    assert!(guest.machine().is_leaving(slot), "known to the next worker");
    guest.wait("the guest to let go", || guest.machine().pending.is_empty());
    assert_eq!(guest.machine().storage, []);
}

/// What takes a disk's place is not tried while the disk is there, and its descriptor is let go.
#[test]
fn what_follows_a_disk_that_has_to_wait_waits_with_it() {
    let (guest, address) = with_agent("agent=cannot");
    guest.until(|snapshot| matches!(snapshot.agent, Agent::Answers { .. }));
    let other = Attached { ..guest.machine().device_at(address).unwrap().clone() };
    let third = guest.device(DeviceKind::Disk, AdapterKind::AvioStor, "0,2,0");
    let leaves = DeviceChange::Detach { address, consent: Consent::OfGuest };
    let changes = vec![
        leaves,
        attach("0,1", AdapterPresence::Present, vec![other.clone()]),
        attach("0,2", AdapterPresence::New, vec![third.clone()]),
    ];
    let reply = guest.ask_with(&Request::change(changes), &media_of(&[other, third]));
    let Reply::Changed { results } = &reply else { panic!("{reply:?}") };
    assert!(
        matches!(
            &results[..],
            [ChangeResult::Waits { reason }, ChangeResult::Waits { reason: same }, ChangeResult::Done]
                if reason == same
        ),
        "{results:?}\n{}",
        guest.story()
    );
    assert_eq!(guest.machine().pending, []);
}

/// Who gives up hears what was done, and can go back from that.
#[test]
fn a_change_that_is_given_up_begins_no_further_step() {
    let guest = Guest::fake("slow=device_add:1500").start();
    let disks = ["0,1,0", "0,2,0"]
        .map(|address| guest.device(DeviceKind::Disk, AdapterKind::AvioStor, address));
    let media = media_of(&disks);
    let media: Vec<BorrowedFd<'_>> = media.iter().map(AsFd::as_fd).collect();
    let [first, second] = disks.clone();
    let changes = [("0,1", first), ("0,2", second)];
    let changes = changes.map(|(slot, disk)| attach(slot, AdapterPresence::New, vec![disk]));
    let control = guest.places.run_dir.join("control");
    let mut gives_up = || Err(ClientError::Hangs);
    let request = Request::change(changes.into());
    let reply = client::change(&control, &request, &media, PATIENCE, &mut gives_up).unwrap();
    let results = vec![ChangeResult::Done, ChangeResult::Skipped];
    assert_eq!(reply, Reply::Changed { results }, "{}", guest.story());
    assert_eq!((guest.machine().storage.len(), guest.machine().pending.len()), (1, 0));
}

#[test]
fn what_fails_half_way_is_undone() {
    let guest = Guest::fake("fail=device_add:no such bus").start();
    let disk = guest.device(DeviceKind::Disk, AdapterKind::AvioStor, "0,1,0");
    let media = media_of(std::slice::from_ref(&disk));
    let request = Request::change(vec![attach("0,1", AdapterPresence::New, vec![disk])]);
    for _ in 0..2 {
        let Reply::Changed { results } = guest.ask_with(&request, &media) else { panic!() };
        let [ChangeResult::Failed { error }] = &results[..] else { panic!("{results:?}") };
        assert!(error.contains("no such bus"), "{error}");
    }
    assert_eq!(guest.machine().storage, []);
    assert_eq!(guest.machine().pending, []);
}

#[test]
fn a_change_without_its_descriptors_is_refused() {
    let guest = Guest::fake("").start();
    let disk = guest.device(DeviceKind::Disk, AdapterKind::AvioStor, "0,1,0");
    let changes = vec![attach("0,1", AdapterPresence::New, vec![disk])];
    let reply = guest.ask(&Request::change(changes));
    assert!(matches!(reply, Reply::Failed { .. }), "{reply:?}");
    assert_eq!(guest.machine().next_seq, 1, "nothing was asked");
}

#[test]
fn a_change_cut_short_by_a_kill_is_settled_by_the_next_worker() {
    let guest = Guest::fake("slow=device_add:1500").start();
    guest.until_os();
    let disk = guest.device(DeviceKind::Disk, AdapterKind::AvioStor, "0,1,0");
    let media = media_of(std::slice::from_ref(&disk));
    let request = Request::change(vec![attach("0,1", AdapterPresence::New, vec![disk])]);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| guest.try_ask(&request, &media));
        guest.wait("the journal to name the change", || !guest.machine().pending.is_empty());
        signal(guest.worker().unwrap(), Signal::KILL);
        assert!(asking.join().unwrap().is_err(), "nobody was left to answer");
    });
    guest.until(|snapshot| snapshot.adoptions == 1);
    guest.wait("the change to be settled", || guest.machine().pending.is_empty());
    let reply = guest.ask_with(&request, &media);
    let was_undone = guest.machine().storage.len() == 1;
    assert!(was_undone, "{reply:?}\n{}", guest.story());
}

/// A NIC at 0,1, on a switch that there is not.
fn nic(guest: &Guest, kind: NicKind) -> AttachedNic {
    AttachedNic {
        nic: Nic {
            kind,
            slot: PciSlot::new(0, 1).unwrap(),
            mac: MacAddress::new([0x56, 0xa1, 0, 0, 0, 1]),
            vswitch: "sw1".parse().unwrap(),
            port: PortNumber::new(1).unwrap(),
        },
        switch: SwitchNumber::new(2).unwrap(),
        socket: guest.path("port").display().to_string(),
        features: None,
        mtu: None,
        link: Link::Up,
        boot: NicBoot::No,
    }
}

/// Adds a NIC and kills the worker when QEMU has done a command of that and before it has said so; gives guest and NIC once the
/// next worker has settled it.
fn nic_cut_short(kind: NicKind, at: &str) -> (Guest, AttachedNic) {
    let guest = Guest::fake(&format!("slow={at}:1500")).start();
    guest.until_os();
    let attached = nic(&guest, kind);
    let request = Request::change(vec![DeviceChange::PlugNic { attached: attached.clone() }]);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| guest.try_ask(&request, &[]));
        let done = format!("{at} is done");
        guest.wait("QEMU to be there", || guest.story().contains(&done));
        signal(guest.worker().unwrap(), Signal::KILL);
        assert!(asking.join().unwrap().is_err(), "nobody was left to answer");
    });
    guest.until(|snapshot| snapshot.adoptions == 1);
    guest.wait("the change to be settled", || guest.machine().pending.is_empty());
    (guest, attached)
}

/// The names of what came of it are free again, in the record and in QEMU.
fn is_taken_out(kind: NicKind, at: &str) {
    let (guest, attached) = nic_cut_short(kind, at);
    assert_eq!(guest.machine().nics, [], "{}", guest.story());
    let request = Request::change(vec![DeviceChange::PlugNic { attached: attached.clone() }]);
    let done = Reply::Changed { results: vec![ChangeResult::Done] };
    assert_eq!(guest.ask(&request), done, "{}", guest.story());
    assert_eq!(guest.machine().nics, [attached]);
}

#[test]
fn a_nic_whose_worker_died_before_it_came_is_taken_out() {
    is_taken_out(NicKind::Lan, "netdev_add");
}

#[test]
fn an_avio_nic_whose_worker_died_before_it_came_is_taken_out() {
    is_taken_out(NicKind::AvioLan, "netdev_add");
}

#[test]
fn a_nic_that_came_before_its_worker_died_stays() {
    let (guest, attached) = nic_cut_short(NicKind::Lan, "device_add");
    assert_eq!(guest.machine().nics, std::slice::from_ref(&attached), "{}", guest.story());
    let away = Request::change(vec![DeviceChange::UnplugNic { slot: attached.nic.slot }]);
    let done = Reply::Changed { results: vec![ChangeResult::Done] };
    assert_eq!(guest.ask(&away), done, "{}", guest.story());
}

#[test]
fn a_dvd_gets_another_medium_and_none() {
    let guest = Guest::fake("");
    let mut dvd = guest.device(DeviceKind::Dvd, AdapterKind::AvioStor, "0,0,0");
    let guest = guest.with(|record| record.storage = vec![dvd.clone()]).start();
    guest.until_os();
    let other = guest.path("other.iso");
    std::fs::write(&other, [0; 4096]).unwrap();
    dvd.device.backing = Backing::new(StorageType::File, other.display().to_string());
    for (backing, media) in [
        (Backing::new(StorageType::File, other.display().to_string()), vec![open(&other)]),
        (Backing::new(StorageType::Null, "/iso"), Vec::new()),
        (Backing::new(StorageType::File, other.display().to_string()), vec![open(&other)]),
    ] {
        dvd.device.backing = backing;
        let changes = vec![DeviceChange::Medium { attached: dvd.clone(), by: ChangedBy::Command }];
        let reply = guest.ask_with(&Request::change(changes), &media);
        let done = Reply::Changed { results: vec![ChangeResult::Done] };
        assert_eq!(reply, done, "{}", guest.story());
        assert_eq!(guest.machine().storage, [dvd.clone()]);
    }
}

#[test]
fn disks_tell_how_long_they_were_idle() {
    let guest = Guest::fake("idle=12000");
    let disk = guest.device(DeviceKind::Disk, AdapterKind::AvioStor, "0,0,0");
    let guest = guest.with(|record| record.storage = vec![disk.clone()]).start();
    let Reply::Idle { idle_ms, .. } = guest.ask(&Request::Idle) else {
        panic!("{}", guest.story())
    };
    assert_eq!(idle_ms.len(), 1, "{idle_ms:?}");
    assert!(idle_ms[0].0 == disk.device.address && idle_ms[0].1 >= 12_000, "{idle_ms:?}");
}
