//! What waits for a guest's reset, on the fake engine: noted, shown, kept over the death of its worker, made, taken back.

mod guest;

use std::fs::File;

use guest::{Guest, open, signal};
use hpvm_app::protocol::*;
use hpvm_host::process::Signal;
use hpvm_model::*;
use hpvm_plan::record::*;

fn attach(adapter: AdapterPresence, devices: Vec<Attached>) -> DeviceChange {
    let StorageDevice { address, adapter: kind, .. } = devices[0].device;
    DeviceChange::Attach { slot: address.slot, kind, adapter, devices }
}

fn media_of(attached: &Attached) -> Vec<File> {
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
