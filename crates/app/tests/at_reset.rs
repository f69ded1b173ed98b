//! What waits for a guest's reset, on the fake engine: noted, shown, kept over the death of its worker, made, taken back.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use hpvm_app::protocol::*;
use hpvm_app::snapshot::Phase;
use hpvm_host::process::Signal;
use hpvm_model::*;
use hpvm_plan::record::*;
use hpvm_qmp::RunState;
use hpvm_qmp::blocking::Client;
use hpvm_qmp::command::{QueryStatus, SystemReset};

use crate::guest::{Guest, PATIENCE, open, signal};

pub(crate) fn attach(adapter: AdapterPresence, devices: Vec<Attached>) -> DeviceChange {
    let StorageDevice { address, adapter: kind, .. } = devices[0].device;
    DeviceChange::Attach { slot: address.slot, kind, adapter, devices }
}

pub(crate) fn media_of(attached: &Attached) -> Vec<File> {
    vec![open(&attached.device.backing.path)]
}

/// Two disks on one adapter, and what takes the place of the second.
fn with_two_disks(behaviour: &str) -> (Guest, StorageAddress, Attached) {
    let guest = Guest::fake(behaviour);
    let [first, second, mut other] = ["0,1,0", "0,1,1", "0,1,2"]
        .map(|address| guest.device(DeviceKind::Disk, AdapterKind::AvioStor, address));
    let address = second.device.address;
    other.device.address = address;
    let guest = guest.with(|record| record.storage = vec![first, second]).start();
    guest.until_os();
    (guest, address, other)
}

fn detach(address: StorageAddress) -> DeviceChange {
    DeviceChange::Detach { address, consent: Consent::Given }
}

/// It is noted and nothing else; whoever looks after the guest at its reset makes it.
#[test]
fn what_waits_for_the_reset_outlives_its_worker_and_is_made_then() {
    let (guest, address, other) = with_two_disks("boot=os:1000,reboot=7000");
    let media = media_of(&other);
    let changes = vec![detach(address), attach(AdapterPresence::Present, vec![other.clone()])];
    let request = Request::AtReset { changes, watched: Vec::new() };
    let reply = guest.ask_with(&request, &media);
    let results = vec![ChangeResult::Pending, ChangeResult::Pending];
    assert_eq!(reply, Reply::Changed { results }, "{}", guest.story());
    let before = guest.machine();
    assert_eq!((before.storage.len(), before.waiting().count()), (2, 2));
    signal(guest.worker().unwrap(), Signal::KILL);
    guest.until(|snapshot| snapshot.adoptions == 1);
    guest.until_os();
    assert_eq!(guest.machine().pending, before.pending, "known to the next worker");
    guest.wait("the reset", || guest.machine().pending.is_empty());
    let after = guest.machine();
    assert_eq!(after.storage[1], other, "{}", guest.story());
    assert_eq!(after.device_at(address), Some(&other));
    // Address and names are those of the new one.
    let reply = guest.ask(&Request::change(vec![detach(address)]));
    assert_eq!(reply, Reply::Changed { results: vec![ChangeResult::Done] }, "{}", guest.story());
}

/// The disk that comes to its place later would leave instead.
#[test]
fn what_has_left_already_waits_for_no_reset() {
    let (guest, address, other) = with_two_disks("boot=os");
    let done = Reply::Changed { results: vec![ChangeResult::Done] };
    assert_eq!(guest.ask(&Request::change(vec![detach(address)])), done, "{}", guest.story());
    let request = Request::AtReset { changes: vec![detach(address)], watched: Vec::new() };
    assert_eq!(guest.ask(&request), done, "{}", guest.story());
    let media = media_of(&other);
    let comes = Request::change(vec![attach(AdapterPresence::Present, vec![other])]);
    assert_eq!(guest.ask_with(&comes, &media), done, "{}", guest.story());
    assert_eq!(guest.machine().pending, []);
}

