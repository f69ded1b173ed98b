//! The worker with its keeper, on the fake engine: real processes, real signals, no machine.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use hpvm_app::client::{self, ClientError};
use hpvm_app::protocol::*;
use hpvm_app::snapshot::*;
use hpvm_host::process::Signal;
use hpvm_model::*;
use hpvm_plan::record::*;
use hpvm_qmp::blocking::Client as Rescue;
use hpvm_qmp::command::{Cont, Quit, Stop, SystemReset};

use crate::guest::{Guest, PATIENCE, open, signal};

fn ended(how: Ending) -> Phase {
    Phase::Ended { how }
}

fn crashed(cause: Crash) -> Phase {
    ended(Ending::Crashed { cause })
}

const HARD: Request = Request::Stop { how: StopHow::Hard };

fn graceful(seconds_max: u32) -> Request {
    Request::Stop { how: StopHow::Graceful { seconds_max } }
}

#[test]
fn a_guest_starts_is_seen_and_is_stopped() {
    let guest = Guest::fake("").start();
    let snapshot = guest.snapshot().expect("published before the start was told");
    assert!(matches!(snapshot.phase, Phase::Running { .. }), "{snapshot:?}");
    assert_eq!(snapshot.adoptions, 0);
    guest.until_os();
    let before = guest.beat();
    guest.wait("the heart to beat", || guest.beat() > before);
    assert_eq!(guest.ask(&Request::Ping), Reply::Done);
    let began = Instant::now();
    guest.stop();
    println!("stopped after {:?}", began.elapsed());
    assert_eq!(guest.snapshot().unwrap().phase, ended(Ending::StoppedHard), "told when it is so");
    guest.until_gone();
    println!("all gone after {:?}", began.elapsed());
}

#[test]
fn a_start_that_fails_says_why() {
    let guest = Guest::fake("refuse=could not open the disk");
    let error = guest.try_start().expect_err("it was refused").to_string();
    assert!(error.contains("could not open the disk"), "{error}");
    guest.until_gone();
    let Phase::Ended { how: Ending::FailedToStart { error } } = guest.snapshot().unwrap().phase
    else {
        panic!("{}", guest.story());
    };
    assert!(error.contains("could not open the disk"), "{error}");
}

/// Whatever somebody does to the status file, it is right again within three beats of the heart.
#[test]
fn a_status_file_that_is_damaged_is_published_again() {
    let guest = Guest::fake("boot=os").start();
    guest.until_os();
    let status = guest.places.run_dir.join("status");
    let good = guest.snapshot().unwrap();
    let damages: [fn(&Path); 5] = [
        |status| File::options().write(true).open(status).unwrap().set_len(30).unwrap(),
        |status| fs::write(status, "").unwrap(),
        |status| fs::remove_file(status).unwrap(),
        |status| {
            let length = fs::metadata(status).unwrap().len();
            fs::write(status, vec![b'x'; usize::try_from(length).unwrap()]).unwrap();
        },
        |status| {
            fs::remove_file(status).unwrap();
            fs::write(status, "another's").unwrap();
        },
    ];
    for damage in damages {
        damage(&status);
        assert_eq!(guest.snapshot(), None);
        let (again, took) = guest.until(|_| true);
        assert!(took < Duration::from_secs(3), "{took:?}");
        assert_eq!(again, good);
        let before = guest.beat();
        guest.wait("the heart to beat", || guest.beat() > before);
    }
    guest.stop();
}

#[test]
fn a_killed_worker_is_replaced_and_nothing_else_changes() {
    let guest = Guest::fake("boot=os").start();
    guest.until_os();
    let (worker, before) = (guest.worker().unwrap(), guest.snapshot().unwrap());
    signal(worker, Signal::KILL);
    let (after, took) = guest.until(|snapshot| snapshot.adoptions == 1);
    assert!(took < Duration::from_secs(2), "{took:?}");
    guest.until_os();
    assert_eq!((after.qemu, &after.since), (before.qemu, &before.since));
    assert_ne!(guest.worker(), Some(worker));
    guest.wait("the next worker to answer", || guest.try_ask(&Request::Ping, &[]).is_ok());
    guest.stop();
}

#[test]
fn a_killed_keeper_is_replaced_and_the_guest_runs_on() {
    let guest = Guest::fake("").start();
    guest.until_os();
    let (keeper, before) = (guest.keeper(), guest.snapshot().unwrap());
    let began = Instant::now();
    signal(keeper, Signal::KILL);
    guest.until(|snapshot| snapshot.adoptions == 1);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    guest.until_os();
    assert_ne!(guest.keeper(), keeper);
    assert_eq!(guest.snapshot().unwrap().qemu, before.qemu);
    guest.wait("the next worker to answer", || guest.try_ask(&Request::Ping, &[]).is_ok());
    guest.stop();
    assert_eq!(guest.snapshot().unwrap().phase, ended(Ending::StoppedHard));
    guest.until_gone();
}

