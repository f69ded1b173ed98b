//! The switches that are measured: how each is started with its sockets, on one forwarding processor, and ended.
//!
//! All of them listen on their sockets, none needs huge pages, and none touches what may run on this machine already:
//! folders, database and network namespace are their own. Another switch is one more function here.

use std::fs::{self, File};
use std::iter;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::ovs::Database;
use crate::bench::process::{self, wait_until};
use crate::cache::checkout;
use crate::tool::{is_root, perform, phase, tool};

const TESTPMD: &str = "/usr/bin/dpdk-testpmd";
const DPDK_HEADERS: &str = "/usr/include/dpdk/rte_ethdev.h";

/// One memory file, no files in /run, no devices of this machine.
pub(super) const SMALL_DPDK: &str = "--no-huge --no-shconf --no-telemetry --no-pci -m 512";

/// The processor that forwards; the generator has the first.
const FORWARDER: &str = "1";

/// From which the generator sends where a port's guest has one address: left and right, as `station` of `frames.c` has it.
const STATIONS: [&str; 2] = ["0x020a00000000", "0x020b00000000"];

/// Of a port that says nothing: all that a port can ask for. Its copies would go to the port after it.
const RULES: [&str; 3] = ["portid:3:rate:1G,1G", "portid:3:addr:10.12.0.1", "portid:3:mirror:4"];

/// All threads of our switch begin with the example's name.
const OURS_FORWARDS: &str = "bridge";

/// What hinders measuring, if anything.
pub(super) fn missing() -> Result<Option<&'static str>> {
    let needed = [TESTPMD, DPDK_HEADERS, super::ovs::PROGRAM];
    Ok(if !is_root()? {
        Some("only root may run the switches ahead of all other processes")
    } else if needed.iter().any(|path| !Path::new(path).exists()) {
        Some("DPDK, or Open vSwitch with it, is not installed")
    } else {
        None
    })
}

/// A switch that runs and listens.
pub(super) struct Contender {
    name: &'static str,
    folder: PathBuf,
    /// In the names of the threads that forward.
    forwarder: &'static str,
    pub(super) sockets: Vec<PathBuf>,
    /// The switch itself comes first, what it needs after it.
    processes: Vec<Child>,
}

impl Contender {
    /// Our library in its shortest use: one switch, one forwarding thread.
    pub(super) fn ours(folder: &Path, name: &'static str, ports: usize) -> Result<Contender> {
        let contender = Contender::new(folder, name, OURS_FORWARDS, ports)?;
        let words = contender.sockets.iter().map(|socket| socket.display().to_string()).collect();
        contender.bridged(words)
    }

    /// The same, with the rules of a new guest's port on the two that talk, beside one that has all there are.
    pub(super) fn ours_with_rules(folder: &Path, name: &'static str) -> Result<Contender> {
        let contender = Contender::new(folder, name, OURS_FORWARDS, 4)?;
        let stations =
            STATIONS.iter().map(|mac| format!("{mac}@")).chain(iter::repeat(String::new()));
        let ports = stations.zip(&contender.sockets);
        let ports = ports.map(|(station, socket)| format!("{station}{}", socket.display()));
        let words = ports.chain(RULES.map(String::from)).collect();
        contender.bridged(words)
    }

    fn bridged(mut self, words: Vec<String>) -> Result<Contender> {
        let mut command = Command::new("taskset");
        command.args(["-c", FORWARDER]).arg(bridge()?).args(words);
        self.spawn(command)?;
        self.wait_until_it_listens()?;
        Ok(self)
    }

