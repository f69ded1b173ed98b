//! OVS-DPDK by hand: its database, its configuration and its switch in one folder, with no service of the system.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::contender::SMALL_DPDK;
use crate::bench::process::wait_until;
use crate::tool::{perform, tool};

pub(super) const PROGRAM: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const BOUND: Duration = Duration::from_secs(30);

/// Where the programs look for their files, were they not told otherwise.
const FOLDERS: [&str; 5] =
    ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR", "RUNTIME_DIRECTORY"];

pub(super) struct Database {
    folder: PathBuf,
}

impl Database {
    pub(super) fn new(folder: &Path) -> Database {
        Database { folder: folder.to_owned() }
    }

    fn address(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("db.sock")
    }

    fn in_folder(&self, mut command: Command) -> Command {
        command.current_dir(&self.folder);
        FOLDERS.iter().for_each(|name| {
            command.env(name, &self.folder);
        });
        command
    }

    pub(super) fn start(&self) -> Result<Child> {
        let create = tool("ovsdb-tool", BOUND);
        perform(self.in_folder(create).args(["create", "conf.db", SCHEMA]))?;
        let log = File::create(self.folder.join("db.log"))?;
        let mut server = self.in_folder(Command::new("/usr/sbin/ovsdb-server"));
        server.args(["conf.db", "--unixctl=db.ctl"]).arg(format!("--remote=p{}", self.address()));
        server.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = server.spawn().context("starting ovsdb-server")?;
        wait_until("ovsdb-server listens", || self.socket().exists())?;
        Ok(child)
    }

    /// What the switch reads when it starts: DPDK, with one thread that forwards.
    pub(super) fn prepare(&self, forwarder: u32) -> Result<()> {
        self.configure(&["--no-wait", "init"])?;
        // Without --legacy-mem the switch asks for memory that cannot be without huge pages.
        let settings = [
            "dpdk-init=true".to_owned(),
            format!("dpdk-extra=--legacy-mem {SMALL_DPDK}"),
            "dpdk-lcore-mask=0x1".to_owned(),
            format!("pmd-cpu-mask={:#x}", 1 << forwarder),
            "per-port-memory=true".to_owned(),
        ];
        let settings = settings.map(|setting| format!("other_config:{setting}"));
        let mut words = vec!["--no-wait", "set", "Open_vSwitch", "."];
        words.extend(settings.iter().map(String::as_str));
        self.configure(&words)
    }

    /// The switch, to be started. Its bridge makes a tap, which stays in a network namespace of its own.
    pub(super) fn switch(&self) -> Command {
        let mut command = self.in_folder(Command::new("unshare"));
        command.args(["--net", PROGRAM, &self.address(), "--unixctl=ovs.ctl", "--no-chdir"]);
        command
    }

    /// Puts a port on the bridge, which comes with the first one; its socket is named by the port.
    pub(super) fn add_port(&self, socket: &Path) -> Result<()> {
        let name =
            socket.file_name().and_then(|name| name.to_str()).context("no name of a port")?;
        let bridge = ["--may-exist", "add-br", "br0", "--", "set", "bridge", "br0"];
        let port = ["--", "add-port", "br0", name, "--", "set", "Interface", name];
        let kinds = ["datapath_type=netdev", "type=dpdkvhostuser"];
        self.configure(&[&bridge[..], &kinds[..1], &port, &kinds[1..]].concat())
    }

    fn configure(&self, words: &[&str]) -> Result<()> {
        let mut command = self.in_folder(tool("ovs-vsctl", BOUND));
        perform(command.arg(format!("--db={}", self.address())).arg("--timeout=20").args(words))
    }
}
