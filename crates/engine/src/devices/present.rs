//! What devices a running engine really has, against what the boot record says. A worker that takes a guest over asks this
//! first, since what happened while nobody listened was told to nobody. The record is repaired, not the guest.

use std::collections::{BTreeMap, BTreeSet};

use hpvm_model::{PciSlot, StorageAddress};
use hpvm_plan::command_line::network::nic_id;
use hpvm_plan::command_line::{adapter_id, device_id, node_id};
use hpvm_plan::record::{AdapterPresence, Attached, DeviceChange, Due, Machine, Outcome, Pending};
use hpvm_qmp::Error as QmpError;
use hpvm_qmp::client::Client;
use hpvm_qmp::command::{QomList, QueryBlock, QueryNodes};

use super::media;

/// Why a change has failed that was begun under another worker.
pub const REPLACED: &str = "hpvmapp was replaced before it was done";

/// Devices by their ids, the node in each that has a medium, and all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Present {
    pub devices: BTreeSet<String>,
    pub media: BTreeMap<String, String>,
    pub nodes: BTreeSet<String>,
}

/// What to do about a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// The change that was asked came to this.
    Settle { seq: u64, outcome: Outcome },
    /// The adapter was asked for, for all we know, and the guest has not let go: ask again, it does no harm.
    AskAgain { seq: u64, slot: PciSlot },
    /// An attach was begun and not finished: take out what came, then it has failed.
    Undo { seq: u64, slot: PciSlot, adapter: AdapterPresence, devices: Vec<Attached> },
    /// In the record and not in the engine: note that it is gone.
    Gone { address: StorageAddress },
    /// The NIC was asked for, for all we know, and the guest has not let go: ask again.
    AskAgainForNic { seq: u64, slot: PciSlot },
    /// A NIC was begun and not finished: take out what came, then it has failed.
    UndoNic { seq: u64, slot: PciSlot },
    /// A NIC in the record and not in the engine.
    GoneNic { slot: PciSlot },
}

/// Asks the engine.
pub async fn ask(client: &Client) -> Result<Present, QmpError> {
    let peripherals = client.execute(&QomList { path: "/machine/peripheral".into() }).await?;
    let devices = peripherals
        .into_iter()
        .filter(|property| property.kind.starts_with("child<"))
        .map(|property| property.name)
        .collect();
    let media = client.execute(&QueryBlock {}).await?.into_iter().filter_map(|device| {
        let id = media::device_named(&device.qdev?)?.to_owned();
        Some((id, device.inserted?.node_name?))
    });
    let media = media.collect();
    let nodes = client.execute(&QueryNodes { flat: true }).await?;
    let nodes = nodes.into_iter().filter_map(|node| node.node_name).collect();
    Ok(Present { devices, media, nodes })
}

/// Compares; the order of the repairs is that of the journal.
#[must_use]
pub fn repairs(machine: &Machine, present: &Present) -> Vec<Repair> {
    let judge = |pending: &Pending| match pending.due {
        Due::Now => Some(present.judge(pending.seq, &pending.change)),
        Due::NextReset => present.judge_waiting(machine, pending),
    };
    let mut repairs: Vec<Repair> = machine.pending.iter().filter_map(judge).collect();
    let is_spoken_for = |attached: &Attached| {
        let address = attached.device.address;
        machine.pending.iter().any(|p| match &p.change {
            DeviceChange::Detach { address: a, .. } => *a == address,
            DeviceChange::DetachAdapter { slot } => *slot == address.slot,
            _ => false,
        })
    };
    let gone = machine.storage.iter().filter(|attached| {
        !attached.device.is_place_holder()
            && !present.devices.contains(&device_id(attached.device.address))
            && !is_spoken_for(attached)
    });
    repairs.extend(gone.map(|attached| Repair::Gone { address: attached.device.address }));
    let slots = machine.nics.iter().map(|attached| attached.nic.slot);
    let gone = slots
        .filter(|slot| !present.devices.contains(&nic_id(*slot)) && !machine.is_nic_leaving(*slot));
    repairs.extend(gone.map(|slot| Repair::GoneNic { slot }));
    repairs
}

