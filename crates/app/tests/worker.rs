//! The worker with its keeper, on the fake engine: real processes, real signals, no machine.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use hpvm_app::protocol::*;
use hpvm_app::snapshot::*;
use hpvm_host::process::Signal;
use hpvm_model::*;
use hpvm_qmp::Error;
use hpvm_qmp::blocking::Client as Rescue;
use hpvm_qmp::command::Quit;

use crate::guest::{Guest, signal};

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

/// It is neither that of the run, nor of a request that changes nothing that is shown.
#[test]
fn a_state_is_told_with_its_own_beginning() {
    let guest = Guest::fake("boot=os:1500,powerdown=ignore").start();
    let firmware = guest.snapshot().unwrap();
    guest.until_os();
    let os = guest.snapshot().unwrap();
    assert!(os.state_since > firmware.state_since, "{}", guest.story());
    signal(guest.worker().unwrap(), Signal::KILL);
    guest.until(|snapshot| snapshot.adoptions == 1);
    guest.wait("the next worker to answer", || guest.try_ask(&Request::Ping, &[]).is_ok());
    assert!(matches!(guest.ask(&graceful(1)), Reply::NotStopped { .. }));
    let asked = guest.snapshot().unwrap();
    assert_eq!(asked.state_since, os.state_since, "{}", guest.story());
    guest.stop();
    let off = guest.snapshot().unwrap();
    assert_eq!(off.state_since.as_ref(), Some(&off.since));
}

/// Nothing is told of a copy that nobody has seen.
#[test]
fn a_next_worker_that_cannot_look_for_a_copy_claims_none() {
    let guest = Guest::fake("fail=query-jobs:no").start();
    guest.until_os();
    signal(guest.worker().unwrap(), Signal::KILL);
    guest.until(|snapshot| snapshot.adoptions == 1);
    // Answered when the look at the devices is over, which was begun with that for a copy.
    guest.wait("it to be in order", || {
        matches!(guest.try_ask(&Request::Idle, &[]), Ok(Reply::Idle { .. }))
    });
    let log = fs::read_to_string(guest.path("log")).unwrap();
    assert!(!log.contains("to copy them"), "{log}");
    assert_eq!(guest.snapshot().unwrap().notes, Vec::<String>::new());
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
        let stopping = Phase::Stopping { occupant: Occupant::Os, held: None, is_unheard: false };
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

/// As by a hard stop that took the worker for hanging. The worker kills a QEMU that says so, which may be before that has
/// answered.
#[test]
fn a_qemu_that_is_told_to_quit_past_its_worker_was_stopped_hard() {
    let guest = Guest::fake("end=4000").start();
    guest.until_os();
    let mut rescue = Rescue::connect(&guest.places.run_dir.join("rescue")).unwrap();
    let answer = rescue.execute(&Quit {});
    assert!(matches!(answer, Ok(_) | Err(Error::Closed)), "{answer:?}");
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
