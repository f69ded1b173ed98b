//! What is changed of a running guest's devices: one step of the journal, and what it is about.

use hpvm_model::{AdapterKind, PciSlot, StorageAddress};
use serde::{Deserialize, Serialize};

use super::{AdapterPresence, Attached, AttachedLayer, AttachedNic, ChangedBy, Consent, Link};

/// One change of the devices of a running guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum DeviceChange {
    /// New devices behind one adapter, which comes with them when `adapter` is new.
    Attach { slot: PciSlot, kind: AdapterKind, adapter: AdapterPresence, devices: Vec<Attached> },
    /// One device of several leaves. The engine does not ask the guest, so somebody must have.
    Detach {
        address: StorageAddress,
        #[serde(default)]
        consent: Consent,
    },
    /// The adapter leaves with everything on it, when the guest lets go.
    DetachAdapter { slot: PciSlot },
    /// Another medium, or none, in a dvd drive.
    Medium {
        attached: Attached,
        #[serde(default)]
        by: ChangedBy,
    },
    /// The store of a disk has become longer, and the guest is offered so many bytes.
    Grow { attached: Attached, bytes: u64 },
    /// A place holder comes, goes or changes: nothing in the machine does.
    PlaceHolder { address: StorageAddress, now: Option<Attached> },
    /// A new NIC, whose port is there.
    PlugNic { attached: AttachedNic },
    /// A NIC leaves, when the guest lets go.
    UnplugNic { slot: PciSlot },
    /// A NIC's socket was handed to another port: nothing in the machine changes but its link.
    MoveNic { attached: AttachedNic },
    /// What was to be made at this address at the next reset is not.
    TakeBack { address: StorageAddress },
    /// The switch of these NICs was booted or halted.
    LinkNics { slots: Vec<PciSlot>, link: Link },
}

impl DeviceChange {
    /// What it does, in words for the guest's log: `removing 0,0,1`.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            DeviceChange::Attach { devices, .. } => {
                let devices = devices.iter().map(|attached| attached.device.to_string());
                format!("adding {}", devices.collect::<Vec<_>>().join(", "))
            }
            DeviceChange::Detach { address, .. } => format!("removing {address}"),
            DeviceChange::DetachAdapter { slot } => format!("removing the adapter at {slot}"),
            DeviceChange::Medium { attached, .. } => format!("changing to {}", attached.device),
            DeviceChange::Grow { attached, .. } => format!("growing {}", attached.device),
            DeviceChange::PlaceHolder { address, .. } => {
                format!("changing the place holder at {address}")
            }
            DeviceChange::PlugNic { attached } => format!("adding {}", attached.nic),
            DeviceChange::UnplugNic { slot } => format!("removing the NIC at {slot}"),
            DeviceChange::MoveNic { attached } => format!("moving to {}", attached.nic),
            DeviceChange::TakeBack { address } => format!("taking back what waits at {address}"),
            DeviceChange::LinkNics { slots, .. } => {
                let slots = slots.iter().map(ToString::to_string);
                format!("the links of the NICs at {}", slots.collect::<Vec<_>>().join(" and "))
            }
        }
    }

    /// The storage device it is about, when it is one.
    #[must_use]
    pub fn address(&self) -> Option<StorageAddress> {
        match self {
            DeviceChange::Detach { address, .. }
            | DeviceChange::PlaceHolder { address, .. }
            | DeviceChange::TakeBack { address } => Some(*address),
            DeviceChange::Medium { attached, .. } | DeviceChange::Grow { attached, .. } => {
                Some(attached.device.address)
            }
            DeviceChange::Attach { .. }
            | DeviceChange::DetachAdapter { .. }
            | DeviceChange::PlugNic { .. }
            | DeviceChange::UnplugNic { .. }
            | DeviceChange::MoveNic { .. }
            | DeviceChange::LinkNics { .. } => None,
        }
    }

    /// Whether QEMU opens, closes or drains a store for it, which may wait for any store of the guest.
    #[must_use]
    pub fn touches_stores(&self) -> bool {
        match self {
            DeviceChange::Attach { .. }
            | DeviceChange::Detach { .. }
            | DeviceChange::DetachAdapter { .. }
            | DeviceChange::Medium { .. }
            | DeviceChange::Grow { .. }
            | DeviceChange::TakeBack { .. } => true,
            DeviceChange::PlaceHolder { .. }
            | DeviceChange::PlugNic { .. }
            | DeviceChange::UnplugNic { .. }
            | DeviceChange::MoveNic { .. }
            | DeviceChange::LinkNics { .. } => false,
        }
    }

    /// The devices whose stores come as descriptors with it, in order.
    pub fn media(&self) -> impl Iterator<Item = &Attached> {
        let devices = match self {
            DeviceChange::Attach { devices, .. } => devices.as_slice(),
            DeviceChange::Medium { attached, .. } | DeviceChange::Grow { attached, .. } => {
                std::slice::from_ref(attached)
            }
            DeviceChange::Detach { .. }
            | DeviceChange::DetachAdapter { .. }
            | DeviceChange::PlaceHolder { .. }
            | DeviceChange::TakeBack { .. }
            | DeviceChange::PlugNic { .. }
            | DeviceChange::UnplugNic { .. }
            | DeviceChange::MoveNic { .. }
            | DeviceChange::LinkNics { .. } => &[],
        };
        devices.iter().filter(|attached| attached.device.backing.store().is_some())
    }

    /// The layers whose stores come as descriptors with one of those, each after its own device's, the uppermost first. Of a
    /// disk that the guest has already they are there.
    pub fn layers_of<'a>(&self, attached: &'a Attached) -> &'a [AttachedLayer] {
        match self {
            DeviceChange::Attach { .. } => &attached.layers,
            _ => &[],
        }
    }

    /// How many descriptors come with it.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        self.media().map(|attached| 1 + self.layers_of(attached).len()).sum()
    }
}
