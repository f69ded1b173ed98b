//! What ARCHITECTURE.md promises of the keeper, with real processes and real signals.

mod common;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{BOUND, Part, Stage, descriptors, eventually, some_fd, status_field};
use hpvm_host::launch::Launch;
use hpvm_host::lock::{KEEPER_BYTE, is_held};
use hpvm_host::process::{Life, PidFd, Signal, life, start_time};
use hpvm_host::signals::lift_limits;
use hpvm_host::users::{self, Ids};

const ENGINE: u32 = 1;
const EXITED: u32 = 2;
/// SIGHUP, SIGINT, SIGPIPE and SIGTERM in a mask.
const SIGNALS_THE_KEEPER_IGNORES: u64 = 1 | 1 << 1 | 1 << 12 | 1 << 14;
const FINISHED: &str = r"printf '\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0' >&3; exit 0";
const KILL: &str = r"printf '\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0' >&3; hear";

fn held(pid: i32) -> PidFd {
    PidFd::open(pid, start_time(pid).expect("alive")).expect("held").expect("alive")
}

#[test]
fn qemus_exit_status_reaches_the_worker_and_finished_ends_the_keeper() {
    let mut stage = Stage::new();
    stage.start(stage.launch());
    let qemu = stage.nth(Part::Qemu, 1);
    assert_eq!(stage.heard(1)[0], (ENGINE, qemu.cast_unsigned(), 1));
    stage.tell(Part::Qemu, "exit 3");
    stage.tell(Part::Worker, "hear");
    let (kind, status, oom_kills) = stage.heard(2)[1];
    assert_eq!((kind, status), (EXITED, 3 << 8));
    assert!(oom_kills <= hpvm_host::process::oom_kills().expect("/proc/vmstat"));
    stage.tell(Part::Worker, FINISHED);
    assert_eq!(stage.keeper_status(), 0);
    assert_eq!(stage.pids(Part::Worker).len(), 1, "{}", stage.log());
}

#[test]
fn a_killed_qemu_is_told_by_its_signal() {
    let mut stage = Stage::new();
    stage.start(stage.launch());
    held(stage.nth(Part::Qemu, 1)).signal(Signal::KILL).expect("killed");
    stage.tell(Part::Worker, "hear");
    assert_eq!(stage.heard(2)[1].1, 9);
    assert!(stage.log().contains("was killed by signal 9"), "{}", stage.log());
}

#[test]
fn a_qemu_that_cannot_be_run_says_why_and_ends_with_127() {
    let mut stage = Stage::new();
    let mut qemu = stage.qemu(None);
    qemu.path = "/nowhere/qemu".into();
    let mut launch = stage.furnished(Launch::starting(&qemu, &stage.worker(None)));
    launch.qemu_stderr(stage.open("qemu.log"));
    stage.start(launch);
    stage.tell(Part::Worker, "hear");
    assert_eq!(stage.heard(2)[1].1, 127 << 8);
    let said = std::fs::read_to_string(stage.path("qemu.log")).expect("qemu.log");
    assert_eq!(said, "hpvmkeeper: cannot run /nowhere/qemu: error 2\n");
}

#[test]
fn a_killed_worker_is_back_each_time_and_knows_the_engine() {
    let mut stage = Stage::new();
    stage.start(stage.launch());
    let qemu = stage.nth(Part::Qemu, 1);
    for nth in 1..=3 {
        held(stage.nth(Part::Worker, nth)).signal(Signal::KILL).expect("killed");
    }
    stage.nth(Part::Worker, 4);
    // A worker killed before it read the link has noted nothing.
    let heard = stage.heard(1);
    assert!(heard.iter().all(|message| *message == (ENGINE, qemu.cast_unsigned(), 1)), "{heard:?}");
    assert_eq!(life(qemu, start_time(qemu).expect("alive")), Life::Alive);
}

