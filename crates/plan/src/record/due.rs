//! What of a running guest waits for its next reset: a disk that nobody could let go, and what takes its place. No operating
//! system has a disk then. It stands in the journal, so it outlives the worker that was told; a new start makes it void,
//! since its machine is the configuration.

use hpvm_model::StorageAddress;
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

impl Machine {
    /// What is to be made now, in this order.
    #[must_use]
    pub fn due(&self, occasion: Occasion) -> Vec<Pending> {
        let waits = self.waiting();
        waits
            .filter(|pending| occasion == Occasion::Reset || self.finds_its_place(&pending.change))
            .cloned()
            .collect()
    }

    /// A guest sees what comes to a live AVIO adapter, and with a new one; on a live VIO adapter it looks only when it boots.
    fn finds_its_place(&self, change: &DeviceChange) -> bool {
        let DeviceChange::Attach { slot, adapter, devices, kind } = change else { return false };
        let is_free = devices.iter().all(|comes| self.device_at(comes.device.address).is_none());
        let is_seen = match adapter {
            AdapterPresence::New => self.adapter_in(*slot).is_none(),
            AdapterPresence::Present => *kind == hpvm_model::AdapterKind::AvioStor,
        };
        is_free && is_seen
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

    /// What comes in the same change as the device that is to be at this address from the next reset on, that one among it.
    #[must_use]
    pub fn comes_at_reset(&self, address: StorageAddress) -> Option<&[Attached]> {
        self.waiting_at(address).find_map(|pending| match &pending.change {
            DeviceChange::Attach { devices, .. } => Some(devices.as_slice()),
            _ => None,
        })
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

    /// Nothing waits there any more.
    pub(super) fn take_back(&mut self, address: StorageAddress) {
        self.pending.retain(|p| p.due == Due::Now || !p.change.is_at(address));
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
    fn is_at(&self, place: StorageAddress) -> bool {
        match self {
            DeviceChange::Attach { devices, .. } => {
                devices.iter().any(|attached| attached.device.address == place)
            }
            change => change.address() == Some(place),
        }
    }
}
