//! The machine that is not there: its run state, block nodes, devices and what its guest does. Commands and the passing of
//! time change it; what follows from them comes out as [`Effect`]s, which the server carries out in order.
//!
//! ```text
//!            cont              stop
//!  prelaunch ────► running ◄────────► paused
//!      ▲             │      cont
//!      │ reset       │ the guest switches off
//!      └─────────── shutdown
//! ```

mod block;
mod devices;
mod jobs;
mod life;
mod networks;
mod requests;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::behaviour::Behaviour;
use super::human;
use block::{FdSet, Node};
use devices::Device;
use jobs::Job;
use networks::Netdev;
use requests::Requests;

/// QEMU's no.
#[derive(Debug)]
pub(super) struct Refusal {
    pub class: &'static str,
    pub text: String,
}

impl Refusal {
    pub(super) fn generic(text: impl Into<String>) -> Refusal {
        Refusal { class: "GenericError", text: text.into() }
    }

    fn no_device(id: &str) -> Refusal {
        Refusal { class: "DeviceNotFound", text: format!("Device '{id}' not found") }
    }
}

pub(super) type Answer = Result<Value, Refusal>;

#[derive(Debug)]
pub(super) enum Effect {
    Event { name: &'static str, data: Option<Value> },
    Console(Vec<u8>),
    After(Duration, Later),
    Exit,
}

/// What time brings. Those of a boot are void after a reset.
#[derive(Clone, Debug)]
pub(super) enum Later {
    OsTakesOver { boot: u64 },
    SwitchesOff { boot: u64 },
    Reboots,
    DeviceGone { id: String },
    Mirrored { id: String },
    Completed { id: String },
    Crash,
    Ends,
    Eats,
    RequestsStick,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Prelaunch,
    Running,
    Paused,
    Shutdown,
    /// Told to end, and at it.
    Ending,
}

#[derive(Debug)]
pub(super) struct Machine {
    behaviour: Behaviour,
    state: State,
    stays_after_shutdown: bool,
    boot: u64,
    os_runs: bool,
    button_pressed: bool,
    fdsets: BTreeMap<i64, FdSet>,
    /// The newest first, as QEMU lists them.
    nodes: Vec<Node>,
    flash: Vec<String>,
    devices: Vec<Device>,
    jobs: Vec<Job>,
    nameless_nodes: u64,
    /// By their ids, in the order of the line.
    chardevs: Vec<String>,
    netdevs: Vec<Netdev>,
    processors: i64,
    requests: Requests,
    effects: Vec<Effect>,
}

/// A command's arguments.
struct Arguments<'a>(&'a Map<String, Value>);

impl Arguments<'_> {
    /// The schema has already said that it is there; QEMU's own text if not.
    fn text(&self, name: &str) -> Result<&str, Refusal> {
        self.optional_text(name)
            .ok_or_else(|| Refusal::generic(format!("Parameter '{name}' is missing")))
    }

    fn optional_text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str)
    }

    fn number(&self, name: &str) -> Option<i64> {
        let value = self.0.get(name)?;
        value.as_i64().or_else(|| value.as_str()?.parse().ok())
    }
}

impl Machine {
    pub(super) fn new(
        behaviour: Behaviour,
        flash: Vec<String>,
        stays_after_shutdown: bool,
    ) -> Machine {
        Machine {
            behaviour,
            state: State::Prelaunch,
            stays_after_shutdown,
            boot: 0,
            os_runs: false,
            button_pressed: false,
            fdsets: BTreeMap::new(),
            nodes: Vec::new(),
            flash,
            devices: Vec::new(),
            jobs: Vec::new(),
            nameless_nodes: 100,
            chardevs: Vec::new(),
            netdevs: Vec::new(),
            processors: 1,
            requests: Requests::default(),
            effects: Vec::new(),
        }
    }

    pub(super) fn know_processors(&mut self, count: i64) {
        self.processors = count;
    }

    pub(super) fn know_chardevs(&mut self, ids: Vec<String>) {
        self.chardevs = ids;
    }