#[test]
fn the_next_worker_learns_of_an_end_that_no_worker_saw() {
    let mut stage = Stage::new();
    stage.start(stage.launch());
    let worker = held(stage.nth(Part::Worker, 1));
    stage.heard(1);
    worker.signal(Signal::STOP).expect("stopped");
    stage.tell(Part::Qemu, "exit 5");
    eventually("the end of QEMU", || stage.log().contains("ended with status 5").then_some(()));
    worker.signal(Signal::KILL).expect("killed");
    stage.nth(Part::Worker, 2);
    stage.tell(Part::Worker, "hear");
    let heard = stage.heard(3);
    assert_eq!((heard[1].0, heard[2].0, heard[2].1), (ENGINE, EXITED, 5 << 8));
}

#[test]
fn five_quick_ends_give_up_for_ten_seconds() {
    let mut stage = Stage::new();
    let worker = stage.shell(Part::Worker, "exit 1;", None);
    stage.start(stage.furnished(Launch::starting(&stage.qemu(None), &worker)));
    eventually("giving up", || stage.log().contains("unsupervised").then_some(()));
    assert_eq!(stage.pids(Part::Worker).len(), 5, "{}", stage.log());
    stage.nth(Part::Worker, 6);
    eventually("giving up again", || {
        (stage.log().matches("unsupervised").count() > 1).then_some(())
    });
    let log = stage.log();
    let seconds_of_day = |line: &str| {
        line[11..19].split(':').fold(0, |sum, part| sum * 60 + part.parse::<i64>().expect("digits"))
    };
    let times: Vec<i64> =
        log.lines().filter(|line| line.contains("unsupervised")).map(seconds_of_day).collect();
    let waited = (times[1] - times[0]).rem_euclid(86_400);
    assert!((9..=12).contains(&waited), "waited {waited} s\n{log}");
}

/// The lock would say that the guest runs for as long as the keeper waited.
#[test]
fn with_qemu_gone_no_worker_is_waited_for_that_does_not_live() {
    for qemu in ["exit 3;", ""] {
        let mut stage = Stage::new();
        let worker = stage.shell(Part::Worker, "exit 1;", None);
        let engine = stage.shell(Part::Qemu, qemu, None);
        stage.start(stage.furnished(Launch::starting(&engine, &worker)));
        if qemu.is_empty() {
            eventually("giving up", || stage.log().contains("unsupervised").then_some(()));
            stage.tell(Part::Qemu, "exit 3");
        }
        let since = Instant::now();
        assert_eq!(stage.keeper_status(), 0);
        // A tenth of the pause between two attempts, and room for a busy machine.
        assert!(since.elapsed() < Duration::from_secs(5), "{}", stage.log());
        let log = stage.log();
        assert!(log.contains("ended with status 3") && log.contains("no worker lives"), "{log}");
    }
}

#[test]
fn each_program_has_its_descriptors_and_no_others() {
    let mut stage = Stage::new();
    let leaked = some_fd();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).expect("open across exec");
    let mut launch = stage.launch();
    // Numbers chosen so that old and new ones overlap.
    for theirs in [10, 4, 6] {
        launch.qemu_fd(some_fd(), theirs);
    }
    for theirs in [5, 7, 11] {
        launch.app_fd(some_fd(), theirs);
    }
    launch.app_once_fd(some_fd(), 12);
    launch.keep_launch(4);
    stage.start(launch);
    let has = |pid: i32, expected: &[i32]| {
        eventually(&format!("{expected:?}, has {:?}", descriptors(pid)), || {
            (descriptors(pid) == expected).then_some(())
        });
    };
    stage.heard(1);
    has(stage.nth(Part::Qemu, 1), &[0, 1, 2, 4, 6, 10]);
    has(stage.nth(Part::Worker, 1), &[0, 1, 2, 3, 4, 5, 7, 8, 11, 12, 13]);
    stage.tell(Part::Worker, "exit 1");
    let second = stage.nth(Part::Worker, 2);
    stage.heard(2);
    has(second, &[0, 1, 2, 3, 4, 5, 7, 8, 11, 13]);
    // Its own: the standard three, launch, lock, log, three for workers, signals, engine, link.
    let keeper = descriptors(stage.keeper().pid);
    assert_eq!(keeper.len(), 12, "{keeper:?}");
}

