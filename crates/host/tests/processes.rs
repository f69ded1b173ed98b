//! Looking at real processes: alive, stopped, ended but not collected.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use hpvm_host::dying_memory::DyingMemory;
use hpvm_host::process::{Life, PidFd, Signal, is_alive, life, start_time};
use rustix::fs::{MemfdFlags, memfd_create};

const BOUND: Duration = Duration::from_secs(20);

/// A process that waits for ever, and is collected when the test is over.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Sleeper {
        let mut command = Command::new("/bin/cat");
        Sleeper(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("a process"))
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("a pid")
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn eventually(what: &str, mut look: impl FnMut() -> bool) {
    let deadline = Instant::now() + BOUND;
    while !look() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_process_is_alive_stopped_and_dead_before_it_is_collected() {
    let mut sleeper = Sleeper::new();
    let pid = sleeper.pid();
    let started = start_time(pid).expect("alive");
    let held = PidFd::open(pid, started).expect("held").expect("alive");
    assert_eq!(life(pid, started), Life::Alive);
    assert!(held.signal(Signal::STOP).expect("sent"));
    eventually("it stops", || life(pid, started) == Life::Stopped);
    assert!(is_alive(pid, started), "stopped is not dead");
    assert!(held.signal(Signal::KILL).expect("sent"));
    assert!(held.wait_exit(BOUND).expect("watched"));
    assert_eq!(life(pid, started), Life::Dead, "nobody has collected it yet");
    assert_eq!(start_time(pid), None);
    assert!(PidFd::open(pid, started).expect("asked").is_none());
    sleeper.0.wait().expect("our child");
    assert!(!held.signal(Signal::KILL).expect("asked"), "it is gone");
    assert!(PidFd::open_number(pid).expect("asked").is_none());
}

#[test]
fn another_process_with_the_number_is_not_it() {
    let sleeper = Sleeper::new();
    let started = start_time(sleeper.pid()).expect("alive");
    assert_eq!(life(sleeper.pid(), started + 1), Life::Dead);
    assert!(PidFd::open(sleeper.pid(), started + 1).expect("asked").is_none());
}

#[test]
fn waiting_keeps_its_bound() {
    let sleeper = Sleeper::new();
    let held = PidFd::open_number(sleeper.pid()).expect("asked").expect("alive");
    let begin = Instant::now();
    assert!(!held.wait_exit(Duration::from_millis(30)).expect("watched"));
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(30) && took < BOUND, "{took:?}");
}

#[test]
fn numbers_that_no_process_can_have_are_refused() {
    for pid in [0, -1, i32::MIN] {
        assert!(PidFd::open_number(pid).is_err(), "{pid}");
        assert_eq!(life(pid, 1), Life::Dead);
    }
}

/// A guest's memory of some size, all of it used, and a process that has it as QEMU does.
fn process_with_memory() -> (Sleeper, File) {
    let memory: File =
        memfd_create("memory-backend-memfd", MemfdFlags::CLOEXEC).expect("memory").into();
    memory.write_all_at(&vec![0xa5; 1 << 20], 0).expect("filled");
    let mut command = Command::new("/bin/cat");
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let parent_fd = memory.try_clone().expect("a second descriptor").into();
    command.fd_mappings(vec![FdMapping { parent_fd, child_fd: 7 }]).expect("one descriptor");
    (Sleeper(command.spawn().expect("a process")), memory)
}

fn blocks(memory: &File) -> u64 {
    memory.metadata().expect("looked at").blocks()
}

#[test]
fn the_memory_of_a_dying_process_is_freed_and_that_of_one_that_may_go_on_is_not() {
    let (sleeper, memory) = process_with_memory();
    let pid = sleeper.pid();
    let started = start_time(pid).expect("alive");
    let of_it = || DyingMemory::of(pid, started).expect("it has memory");
    let all = blocks(&memory);
    assert!(all > 0);
    assert!(!of_it().free_when_dying(BOUND, || true), "it lives");
    let held = PidFd::open(pid, started).expect("held").expect("alive");
    assert!(held.signal(Signal::STOP).expect("sent"));
    eventually("it stops", || life(pid, started) == Life::Stopped);
    assert!(!of_it().free_when_dying(BOUND, || true), "it may go on");
    assert_eq!(blocks(&memory), all);

    let dying = of_it();
    assert!(held.signal(Signal::KILL).expect("sent"));
    assert!(dying.free_when_dying(BOUND, || false));
    assert_eq!(blocks(&memory), 0);
}

#[test]
fn a_process_without_a_guests_memory_has_none_to_free() {
    let sleeper = Sleeper::new();
    let started = start_time(sleeper.pid()).expect("alive");
    assert!(DyingMemory::of(sleeper.pid(), started).is_none());
    let (other, _memory) = process_with_memory();
    assert!(DyingMemory::of(other.pid(), started + 1_000_000).is_none(), "another process");
}
