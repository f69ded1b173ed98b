//! Disks of a running guest whose backing store has become longer: the guest is offered the rest, and never less than it has.
//! Called for the disks that an administrator names to hpvmmodify as they are.

use std::collections::BTreeMap;

use hpvm_model::{
    AdapterKind, Bytes, DeviceKind, GuestConfig, Problem, StorageAddress, StorageType, quoted,
};

use crate::difference::{Effect, FieldChange, device_field};
use crate::facts::{BlockFact, FileFact, HostFacts};
use crate::hotplug::{Place, Planned, When};
use crate::record::{Attached, DeviceChange, Machine, Sharing};

/// What comes of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    pub planned: Vec<Planned>,
    pub fields: Vec<FieldChange>,
    /// Stores that cannot be offered as they are now; the guest keeps what it has.
    pub problems: Vec<Problem>,
    /// What the guest still has to do, a sentence each.
    pub notes: Vec<String>,
}

/// The size QEMU gives a store: it counts in blocks of 512 bytes, and a store that ends within one has all of it.
#[must_use]
pub fn node_bytes(store_bytes: u64) -> u64 {
    store_bytes.div_ceil(512).saturating_mul(512)
}

/// Looks at the disks at these addresses. `shown` are the sizes the guest sees now.
#[must_use]
pub fn growth(
    machine: &Machine,
    config: &GuestConfig,
    named: &[StorageAddress],
    facts: &HostFacts,
    shown: &BTreeMap<StorageAddress, u64>,
) -> Growth {
    let mut growth = Growth::default();
    for address in named {
        let Some(attached) = machine.device_at(*address) else { continue };
        let is_as_wanted = config.device_at(*address) == Some(&attached.device);
        if let (true, DeviceKind::Disk, Some(shown)) =
            (is_as_wanted, attached.device.kind, shown.get(address))
        {
            growth.consider(attached, facts, *shown);
        }
    }
    growth
}

impl Growth {
    fn consider(&mut self, attached: &Attached, facts: &HostFacts, shown: u64) {
        let device = &attached.device;
        let path = &device.backing.path;
        let Some((store, identity)) = store(facts.files.get(path)) else { return };
        if attached.identity.is_some_and(|opened| opened != identity) {
            return self.problem(path, format!(
                "'{path}' is another file than the running guest has open; what is there now counts from its next start on"
            ));
        }
        // Who commands a shared disk asks it himself.
        if attached.sharing == Sharing::Reserved {
            return;
        }
        // How long such a file is says nothing of the disk in it. That stands in its header, which the engine keeps from
        // everybody else while the guest runs, and reads when the guest starts.
        if device.backing.storage == StorageType::Qcow2 {
            return self.notes.push(format!(
                "the disk at {} has {}, as its image says, and can be made larger while the guest is off: `qemu-img resize {} SIZE`",
                device.address,
                Bytes(shown),
                quoted(path)
            ));
        }
        let bytes = node_bytes(store);
        if bytes < shown {
            return self.problem(path, format!(
                "'{path}' has become shorter than the disk at {}: {} of {}. The running guest is not told, and loses what it has behind the end; make the store as long as before",
                device.address, Bytes(store), Bytes(shown)
            ));
        }
        if bytes == shown {
            return;
        }
        let change = DeviceChange::Grow { attached: attached.clone(), bytes };
        self.planned
            .push(Planned { place: Place::Storage(device.address), when: When::Now(change) });
        self.fields.push(FieldChange {
            field: format!("{} size", device_field(device.address)),
            from: Bytes(shown).to_string(),
            to: Bytes(bytes).to_string(),
            effect: Effect::Now,
        });
        if device.adapter == AdapterKind::Scsi {
            self.notes.push(format!(
                "the disk at {} is larger now, but its emulated adapter does not tell the guest: let the guest look again (in Linux: echo 1 >/sys/class/block/sdX/device/rescan)",
                device.address
            ));
        }
    }

    fn problem(&mut self, path: &str, text: String) {
        self.problems.push(Problem::warning(path, text));
    }
}

fn store(fact: Option<&FileFact>) -> Option<(u64, hpvm_model::FileIdentity)> {
    match fact? {
        FileFact::Regular { size, identity, .. }
        | FileFact::Block(BlockFact { size, identity, .. }) => Some((size.0, *identity)),
        _ => None,
    }
}