/// More than the disks of the largest guest, each with an image under it.
#[test]
fn a_program_has_as_many_descriptors_as_the_system_allows() {
    lift_limits();
    let mut stage = Stage::new();
    let mut launch = stage.launch();
    let numbers: Vec<i32> = (10..10 + 2100).collect();
    for theirs in &numbers {
        launch.qemu_fd(some_fd(), *theirs);
        launch.app_fd(some_fd(), *theirs);
    }
    stage.start(launch);
    stage.heard(1);
    for part in [Part::Qemu, Part::Worker] {
        let has = descriptors(stage.nth(part, 1));
        assert!(numbers.iter().all(|number| has.binary_search(number).is_ok()), "{has:?}");
    }
}

#[test]
fn others_see_the_lock_while_the_keeper_lives_and_a_second_keeper_gives_way() {
    let mut stage = Stage::new();
    let file = stage.open("lock");
    assert!(!is_held(&file, KEEPER_BYTE).expect("asked"));
    stage.start(stage.launch());
    stage.nth(Part::Worker, 1);
    assert!(is_held(&file, KEEPER_BYTE).expect("asked"));
    let mut second = Stage::new();
    let mut launch = Launch::starting(&second.qemu(None), &second.worker(None));
    launch.lock(stage.open("lock"));
    launch.log(second.open("log"), 8);
    second.start(launch);
    assert_eq!(second.keeper_status(), 3);
    assert!(second.log().contains("another keeper has the lock"), "{}", second.log());
    assert!(second.pids(Part::Qemu).is_empty());
    stage.kill_keeper();
    eventually("the lock falls", || (!is_held(&file, KEEPER_BYTE).expect("asked")).then_some(()));
}

#[test]
fn programs_run_as_their_users_without_new_rights() {
    let mut stage = Stage::new();
    let ids = |id| users::is_root().then_some(Ids { uid: id, gid: id });
    let launch = Launch::starting(&stage.qemu(ids(1_000_077)), &stage.worker(ids(1_500_077)));
    stage.start(stage.furnished(launch));
    let (qemu, worker) = (stage.nth(Part::Qemu, 1), stage.nth(Part::Worker, 1));
    for (pid, id) in [(qemu, 1_000_077), (worker, 1_500_077)] {
        assert_eq!(status_field(pid, "NoNewPrivs"), "1");
        assert_eq!(status_field(pid, "Umask"), "0077");
        let ignored = u64::from_str_radix(&status_field(pid, "SigIgn"), 16).expect("a mask");
        assert_eq!(ignored & SIGNALS_THE_KEEPER_IGNORES, 0, "{ignored:x}");
        assert_eq!(status_field(pid, "SigBlk"), "0000000000000000");
        if users::is_root() {
            assert_eq!(status_field(pid, "Uid"), [id; 4].map(|id: u32| id.to_string()).join("\t"));
            assert_eq!(status_field(pid, "Gid"), [id; 4].map(|id: u32| id.to_string()).join("\t"));
            assert_eq!(status_field(pid, "Groups"), "");
            assert_eq!(status_field(pid, "CapEff"), "0000000000000000");
        }
        let environment = std::fs::read(format!("/proc/{pid}/environ")).expect("readable");
        assert!(environment.is_empty());
    }
    let sessions: Vec<i32> = [qemu, worker, stage.keeper().pid].map(session).to_vec();
    assert_eq!(sessions, [qemu, worker, stage.keeper().pid], "each leads its own session");
}

fn session(pid: i32) -> i32 {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::getsid(Some(pid)).expect("alive").as_raw_nonzero().get()
}

#[test]
fn signals_for_peoples_programs_do_not_end_the_keeper() {
    let mut stage = Stage::new();
    stage.start(stage.launch());
    stage.nth(Part::Worker, 1);
    for signal in [Signal::TERM, Signal::HUP, Signal::INT, Signal::PIPE] {
        assert!(stage.keeper().pidfd.signal(signal).expect("sent"));
    }
    held(stage.nth(Part::Worker, 1)).signal(Signal::KILL).expect("killed");
    stage.nth(Part::Worker, 2);
    assert!(!stage.keeper().pidfd.wait_exit(Duration::ZERO).expect("watched"));
}

