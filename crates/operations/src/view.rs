//! How a guest looks now: its configuration, the machine it runs on, what its worker published, and what waits for the
//! next start. Tables, XML and JSON are made from these values alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hpvm_app::snapshot::{Agent, Ending, Extent};
use hpvm_host::durable;
use hpvm_host::lock::BusyError;
use hpvm_host::names::guest_folder;
use hpvm_model::{
    GuestConfig, GuestName, GuestNumber, MacAddress, Nic, OsFamily, PciSlot, RunState,
    StorageAddress,
};
use hpvm_plan::difference::{FieldChange, waiting};
use hpvm_plan::record::Machine;
use hpvm_registry::{GuestSummary, Operation, Outcome, RecordedOperation, Selector};

use crate::devdb::read_only::ReadOnly;
use crate::displaced::{Displaced, displaced_files};
use crate::network::status;
use crate::presence::{Presence, Supervision};
use crate::{Actor, Refusal, VmHost, console_media, lost, lost_record, stores, supervise};

/// One guest, complete.
#[derive(Clone, Debug)]
pub struct GuestView {
    pub config: GuestConfig,
    pub state: RunState,
    /// When the state began, RFC 3339; absent when nobody knows.
    pub since: Option<String>,
    /// What an administrator should know, a sentence each; empty for a healthy guest.
    pub health: Vec<String>,
    /// The machine a running guest has.
    pub machine: Option<Machine>,
    /// The disks that the guest may only read from its next start on; those of the machine that runs, the machine tells.
    pub read_only: BTreeSet<StorageAddress>,
    /// Of the VM Host's drives that the guest has, those without a medium, a sentence each.
    pub empty_drives: Vec<String>,
    /// The addresses its NICs last sent from, as far as their switches saw.
    pub heard: BTreeMap<PciSlot, MacAddress>,
    /// The agent in a running guest.
    pub agent: Option<Agent>,
    /// What the configuration asks for and the running machine has not.
    pub waiting: Vec<FieldChange>,
    /// How the last run ended, and when, while the VM Host remembers it.
    pub last_ending: Option<(String, Ending)>,
}

impl GuestView {
    /// The address a NIC really uses, where the guest gave it another one.
    #[must_use]
    pub fn other_mac(&self, nic: &Nic) -> Option<MacAddress> {
        self.heard.get(&nic.slot).copied().filter(|mac| *mac != nic.mac)
    }

    /// The accelerator of a running guest.
    #[must_use]
    pub fn accelerator(&self) -> Option<&'static str> {
        self.machine.as_ref().map(|machine| machine.base.accelerator.as_str())
    }
}

/// The VM Host as `hpvmstatus -s` shows it.
#[derive(Clone, Debug)]
pub struct HostView {
    pub processor_mhz: u32,
    pub memory_total_mib: u64,
    pub memory_available_mib: u64,
    pub swap_available_mib: u64,
    pub processors: u32,
    /// The accelerator new guests get, and why.
    pub accelerator: String,
    pub accelerator_reason: String,
    pub engine: Result<hpvm_plan::facts::Engine, String>,
    /// Most vCPUs by guest type, in the order HP-UX, Windows, Linux.
    pub vcpus_max: [u32; 3],
}

/// A guest as a list shows it.
#[derive(Clone, Debug)]
pub struct GuestLine {
    pub summary: GuestSummary,
    pub state: RunState,
}

/// What runs counts as it runs, so that a list and the other views agree; what waits for the next start is not there yet.
fn line_of(summary: GuestSummary, presence: &Presence) -> GuestLine {
    let state = presence.state();
    let snapshot = presence.snapshot().filter(|_| presence.is_on());
    let Some(Extent { vcpus, memory, storage_devices, nics }) = snapshot.and_then(|s| s.extent)
    else {
        return GuestLine { summary, state };
    };
    let summary = GuestSummary { vcpus, memory, devices: storage_devices, nics, ..summary };
    GuestLine { summary, state }
}

impl VmHost {
    /// All guests, as a list shows them. Only guests with a run folder are looked at closely.
    pub fn lines(&self) -> Result<Vec<GuestLine>, Refusal> {
        let folders = self.run_folders();
        let line = |summary: GuestSummary| match folders.contains(&summary.number.get()) {
            true => {
                let presence = self.presence(summary.number);
                line_of(summary, &presence)
            }
            false => GuestLine { summary, state: RunState::Off },
        };
        let mut lines: Vec<GuestLine> = self.registry.list()?.into_iter().map(line).collect();
        self.unless_forgotten(lines.len())?;
        self.find_lost(&mut lines);
        Ok(lines)
    }

    /// What `/run` shows as off may run all the same.
    fn find_lost(&self, lines: &mut [GuestLine]) {
        let suspects = lost::suspects(self);
        for line in lines.iter_mut().filter(|line| !line.state.is_on()) {
            let number = line.summary.number;
            if suspects.has(number.get()) && lost::is_at_rest(self, number, line.summary.uuid) {
                line.state = RunState::Attention;
            }
        }
    }