/// A guest that has an operating system again keeps its disk: the news of its reset lay about for too long.
#[test]
fn a_reset_that_is_heard_of_late_lets_nothing_go() {
    let (guest, address, _) = with_two_disks("boot=os,reboot=3000");
    let request = Request::AtReset { changes: vec![detach(address)], watched: Vec::new() };
    guest.ask(&request);
    let restarted = || guest.story().contains("the guest restarts");
    guest.wait("the reset", restarted);
    guest.until_os();
    // Nothing is changed while the worker looks whether it is due.
    let elsewhere = "0,2,0".parse().unwrap();
    let nothing = Request::change(vec![DeviceChange::TakeBack { address: elsewhere }]);
    guest.wait("the look to be over", || matches!(guest.ask(&nothing), Reply::Changed { .. }));
    assert_eq!((guest.machine().storage.len(), guest.machine().pending.len()), (2, 1));
    assert!(guest.story().contains("waits for the next one"), "{}", guest.story());
}

/// Nobody hears of it: the worker stands still, and dies without having gone on. The next one sees firmware where that had seen an
/// operating system.
#[test]
fn a_reset_between_two_workers_is_made_use_of() {
    let (guest, address, _) = with_two_disks("boot=os:6000");
    guest.until_os();
    noted(&guest, vec![detach(address)], &[]);
    let worker = guest.worker().unwrap();
    signal(worker, Signal::STOP);
    let mut rescue = Client::connect(&guest.places.run_dir.join("rescue")).unwrap();
    rescue.execute(&SystemReset {}).unwrap();
    signal(worker, Signal::KILL);
    guest.until(|snapshot| snapshot.adoptions == 1);
    guest.wait("it to leave", || guest.machine().device_at(address).is_none());
    assert_eq!(guest.machine().pending, [], "{}", guest.story());
    guest.until_phase(&Phase::Running { occupant: Occupant::Firmware });
    guest.until_os();
}

/// A guest and the device that leaves it, which QEMU has done and has not said yet.
pub(crate) fn what_leaves_at_the_reset(kind: DeviceKind) -> (Guest, StorageAddress) {
    let guest = Guest::fake("boot=firmware,slow=device_del:2000");
    let stays = guest.device(DeviceKind::Disk, AdapterKind::AvioStor, "0,1,0");
    let leaves = guest.device(kind, AdapterKind::AvioStor, "0,1,1");
    let address = leaves.device.address;
    let guest = guest.with(|record| record.storage = vec![stays, leaves]).start();
    guest.until_phase(&Phase::Running { occupant: Occupant::Firmware });
    noted(&guest, vec![detach(address)], &[]);
    let mut rescue = Client::connect(&guest.places.run_dir.join("rescue")).unwrap();
    rescue.execute(&SystemReset {}).unwrap();
    guest.wait("it to leave", || guest.story().contains("device_del is done"));
    (guest, address)
}

/// A reset that comes before it is known what the worker before left half done is made up for.
#[test]
fn what_is_due_while_a_worker_takes_over_is_made_after_that() {
    let guest = Guest::fake("boot=firmware,slow=qom-list:1500");
    let places = ["0,1,0", "0,1,1"];
    let disks = places.map(|at| guest.device(DeviceKind::Disk, AdapterKind::AvioStor, at));
    let address = disks[1].device.address;
    let guest = guest.with(|record| record.storage = disks.into()).start();
    guest.until_phase(&Phase::Running { occupant: Occupant::Firmware });
    noted(&guest, vec![detach(address)], &[]);
    signal(guest.worker().unwrap(), Signal::KILL);
    guest.wait("the next worker's look", || guest.story().contains("qom-list is done"));
    let mut rescue = Client::connect(&guest.places.run_dir.join("rescue")).unwrap();
    rescue.execute(&SystemReset {}).unwrap();
    guest.wait("it to leave", || guest.machine().device_at(address).is_none());
    guest.wait("it to be over", || guest.machine().pending.is_empty());
}