    /// testpmd between two vhost ports: it takes frames here and puts them there, and looks at nothing.
    pub(super) fn testpmd(folder: &Path, name: &'static str) -> Result<Contender> {
        let mut contender = Contender::new(folder, name, "worker", 2)?;
        let mut command = Command::new(TESTPMD);
        command.args(["-l", &format!("0,{FORWARDER}"), "--main-lcore", "0"]);
        command.args(SMALL_DPDK.split(' ')).env("RUNTIME_DIRECTORY", &contender.folder);
        for (n, socket) in contender.sockets.iter().enumerate() {
            command.arg("--vdev").arg(format!("net_vhost{n},iface={}", socket.display()));
        }
        command.args(["--", "--forward-mode=io", "--auto-start", "--nb-cores=1"]);
        command.arg("--total-num-mbufs=8192");
        contender.spawn(command)?;
        contender.wait_until_it_listens()?;
        Ok(contender)
    }

    /// OVS-DPDK with one bridge that learns addresses (action NORMAL, the default without a controller).
    pub(super) fn ovs(folder: &Path, name: &'static str) -> Result<Contender> {
        let mut contender = Contender::new(folder, name, "pmd", 2)?;
        let database = Database::new(&contender.folder);
        contender.processes.push(database.start()?);
        database.prepare(FORWARDER.parse()?)?;
        contender.spawn(database.switch())?;
        // The switch before its database, which then ends after it.
        contender.processes.reverse();
        contender.sockets.iter().try_for_each(|socket| database.add_port(socket))?;
        contender.wait_until_it_listens()?;
        Ok(contender)
    }

    fn new(
        parent: &Path,
        name: &'static str,
        forwarder: &'static str,
        ports: usize,
    ) -> Result<Contender> {
        let folder = parent.join(name);
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        let sockets = (0..ports).map(|n| folder.join(format!("port{n}"))).collect();
        Ok(Contender { name, folder, forwarder, sockets, processes: Vec::new() })
    }

    /// Standard input stays open: testpmd ends with it.
    fn spawn(&mut self, mut command: Command) -> Result<()> {
        let log = File::create(self.folder.join("log"))?;
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("starting {}", self.name))?;
        self.processes.push(child);
        Ok(())
    }

    fn wait_until_it_listens(&self) -> Result<()> {
        let is_listening = || self.sockets.iter().all(|socket| socket.exists());
        let pid = self.pid();
        wait_until(&format!("{} listens", self.name), || {
            is_listening() || !process::is_alive(pid)
        })?;
        let said = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        ensure!(is_listening(), "{} did not start: {said}", self.name);
        Ok(())
    }

    /// Lets the threads that forward run ahead of everything else on their processor, as on one kept for them. Comes when
    /// all switches are up, since one that polls lets nothing else start there.
    pub(super) fn put_ahead(&self) -> Result<()> {
        for task in fs::read_dir(format!("/proc/{}/task", self.pid()))?.flatten() {
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            if name.contains(self.forwarder) {
                let mut command = tool("chrt", Duration::from_secs(5));
                perform(command.args(["--rr", "--pid", "1"]).arg(task.file_name()))?;
            }
        }
        Ok(())
    }

    /// The process that is stopped between its slices.
    pub(super) fn pid(&self) -> i32 {
        self.processes.first().and_then(|child| i32::try_from(child.id()).ok()).unwrap_or_default()
    }

    /// As the generator takes it: `NAME=PID:SOCKET:SOCKET`.
    pub(super) fn word(&self) -> String {
        let ends = self.sockets[..2].iter().map(|socket| format!(":{}", socket.display()));
        format!("{}={}{}", self.name, self.pid(), ends.collect::<String>())
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        for child in &mut self.processes {
            // Also a stopped one ends by this.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Builds what the library of the data path shows as its shortest use.
fn bridge() -> Result<PathBuf> {
    let mut cargo = tool("cargo", Duration::from_secs(1200));
    cargo.args(["build", "--release", "--locked", "--package", "hpvm-vswitch"]);
    cargo.args(["--example", "bridge"]).current_dir(checkout());
    phase("building the bridge", || perform(&mut cargo))?;
    Ok(checkout().join("target/release/examples/bridge"))
}
