//! Processes as a benchmark sees them: run and timed, waited for, signalled, and what /proc says they use.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::time::clock_getcpuclockid;
use rustix::event::{Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Nothing that is measured takes longer unless something is wrong.
const BOUND: Duration = Duration::from_secs(120);

/// Runs a command to its end; gives what it printed and how long it took.
pub(super) fn timed(command: &mut Command) -> Result<(String, Duration)> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let begin = Instant::now();
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let mut printed = String::new();
    // Commands end within their own bounds; what they print on standard error fits into the pipe.
    child.stdout.take().map(|mut out| out.read_to_string(&mut printed)).transpose()?;
    let status = child.wait()?;
    let took = begin.elapsed();
    if !status.success() {
        let mut said = String::new();
        child.stderr.take().map(|mut err| err.read_to_string(&mut said)).transpose()?;
        bail!("{command:?}: {status}\n{printed}{said}");
    }
    Ok((printed, took))
}

/// Waits until `is_so`, looking five times a millisecond; gives how long it took.
pub(super) fn wait_until(what: &str, is_so: impl Fn() -> bool) -> Result<Duration> {
    let begin = Instant::now();
    while !is_so() {
        if begin.elapsed() > BOUND {
            bail!("{what}: not so after {} s", BOUND.as_secs());
        }
        pause(Duration::from_micros(200));
    }
    Ok(begin.elapsed())
}

/// Waits until nobody else has wanted a processor for a moment, so that a command does not pay for what the one before left to
/// others; for a second at most, on a machine that never rests.
pub(super) fn rest() {
    const BOUND: Duration = Duration::from_secs(1);
    const LOOKS: u32 = 10;
    let begin = Instant::now();
    let mut quiet = 0;
    while quiet < LOOKS && begin.elapsed() < BOUND {
        pause(Duration::from_millis(1));
        quiet = if runnable() == Some(1) { quiet + 1 } else { 0 };
    }
}

/// How many want a processor now, with us (proc(5), /proc/loadavg).
fn runnable() -> Option<u32> {
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    load.split(' ').nth(3)?.split_once('/')?.0.parse().ok()
}

pub(super) fn pause(time: Duration) {
    if let Ok(time) = Timespec::try_from(time) {
        // Without descriptors it can but end early, by a signal.
        let _ = poll(&mut [], Some(&time));
    }
}

/// Sends a signal; fine when the process is gone.
pub(super) fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid)
        && let Ok(process) = pidfd_open(pid, PidfdFlags::empty())
    {
        let _ = pidfd_send_signal(process, signal);
    }
}

/// Whether a process runs; one that nobody has waited for yet does not.
pub(super) fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
    !matches!(state, None | Some("Z" | "X"))
}

/// Ends processes and waits for their end.
pub(super) fn end(pids: &[i32], how: Signal) {
    pids.iter().for_each(|pid| signal(*pid, how));
    let begin = Instant::now();
    while pids.iter().any(|pid| is_alive(*pid)) && begin.elapsed() < Duration::from_secs(5) {
        pause(Duration::from_millis(5));
    }
}

/// Every process, and the name of its program.
pub(super) fn all() -> Vec<(i32, String)> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    numbers
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            Some((pid, name.trim().to_owned()))
        })
        .collect()
}

/// Processor time of a process, with that of its threads that have ended; nothing when it has.
pub(super) fn processor_time(pid: i32) -> Duration {
    clock_getcpuclockid(nix::unistd::Pid::from_raw(pid))
        .and_then(|clock| clock.now())
        .map_or(Duration::ZERO, Duration::from)
}

/// What all processors have done since the machine began (proc_stat(5), `cpu`), in ticks.
#[derive(Clone, Copy)]
pub(super) struct Ticks {
    stolen: u64,
    all: u64,
}

impl Ticks {
    pub(super) fn now() -> Result<Ticks> {
        let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        let line = text.lines().next().context("/proc/stat is empty")?;
        // What guests had is in what users had.
        let figures = line.split_whitespace().skip(1).take(8);
        let figures: Vec<u64> = figures.map(str::parse).collect::<Result<_, _>>()?;
        Ok(Ticks { stolen: *figures.last().unwrap_or(&0), all: figures.iter().sum() })
    }

    /// The share that went to others of the machine's own host, so that nobody here had it.
    pub(super) fn stolen_since(self, before: Ticks) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1);
        self.stolen.saturating_sub(before.stolen) as f64 / all as f64
    }
}

/// What a process keeps in memory, in KiB: its share of all it has mapped, and what it alone has written.
#[derive(Clone, Copy, Default)]
pub(super) struct Memory {
    pub(super) pss: u64,
    pub(super) private_dirty: u64,
}

pub(super) fn memory(pid: i32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
    };
    Ok(Memory { pss: field("Pss"), private_dirty: field("Private_Dirty") })
}