/// Each hears what has become of the guest.
#[test]
fn who_waits_for_what_is_due_hears_of_the_guests_end() {
    let (guest, _) = what_leaves_at_the_reset(DeviceKind::Disk);
    let nothing = DeviceChange::TakeBack { address: "0,2,0".parse().unwrap() };
    let line = serde_json::to_string(&Request::change(vec![nothing])).unwrap() + "\n";
    let mut waits = UnixStream::connect(guest.places.run_dir.join("control")).unwrap();
    waits.write_all(line.as_bytes()).unwrap();
    assert_eq!(guest.ask(&Request::Ping), Reply::Done, "it is heard by now");
    signal(guest.qemu(), Signal::KILL);
    let mut reply = String::new();
    waits.read_to_string(&mut reply).unwrap();
    let reply: Reply = serde_json::from_str(&reply).unwrap();
    assert_eq!(reply, Reply::Denied { reason: Denial::Ended }, "{}", guest.story());
}

/// The disks of a guest with two on one AVIO adapter and one alone on an emulated one; its record knows their files again.
fn with_both_kinds(behaviour: &str) -> (Guest, [Attached; 3]) {
    let guest = Guest::fake(behaviour);
    let places = [
        (AdapterKind::AvioStor, "0,1,0"),
        (AdapterKind::AvioStor, "0,1,1"),
        (AdapterKind::Scsi, "0,2,0"),
    ];
    let disks =
        places.map(|(adapter, place)| known(guest.device(DeviceKind::Disk, adapter, place)));
    let storage = disks.to_vec();
    let guest = guest.with(|record| record.storage = storage).start();
    (guest, disks)
}

pub(crate) fn known(mut disk: Attached) -> Attached {
    disk.identity =
        hpvm_host::identity::of_store(&std::fs::metadata(&disk.device.backing.path).unwrap());
    disk
}

/// What is to take the place of a disk.
pub(crate) fn other(guest: &Guest, disk: &Attached, place: &str) -> Attached {
    let mut other = guest.device(DeviceKind::Disk, disk.device.adapter, place);
    other.device.address = disk.device.address;
    known(other)
}

pub(crate) fn noted(guest: &Guest, changes: Vec<DeviceChange>, comes: &[Attached]) {
    let results = vec![ChangeResult::Pending; changes.len()];
    let media: Vec<File> = comes.iter().flat_map(media_of).collect();
    let reply = guest.ask_with(&Request::AtReset { changes, watched: Vec::new() }, &media);
    assert_eq!(reply, Reply::Changed { results }, "{}", guest.story());
}

/// A slow guest lets the adapter go between two requests of a command, or while the second is carried out: what only waits
/// for the place comes at once, and not at a reset that may be months away.
#[test]
fn what_waits_for_the_place_of_an_adapter_comes_however_late_that_leaves() {
    for behaviour in ["boot=os,delete=3500", "boot=os,delete=4500,slow=add-fd:1000"] {
        let (guest, [_, _, disk]) = with_both_kinds(behaviour);
        guest.until_os();
        let (address, slot) = (disk.device.address, disk.device.address.slot);
        let mut comes = vec![other(&guest, &disk, "0,0,1")];
        let mut beside = guest.device(DeviceKind::Disk, AdapterKind::Scsi, "0,2,1");
        beside.device.address.target = 1;
        comes.push(known(beside));
        let gone = guest.ask(&Request::change(vec![DeviceChange::DetachAdapter { slot }]));
        assert_eq!(gone, Reply::Changed { results: vec![ChangeResult::Pending] });
        if !behaviour.contains("slow") {
            guest.wait("the adapter to leave", || guest.machine().adapter_in(slot).is_none());
        }
        noted(&guest, vec![attach(AdapterPresence::New, comes.clone())], &comes);
        guest
            .wait("what takes its place", || guest.machine().device_at(address) == Some(&comes[0]));
        assert_eq!(guest.machine().pending, [], "{}", guest.story());
    }
}

/// An emulated adapter with many targets has two functions, and the second leaves last.
#[test]
fn what_waits_for_the_place_of_an_adapter_waits_for_all_of_it() {
    let guest = Guest::fake("boot=os,delete=3500,second=1500");
    let disks = ["0,2,0", "0,2,9"];
    let disks = disks.map(|place| known(guest.device(DeviceKind::Disk, AdapterKind::Scsi, place)));
    let storage = disks.to_vec();
    let guest = guest.with(|record| record.storage = storage).start();
    guest.until_os();
    let comes = [other(&guest, &disks[0], "0,0,1"), other(&guest, &disks[1], "0,0,2")];
    let slot = disks[0].device.address.slot;
    guest.ask(&Request::change(vec![DeviceChange::DetachAdapter { slot }]));
    noted(&guest, vec![attach(AdapterPresence::New, comes.to_vec())], &comes);
    guest.wait("it to be over", || guest.machine().pending.is_empty());
    let has = |comes: &Attached| guest.machine().device_at(comes.device.address) == Some(comes);
    assert!(comes.iter().all(has), "{}", guest.story());
}

