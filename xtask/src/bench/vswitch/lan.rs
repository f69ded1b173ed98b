//! A network namespace of the benchmark's own: the VM Host of the measured guests, with taps, a bridge of the kernel for
//! guests that have no virtual switch, and a server of iperf3. All of it goes with the processes that are in it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, unshare};

use crate::apt;
use crate::bench::process::{self, wait_until};
use crate::tool::{perform, tool};

const BOUND: Duration = Duration::from_secs(10);
const BRIDGE: &str = "bridge0";
const PACKAGES: [&str; 3] = ["iperf3", "libiperf0", "libsctp1"];
/// Where the packages have their libraries.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Does work in a network namespace that nobody else is in; whatever it starts is in it too.
pub(super) fn apart<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let within = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
            ip(&["link", "set", "lo", "up"])?;
            work()
        });
        within.join().map_err(|_| anyhow!("the thread that measures ended by a panic"))?
    })
}

fn ip(words: &[&str]) -> Result<()> {
    perform(tool("ip", BOUND).args(words))
}

/// The host's own address on an interface.
pub(super) fn give_address(interface: &str, address: &str) -> Result<()> {
    ip(&["address", "add", &format!("{address}/24"), "dev", interface])?;
    ip(&["link", "set", interface, "up"])
}

/// A tap whose other end is the host itself.
pub(super) fn add_tap(name: &str, address: &str) -> Result<()> {
    ip(&["tuntap", "add", name, "mode", "tap"])?;
    give_address(name, address)
}

/// Taps that the kernel's bridge connects with each other.
pub(super) fn bridge(taps: &[String]) -> Result<()> {
    ip(&["link", "add", BRIDGE, "type", "bridge"])?;
    ip(&["link", "set", BRIDGE, "up"])?;
    taps.iter().try_for_each(|name| {
        ip(&["tuntap", "add", name, "mode", "tap"])?;
        ip(&["link", "set", name, "master", BRIDGE, "up"])
    })
}

/// iperf3 for the host, which need not have it: Debian's, unpacked.
pub(super) struct Iperf {
    tree: PathBuf,
}

impl Iperf {
    pub(super) fn unpack(folder: &Path) -> Result<Iperf> {
        let tree = folder.join("iperf3");
        let versions = apt::versions(&PACKAGES)?;
        PACKAGES.iter().try_for_each(|package| apt::unpack(package, &versions[*package], &tree))?;
        Ok(Iperf { tree })
    }

    /// Serves whoever of this namespace asks at a port.
    pub(super) fn serve(&self, port: u16) -> Result<Server> {
        let log_path = self.tree.join(format!("log-{port}"));
        let log = File::create(&log_path)?;
        let mut command = Command::new(self.tree.join("usr/bin/iperf3"));
        command
            .args(["-s", "--forceflush", "-p", &port.to_string()])
            .env("LD_LIBRARY_PATH", self.tree.join(LIBRARIES));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let server = Server { child: command.spawn().context("starting iperf3")?, port };
        let said = || std::fs::read_to_string(&log_path).unwrap_or_default();
        wait_until("iperf3 listens", || {
            said().contains("listening") || !process::is_alive(server.pid())
        })?;
        ensure!(process::is_alive(server.pid()), "iperf3 ended: {}", said());
        Ok(server)
    }
}

pub(super) struct Server {
    child: Child,
    pub(super) port: u16,
}

impl Server {
    pub(super) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