    /// The socket behind the agent's port.
    pub(super) fn agent_chardev(&self) -> Option<&str> {
        self.agent_port().map(|(_, chardev)| chardev)
    }

    pub(super) fn os_runs(&self) -> bool {
        self.os_runs
    }

    /// What has followed since the last call.
    pub(super) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Performs a command that the schema has let through.
    pub(super) fn execute(
        &mut self,
        command: &str,
        arguments: &Map<String, Value>,
        fd: Option<OwnedFd>,
    ) -> Answer {
        if self.state == State::Ending {
            std::process::abort();
        }
        let arguments = Arguments(arguments);
        match command {
            "qmp_capabilities" => Err(Refusal {
                class: "CommandNotFound",
                text: "Capabilities negotiation is already complete, command ignored".into(),
            }),
            "query-status" => Ok(self.status()),
            "query-version" => Ok(version()),
            "stop" => self.stop(),
            "cont" => self.cont(),
            "quit" => self.quit(),
            "system_reset" => self.reset("host-qmp-system-reset", false),
            "system_powerdown" => self.press_power_button(),
            "add-fd" => self.add_fd(&arguments, fd),
            "remove-fd" => self.remove_fd(&arguments),
            "query-fdsets" => Ok(self.query_fdsets()),
            "blockdev-add" => self.add_node(&arguments),
            "blockdev-del" => self.delete_node(&arguments),
            "block_resize" => self.resize(&arguments),
            "blockdev-mirror" => self.mirror(&arguments),
            "block-job-cancel" => self.cancel_job(&arguments),
            "job-finalize" => self.finalize_job(&arguments),
            "job-dismiss" => self.dismiss_job(&arguments),
            "query-jobs" => Ok(self.query_jobs()),
            "query-named-block-nodes" => Ok(self.query_nodes()),
            "query-block" => Ok(self.query_block()),
            "query-blockstats" => Ok(self.query_blockstats()),
            "device_add" => self.add_device(&arguments),
            "device_del" => self.delete_device(&arguments),
            "blockdev-open-tray" => self.open_tray(&arguments),
            "blockdev-close-tray" => self.close_tray(&arguments),
            "blockdev-remove-medium" => self.remove_medium(&arguments),
            "blockdev-insert-medium" => self.insert_medium(&arguments),
            "blockdev-change-medium" => self.change_medium(&arguments),
            "eject" => self.eject(&arguments),
            "chardev-add" => self.add_chardev(&arguments),
            "chardev-remove" => self.remove_chardev(&arguments),
            "netdev_add" => self.add_netdev(&arguments),
            "netdev_del" => self.delete_netdev(&arguments),
            "set_link" => self.set_link(&arguments),
            "query-chardev" => Ok(self.query_chardev()),
            "x-query-virtio-queue-status" => self.query_queue(&arguments),
            "query-pci" => Ok(self.query_pci()),
            "qom-list" => self.qom_list(&arguments),
            "qom-get" => self.qom_get(&arguments),
            "human-monitor-command" => {
                Ok(human::answer(arguments.text("command-line")?, self.chipset()).into())
            }
            other => Err(Refusal::generic(format!("the fake cannot {other}"))),
        }
    }

    fn event(&mut self, name: &'static str, data: Option<Value>) {
        self.effects.push(Effect::Event { name, data });
    }

    fn console(&mut self, text: &str) {
        self.effects.push(Effect::Console(text.into()));
    }

    fn after(&mut self, delay: Duration, later: Later) {
        self.effects.push(Effect::After(delay, later));
    }
}

fn version() -> Value {
    json!({
        "qemu": { "micro": 2, "minor": 0, "major": 10 },
        "package": "Debian 1:10.0.2+ds-2+deb13u1~bpo12+1",
    })
}

pub(super) fn greeting() -> Value {
    json!({ "QMP": { "version": version(), "capabilities": ["oob"] } })
}

fn done() -> Answer {
    Ok(json!({}))
}