/// What is made at a reset may take until the guest has its system again, which keeps what it has by then.
#[test]
fn a_system_that_is_up_before_all_is_made_keeps_its_disks() {
    let (guest, [first, second, _]) =
        with_both_kinds("boot=os:1500,reboot=5000,slow=blockdev-del:2500");
    guest.until_os();
    let comes = [other(&guest, &first, "0,0,0"), other(&guest, &second, "0,0,1")];
    for (leaves, comes) in [&first, &second].into_iter().zip(&comes) {
        let come = attach(AdapterPresence::Present, vec![comes.clone()]);
        let changes = vec![come, detach(leaves.device.address)];
        noted(&guest, changes, std::slice::from_ref(comes));
    }
    let place = first.device.address;
    guest.wait("the first", || guest.machine().device_at(place) == Some(&comes[0]));
    guest.until_os();
    // Whatever is still looked at is over when something else is answered.
    let elsewhere = DeviceChange::TakeBack { address: "0,2,9".parse().unwrap() };
    guest.ask(&Request::change(vec![elsewhere]));
    let machine = guest.machine();
    assert_eq!(machine.device_at(second.device.address), Some(&second), "{}", guest.story());
    assert_eq!(machine.comes_at_reset(second.device.address), Some(&comes[1]));
    assert!(machine.leaves_at_reset(second.device.address));
}

/// A worker that dies while it plugs in what waited has held the guest; the next one makes the rest, lets the guest go on and
/// closes what nobody has.
#[test]
fn what_was_half_made_is_made_whole_by_the_next_worker() {
    let (guest, [_, _, disk]) = with_both_kinds("boot=os,slow=device_add:1500");
    guest.until_os();
    let (address, slot) = (disk.device.address, disk.device.address.slot);
    let comes = other(&guest, &disk, "0,0,1");
    guest.ask(&Request::change(vec![DeviceChange::DetachAdapter { slot }]));
    let come = attach(AdapterPresence::New, vec![comes.clone()]);
    let mut rescue = Client::connect(&guest.places.run_dir.join("rescue")).unwrap();
    noted(&guest, vec![come], std::slice::from_ref(&comes));
    guest.wait("half of it", || guest.story().contains("device_add is done"));
    let mut events = std::iter::from_fn(|| rescue.next_event(PATIENCE).unwrap());
    assert!(events.any(|event| event.name == "STOP"), "it is held\n{}", guest.story());
    let mut is_held = || rescue.execute(&QueryStatus {}).unwrap().status == RunState::Paused;
    signal(guest.worker().unwrap(), Signal::KILL);
    guest.until(|snapshot| snapshot.adoptions == 1);
    guest.wait("the rest", || guest.machine().device_at(address) == Some(&comes));
    guest.wait("the guest to go on", || !is_held());
    guest.until_os();
    assert_eq!(guest.machine().pending, [], "{}", guest.story());
}

/// One of several that come together is taken back: the others wait on, and their stores stay the guest's.
#[test]
fn what_is_taken_back_leaves_the_others_waiting() {
    let (guest, [_, _, disk]) = with_both_kinds("boot=firmware");
    guest.until_phase(&Phase::Running { occupant: Occupant::Firmware });
    let slot = disk.device.address.slot;
    let mut beside = known(guest.device(DeviceKind::Disk, AdapterKind::Scsi, "0,2,1"));
    beside.device.address.target = 1;
    let comes = [other(&guest, &disk, "0,0,1"), beside];
    guest.ask(&Request::change(vec![DeviceChange::DetachAdapter { slot }]));
    noted(&guest, vec![attach(AdapterPresence::New, comes.to_vec())], &comes);
    let back = DeviceChange::TakeBack { address: disk.device.address };
    let reply = guest.ask(&Request::change(vec![back]));
    assert_eq!(reply, Reply::Changed { results: vec![ChangeResult::Done] }, "{}", guest.story());
    let held = |attached: &Attached| is_open_in(guest.qemu(), &attached.device.backing.path);
    assert!(!held(&comes[0]) && held(&comes[1]), "{}", guest.story());
    assert_eq!(guest.machine().comes_at_reset(comes[1].device.address), Some(&comes[1]));
}