#[test]
fn keeper_and_worker_are_replaced_as_often_as_they_die() {
    let guest = Guest::fake("").start();
    for round in 1..=3 {
        let (victim, count) = match round {
            2 => (guest.worker().unwrap(), round),
            _ => (guest.keeper(), round),
        };
        signal(victim, Signal::KILL);
        guest.until(|snapshot| snapshot.adoptions == count);
        guest.until(|snapshot| matches!(snapshot.phase, Phase::Running { .. }));
    }
    guest.wait("an answer", || guest.try_ask(&Request::Ping, &[]).is_ok());
    guest.stop();
}

#[test]
fn a_killed_qemu_is_a_crash_with_its_signal() {
    let guest = Guest::fake("").start();
    signal(guest.qemu(), Signal::KILL);
    let took = guest.until_phase(&crashed(Crash::Killed { signal: 9 }));
    println!("shown after {took:?}");
    guest.until_gone();
}

#[test]
fn a_qemu_that_aborts_is_a_crash_with_its_signal() {
    let guest = Guest::fake("crash=300").start();
    guest.until_phase(&crashed(Crash::Killed { signal: 6 }));
}

#[test]
fn a_qemu_without_its_keeper_ends_unseen() {
    let guest = Guest::fake("").start();
    signal(guest.keeper(), Signal::KILL);
    guest.until(|snapshot| snapshot.adoptions == 1);
    guest.wait("the next worker to answer", || guest.try_ask(&Request::Ping, &[]).is_ok());
    signal(guest.qemu(), Signal::KILL);
    guest.until_phase(&crashed(Crash::Unseen));
    guest.until_gone();
}

#[test]
fn a_qemu_that_stands_still_is_shown_so_until_it_answers() {
    let guest = Guest::fake("").start();
    guest.until_os();
    signal(guest.qemu(), Signal::STOP);
    let (_, took) = guest.until(|snapshot| snapshot.unresponsive_since.is_some());
    assert!(took < Duration::from_secs(5), "{took:?}");
    let reply = guest.ask(&Request::change(Vec::new()));
    assert_eq!(reply, Reply::Denied { reason: Denial::Unresponsive });
    signal(guest.qemu(), Signal::CONT);
    guest.until(|snapshot| snapshot.unresponsive_since.is_none());
    signal(guest.qemu(), Signal::STOP);
    assert_eq!(guest.ask(&HARD), Reply::Done, "a hard stop needs no answer of QEMU");
}

#[test]
fn a_guest_that_goes_along_is_stopped_gracefully() {
    let guest = Guest::fake("powerdown=off:300").start();
    guest.until_os();
    assert_eq!(guest.ask(&graceful(15)), Reply::Done);
    assert_eq!(guest.snapshot().unwrap().phase, ended(Ending::StoppedGracefully));
}

/// QEMU may take its time for its end, and is not asked anything meanwhile.
#[test]
fn a_qemu_that_was_told_to_end_is_left_alone() {
    let guest = Guest::fake("end=1200").start();
    guest.until_os();
    assert_eq!(guest.ask(&graceful(15)), Reply::Done);
    assert_eq!(guest.snapshot().unwrap().phase, ended(Ending::StoppedGracefully));
    let story = guest.story();
    assert!(story.contains("ended with status 0"), "{story}");
}

/// By a signal of somebody else it ends in order too. Who takes over meanwhile knows why it ends.
#[test]
fn a_qemu_that_somebody_ends_by_a_signal_is_on_its_way_out() {
    let is_followed = |is_followed: bool| {
        let guest = Guest::fake("end=4000").start();
        guest.until_os();
        signal(guest.qemu(), Signal::TERM);
        let words = format!("terminating on signal 15 from pid {} (fake)", std::process::id());
        let cause = Crash::Told { reason: "host-signal".into(), words };
        let decided = Some(Ending::Crashed { cause: cause.clone() });
        let stopping = Phase::Stopping { occupant: Occupant::Os };
        guest.until(|snapshot| snapshot.phase == stopping && snapshot.decided == decided);
        if is_followed {
            signal(guest.worker().unwrap(), Signal::KILL);
            guest.until(|snapshot| snapshot.adoptions == 1 && snapshot.phase == stopping);
        }
        guest.until_phase(&crashed(cause));
        let story = guest.story();
        assert!(!story.contains("does not answer"), "{story}");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| is_followed(false));
        scope.spawn(|| is_followed(true));
    });
}

