//! `hpvmstatus --json`: everything, for programs. The schemas in docs/schema only grow; a test sees to it.

use hpvm_app::snapshot::{self, Ending};
use hpvm_model::{AutoStart, Backing, Nic, Occupant, RunState, Runnable, StorageDevice};
use hpvm_operations::view::{GuestView, HostView};
use hpvm_plan::guest_path;
use hpvm_plan::record::Access;
use serde::Serialize;

use super::{Moment, Shown};
use crate::dry_run::Change;

/// Grows when a reader of older documents would misread a newer one.
const FORMAT: u32 = 1;

/// `hpvmstatus --json`, of all guests or of one.
pub fn guests<'a>(
    views: impl IntoIterator<Item = &'a GuestView>,
    processor_mhz: u32,
) -> Result<String, serde_json::Error> {
    let guests = views.into_iter().map(|view| Guest::new(view, processor_mhz)).collect();
    text(&Guests { format: FORMAT, guests })
}

/// `hpvmstatus -s --json`.
pub fn server(host: &HostView) -> Result<String, serde_json::Error> {
    text(&Server { format: FORMAT, server: Resources::from(host) })
}

fn text(document: &impl Serialize) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(document).map(|text| text + "\n")
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Guests {
    format: u32,
    /// In order of number.
    guests: Vec<Guest>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Guest {
    name: String,
    number: u32,
    uuid: String,
    label: String,
    serial_number: String,
    os: Os,
    state: State,
    /// The state as tables print it, such as `On (EFI)`.
    state_shown: String,
    /// When the state began, RFC 3339.
    since: Option<String>,
    start: Start,
    runnable: bool,
    entitlement: Entitlement,
    /// What the administrator asked for.
    configured: Machine,
    /// What the running guest has; absent while it is off.
    running: Option<Running>,
    /// Where the two differ.
    waiting: Vec<Change>,
    /// A sentence each; empty for a healthy guest.
    health: Vec<String>,
    last_run: Option<LastRun>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Os {
    family: String,
    version: Option<String>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
enum State {
    Off,
    OnFirmware,
    OnOs,
    Attention,
    Invalid,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
enum Start {
    Auto,
    Manual,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Entitlement {
    /// As it was given, such as `20.0%` or `800 MHz`.
    given: String,
    /// Percent of one physical processor for each vCPU.
    percent: f64,
    maximum_percent: f64,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Machine {
    vcpus: u32,
    memory_bytes: u64,
    storage: Vec<Storage>,
    networks: Vec<Network>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Running {
    #[serde(flatten)]
    machine: Machine,
    accelerator: String,
    machine_type: String,
    engine_version: String,
    started_at: String,
    /// Absent when nobody supervises the guest and nothing is known of it.
    agent: Option<Agent>,
}

/// The agent in the guest.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Agent {
    state: AgentState,
    /// When it began or ceased to answer, RFC 3339; absent for the other states.
    since: Option<String>,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
enum AgentState {
    /// The guest was started by an hpvm that gave it no channel for one.
    NoChannel,
    Absent,
    Answers,
    Silent,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Storage {
    kind: String,
    adapter: String,
    bus: u8,
    device: u8,
    target: u8,
    storage: String,
    path: String,
    /// What lies under a linked clone's disk, the uppermost first.
    layers: Vec<Layer>,
    /// A disk that its entry in the device database keeps the guest from writing.
    read_only: bool,
    id: String,
    /// The adapter, as `lspci -P` prints it in the guest.
    guest_pci_path: String,
    /// The device, as the firmware prints it.
    efi_path: String,
    /// As -a, -m and -d take it.
    statement: String,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Network {
    adapter: String,
    bus: u8,
    device: u8,
    mac_address: String,
    /// The address that the running guest sends from, where it is another one.
    mac_address_in_use: Option<String>,
    vswitch: String,
    port: u16,
    /// The card, as `lspci -P` prints it in the guest.
    guest_pci_path: String,
    /// As -a, -m and -d take it.
    statement: String,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Layer {
    storage: String,
    path: String,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct LastRun {
    ended_at: String,
    how: String,
    /// Whether somebody should look into it.
    failed: bool,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Server {
    format: u32,
    server: Resources,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Resources {
    processors: u32,
    processor_mhz: u32,
    memory_total_mib: u64,
    memory_available_mib: u64,
    swap_available_mib: u64,
    accelerator: String,
    accelerator_reason: String,
    /// Absent when there is none.
    engine_version: Option<String>,
    engine_problem: Option<String>,
}

impl Guest {
    fn new(view: &GuestView, processor_mhz: u32) -> Guest {
        let config = &view.config;
        let next = Shown::new(view, Moment::NextStart, processor_mhz);
        Guest {
            name: config.name.to_string(),
            number: config.number.get(),
            uuid: config.uuid.to_string(),
            label: config.label.to_string(),
            serial_number: config.serial_number.clone(),
            os: Os { family: config.os.family.to_string(), version: config.os.version.clone() },
            state: view.state.into(),
            state_shown: view.state.to_string(),
            since: view.since.clone(),
            start: config.auto_start.into(),
            runnable: config.runnable == Runnable::Enabled,
            entitlement: Entitlement {
                given: config.entitlement.to_string(),
                percent: f64::from(next.entitled.0) / 10.0,
                maximum_percent: f64::from(next.maximum.0) / 10.0,
            },
            configured: Machine::from(&next),
            running: running(view, processor_mhz),
            waiting: view.waiting.iter().map(Change::from).collect(),
            health: view.health.clone(),
            last_run: view.last_ending.as_ref().map(LastRun::from),
        }
    }
}

fn running(view: &GuestView, processor_mhz: u32) -> Option<Running> {
    let base = &view.machine.as_ref()?.base;
    Some(Running {
        machine: Machine::from(&Shown::new(view, Moment::Now, processor_mhz)),
        accelerator: base.accelerator.as_str().to_owned(),
        machine_type: base.machine_type.clone(),
        engine_version: base.engine.version.clone(),
        started_at: base.started_at.clone(),
        agent: view.agent.as_ref().map(Agent::from),
    })
}

impl From<&snapshot::Agent> for Agent {
    fn from(agent: &snapshot::Agent) -> Agent {
        let (state, since) = match agent {
            snapshot::Agent::NoChannel => (AgentState::NoChannel, None),
            snapshot::Agent::Absent => (AgentState::Absent, None),
            snapshot::Agent::Answers { since } => (AgentState::Answers, Some(since.clone())),
            snapshot::Agent::Silent { since } => (AgentState::Silent, Some(since.clone())),
        };
        Agent { state, since }
    }
}

impl From<&Shown<'_>> for Machine {
    fn from(shown: &Shown<'_>) -> Machine {
        Machine {
            vcpus: shown.vcpus.get(),
            memory_bytes: shown.memory.bytes().0,
            storage: shown.storage.iter().map(|device| storage(shown, device)).collect(),
            networks: shown.nics.iter().map(|nic| network(shown, nic)).collect(),
        }
    }
}

fn network(shown: &Shown<'_>, nic: &Nic) -> Network {
    let in_use = shown.view.other_mac(nic).filter(|_| shown.moment == Moment::Now);
    Network {
        adapter: nic.kind.as_str().to_owned(),
        bus: nic.slot.bus(),
        device: nic.slot.device(),
        mac_address: nic.mac.to_string(),
        mac_address_in_use: in_use.map(|mac| mac.to_string()),
        vswitch: nic.vswitch.to_string(),
        port: nic.port.number(),
        guest_pci_path: guest_path::nic(nic.slot),
        statement: nic.to_string(),
    }
}

impl From<&Backing> for Layer {
    fn from(Backing { storage, path }: &Backing) -> Layer {
        Layer { storage: storage.as_str().to_owned(), path: path.clone() }
    }
}

fn storage(shown: &Shown, device: &StorageDevice) -> Storage {
    Storage {
        kind: device.kind.as_str().to_owned(),
        adapter: device.adapter.as_str().to_owned(),
        bus: device.address.slot.bus(),
        device: device.address.slot.device(),
        target: device.address.target,
        storage: device.backing.storage.as_str().to_owned(),
        path: device.backing.path.clone(),
        layers: device.layers.iter().map(Layer::from).collect(),
        read_only: shown.access(device) == Access::ReadOnly,
        id: device.id.to_string(),
        guest_pci_path: guest_path::pci(device.adapter, device.address),
        efi_path: guest_path::efi(device.adapter, device.address),
        statement: device.to_string(),
    }
}

impl From<&(String, Ending)> for LastRun {
    fn from((at, ending): &(String, Ending)) -> LastRun {
        LastRun { ended_at: at.clone(), how: ending.to_string(), failed: ending.is_failure() }
    }
}

impl From<&HostView> for Resources {
    fn from(host: &HostView) -> Resources {
        Resources {
            processors: host.processors,
            processor_mhz: host.processor_mhz,
            memory_total_mib: host.memory_total_mib,
            memory_available_mib: host.memory_available_mib,
            swap_available_mib: host.swap_available_mib,
            accelerator: host.accelerator.clone(),
            accelerator_reason: host.accelerator_reason.clone(),
            engine_version: host.engine.as_ref().ok().map(|engine| engine.version.clone()),
            engine_problem: host.engine.as_ref().err().cloned(),
        }
    }
}

impl From<RunState> for State {
    fn from(state: RunState) -> State {
        match state {
            RunState::Off => State::Off,
            RunState::On(Occupant::Firmware) => State::OnFirmware,
            RunState::On(Occupant::Os) => State::OnOs,
            RunState::Attention => State::Attention,
            RunState::Invalid => State::Invalid,
        }
    }
}

impl From<AutoStart> for Start {
    fn from(start: AutoStart) -> Start {
        match start {
            AutoStart::Auto => Start::Auto,
            AutoStart::Manual => Start::Manual,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schemas_only_grow() {
        crate::schema::keep("status.json", &schemars::schema_for!(Guests));
        crate::schema::keep("server.json", &schemars::schema_for!(Server));
    }
}