#[test]
fn qemu_survives_its_keeper_even_while_stopped() {
    let mut stage = Stage::new();
    stage.start(stage.launch());
    let qemu = stage.nth(Part::Qemu, 1);
    let started = start_time(qemu).expect("alive");
    held(qemu).signal(Signal::STOP).expect("stopped");
    eventually("QEMU stops", || (life(qemu, started) == Life::Stopped).then_some(()));
    stage.kill_keeper();
    assert_eq!(life(qemu, started), Life::Stopped, "neither woken nor hung up");
    held(qemu).signal(Signal::CONT).expect("continued");
    stage.tell(Part::Qemu, &format!("echo alive >{}", stage.path("sign").display()));
    eventually("a sign of life", || stage.path("sign").exists().then_some(()));
}

#[test]
fn a_successor_takes_over_from_what_the_dead_keeper_left() {
    let mut stage = Stage::new();
    // Above the link and the standard three, which have their own numbers in a worker.
    let shared = rustix::io::fcntl_dupfd_cloexec(stage.open("log"), 20).expect("a copy");
    let number = shared.as_raw_fd();
    let mut launch = Launch::starting(&stage.qemu(None), &stage.worker(None));
    launch.lock(stage.open("lock"));
    launch.log(shared.try_clone().expect("a copy"), number);
    launch.app_once_fd(some_fd(), number + 500);
    launch.keep_launch(number + 501);
    stage.start(launch);
    let qemu = stage.nth(Part::Qemu, 1);
    let worker = stage.nth(Part::Worker, 1);
    let left = eventually("the description in the worker", || {
        File::open(format!("/proc/{worker}/fd/{}", number + 501)).ok()
    });
    stage.kill_keeper();
    held(worker).signal(Signal::KILL).expect("killed");
    // This process is in the place of the worker now: it has the shared descriptor at the number workers have it at.
    let mut successor = Launch::successor(left.as_fd(), qemu, held(qemu)).expect("understood");
    successor.lock(stage.open("lock"));
    stage.start(successor);
    let second = stage.nth(Part::Worker, 2);
    eventually("news of an adopted engine", || {
        stage.heard(1).contains(&(ENGINE, qemu.cast_unsigned(), 0)).then_some(())
    });
    eventually("the descriptors of a later worker", || {
        (descriptors(second) == [0, 1, 2, 3, 13, number, number + 501]).then_some(())
    });
    assert!(is_held(&stage.open("lock"), KEEPER_BYTE).expect("asked"));
    assert!(stage.log().contains("taking over the running engine"), "the log is inherited too");
    stage.tell(Part::Qemu, "exit 6");
    let before = stage.heard(1).len();
    stage.tell(Part::Worker, "hear");
    let (kind, status, _) = stage.heard(before + 1)[before];
    assert_eq!(kind, EXITED);
    assert!(
        [6 << 8, u32::MAX].contains(&status),
        "the kernel tells the status or nobody does: {status}"
    );
    stage.tell(Part::Worker, FINISHED);
    assert_eq!(stage.keeper_status(), 0);
}

#[test]
fn finished_while_qemu_runs_keeps_it_and_brings_the_next_worker() {
    let mut stage = Stage::new();
    stage.start(stage.launch());
    let qemu = stage.nth(Part::Qemu, 1);
    stage.tell(Part::Worker, FINISHED);
    stage.nth(Part::Worker, 2);
    assert_eq!(life(qemu, start_time(qemu).expect("alive")), Life::Alive);
    stage.tell(Part::Qemu, "exit 0");
    stage.tell(Part::Worker, "hear");
    stage.heard(3);
    assert!(!stage.keeper().pidfd.wait_exit(Duration::ZERO).expect("watched"), "not finished yet");
    stage.tell(Part::Worker, FINISHED);
    assert_eq!(stage.keeper_status(), 0);
}

