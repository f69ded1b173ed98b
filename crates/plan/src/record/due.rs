//! What of a running guest waits for its next reset: a disk that nobody could let go, what takes its place, and one that the
//! guest would not see before. No operating system has a disk then. It stands in the journal, so it outlives the worker that
//! was told; a new start makes it void, since its machine is the configuration.

use hpvm_model::{AdapterKind, PciSlot, StorageAddress};
use serde::{Deserialize, Serialize};

use super::{AdapterPresence, Attached, DeviceChange, Machine};

/// When a change is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Due {
    #[default]
    Now,
    /// What it needs is taken now: from then on a store that is to come is the guest's.
    NextReset,
}

impl Due {
    pub(super) fn is_now(&self) -> bool {
        *self == Due::Now
    }
}

/// A change that was asked of the guest and has no answer yet, or that waits for its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub seq: u64,
    pub since: String,
    pub change: DeviceChange,
    pub due: Due,
}

/// Why somebody looks at what waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// The guest was reset.
    Reset,
    /// An adapter left, or a worker takes over: what waits for a place alone may find it free.
    PlaceFree,
}

/// What may be made at once goes before what first has to leave; what comes to a place that stays taken is tried last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    PlaceIsFree,
    Leaves,
    AdapterLeaves,
    PlaceIsTaken,
}

impl Machine {
    /// What is to be made now, in this order. What is made changes what may be made next, so the first is made, and this is
    /// asked again.
    #[must_use]
    pub fn due(&self, occasion: Occasion) -> Vec<Pending> {
        let waits = self.waiting();
        let mut due: Vec<Pending> = waits
            .filter(|pending| occasion == Occasion::Reset || self.finds_its_place(&pending.change))
            .cloned()
            .collect();
        due.sort_by_key(|pending| self.turn_of(&pending.change));
        due
    }

    fn turn_of(&self, change: &DeviceChange) -> Turn {
        match change {
            DeviceChange::Attach { slot, .. } if self.is_leaving(*slot) => Turn::AdapterLeaves,
            DeviceChange::Attach { devices, .. } if self.are_free(devices) => Turn::PlaceIsFree,
            DeviceChange::Attach { .. } => Turn::PlaceIsTaken,
            _ => Turn::Leaves,
        }
    }

    fn are_free(&self, devices: &[Attached]) -> bool {
        devices.iter().all(|comes| self.device_at(comes.device.address).is_none())
    }

    /// A guest sees what comes to a live AVIO adapter, and with a new one; on a live VIO adapter it looks only when it boots.
    fn finds_its_place(&self, change: &DeviceChange) -> bool {
        let DeviceChange::Attach { slot, devices, kind, .. } = change else { return false };
        let is_seen =
            self.presence(*slot) == AdapterPresence::New || *kind == AdapterKind::AvioStor;
        self.are_free(devices) && is_seen && !self.is_leaving(*slot)
    }

    /// Whether what comes to a slot now has to bring its adapter.
    #[must_use]
    pub fn presence(&self, slot: PciSlot) -> AdapterPresence {
        match self.adapter_in(slot) {
            Some(_) => AdapterPresence::Present,
            None => AdapterPresence::New,
        }
    }

    /// The changes that wait for a reset.
    pub fn waiting(&self) -> impl Iterator<Item = &Pending> {
        self.pending.iter().filter(|pending| pending.due == Due::NextReset)
    }

    /// What waits for a reset at this address.
    pub fn waiting_at(&self, address: StorageAddress) -> impl Iterator<Item = &Pending> {
        self.waiting().filter(move |pending| pending.change.is_at(address))
    }

    #[must_use]
    pub fn leaves_at_reset(&self, address: StorageAddress) -> bool {
        self.waiting_at(address).any(|p| matches!(p.change, DeviceChange::Detach { .. }))
    }

    /// The device that is to be at this address from the next reset on.
    #[must_use]
    pub fn comes_at_reset(&self, address: StorageAddress) -> Option<&Attached> {
        self.coming().find(|attached| attached.device.address == address)
    }

    /// What waited in this machine as it was earlier, waits no more and was not made either.
    #[must_use]
    pub fn waits_no_more(&self, earlier: &Machine) -> Vec<DeviceChange> {
        let is_lost = |attached: &Attached| {
            let address = attached.device.address;
            self.comes_at_reset(address).is_none() && self.device_at(address) != Some(attached)
        };
        let lost = earlier.waiting().filter_map(|pending| match &pending.change {
            DeviceChange::Attach { slot, kind, adapter, devices } => {
                let devices = devices.iter().filter(|comes| is_lost(comes)).cloned();
                let devices: Vec<Attached> = devices.collect();
                let (slot, kind, adapter) = (*slot, *kind, *adapter);
                (!devices.is_empty()).then_some(DeviceChange::Attach {
                    slot,
                    kind,
                    adapter,
                    devices,
                })
            }
            DeviceChange::Detach { address, .. } => {
                let stays = self.device_at(*address) == earlier.device_at(*address);
                (stays && !self.leaves_at_reset(*address)).then(|| pending.change.clone())
            }
            _ => None,
        });
        lost.collect()
    }

    /// All devices whose stores the guest's engine has open: those in the machine, and those that come at its next reset.
    pub fn held(&self) -> impl Iterator<Item = &Attached> {
        self.storage.iter().chain(self.coming())
    }

    /// The devices that come at the next reset.
    pub(crate) fn coming(&self) -> impl Iterator<Item = &Attached> {
        self.waiting().flat_map(|pending| match &pending.change {
            DeviceChange::Attach { devices, .. } => devices.as_slice(),
            _ => &[],
        })
    }

    /// Nothing waits there any more. What was to come beside it waits on.
    pub(super) fn take_back(&mut self, address: StorageAddress) {
        let waiting = self.pending.iter_mut().filter(|pending| pending.due == Due::NextReset);
        for pending in waiting {
            if let DeviceChange::Attach { devices, .. } = &mut pending.change {
                devices.retain(|attached| attached.device.address != address);
            }
        }
        self.pending.retain(|pending| {
            let is_there = match &pending.change {
                DeviceChange::Attach { devices, .. } => devices.is_empty(),
                change => change.is_at(address),
            };
            pending.due == Due::Now || !is_there
        });
    }

    /// Whether a removal names an address where nothing is. What waits to leave is the device that is there when that is asked
    /// for, and never one that comes later.
    #[must_use]
    pub fn lacks_what_leaves(&self, change: &DeviceChange) -> bool {
        matches!(change, DeviceChange::Detach { address, .. } if self.device_at(*address).is_none())
    }

    /// Devices that have left have nothing to wait for.
    pub(super) fn have_left(&mut self, left: impl Fn(StorageAddress) -> bool) {
        self.pending.retain(|pending| match (&pending.change, pending.due) {
            (DeviceChange::Detach { address, .. }, Due::NextReset) => !left(*address),
            _ => true,
        });
    }
}

impl DeviceChange {
    /// Whether it is about the device at this address, and not about its adapter.
    pub(crate) fn is_at(&self, place: StorageAddress) -> bool {
        match self {
            DeviceChange::Attach { devices, .. } => {
                devices.iter().any(|attached| attached.device.address == place)
            }
            change => change.address() == Some(place),
        }
    }
}
