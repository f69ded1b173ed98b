//! How a guest looks now: its configuration, the machine it runs on, what its worker published, and what waits for the
//! next start. Tables, XML and JSON are made from these values alone.

use hpvm_app::snapshot::Ending;
use hpvm_model::{GuestConfig, RunState};
use hpvm_plan::difference::FieldChange;
use hpvm_plan::record::Machine;

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
    /// What the configuration asks for and the running machine has not.
    pub waiting: Vec<FieldChange>,
    /// How the last run ended, and when, while the VM Host remembers it.
    pub last_ending: Option<(String, Ending)>,
}

impl GuestView {
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