#[test]
fn a_worker_may_have_qemu_killed() {
    let mut stage = Stage::new();
    stage.start(stage.launch());
    let qemu = held(stage.nth(Part::Qemu, 1));
    qemu.signal(Signal::STOP).expect("stopped");
    stage.tell(Part::Worker, KILL);
    assert!(qemu.wait_exit(BOUND).expect("watched"));
    assert_eq!(stage.heard(2)[1].1, 9);
}

#[test]
fn an_unknown_word_ends_it_with_2() {
    let folder = tempfile::tempdir().expect("a folder");
    let description = folder.path().join("description");
    std::fs::write(&description, "qemu-program /bin/true\0app-program /bin/true\0new-word 1\0")
        .expect("written");
    assert_eq!(status_with("0", &description), Some(2));
    assert_eq!(status_with("77", &description), Some(2));
    assert_eq!(status_with("x", &description), Some(2));
}

/// Whoever waits for the guest is sent to its log.
#[test]
fn what_is_not_understood_is_told_in_the_log() {
    let mut stage = Stage::new();
    let mut launch = stage.launch();
    // Standard error is nobody's to give.
    launch.qemu_fd(some_fd(), 2);
    stage.start(launch);
    assert_eq!(stage.keeper_status(), 2);
    assert!(stage.log().contains("its description is not understood"), "{}", stage.log());
}

/// The keeper's status when its description is at descriptor 0.
fn status_with(argument: &str, description: &Path) -> Option<i32> {
    let mut keeper = Command::new(env!("CARGO_BIN_EXE_hpvmkeeper"))
        .arg(argument)
        .stdin(File::open(description).expect("the description"))
        .stdout(Stdio::null())
        .spawn()
        .expect("a keeper");
    let pid = i32::try_from(keeper.id()).expect("a pid");
    let held = PidFd::open_number(pid).expect("held").expect("our child");
    assert!(held.wait_exit(BOUND).expect("watched"));
    keeper.wait().expect("our child").code()
}

#[test]
fn it_stays_below_a_mebibyte() {
    let mut stage = Stage::new();
    stage.start(stage.launch());
    stage.nth(Part::Worker, 1);
    stage.heard(1);
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", stage.keeper().pid));
    let rollup = rollup.expect("readable");
    let kib = |field: &str| -> u32 {
        let line = rollup.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok()).expect("a size")
    };
    println!("PSS {} KiB, anonymous {} KiB", kib("Pss"), kib("Anonymous"));
    assert!(kib("Pss") < 1024 && kib("Anonymous") < 512, "{rollup}");
}

/// A virtual switch: what was kept for it comes first, what it gives up comes no more, and it ends with its own last word.
#[test]
fn a_worker_without_an_engine_is_given_what_is_kept_each_time() {
    const KEPT: u32 = 5;
    const ALL_KEPT: u32 = 7;
    const RELEASE: &str = r"printf '\6\0\0\0\14\0\0\0\0\0\0\0\0\0\0\0' >&3; exit 0";
    let mut stage = Stage::new();
    let mut launch = stage.furnished(Launch::alone(&stage.worker_alone()));
    launch.kept_fd(stage.open("listener"), 12);
    stage.start(launch);
    assert_eq!(stage.heard(1)[0], (KEPT, 12, 0));
    stage.tell(Part::Worker, "hear");
    assert_eq!(stage.heard(2)[1], (ALL_KEPT, 0, 0));

    held(stage.nth(Part::Worker, 1)).signal(Signal::KILL).expect("killed");
    stage.nth(Part::Worker, 2);
    assert_eq!(stage.heard(3)[2], (KEPT, 12, 0));
    stage.tell(Part::Worker, "hear");
    assert_eq!(stage.heard(4)[3], (ALL_KEPT, 0, 0));
    stage.tell(Part::Worker, RELEASE);
    stage.nth(Part::Worker, 3);
    assert_eq!(stage.heard(5)[4], (ALL_KEPT, 0, 0), "it was given up");

    stage.tell(Part::Worker, FINISHED);
    assert_eq!(stage.keeper_status(), 0);
    assert!(stage.pids(Part::Qemu).is_empty());
}
