//! The traffic generator: built with the C compiler and DPDK, kept on the first processor, and bounded in time.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::contender::Contender;
use crate::bench::process;
use crate::cache::checkout;
use crate::tool::{perform, phase, tool};

/// DPDK knows at most 32 ports in a process.
const PORTS_MAX: usize = 25;
/// A slice, its warm-up, and waiting until nothing comes any more, take about this much more than the slice alone.
const AROUND_SLICE_MS: usize = 15;
const START: Duration = Duration::from_secs(60);

pub(super) struct Generator {
    program: PathBuf,
    folder: PathBuf,
}

impl Generator {
    pub(super) fn build(folder: &Path) -> Result<Generator> {
        let mut make = tool("make", Duration::from_secs(120));
        make.arg("-C")
            .arg(checkout().join("benches/traffic"))
            .arg(format!("OUT={}", folder.display()));
        phase("building the traffic generator", || perform(&mut make))?;
        Ok(Generator { program: folder.join("traffic"), folder: folder.to_owned() })
    }

    /// Connects guests that say nothing to all these sockets.
    pub(super) fn idle(&self, sockets: &[PathBuf]) -> Result<Vec<Guests>> {
        sockets.chunks(PORTS_MAX).map(|part| self.idle_part(part)).collect()
    }

    fn idle_part(&self, sockets: &[PathBuf]) -> Result<Guests> {
        let mut command = Command::new(&self.program);
        command.arg("idle").args(sockets).env("RUNTIME_DIRECTORY", &self.folder);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(self.log()?);
        let mut guests = Guests(command.spawn().context("starting idle guests")?);
        let mut line = String::new();
        BufReader::new(guests.0.stdout.take().context("no output")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "idle guests did not connect: {}", self.last_words());
        Ok(guests)
    }

    /// Runs all patterns over all switches; gives the lines of the slices.
    pub(super) fn slices(
        &self,
        rounds: usize,
        slice_ms: usize,
        patterns: &[&str],
        contenders: &[Contender],
    ) -> Result<String> {
        let slices = rounds * patterns.len() * contenders.len();
        let expected = Duration::from_millis((slices * (slice_ms + AROUND_SLICE_MS)) as u64);
        let bound = START + 3 * expected;
        // Ahead of everything else that may run on this machine, as the switches are.
        let mut command = tool("taskset", bound);
        command.args(["-c", "0", "chrt", "--rr", "1"]).arg(&self.program).arg("slices");
        command.args([rounds.to_string(), slice_ms.to_string(), patterns.join(",")]);
        command.args(contenders.iter().map(Contender::word));
        command.env("RUNTIME_DIRECTORY", &self.folder).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(self.log()?);
        let title = format!("{slices} slices in about {} s", expected.as_secs());
        phase(&title, || {
            let mut child = command.spawn().context("starting the traffic generator")?;
            let mut lines = String::new();
            child.stdout.take().context("no output")?.read_to_string(&mut lines)?;
            let status = child.wait()?;
            ensure!(status.success(), "the generator: {status}\n{}", self.last_words());
            Ok(lines)
        })
    }

    fn log(&self) -> Result<File> {
        Ok(File::options().create(true).append(true).open(self.folder.join("generator.log"))?)
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(self.folder.join("generator.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }
}

/// A process that holds idle ports; they go with it.
pub(super) struct Guests(Child);

impl Drop for Guests {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.0.id()) {
            process::signal(pid, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}