/// It hangs in its end, and whoever waits for the start hears that it has failed.
#[test]
fn a_qemu_that_somebody_ends_by_a_signal_while_it_starts_is_killed() {
    let guest = Guest::fake("slow=query-status:3000,end=60000");
    std::thread::scope(|scope| {
        let starts = scope.spawn(|| guest.try_start());
        let (snapshot, _) = guest.until(|snapshot| snapshot.phase == Phase::Starting);
        guest.wait("QEMU to be asked", || guest.story().contains("query-status is done"));
        signal(snapshot.qemu.pid, Signal::TERM);
        let error = starts.join().unwrap().expect_err("it was ended").to_string();
        assert!(error.contains("terminating on signal 15"), "{error}\n{}", guest.story());
    });
    let Phase::Ended { how } = guest.snapshot().unwrap().phase else { panic!() };
    assert!(matches!(how, Ending::FailedToStart { .. }), "{how:?}");
    guest.until_gone();
}

/// As by a hard stop that took the worker for hanging.
#[test]
fn a_qemu_that_is_told_to_quit_past_its_worker_was_stopped_hard() {
    let guest = Guest::fake("end=4000").start();
    guest.until_os();
    let mut rescue = Rescue::connect(&guest.places.run_dir.join("rescue")).unwrap();
    rescue.execute(&Quit {}).unwrap();
    guest.until_phase(&ended(Ending::StoppedHard));
    assert!(!guest.story().contains("from outside"), "{}", guest.story());
}

#[test]
fn a_guest_without_an_os_says_so() {
    let guest = Guest::fake("boot=firmware").start();
    assert_eq!(guest.ask(&graceful(3)), Reply::NotStopped { why: NotStopped::NoOs });
    guest.until_phase(&Phase::Running { occupant: Occupant::Firmware });
}

#[test]
fn a_press_lost_in_firmware_is_repeated() {
    let guest = Guest::fake("boot=os:1500").start();
    assert_eq!(guest.ask(&graceful(15)), Reply::Done);
}

#[test]
fn a_guest_that_switches_itself_off_ends_in_order() {
    let guest = Guest::fake("off=500").start();
    guest.until_phase(&ended(Ending::PoweredOff));
    guest.until_gone();
}

#[test]
fn a_restart_inside_the_guest_is_no_stop() {
    let guest = Guest::fake("reboot=500,boot=os:100").start();
    guest.wait("the restart to be noticed", || guest.story().contains("the guest restarts"));
    guest.until_os();
}

#[test]
fn junk_is_no_request() {
    let guest = Guest::fake("").start();
    for line in ["\n", "{}\n", "{\"request\":\"dance\"}\n", "\u{0}\n"] {
        assert!(guest.ask_raw(line).contains("not_understood"), "{line:?}");
    }
}

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
    let leaves = DeviceChange::Detach { address, consent: Consent::OfAgent };
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

/// A guest with an agent of this sort and two disks on one adapter, of which the second was just used.
fn with_agent(behaviour: &str) -> (Guest, StorageAddress) {
    let guest = Guest::fake(&format!("idle=0,{behaviour}"));
    let disks = ["0,1,0", "0,1,1"]
        .map(|address| guest.device(DeviceKind::Disk, AdapterKind::AvioStor, address));
    let address = disks[1].device.address;
    let guest = guest.with(|record| record.storage = disks.into()).start();
    (guest, address)
}

/// Asks for the disk to leave with the agent's consent; how that went, and how long it took.
fn leaves(guest: &Guest, address: StorageAddress) -> (ChangeResult, Duration) {
    let began = Instant::now();
    let changes = vec![DeviceChange::Detach { address, consent: Consent::OfAgent }];
    let reply = guest.ask(&Request::change(changes));
    let Reply::Changed { mut results } = reply else { panic!("{reply:?}\n{}", guest.story()) };
    (results.remove(0), began.elapsed())
}

#[test]
fn an_agent_that_answers_is_shown_and_lets_a_disk_go_at_once() {
    let (guest, address) = with_agent("agent=answers");
    let (snapshot, _) = guest.until(|snapshot| matches!(snapshot.agent, Agent::Answers { .. }));
    let (result, took) = leaves(&guest, address);
    assert_eq!(result, ChangeResult::Done, "{}", guest.story());
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(guest.machine().storage.len(), 1);

    // The next worker finds the port open, and an agent that has answered all the time.
    signal(guest.worker().unwrap(), Signal::KILL);
    guest.until(|next| next.adoptions == 1 && next.agent == snapshot.agent);
    let log = std::fs::read_to_string(guest.path("log")).unwrap();
    assert_eq!(log.matches("the guest agent answers").count(), 1, "{log}");
}

