//! The port by which scripts go into the guest-host and answers come back: QEMU's standard input and output, which it joins
//! to a virtio-serial port. At its other end is the agent, `xtask/src/guest_host/agent`:
//!
//! ```text
//! guest → us   READY BOOT-ID\n                when scripts are awaited, once a boot
//! us → guest   SECONDS BYTES\n SCRIPT
//! guest → us   STATUS BYTES\n OUTPUT
//! ```

use std::io::{Read, Write};
use std::process::{ChildStdin, ChildStdout};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::Ran;

/// What the pipe to QEMU takes at once, so that writing never waits for the guest.
const SCRIPT_BYTES_MAX: usize = 60_000;

pub(crate) struct Port {
    asking: ChildStdin,
    answers: ChildStdout,
    received: Vec<u8>,
    /// The boot that said READY last.
    boot: String,
}

impl Port {
    pub(crate) fn new(asking: ChildStdin, answers: ChildStdout) -> Port {
        Port { asking, answers, received: Vec::new(), boot: String::new() }
    }

    /// Waits for a boot that has not been ready before, passing over what an earlier one still says.
    pub(crate) fn wait_until_ready(&mut self, bound: Duration) -> Result<()> {
        let deadline = Instant::now() + bound;
        loop {
            let line = self.line(deadline).context("waiting for a boot of the guest-host")?;
            if let Some((_, boot)) = line.split_once("READY ")
                && boot != self.boot
            {
                self.boot = boot.to_owned();
                return Ok(());
            }
        }
    }

    /// Runs a script to its end.
    pub(crate) fn ask(&mut self, script: &str, bound: Duration, grace: Duration) -> Result<Ran> {
        self.send(script, bound)?;
        let deadline = Instant::now() + bound + grace;
        let line = self.line(deadline).context("waiting for the end of a script")?;
        let numbers = line.split_once(' ');
        let parsed = numbers.and_then(|(status, size)| {
            Some((status.parse::<i32>().ok()?, size.parse::<usize>().ok()?))
        });
        let Some((status, size)) = parsed else { bail!("the agent answers {line:?}") };
        while self.received.len() < size {
            self.receive(deadline).context("reading the output of a script")?;
        }
        let output = self.received.drain(..size).collect::<Vec<u8>>();
        Ok(Ran { status, output: String::from_utf8_lossy(&output).into_owned() })
    }

    /// Runs a script whose end may not be told any more.
    pub(crate) fn tell(&mut self, script: &str) -> Result<()> {
        self.send(script, Duration::from_secs(60))
    }

    fn send(&mut self, script: &str, bound: Duration) -> Result<()> {
        ensure!(script.len() <= SCRIPT_BYTES_MAX, "a script of {} bytes is too long", script.len());
        let message = format!("{} {}\n{script}", bound.as_secs().max(1), script.len());
        self.asking.write_all(message.as_bytes()).context("sending a script to the guest-host")?;
        self.asking.flush().context("sending a script to the guest-host")
    }

    fn line(&mut self, deadline: Instant) -> Result<String> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line = self.received.drain(..=end).collect::<Vec<u8>>();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.receive(deadline)?;
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let pause = Timespec::try_from(left).context("a bound that is too long")?;
        let mut wanted = [PollFd::new(&self.answers, PollFlags::IN)];
        let ready = poll(&mut wanted, Some(&pause)).context("waiting for the guest-host")?;
        ensure!(ready > 0, "nothing came in time");
        let mut buffer = [0; 4096];
        let count = self.answers.read(&mut buffer).context("reading from the guest-host")?;
        ensure!(count > 0, "QEMU has ended");
        self.received.extend_from_slice(&buffer[..count]);
        Ok(())
    }
}
