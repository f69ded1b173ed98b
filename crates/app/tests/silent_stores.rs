//! What a worker does while a store of its guest is silent, on the fake engine, which hangs as QEMU does when it is asked for
//! anything that touches a store.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hpvm_app::protocol::*;
use hpvm_app::snapshot::*;
use hpvm_host::process::Signal;
use hpvm_model::*;
use hpvm_plan::command_line::node_id;
use hpvm_plan::record::*;
use hpvm_qmp::blocking::Client as Rescue;
use hpvm_qmp::command::{Cont, QueryNodes, Stop, SystemReset};

use crate::at_reset::{attach, known, noted, other};
use crate::guest::{Guest, signal};

/// From the first silence to the denial, with room for a busy machine; what is denied then waits no more.
const DENIED_WITHIN: Duration = Duration::from_secs(10);
const AT_ONCE: Duration = Duration::from_secs(1);

/// A guest with two disks on one AVIO adapter, the first of which is silent while a file is there, and one on an emulated one.
struct Beside {
    guest: Guest,
    disks: [Attached; 3],
    silent: PathBuf,
    _folder: tempfile::TempDir,
}

impl Beside {
    fn start(behaviour: &str) -> Beside {
        let folder = tempfile::tempdir().unwrap();
        let silent = folder.path().join("silent");
        let guest = Guest::fake(&format!("{behaviour},requests=stuck-while:{}", silent.display()));
        let avio = AdapterKind::AvioStor;
        let places = [(avio, "0,1,0"), (avio, "0,1,1"), (AdapterKind::Scsi, "0,2,0")];
        let disks = places.map(|(kind, place)| known(guest.device(DeviceKind::Disk, kind, place)));
        let storage = disks.to_vec();
        let guest = guest.with(|record| record.storage = storage).start();
        guest.until_os();
        Beside { guest, disks, silent, _folder: folder }
    }

    fn falls_silent(&self) {
        File::create(&self.silent).unwrap();
        self.guest.until(|snapshot| !snapshot.silent_stores.is_empty());
    }

    fn answers_again(&self) {
        fs::remove_file(&self.silent).unwrap();
        self.guest.until(|snapshot| snapshot.silent_stores.is_empty());
    }

    /// Whoever looks, sees it silent, and QEMU and its guest go on.
    #[track_caller]
    fn goes_on(&self, beats: u32) {
        self.stays_silent(beats);
        self.never_hung();
    }

    #[track_caller]
    fn stays_silent(&self, beats: u32) {
        for _ in 0..beats {
            let before = self.guest.beat();
            self.guest.wait("the heart to beat", || self.guest.beat() > before);
            let snapshot = self.guest.snapshot().unwrap();
            assert!(!snapshot.silent_stores.is_empty(), "{}", self.guest.story());
        }
    }

    #[track_caller]
    fn never_hung(&self) {
        let story = self.guest.story();
        assert!(!story.contains("QEMU does not answer"), "{story}");
    }

    #[track_caller]
    fn denies(&self, request: &Request, within: Duration) {
        let began = Instant::now();
        let reply = self.guest.ask(request);
        let took = began.elapsed();
        let Reply::Denied { reason: Denial::SilentStore { store } } = &reply else {
            panic!("{reply:?}\n{}", self.guest.story())
        };
        let path = &self.disks[0].device.backing.path;
        assert!(store.contains(&format!("'{path}', which backs the disk at 0,1,0")), "{store}");
        assert!(took < within, "{took:?}");
    }
}

fn detach(disk: &Attached) -> Request {
    let (address, consent) = (disk.device.address, Consent::Given);
    Request::change(vec![DeviceChange::Detach { address, consent }])
}

#[test]
fn what_touches_a_store_is_denied_and_the_guest_goes_on() {
    let beside = Beside::start("boot=os");
    beside.falls_silent();
    beside.denies(&detach(&beside.disks[1]), DENIED_WITHIN);
    beside.denies(&Request::Idle, AT_ONCE);
    beside.denies(&Request::Copy { disks: Vec::new(), targets: Vec::new() }, AT_ONCE);
    let slot = beside.disks[2].device.address.slot;
    let adapter = DeviceChange::DetachAdapter { slot };
    beside.denies(&Request::AtReset { changes: vec![adapter], watched: Vec::new() }, AT_ONCE);
    let link = DeviceChange::LinkNics { slots: Vec::new(), link: Link::Up };
    let reply = beside.guest.ask(&Request::change(vec![link]));
    assert_eq!(reply, Reply::Changed { results: vec![ChangeResult::Done] });
    assert!(matches!(
        beside.guest.ask(&Request::Counters { from_zero: Vec::new() }),
        Reply::Counted { .. }
    ));
    beside.never_hung();
    assert_eq!(beside.guest.machine().storage.len(), 3);

    beside.answers_again();
    let reply = beside.guest.ask(&detach(&beside.disks[1]));
    assert_eq!(reply, Reply::Changed { results: vec![ChangeResult::Done] });
}

/// A store that only hesitates fails no command.
#[test]
fn what_touches_a_store_that_hesitates_is_done_when_it_answers() {
    let beside = Beside::start("boot=os");
    beside.falls_silent();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| beside.guest.ask(&detach(&beside.disks[1])));
        beside.guest.wait("it to wait", || beside.guest.story().contains("a request waits for"));
        beside.answers_again();
        let reply = asked.join().unwrap();
        assert_eq!(reply, Reply::Changed { results: vec![ChangeResult::Done] });
    });
    beside.never_hung();
}