pub(crate) fn is_open_in(pid: i32, path: &str) -> bool {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let mut files = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    files.any(|file| file.as_os_str() == path)
}

/// Whoever is interrupted between asking to take back and closing: the next worker closes what nobody has any more.
#[test]
fn what_a_dead_worker_left_open_is_closed() {
    let (guest, [first, ..]) = with_both_kinds("boot=os,slow=blockdev-del:2000");
    guest.until_os();
    let comes = other(&guest, &first, "0,0,0");
    let come = attach(AdapterPresence::Present, vec![comes.clone()]);
    let changes = vec![come, detach(first.device.address)];
    noted(&guest, changes, std::slice::from_ref(&comes));
    assert!(is_open_in(guest.qemu(), &comes.device.backing.path));
    let back = Request::change(vec![DeviceChange::TakeBack { address: first.device.address }]);
    std::thread::scope(|scope| {
        scope.spawn(|| guest.try_ask(&back, &[]));
        let asked = || {
            guest
                .machine()
                .pending
                .iter()
                .any(|p| matches!(p.change, DeviceChange::TakeBack { .. }))
        };
        guest.wait("it to be asked", asked);
        signal(guest.worker().unwrap(), Signal::KILL);
    });
    guest.until(|snapshot| snapshot.adoptions == 1);
    guest.wait("it to be closed", || !is_open_in(guest.qemu(), &comes.device.backing.path));
    assert_eq!(guest.machine().pending, [], "{}", guest.story());
}

/// A disk that came after the start is not mistaken for the one that was there before.
#[test]
fn the_next_worker_watches_no_store_that_the_guest_has_no_more() {
    let (guest, [first, second, _]) = with_both_kinds("boot=os");
    guest.until_os();
    let comes = other(&guest, &first, "0,0,0");
    let change =
        vec![detach(first.device.address), attach(AdapterPresence::Present, vec![comes.clone()])];
    let reply = guest.ask_with(&Request::change(change), &media_of(&comes));
    assert_eq!(reply, Reply::Changed { results: vec![ChangeResult::Done; 2] }, "{}", guest.story());
    signal(guest.worker().unwrap(), Signal::KILL);
    guest.until(|snapshot| snapshot.adoptions == 1);
    guest.until_os();
    let told = |disk: &Attached| {
        guest.story().contains(&format!(
            "'{}' at {} is not watched",
            disk.device.backing.path, disk.device.address
        ))
    };
    guest.wait("it to be told", || told(&comes));
    assert!(!told(&second) && !told(&first), "{}", guest.story());
    let notes = || guest.snapshot().unwrap().notes;
    guest.wait("it to be shown", || notes().len() == 1);
    guest.ask(&Request::change(vec![detach(comes.device.address)]));
    assert_eq!(notes(), [] as [String; 0], "it has left");
}

