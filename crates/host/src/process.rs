//! Processes that cannot be mistaken for others: a number together with its start time, and pidfds.
//!
//! Called by whoever looks at or ends a guest's processes. A process that has ended and was not yet collected by its
//! parent counts as dead: it looks alive to kill(pid, 0), and PID 1 may collect it late.

mod unending;

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use rustix::time::{ClockId, Timespec, clock_gettime};

pub use rustix::process::Signal;

pub use self::unending::{Unending, unending};

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It runs, or sleeps and would run.
    Alive,
    /// It is held by SIGSTOP or a debugger.
    Stopped,
    /// It has ended, or never was.
    Dead,
}

/// What the process with this number and start time does.
#[must_use]
pub fn life(pid: i32, start_time: u64) -> Life {
    match stat(pid) {
        Some(stat) if stat.start_time == start_time => stat.life(),
        _ => Life::Dead,
    }
}

#[must_use]
pub fn is_alive(pid: i32, start_time: u64) -> bool {
    life(pid, start_time) != Life::Dead
}

/// When a living process started, in ticks since the host booted; with its number it names it for this boot.
#[must_use]
pub fn start_time(pid: i32) -> Option<u64> {
    stat(pid).filter(|stat| stat.life() != Life::Dead).map(|stat| stat.start_time)
}

/// What /proc counts in, whatever the kernel's own clock (Linux, `USER_HZ`). Asking for it opens a file where a process that
/// is confined may open none.
const TICK_MS: u64 = 10;

/// How long ago a process with this start time started.
#[must_use]
pub fn age(start_time: u64) -> Duration {
    let started = Duration::from_millis(start_time.saturating_mul(TICK_MS));
    Duration::from_millis(boottime_ms()).saturating_sub(started)
}

/// Processor time a process and its threads have used.
#[must_use]
pub fn processor_time(pid: i32) -> Option<Duration> {
    let ticks = stat(pid)?.processor_ticks;
    Some(Duration::from_millis(ticks.saturating_mul(TICK_MS)))
}

/// The same of the threads that there are now, finer than the clock's ticks: the first figure of each one's schedstat, in
/// nanoseconds (Documentation/scheduler/sched-stats.rst). `None`: the process is gone, or the kernel does not tell.
#[must_use]
pub fn run_time(pid: i32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let times = threads.flatten().filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    });
    times.reduce(Duration::saturating_add)
}

/// How many threads this process has.
pub(crate) fn threads() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}

/// Takes hold of the living children of a process, which cannot collect them meanwhile: it is stopped.
pub fn children(parent: i32) -> io::Result<Vec<PidFd>> {
    let names = fs::read_dir("/proc")?.flatten();
    let numbers = names.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let children = numbers.filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == parent));
    children.filter_map(|pid| PidFd::open_number(pid).transpose()).collect()
}

/// A line of /proc/PID/stat.
pub(crate) struct Stat {
    state: u8,
    parent: i32,
    /// include/linux/sched.h, `PF_*`.
    flags: u64,
    processor_ticks: u64,
    pub(crate) threads: u64,
    pub(crate) start_time: u64,
}

/// Set once a thread ends and its io_uring requests are over: it runs nothing of its program any more.
const PF_EXITING: u64 = 0x4;

impl Stat {
    pub(crate) fn is_exiting(&self) -> bool {
        self.flags & PF_EXITING != 0
    }

    fn life(&self) -> Life {
        match self.state {
            b'Z' | b'X' | b'x' => Life::Dead,
            b'T' | b't' => Life::Stopped,
            _ => Life::Alive,
        }
    }
}

pub(crate) fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// The program's name, in parentheses, may hold blanks and parentheses: fields count from the last one.
pub(crate) fn parse_stat(line: &[u8]) -> Option<Stat> {
    let end = line.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(line.get(end + 2..)?).ok()?.split(' ');
    let state = *fields.next()?.as_bytes().first()?;
    // Fields of proc(5): 4, ppid; 9, flags; 14 and 15, utime and stime; 20, num_threads; 22, starttime. The state was field 3.
    let parent = fields.next()?.parse().ok()?;
    let flags = fields.nth(4)?.parse().ok()?;
    let user: u64 = fields.nth(4)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let threads = fields.nth(4)?.parse().ok()?;
    let start_time = fields.nth(1)?.parse().ok()?;
    let processor_ticks = user.saturating_add(system);
    Some(Stat { state, parent, flags, processor_ticks, threads, start_time })
}

/// A hold on one process, whatever becomes of its number.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Takes hold of a living process. `None`: it has ended.
    pub fn open(pid: i32, start_time: u64) -> io::Result<Option<PidFd>> {
        let Some(held) = PidFd::open_number(pid)? else {
            return Ok(None);
        };
        // Looked at after taking hold: if the start time is right now, the held process is the one that is meant.
        Ok(is_alive(pid, start_time).then_some(held))
    }

    /// Takes hold of whatever has this number now: for one's own child, which keeps its number until collected.
    pub fn open_number(pid: i32) -> io::Result<Option<PidFd>> {
        // The kernel gives meanings of their own to 0 and to negative numbers.
        let Some(pid) = (pid > 0).then(|| Pid::from_raw(pid)).flatten() else {
            return Err(ErrorKind::InvalidInput.into());
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => Ok(Some(PidFd(fd))),
            Err(Errno::SRCH) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a signal. `false`: the process has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        match pidfd_send_signal(&self.0, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the process ends. `false`: it had not within the bound.
    pub fn wait_exit(&self, bound: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + bound;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(|_| ErrorKind::InvalidInput)?;
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout)) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<PidFd> for OwnedFd {
    fn from(held: PidFd) -> OwnedFd {
        held.0
    }
}

/// For a pidfd that came by another way, such as over a socket.
impl From<OwnedFd> for PidFd {
    fn from(fd: OwnedFd) -> PidFd {
        PidFd(fd)
    }
}

/// What names this boot of the host.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned())
}

/// Milliseconds since the host booted, sleep included: the clock of heartbeats, which nobody sets.
#[must_use]
pub fn boottime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let millis = u64::try_from(now.tv_nsec / 1_000_000).unwrap_or(0);
    seconds * 1_000 + millis
}

/// How many processes the kernel has killed for want of memory since the host booted.
pub fn oom_kills() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/vmstat")?;
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
        .ok_or_else(|| ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_all_threads_grows_with_what_they_do() {
        let own = i32::try_from(std::process::id()).unwrap();
        let before = run_time(own).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while run_time(own).unwrap() == before {
            assert!(Instant::now() < deadline, "nothing was counted");
        }
        assert_eq!(run_time(-1), None);
    }

    #[test]
    fn a_program_named_to_mislead_is_read_rightly() {
        let line = b"42 (a) Z (b) T 1 42 42 0 -1 4194564 1 0 0 0 7 3 0 0 20 0 6 0 987654 1 2\n";
        let stat = parse_stat(line).expect("a stat line");
        assert_eq!((stat.life(), stat.start_time), (Life::Stopped, 987_654));
        assert_eq!((stat.processor_ticks, stat.threads, stat.is_exiting()), (10, 6, true));
    }

    #[test]
    fn torn_lines_are_no_process() {
        for line in ["", "42", "42 (sh)", "42 (sh) S 1 2", "42 (sh) "] {
            assert!(parse_stat(line.as_bytes()).is_none(), "{line:?}");
        }
    }
}
