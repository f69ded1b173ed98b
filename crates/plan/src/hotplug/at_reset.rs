//! What of a difference waits for the guest's next reset: a disk that nobody could let go, a disk that is exchanged for another
//! one at its address, and one whose adapter is not ready for it. A worker is told once; what it knows already is not told
//! again, and what is wanted otherwise by now is taken back first.

use std::collections::BTreeSet;

use hpvm_model::{PciSlot, StorageAddress, StorageDevice};

use super::{Difference, Place, Planned, When};
use crate::record::{AdapterPresence, Attached, Consent, DeviceChange};

impl Difference<'_> {
    /// Whether one device takes the place of another on the same adapter.
    pub(super) fn is_exchange(&self, address: StorageAddress) -> bool {
        let leaving = self.leaving.iter().find(|attached| attached.device.address == address);
        let coming = self.coming.iter().find(|device| device.address == address);
        leaving.zip(coming).is_some_and(|(leaving, coming)| {
            let leaving = &leaving.device;
            // The engine names what lies under an image by the place of its disk alone.
            let names_collide = !leaving.layers.is_empty() && !coming.layers.is_empty();
            leaving.adapter == coming.adapter
                && !leaving.is_place_holder()
                && !coming.is_place_holder()
                && !names_collide
        })
    }

    /// A device that leaves at the next reset. Where only its removal waits, that goes on; where only what takes its place does,
    /// a command died before it told the rest.
    pub(super) fn leaves_at_reset(&self, address: StorageAddress, why: String) -> Planned {
        let detach = DeviceChange::Detach { address, consent: Consent::Given };
        let machine = self.machine;
        let is_wanted = self.is_told(address) || machine.comes_at_reset(address).is_none();
        let is_told = machine.leaves_at_reset(address) && is_wanted;
        let told = (!is_told && !machine.is_leaving(address.slot)).then_some(detach);
        Planned { place: Place::Storage(address), when: When::NextReset { told, why } }
    }

    /// A device that comes when the one in its place has left, or its adapter is ready for it. Those of one new adapter come
    /// together.
    pub(super) fn comes_at_reset(
        &self,
        planned: &mut Vec<Planned>,
        attached: Attached,
        why: String,
    ) {
        let StorageDevice { address, adapter: kind, .. } = attached.device;
        let (place, slot) = (Place::Storage(address), address.slot);
        let mut told = None;
        if !self.is_told(address) {
            let adapter = match self.machine.is_leaving(slot) {
                true => AdapterPresence::New,
                false => AdapterPresence::Present,
            };
            match planned.iter_mut().find_map(|earlier| of_new_adapter(earlier, slot)) {
                Some(devices) => devices.push(attached),
                None => {
                    let devices = vec![attached];
                    told = Some(DeviceChange::Attach { slot, kind, adapter, devices });
                }
            }
        }
        planned.push(Planned { place, when: When::NextReset { told, why } });
    }

    /// Whether what waits for the reset at this address is what is wanted.
    fn is_told(&self, address: StorageAddress) -> bool {
        let comes = self.machine.comes_at_reset(address).map(|attached| &attached.device);
        match self.coming.iter().find(|device| device.address == address) {
            Some(wanted) => comes == Some(*wanted),
            None => comes.is_none() && self.machine.leaves_at_reset(address),
        }
    }

    /// Takes back what waits for the reset and is not wanted so, or is made now. What a change that is made now settles by
    /// itself needs none of it. It comes after what leaves now: a removal that is refused has taken nothing back.
    pub(super) fn take_backs(
        &self,
        spared: &BTreeSet<StorageAddress>,
        planned: &[Planned],
    ) -> Vec<Planned> {
        let machine = self.machine;
        let leaving = machine.storage.iter().map(|attached| attached.device.address);
        let coming = machine.coming().map(|attached| attached.device.address);
        let places: BTreeSet<StorageAddress> = leaving.chain(coming).collect();
        let waits = |address: &StorageAddress| machine.waiting_at(*address).next().is_some();
        let is_kept = |address: StorageAddress| {
            let keeps = |p: &Planned| {
                p.place == Place::Storage(address)
                    && matches!(p.when, When::NextReset { told: None, .. })
            };
            planned.iter().any(keeps) && self.is_told(address)
        };
        let settles_itself = |address: StorageAddress| {
            machine.comes_at_reset(address).is_none()
                && self.leaving.iter().any(|attached| attached.device.address == address)
        };
        let places = places.into_iter().filter(|address| {
            waits(address)
                && !spared.contains(address)
                && !is_kept(*address)
                && !settles_itself(*address)
        });
        places
            .map(|address| Planned {
                place: Place::Storage(address),
                when: When::Now(DeviceChange::TakeBack { address }),
            })
            .collect()
    }

    /// Whether the emulated adapter in a slot leaves now, with all it has: what comes to the slot comes with a new one.
    pub(super) fn adapter_goes(&self, slot: PciSlot) -> bool {
        let leaves = |attached: &&Attached| {
            attached.device.address.slot == slot && !attached.device.is_place_holder()
        };
        self.leaving.iter().copied().any(|attached| leaves(&attached))
            && !self.machine.is_leaving(slot)
            && self.whole_adapter_leaves(slot)
    }
}

fn of_new_adapter(planned: &mut Planned, place: PciSlot) -> Option<&mut Vec<Attached>> {
    match &mut planned.when {
        When::NextReset {
            told: Some(DeviceChange::Attach { slot, adapter: AdapterPresence::New, devices, .. }),
            ..
        } if *slot == place => Some(devices),
        _ => None,
    }
}