impl Present {
    /// What waits for a reset waits on, unless it has been made, or cannot be since nobody opened what is to come: then what is
    /// there stays.
    fn judge_waiting(&self, machine: &Machine, pending: &Pending) -> Option<Repair> {
        let seq = pending.seq;
        let settle = |outcome| Some(Repair::Settle { seq, outcome });
        let is_made = match &pending.change {
            DeviceChange::Detach { address, .. } => !self.devices.contains(&device_id(*address)),
            DeviceChange::Attach { devices, .. } => devices.iter().all(|attached| {
                let id = device_id(attached.device.address);
                let store = attached.device.backing.store();
                let node = store.map(|_| node_id(attached.device.address, seq));
                self.devices.contains(&id) && self.media.get(&id) == node.as_ref()
            }),
            _ => false,
        };
        let is_void = || match &pending.change {
            DeviceChange::Detach { address, .. } => {
                machine.waiting_at(*address).any(|beside| self.lacks_store_of(beside))
            }
            _ => self.lacks_store_of(pending),
        };
        match is_made {
            true => settle(Outcome::Done),
            false if is_void() => settle(Outcome::Failed(REPLACED.into())),
            false => None,
        }
    }

    fn lacks_store_of(&self, pending: &Pending) -> bool {
        let DeviceChange::Attach { devices, .. } = &pending.change else { return false };
        let mut stored = devices.iter().filter(|a| a.device.backing.store().is_some());
        stored.any(|a| !self.nodes.contains(&node_id(a.device.address, pending.seq)))
    }

    fn judge(&self, seq: u64, change: &DeviceChange) -> Repair {
        let settle = |outcome| Repair::Settle { seq, outcome };
        let failed = || settle(Outcome::Failed(REPLACED.into()));
        let has = |address: StorageAddress| self.devices.contains(&device_id(address));
        match change {
            // To be told the size it has harms no guest, so nobody has to find out whether it was.
            DeviceChange::PlaceHolder { .. }
            | DeviceChange::Grow { .. }
            | DeviceChange::TakeBack { .. }
            | DeviceChange::MoveNic { .. }
            | DeviceChange::LinkNics { .. } => settle(Outcome::Done),
            DeviceChange::PlugNic { attached } => {
                let slot = attached.nic.slot;
                match self.devices.contains(&nic_id(slot)) {
                    true => settle(Outcome::Done),
                    false => Repair::UndoNic { seq, slot },
                }
            }
            DeviceChange::UnplugNic { slot } if self.devices.contains(&nic_id(*slot)) => {
                Repair::AskAgainForNic { seq, slot: *slot }
            }
            DeviceChange::UnplugNic { .. } => settle(Outcome::Done),
            DeviceChange::Attach { slot, adapter, devices, .. } => {
                let mut real = devices.iter().filter(|a| !a.device.is_place_holder());
                match real.all(|a| has(a.device.address)) {
                    true => settle(Outcome::Done),
                    false => Repair::Undo {
                        seq,
                        slot: *slot,
                        adapter: *adapter,
                        devices: devices.clone(),
                    },
                }
            }
            DeviceChange::Detach { address, .. } if has(*address) => failed(),
            DeviceChange::DetachAdapter { slot } if self.devices.contains(&adapter_id(*slot)) => {
                Repair::AskAgain { seq, slot: *slot }
            }
            DeviceChange::Detach { .. } | DeviceChange::DetachAdapter { .. } => {
                settle(Outcome::Done)
            }
            DeviceChange::Medium { attached, .. } => {
                let address = attached.device.address;
                let wanted = attached.device.backing.store().map(|_| node_id(address, seq));
                match self.media.get(&device_id(address)) == wanted.as_ref() {
                    true => settle(Outcome::Done),
                    false => failed(),
                }
            }
        }
    }
}
