//! A network namespace of the benchmark's own, with a bridge of the kernel and taps on it: what guests use who have no
//! virtual switch. It goes with the process that holds it.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bench::process::wait_until;
use crate::tool::{perform, tool};

const BOUND: Duration = Duration::from_secs(10);
const BRIDGE: &str = "bridge0";

pub(super) struct Lan {
    holder: Child,
}

impl Lan {
    pub(super) fn new() -> Result<Lan> {
        // Ends when its standard input does, and so with us.
        let mut command = Command::new("unshare");
        command.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let lan = Lan { holder: command.spawn().context("making a network namespace")? };
        let own = std::fs::read_link("/proc/self/ns/net")?;
        wait_until("the network namespace is there", || {
            std::fs::read_link(lan.namespace()).is_ok_and(|other| other != own)
        })?;
        lan.ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        lan.ip(&["link", "set", BRIDGE, "up"])?;
        Ok(lan)
    }

    fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    /// A command that runs within.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace())).arg(program);
        command
    }

    fn ip(&self, words: &[&str]) -> Result<()> {
        let mut command = tool("nsenter", BOUND);
        command.arg(format!("--net={}", self.namespace())).arg("ip").args(words);
        perform(&mut command)
    }

    /// A tap on the bridge.
    pub(super) fn add_tap(&self, name: &str) -> Result<()> {
        self.ip(&["tuntap", "add", name, "mode", "tap"])?;
        self.ip(&["link", "set", name, "master", BRIDGE, "up"])
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