    /// Whether the guest runs, in anybody's reach or not.
    #[must_use]
    pub fn runs(&self, config: &GuestConfig) -> bool {
        self.presence(config.number).is_on() || lost::qemu_at_rest(self, config).is_some()
    }

    /// The numbers that `/run` has a folder of.
    #[must_use]
    pub fn run_folders(&self) -> BTreeSet<u32> {
        let entries = std::fs::read_dir(self.root.run()).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// One guest, complete.
    #[must_use]
    pub fn view(&self, config: GuestConfig) -> GuestView {
        let read_only = ReadOnly::of(&self.registry, std::slice::from_ref(&config));
        self.view_with(config, read_only.as_ref())
    }

    fn view_with(&self, config: GuestConfig, read_only: Result<&ReadOnly, &Refusal>) -> GuestView {
        let config = console_media::seen(self, config);
        let presence = self.presence(config.number);
        let lost = (!presence.is_on()).then(|| lost::qemu_at_rest(self, &config)).flatten();
        let runs = presence.is_on() || lost.is_some();
        let machine = runs.then(|| self.boot_record(&config).ok()).flatten();
        let snapshot = presence.snapshot();
        let empty_drives = stores::empty_drives(&config);
        let last_ending = presence.ending().map(|(when, how)| (when.to_owned(), how.clone()));
        let mut health = presence.health();
        health.extend(lost.map(|pid| lost::refusal(&config, pid).to_string()));
        if let Some(machine) = &machine {
            let displaced = displaced_files(self, &config, machine);
            health.extend(displaced.iter().map(Displaced::cause));
        } else {
            let loss = lost_record::look(self, &config, &presence);
            health.extend(loss.map(|loss| loss.sentence(&config)));
        }
        let read_only = read_only.map_err(ToString::to_string).and_then(|known| {
            known.disks(&self.registry, &config).map_err(|refusal| refusal.to_string())
        });
        let read_only = read_only.unwrap_or_else(|why| {
            health.push(format!("nobody can say which of its disks it may only read: {why}"));
            BTreeSet::new()
        });
        GuestView {
            state: if lost.is_some() { RunState::Attention } else { presence.state() },
            since: presence.state_since().filter(|_| lost.is_none()),
            health,
            read_only,
            empty_drives,
            agent: presence.is_on().then(|| snapshot.map(|s| s.agent.clone())).flatten(),
            waiting: machine.as_ref().map(|m| waiting(&config, m)).unwrap_or_default(),
            heard: machine.as_ref().map(|m| self.heard(m)).unwrap_or_default(),
            machine,
            last_ending,
            config,
        }
    }

    fn heard(&self, machine: &Machine) -> BTreeMap<PciSlot, MacAddress> {
        let number = machine.base.number;
        let switches: BTreeSet<u32> = machine.nics.iter().map(|a| a.switch.get()).collect();
        let ports = switches.into_iter().filter_map(|switch| status(self, switch));
        let ports = ports.flat_map(|status| status.ports).filter(|port| port.number == number);
        ports.filter_map(|port| Some((port.slot, port.source?))).collect()
    }

    /// All guests, complete.
    pub fn views(&self) -> Result<Vec<GuestView>, Refusal> {
        let configs = self.registry.all()?;
        self.unless_forgotten(configs.len())?;
        let read_only = ReadOnly::of(&self.registry, &configs);
        let view = |config| self.view_with(config, read_only.as_ref());
        Ok(configs.into_iter().map(view).collect())
    }

    /// The VM Host itself.
    pub fn server(&self) -> Result<HostView, Refusal> {
        let processors = hpvm_host::facts::processors()
            .map_err(Refusal::file("read", "/sys/devices/system/cpu/online"))?;
        let memory = hpvm_host::facts::memory().map_err(Refusal::file("read", "/proc/meminfo"))?;
        let limits = self.conf.limits()?;
        let (accelerator, accelerator_reason) = match self.accelerator() {
            Ok(choice) => (choice.accelerator.as_str().to_owned(), choice.reason),
            Err(reason) => ("none".to_owned(), reason),
        };
        let families = [OsFamily::Hpux, OsFamily::Windows, OsFamily::Linux];
        Ok(HostView {
            processor_mhz: self.processor_mhz(),
            memory_total_mib: memory.total >> 20,
            memory_available_mib: memory.available >> 20,
            swap_available_mib: memory.swap_free >> 20,
            processors,
            accelerator,
            accelerator_reason,
            engine: self.engine(),
            vcpus_max: families.map(|f| limits.limits(f).vcpus_max.min(processors)),
        })
    }

    /// MHz of one processor, by which entitlements are shown; 0 when the machine does not say.
    #[must_use]
    pub fn processor_mhz(&self) -> u32 {
        hpvm_host::facts::processor_mhz().unwrap_or(0)
    }

    /// The guest's log; a guest that never ran has none.
    pub fn guest_log(&self, config: &GuestConfig) -> Result<Vec<u8>, Refusal> {
        let log = self.folder(config).file(guest_folder::LOG);
        match durable::read_regular(&log) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other.map_err(Refusal::file("read", log)),
        }
    }

