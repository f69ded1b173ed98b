//! A guest of the test image with `load`, whose disks are loaded one after the other. It is driven over its console; what its
//! engine used meanwhile is read from /proc.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::bare::Running;
use super::process;

/// Ten times what the guest needs from power-on on a quiet machine: others may be using it too.
const BOOT_BOUND: Duration = Duration::from_secs(120);
const ANSWER_BOUND: Duration = Duration::from_secs(30);
const PROMPT: &str = "hpvm-guest#";

pub(super) struct Loaded {
    running: Running,
    console: UnixStream,
    heard: String,
    /// Names of the guest's disks, and their sizes in MiB.
    disks: Vec<(String, u64)>,
}

/// How a disk is loaded.
pub(super) struct Pattern {
    /// As `load` takes it: bytes, depth, order, what.
    pub(super) words: &'static str,
    pub(super) time: Duration,
}

/// What one disk did in a short time.
#[derive(Clone, Copy)]
pub(super) struct Slice {
    pub(super) per_second: f64,
    /// Time of all threads of the engine, for one request.
    pub(super) processor_us: f64,
}

impl Loaded {
    /// Waits until the guest that just started has booted, and starts `load` in it.
    pub(super) fn wait(running: Running, console: UnixStream) -> Result<Loaded> {
        let mut guest = Loaded { running, console, heard: String::new(), disks: Vec::new() };
        guest.hear("HPVM GUEST READY", BOOT_BOUND)?;
        guest.hear(PROMPT, BOOT_BOUND)?;
        guest.say("grep . /sys/block/*/size\n")?;
        guest.disks = disks(&guest.hear(PROMPT, ANSWER_BOUND)?);
        guest.say("stty -echo; load\n")?;
        guest.hear("load is ready", ANSWER_BOUND)?;
        Ok(guest)
    }

    /// Loads the disk of this size.
    pub(super) fn load(&mut self, disk_mib: u64, pattern: &Pattern) -> Result<Slice> {
        let (name, _) = self
            .disks
            .iter()
            .find(|(_, mib)| *mib == disk_mib)
            .with_context(|| format!("the guest has no disk of {disk_mib} MiB"))?;
        let line = format!("/dev/{name} {} {}\n", pattern.words, pattern.time.as_millis());
        let before = process::processor_time(self.running.pid());
        self.say(&line)?;
        self.hear("did ", ANSWER_BOUND)?;
        let answer = self.hear("\n", ANSWER_BOUND)?;
        let used = process::processor_time(self.running.pid()) - before;
        let (count, took) = answer.split_once(" in ").context("an answer of load")?;
        let (count, took_us): (f64, f64) = (count.parse()?, took.trim().parse()?);
        ensure!(count > 0.0 && took_us > 0.0, "load did nothing: {answer}");
        let processor_us = used.as_secs_f64() * 1e6 / count;
        Ok(Slice { per_second: count * 1e6 / took_us, processor_us })
    }

    fn say(&mut self, line: &str) -> Result<()> {
        self.console.write_all(line.as_bytes()).context("typing at the guest's console")
    }

    /// Gives what came before `text`.
    fn hear(&mut self, text: &str, bound: Duration) -> Result<String> {
        let deadline = Instant::now() + bound;
        self.console.set_read_timeout(Some(Duration::from_secs(1)))?;
        loop {
            if let Some(at) = self.heard.find(text) {
                let rest = self.heard.split_off(at + text.len());
                let before = std::mem::replace(&mut self.heard, rest);
                return Ok(before[..at].to_owned());
            }
            ensure!(!self.heard.contains("failed: "), "in the guest: {}", self.heard);
            ensure!(Instant::now() < deadline, "no '{text}' within {bound:?}: {}", self.heard);
            let mut bytes = [0; 4096];
            match self.console.read(&mut bytes) {
                Ok(0) => anyhow::bail!("the console closed before '{text}': {}", self.heard),
                Ok(count) => self.heard.push_str(&String::from_utf8_lossy(&bytes[..count])),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("reading the guest's console"),
            }
        }
    }
}

/// Lines `/sys/block/NAME/size:SECTORS`.
fn disks(text: &str) -> Vec<(String, u64)> {
    let disk = |line: &str| {
        let (name, sectors) = line.trim().strip_prefix("/sys/block/")?.split_once("/size:")?;
        Some((name.to_owned(), sectors.parse::<u64>().ok()? >> 11))
    };
    text.lines().filter_map(disk).collect()
}
