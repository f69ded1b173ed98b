//! What hpvmstatus prints, as pure functions from views to text; one file a layout. The layouts of A.03.50 are kept to the
//! blank, since scripts cut them by column, but where a name is longer than its column; what we add stands in sections of its
//! own behind theirs: `[Run Details]` (since when, accelerator, health) and `[Waiting for Next Start]` (`… Reset or Start]`),
//! each only when it has content.
//!
//! Nothing here looks at the machine: `commands/status.rs` gathers, this prints.

pub mod devices;
pub mod entitlements;
pub mod events;
pub mod json;
pub mod list;
pub mod machine;
mod run;
pub mod sections;
pub mod server;
pub mod verbose;
pub mod xml;

use hpvm_model::cpu::TenthsPercent;
use hpvm_model::{Bytes, DeviceKind, GuestName, Memory, Nic, RunState, StorageDevice, Vcpus};
use hpvm_operations::view::GuestView;

use hpvm_operations::processor_use::ProcessorUse;
use hpvm_plan::record::Access;

/// What has to be known of a guest before it can be printed in full.
#[derive(Clone, Debug)]
pub struct Gathered {
    pub view: GuestView,
    pub usage: ProcessorUse,
}

/// Which of a guest's machines is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The machine that runs; of a guest that is off, what it is configured to be.
    Now,
    /// What it is configured to be.
    NextStart,
}

/// A guest at one moment, on a host whose processors have so many MHz.
#[derive(Clone, Debug)]
pub struct Shown<'a> {
    pub view: &'a GuestView,
    pub moment: Moment,
    pub vcpus: Vcpus,
    pub memory: Memory,
    pub storage: Vec<&'a StorageDevice>,
    pub nics: Vec<&'a Nic>,
    pub entitled: TenthsPercent,
    pub maximum: TenthsPercent,
}

impl<'a> Shown<'a> {
    #[must_use]
    pub fn new(view: &'a GuestView, moment: Moment, processor_mhz: u32) -> Shown<'a> {
        let config = &view.config;
        let (entitled, maximum) = config.entitlement.effective(processor_mhz);
        let (vcpus, memory, storage, nics) = match &view.machine {
            Some(machine) if moment == Moment::Now => (
                machine.base.vcpus,
                machine.base.memory,
                machine.storage.iter().map(|attached| &attached.device).collect(),
                machine.nics.iter().map(|attached| &attached.nic).collect(),
            ),
            _ => (
                config.vcpus,
                config.memory,
                config.storage.iter().collect(),
                config.nics.iter().collect(),
            ),
        };
        Shown { view, moment, vcpus, memory, storage, nics, entitled, maximum }
    }
}

impl Shown<'_> {
    /// What the guest may do with a disk of those that are shown.
    fn access(&self, device: &StorageDevice) -> Access {
        let running = self.view.machine.as_ref().filter(|_| self.moment == Moment::Now);
        let is_disk = device.kind == DeviceKind::Disk;
        let is_read_only = match running {
            Some(machine) => machine
                .device_at(device.address)
                .is_some_and(|attached| attached.access == Access::ReadOnly),
            None => self.view.read_only.contains(&device.address),
        };
        // Drives are read by all guests, and nobody takes them for anything else.
        if is_disk && is_read_only { Access::ReadOnly } else { Access::ReadWrite }
    }
}

/// The column of names as A.03.50 prints it. A longer name makes it wider for all lines, so that they stay in their columns.
const NAME_COLUMN: usize = 20;

fn name_column<'a>(names: impl Iterator<Item = &'a GuestName>) -> usize {
    names.map(|name| name.as_str().len()).max().unwrap_or_default().max(NAME_COLUMN)
}

/// Programs compare with exactly these words, in XML and in `-M` lines.
fn state_word(state: RunState) -> &'static str {
    match state {
        RunState::Off => "Off",
        RunState::On(_) | RunState::Attention => "On",
        RunState::Invalid => "Invalid",
    }
}

/// Memory that A.03.50 set aside for each guest, and that tables still have a column for.
const RESERVED_MEMORY: Bytes = Bytes(64 << 20);
/// Every guest's one device that is neither storage nor network.
const SERIAL_STATEMENT: &str = "serial:com1::tty:console";
const MODEL: &str = "server Integrity Virtual Machine";
const CONFIG_VERSION: &str = "3.50.00";
const CONFIG_LABEL: &str = concat!("hpvm ", env!("CARGO_PKG_VERSION"), " (interface of A.03.50)");
const CONSOLE_TYPE: &str = "vt100-plus";