    /// What was done on this VM Host, a line each, oldest first: the last [`EVENTS_MAX`] operations, and whether there are others.
    pub fn operations_log(&self) -> Result<(String, Earlier), Refusal> {
        let mut recorded = self.registry.operations(None, EVENTS_MAX + 1)?;
        let earlier = match recorded.len() > EVENTS_MAX {
            true => Earlier::LeftOut,
            false => Earlier::None,
        };
        recorded.truncate(EVENTS_MAX);
        Ok((recorded.iter().rev().map(event).collect(), earlier))
    }

    /// Takes over the running guests that nobody supervises; gives those that could not be taken over, each with the reason.
    /// One does not keep the others without.
    pub fn adopt_orphans(&self) -> Result<Vec<(GuestName, Refusal)>, Refusal> {
        let mut left = Vec::new();
        for number in self.run_folders().into_iter().filter_map(GuestNumber::new) {
            if self.is_orphan(number)
                && let Some(config) = self.registry.guest(&Selector::Number(number))?
                && let Err(refusal) = self.adopt(&config)
            {
                left.push((config.name, refusal));
            }
        }
        Ok(left)
    }

    /// Takes a guest over that runs and that nobody supervises.
    pub fn adopt_orphan(&self, config: &GuestConfig) -> Result<(), Refusal> {
        if self.is_orphan(config.number) { self.adopt(config) } else { Ok(()) }
    }

    fn is_orphan(&self, number: GuestNumber) -> bool {
        matches!(self.presence(number), Presence::On { supervision: Supervision::None, .. })
    }

    fn adopt(&self, config: &GuestConfig) -> Result<(), Refusal> {
        let actor = Actor::new("hpvm", String::new(), None);
        match self.busy_within(config, &actor, Duration::ZERO) {
            // Whoever is at it takes it over first if he needs that, and else the next command does.
            Err(BusyError::Held { .. } | BusyError::HeldByUnknown { .. }) => Ok(()),
            busy => {
                let _busy = busy?;
                supervise::adopt(self, config, supervise::TO_LOOK)
            }
        }
    }
}

/// So many operations `hpvmstatus -e` shows.
pub const EVENTS_MAX: usize = 1000;

/// What was done before the operations that a log shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Earlier {
    None,
    LeftOut,
}

fn event(recorded: &RecordedOperation) -> String {
    let Operation { at, user, from, command_line, reason, guest, outcome, duration, .. } =
        &recorded.operation;
    let at = at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ");
    let result = match outcome {
        Outcome::Done => "done".to_owned(),
        Outcome::Running(_) => "not finished".to_owned(),
        Outcome::Failed(text) => format!("refused: {}", text.lines().next().unwrap_or_default()),
    };
    // What the command line tells is not told again.
    let guest = guest.as_ref().filter(|guest| !names(command_line, guest.name.as_str()));
    let guest = guest.map_or(String::new(), |guest| format!(" (guest '{}')", guest.name));
    let reason = reason.as_ref().filter(|_| !command_line.contains(" --reason"));
    let reason = reason.map_or(String::new(), |reason| format!(", because {reason}"));
    let duration = duration.as_millis();
    format!("{at} {user} ({from}): {command_line}{guest}{reason}: {result} ({duration} ms)\n")
}

/// Whether a word of the command line is this name, or ends with it as in `--name=web`.
fn names(command_line: &str, name: &str) -> bool {
    command_line.split([' ', '=']).any(|word| word == name || word == format!("-P{name}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn told(command_line: &str, guest: Option<&str>, reason: Option<&str>) -> String {
        let subject = |name: &str| hpvm_registry::Subject {
            uuid: "4a5e0000-0000-4000-8000-000000000001".parse().expect("a uuid"),
            name: name.parse().expect("a name"),
        };
        event(&RecordedOperation {
            id: hpvm_registry::OperationId(1),
            operation: Operation {
                at: "2026-11-24T08:00:12.06Z".parse().expect("a time"),
                uid: 0,
                user: "root".into(),
                from: "pts/3".into(),
                command_line: command_line.into(),
                reason: reason.map(str::to_owned),
                guest: guest.map(subject),
                before: None,
                after: None,
                outcome: Outcome::Done,
                duration: Duration::from_millis(7),
                step: None,
            },
        })
    }

    #[test]
    fn an_event_tells_each_thing_once() {
        assert_eq!(
            told("hpvm autostop", Some("web"), None),
            "2026-11-24T08:00:12.060Z root (pts/3): hpvm autostop (guest 'web'): done (7 ms)\n"
        );
        let line = "hpvmstop -P web --reason 'new disk'";
        let event = told(line, Some("web"), Some("new disk"));
        assert!(event.ends_with(&format!(": {line}: done (7 ms)\n")), "{event}");
        assert!(
            told("hpvmstop -p 3", Some("web"), Some("x")).contains("(guest 'web'), because x:")
        );
    }
}