#[test]
fn an_agent_goes_with_its_system() {
    let (guest, _) = with_agent("agent=answers,boot=os:200,reboot=1500");
    guest.until(|snapshot| matches!(snapshot.agent, Agent::Answers { .. }));
    guest.until(|snapshot| snapshot.agent == Agent::Absent);
    guest.until(|snapshot| matches!(snapshot.agent, Agent::Answers { .. }));
}

#[test]
fn a_disk_in_use_stays_and_the_guest_says_why() {
    let (guest, address) = with_agent("agent=busy:/dev/sdc is mounted on /data");
    guest.until(|snapshot| matches!(snapshot.agent, Agent::Answers { .. }));
    let (result, _) = leaves(&guest, address);
    let ChangeResult::Failed { error } = &result else { panic!("{result:?}") };
    assert!(error.contains("/dev/sdc is mounted on /data"), "{error}");
    assert_eq!(guest.machine().storage.len(), 2);
    assert!(matches!(guest.snapshot().unwrap().agent, Agent::Answers { .. }), "it answered");
}

/// Without an agent that helps the rule without one holds, and is told with its reason.
#[test]
fn who_cannot_be_asked_is_waited_for() {
    for (agent, bound, reason) in [
        ("agent=cannot", 2, "guest-exec has been disabled"),
        ("agent=silent", 5, "did not answer"),
        ("agent=junk", 5, "the guest agent"),
        ("boot=os", 5, "did not answer"),
    ] {
        let (guest, address) = with_agent(agent);
        guest.until_os();
        let (result, took) = leaves(&guest, address);
        let ChangeResult::Waits { reason: told } = &result else {
            panic!("{agent}: {result:?}\n{}", guest.story())
        };
        assert!(told.contains(reason) && told.contains("the disk had I/O 0 s ago"), "{told}");
        assert!(took < Duration::from_secs(bound + 5), "{agent}: {took:?}");
        assert_eq!((guest.machine().storage.len(), guest.machine().pending.len()), (2, 0));
        guest.stop();
    }
}

#[test]
fn a_silent_agent_is_shown_so_and_delays_nothing_else() {
    for agent in ["agent=silent", "agent=junk"] {
        let (guest, _) = with_agent(agent);
        guest.until_os();
        for _ in 0..20 {
            let began = Instant::now();
            assert_eq!(guest.ask(&Request::Ping), Reply::Done);
            assert!(matches!(guest.ask(&Request::Idle), Reply::Idle { .. }));
            assert!(began.elapsed() < Duration::from_secs(1), "{agent}: {:?}", began.elapsed());
        }
        guest.until(|snapshot| matches!(snapshot.agent, Agent::Silent { .. }));
        let began = Instant::now();
        guest.stop();
        assert!(began.elapsed() < Duration::from_secs(2), "{agent}: {:?}", began.elapsed());
    }
}

/// A machine of an older hpvm: no channel, nobody is asked for one, and a disk leaves by the rule alone.
#[test]
fn a_machine_without_a_channel_works_as_before() {
    for (idle, expected) in [("idle=12000", "done"), ("idle=0", "waits")] {
        let guest = Guest::fake(&format!("{idle},agent=answers"));
        let disks = ["0,1,0", "0,1,1"]
            .map(|address| guest.device(DeviceKind::Disk, AdapterKind::AvioStor, address));
        let address = disks[1].device.address;
        let guest = guest.with(|record| {
            record.storage = disks.into();
            record.agent = AgentChannel::Absent;
        });
        let guest = guest.start();
        guest.until_os();
        assert_eq!(guest.snapshot().unwrap().agent, Agent::NoChannel);
        let (result, _) = leaves(&guest, address);
        match (&result, expected) {
            (ChangeResult::Done, "done") | (ChangeResult::Waits { .. }, "waits") => {}
            _ => panic!("{idle}: {result:?}\n{}", guest.story()),
        }
        signal(guest.worker().unwrap(), Signal::KILL);
        guest.until(|snapshot| snapshot.adoptions == 1);
        guest.wait("an answer", || guest.try_ask(&Request::Ping, &[]).is_ok());
        assert_eq!(guest.snapshot().unwrap().agent, Agent::NoChannel);
        guest.stop();
    }
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