/// Whoever looks after the guest by then, and no longer than the guest has it.
#[test]
fn what_came_to_the_running_guest_is_watched_by_all_workers() {
    let (guest, [first, ..]) = with_both_kinds("boot=os");
    guest.until_os();
    let comes = other(&guest, &first, "0,0,0");
    let path = comes.device.backing.path.clone();
    let changes =
        vec![detach(first.device.address), attach(AdapterPresence::Present, vec![comes.clone()])];
    let mut brought = media_of(&comes);
    brought.push(File::open(&path).unwrap());
    let request = Request::Change { changes, watched: vec![comes.device.address] };
    let reply = guest.ask_with(&request, &brought);
    assert_eq!(reply, Reply::Changed { results: vec![ChangeResult::Done; 2] }, "{}", guest.story());
    guest.wait("the keeper to have it", || is_open_in(guest.keeper(), &path));
    for (adoptions, of_keeper) in [(1, false), (2, true), (3, false)] {
        let ends = if of_keeper { guest.keeper() } else { guest.worker().unwrap() };
        signal(ends, Signal::KILL);
        guest.until(|snapshot| snapshot.adoptions == adoptions);
        guest.until_os();
        guest.wait("it to have it", || {
            guest.worker().is_some_and(|worker| is_open_in(worker, &path))
        });
        assert!(is_open_in(guest.keeper(), &path), "and its keeper");
    }
    let before = guest.beat();
    guest.wait("the heart to beat", || guest.beat() > before);
    assert!(!guest.story().contains("is not watched"), "{}", guest.story());
    let reply = guest.ask(&Request::change(vec![detach(comes.device.address)]));
    assert_eq!(reply, Reply::Changed { results: vec![ChangeResult::Done] }, "{}", guest.story());
    assert!(!is_open_in(guest.worker().unwrap(), &path), "it has left");
    guest.wait("the keeper to close it", || !is_open_in(guest.keeper(), &path));
}

/// The next worker finds out late that the guest has it.
#[test]
fn what_a_dying_worker_brought_is_watched_or_said_not_to_be() {
    std::thread::scope(|scope| {
        scope.spawn(|| a_dying_worker_brings(true));
        scope.spawn(|| a_dying_worker_brings(false));
    });
}

fn a_dying_worker_brings(is_watched: bool) {
    let (guest, _) = with_both_kinds("boot=os,slow=device_add:3000");
    guest.until_os();
    let comes = known(guest.device(DeviceKind::Disk, AdapterKind::AvioStor, "0,1,2"));
    let path = comes.device.backing.path.clone();
    let mut brought = media_of(&comes);
    if is_watched {
        brought.push(File::open(&path).unwrap());
    }
    let watched = brought.iter().skip(1).map(|_| comes.device.address).collect();
    let changes = vec![attach(AdapterPresence::Present, vec![comes.clone()])];
    let request = Request::Change { changes, watched };
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| guest.try_ask(&request, &brought));
        guest.wait("QEMU to have it", || guest.story().contains("device_add is done"));
        signal(guest.worker().unwrap(), Signal::KILL);
        assert!(asking.join().unwrap().is_err(), "nobody was left to answer");
    });
    guest.until(|snapshot| snapshot.adoptions == 1);
    guest.wait("the change to be settled", || guest.machine().pending.is_empty());
    assert_eq!(guest.machine().device_at(comes.device.address), Some(&comes));
    // Settled at one beat, looked at by the next.
    for _ in 0..2 {
        let before = guest.beat();
        guest.wait("the heart to beat", || guest.beat() > before);
    }
    let notes = || guest.snapshot().unwrap().notes.len();
    guest.wait("it to be told, if it is not watched", || is_watched || notes() > 0);
    for process in [guest.worker().unwrap(), guest.keeper()] {
        assert_eq!(is_open_in(process, &path), is_watched, "{}", guest.story());
    }
    assert_eq!(notes(), usize::from(!is_watched));
}

#[test]
fn what_waits_for_the_reset_is_taken_back_or_made_earlier() {
    let (guest, address, other) = with_two_disks("boot=os");
    let media = media_of(&other);
    let comes = attach(AdapterPresence::Present, vec![other.clone()]);
    for earlier in [false, true] {
        let changes = vec![detach(address), comes.clone()];
        let request = Request::AtReset { changes, watched: Vec::new() };
        guest.ask_with(&request, &media);
        assert_eq!(guest.machine().waiting().count(), 2);
        let back = DeviceChange::TakeBack { address };
        let changes = match earlier {
            false => vec![back],
            true => vec![back, detach(address), comes.clone()],
        };
        let descriptors = if earlier { &media[..] } else { &[] };
        let done = vec![ChangeResult::Done; changes.len()];
        let reply = guest.ask_with(&Request::change(changes), descriptors);
        assert_eq!(reply, Reply::Changed { results: done }, "{}", guest.story());
        assert_eq!(guest.machine().pending, []);
        assert_eq!(guest.machine().device_at(address) == Some(&other), earlier);
    }
}