/// It looks at the machine, and takes copies back, as soon as it has QEMU; and what it knows of stores it knows from the one
/// before it at first.
#[test]
fn the_next_worker_knows_which_store_is_silent() {
    let beside = Beside::start("boot=os");
    beside.falls_silent();
    for adoptions in 1..=2 {
        signal(beside.guest.worker().unwrap(), Signal::KILL);
        beside.guest.until(|snapshot| snapshot.adoptions == adoptions);
        beside.denies(&Request::Idle, DENIED_WITHIN);
    }
    beside.goes_on(2);
    beside.answers_again();
    assert!(matches!(beside.guest.ask(&Request::Idle), Reply::Idle { .. }));
    let told = beside.guest.story().matches("answers again").count();
    assert_eq!(told, 1, "{}", beside.guest.story());
}

/// Which requests wait QEMU alone can tell: until it has, what the worker before knew holds, and QEMU is asked for nothing else.
#[test]
fn the_next_worker_knows_it_however_late_qemu_answers() {
    let beside = Beside::start("boot=os");
    beside.falls_silent();
    let guest = &beside.guest;
    signal(guest.qemu(), Signal::STOP);
    signal(guest.worker().unwrap(), Signal::KILL);
    guest.until(|snapshot| snapshot.adoptions == 1 && snapshot.unresponsive_since.is_some());
    signal(guest.qemu(), Signal::CONT);
    guest.until(|snapshot| snapshot.unresponsive_since.is_none());
    beside.stays_silent(6);
    let hung = guest.story().matches("QEMU does not answer").count();
    assert_eq!(hung, 1, "it was stopped once: {}", guest.story());
}

/// The guest lets an adapter go beside a silent store, long after it was asked to. What was on it is closed, and what waits for
/// its place comes, when the store answers, whoever looks after the guest by then.
#[test]
fn what_finds_its_place_beside_a_silent_store_comes_when_that_answers() {
    std::thread::scope(|scope| {
        scope.spawn(|| place_is_found(None));
        scope.spawn(|| place_is_found(Some(Signal::KILL)));
    });
}

/// What QEMU has open for the device at an address.
fn nodes_at(guest: &Guest, address: StorageAddress) -> usize {
    let mut rescue = Rescue::connect(&guest.places.run_dir.join("rescue")).unwrap();
    let prefix = node_id(address, 0);
    let nodes = rescue.execute(&QueryNodes { flat: true }).unwrap();
    nodes.iter().filter(|n| n.node_name.as_ref().is_some_and(|n| n.starts_with(&prefix))).count()
}

fn place_is_found(worker_ends: Option<Signal>) {
    let beside = Beside::start("boot=os,delete=12000");
    let (guest, leaves) = (&beside.guest, &beside.disks[2]);
    let (address, slot) = (leaves.device.address, leaves.device.address.slot);
    let gone = guest.ask(&Request::change(vec![DeviceChange::DetachAdapter { slot }]));
    assert_eq!(gone, Reply::Changed { results: vec![ChangeResult::Pending] });
    let comes = other(guest, leaves, "0,0,1");
    noted(
        guest,
        vec![attach(AdapterPresence::New, vec![comes.clone()])],
        std::slice::from_ref(&comes),
    );
    beside.falls_silent();
    guest.wait("the adapter to leave", || guest.machine().adapter_in(slot).is_none());
    beside.goes_on(2);
    if let Some(ends) = worker_ends {
        signal(guest.worker().unwrap(), ends);
        guest.until(|snapshot| snapshot.adoptions == 1);
        beside.goes_on(2);
    }
    assert_eq!(guest.machine().device_at(address), None);

    beside.answers_again();
    guest.wait("what takes its place", || guest.machine().device_at(address) == Some(&comes));
    guest.wait("what left to be closed", || nodes_at(guest, address) == 1);
    guest.until_os();
    assert_eq!(guest.machine().pending, [], "{}", guest.story());
    beside.never_hung();
}

/// A store hangs what the guest asked for. Whatever QEMU does meanwhile, nobody is told that it answers before it does.
#[test]
fn a_silence_lasts_while_the_guest_is_held_and_while_qemu_hangs() {
    let guest = Guest::fake("requests=stuck:1");
    let disk = guest.device(DeviceKind::Disk, AdapterKind::AvioStor, "0,0,1");
    let guest = guest.with(|record| record.storage.push(disk)).start();
    let (_, took) = guest.until(|snapshot| !snapshot.silent_stores.is_empty());
    println!("shown after {took:?}");
    let log = || fs::read_to_string(guest.path("log")).unwrap();
    let told = "which backs the disk at 0,0,1, answers again";
    let heart_beats = || {
        for _ in 0..2 {
            let before = guest.beat();
            guest.wait("the heart to beat", || guest.beat() > before);
            assert_eq!(guest.snapshot().unwrap().silent_stores.len(), 1, "{}", guest.story());
        }
    };
    let mut rescue = Rescue::connect(&guest.places.run_dir.join("rescue")).unwrap();

    rescue.execute(&Stop {}).unwrap();
    guest.until(|snapshot| matches!(snapshot.phase, Phase::Paused { .. }));
    heart_beats();
    rescue.execute(&Cont {}).unwrap();
    guest.until(|snapshot| matches!(snapshot.phase, Phase::Running { .. }));
    heart_beats();

    signal(guest.qemu(), Signal::STOP);
    guest.until(|snapshot| snapshot.unresponsive_since.is_some());
    heart_beats();
    signal(guest.qemu(), Signal::CONT);
    guest.until(|snapshot| snapshot.unresponsive_since.is_none());
    heart_beats();
    assert!(!log().contains(told), "{}", guest.story());

    // Nothing is under way then.
    rescue.execute(&SystemReset {}).unwrap();
    guest.until(|snapshot| snapshot.silent_stores.is_empty());
    assert!(log().contains(told), "{}", guest.story());
    guest.stop();
}
