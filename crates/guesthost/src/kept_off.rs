//! How long others kept a process off the processors. A test that waits for a guest tells by it a guest that hangs from one
//! that gets a tenth of the machine. Linux, Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

/// What each thread of a process had waited for a processor at one moment.
pub struct KeptOff {
    pid: Option<i32>,
    before: HashMap<String, Duration>,
}

impl KeptOff {
    /// From now on. Of no process, and where the kernel keeps no account, nothing was ever kept off.
    #[must_use]
    pub fn by(pid: Option<i32>) -> KeptOff {
        KeptOff { before: pid.map(waits).unwrap_or_default(), pid }
    }

    /// How long the thread that waited most has waited since: it was ready to run all that time.
    #[must_use]
    pub fn since_then(&self) -> Duration {
        let before = |thread: &String| self.before.get(thread).copied().unwrap_or_default();
        let now = self.pid.map(waits).unwrap_or_default();
        let since = now.iter().map(|(thread, waited)| waited.saturating_sub(before(thread)));
        since.max().unwrap_or_default()
    }
}

fn waits(pid: i32) -> HashMap<String, Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let wait = |thread: fs::DirEntry| {
        // Time on a processor, time of waiting for one, both in nanoseconds, and how often it got one.
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        let waited = text.split_whitespace().nth(1)?.parse().ok()?;
        Some((thread.file_name().to_string_lossy().into_owned(), Duration::from_nanos(waited)))
    };
    threads.filter_map(wait).collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};
    use std::time::Instant;

    use rustix::event::{Timespec, poll};
    use rustix::process::Pid;
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    use super::*;
    struct Ended(Child);

    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn run(program: &str, argument: [&str; 2]) -> Ended {
        Ended(Command::new(program).args(argument).spawn().expect("it starts"))
    }

    /// All on one processor, so that they are in each other's way.
    #[test]
    fn who_is_ready_and_does_not_run_is_kept_off() {
        let ours = sched_getaffinity(None).expect("our processors");
        let first = (0..CpuSet::MAX_CPU).find(|cpu| ours.is_set(*cpu)).expect("one");
        let mut one = CpuSet::new();
        one.set(first);
        let loops: Vec<Ended> = (0..3).map(|_| run("sh", ["-c", "while :; do :; done"])).collect();
        for child in &loops {
            let pid = Pid::from_child(&child.0);
            sched_setaffinity(Some(pid), &one).expect("our own child");
        }
        let idle = run("sleep", ["60", "60"]);
        let number = |child: &Ended| i32::try_from(child.0.id()).expect("a process number");
        let (busy, idle) = (KeptOff::by(Some(number(&loops[0]))), KeptOff::by(Some(number(&idle))));
        let deadline = Instant::now() + Duration::from_secs(60);
        while busy.since_then() < Duration::from_secs(1) {
            assert!(Instant::now() < deadline, "it is never kept off for a second");
            let pause = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
            poll(&mut [], Some(&pause)).expect("a pause");
        }
        assert!(idle.since_then() < Duration::from_millis(500), "{:?}", idle.since_then());
        assert_eq!(KeptOff::by(None).since_then(), Duration::ZERO);
    }
}
