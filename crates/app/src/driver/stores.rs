//! Stores that do not answer: noticed, told and forgotten.

use std::collections::BTreeSet;

use hpvm_app::snapshot::{DeviceStore, SilentStore};
use hpvm_engine::devices::requests::{self, RequestQueue};
use hpvm_model::{PciSlot, StorageAddress};
use hpvm_plan::record;
use hpvm_qmp::answer::VirtQueue;

use super::*;
use crate::request_watch::Told;
use crate::store_watch::LATE;

/// How long reads wait for QEMU to tell which stores are in use. What is read then is late by the next beat all the same, if it
/// does not come back.
const TOLD_WITHIN: Duration = Duration::from_millis(100);

impl Driver {
    /// Of what came after the guest's start the worker that was handed it looked alone.
    pub(super) fn tell_what_is_unwatched(&mut self) {
        let Ok(known) = &self.recorded.machine else { return };
        for (address, path) in self.store_watch.unwatched(known.file.machine().held()) {
            self.log.say(&format!(
                "'{path}' at {address} is not watched any more: who was handed it when it came has ended, so nobody is told when it does not answer"
            ));
        }
    }

    /// Looks who has not answered since the beat before, then reads a little of each store; of those that the guest wants
    /// nothing of, when QEMU has told which these are.
    pub(super) fn watch_stores(&mut self) {
        self.look_at_stores();
        match self.pulse.is_looking() {
            true => self.reads_due = Some(Instant::now() + TOLD_WITHIN),
            false => self.read_stores(|_| true),
        }
    }

    /// Reads stores, if it is time to, whatever QEMU has told by then.
    pub(super) fn read_stores_if_due(&mut self) {
        if self.reads_due.is_some_and(|due| due <= Instant::now()) {
            self.read_stores(|_| true);
        }
    }

    fn read_stores(&mut self, is_wanted: impl Fn(StorageAddress) -> bool) {
        self.reads_due = None;
        if let Ok(known) = &self.recorded.machine {
            self.store_watch.read(known.file.machine(), is_wanted);
        }
    }

    /// Asks QEMU how the guest's requests stand, if the guest runs and QEMU tells it; says whether it did.
    pub(super) fn look_at_requests(&mut self) -> bool {
        if self.machine.is_silent() {
            // It answers nobody, so it is no store that does not.
            self.request_watch.nothing_told();
            return false;
        }
        let (Some(client), Ok(known)) = (self.monitor.client().cloned(), &self.recorded.machine)
        else {
            self.request_watch.nothing_told();
            return false;
        };
        let machine = known.file.machine();
        let adapters = self.request_watch.adapters(machine);
        match self.shown.phase {
            Phase::Running { .. } => {}
            // What QEMU itself holds still waits for nothing. What was silent before may come back.
            Phase::Starting | Phase::Paused { .. } => {
                self.request_watch.nothing_told();
                if self.request_watch.silent().next().is_none() {
                    return false;
                }
            }
            Phase::Stopping { .. } | Phase::Ended { .. } => return false,
        }
        if adapters.is_empty() {
            return false;
        }
        let look = self.request_watch.begin_look();
        let (vcpus, news) = (machine.base.vcpus, self.monitor.news());
        spawn_local(async move {
            let told = requests::standing(&client, &adapters, vcpus).await;
            let _ = news.send(News::Requests { look, told }).await;
        });
        true
    }

    pub(super) fn requests_told(
        &mut self,
        look: u64,
        told: Result<Vec<(RequestQueue, VirtQueue)>, hpvm_qmp::Error>,
    ) {
        if look != self.request_watch.last_look() {
            return;
        }
        match told {
            Ok(told) => {
                let runs = matches!(self.shown.phase, Phase::Running { .. });
                let time_counts = runs && self.pulse.was_answered_at_once();
                let told = Told { queues: &told, time_counts };
                self.request_watch.looked(told, std::time::Instant::now(), LATE);
            }
            Err(error) => self.request_watch.refused(&error),
        }
        let had_hung = self.machine.is_silent();
        self.answered();
        if had_hung {
            // It says what has become of the guest meanwhile.
            self.ask_status();
        }
        self.look_at_stores();
        if self.reads_due.is_some() {
            let resting = self.resting_adapters();
            self.read_stores(|address| !resting.contains(&address.slot));
        }
    }

    /// Of these the guest wants nothing, so that nothing of it is left unanswered; now and then they are read all the same.
    fn resting_adapters(&self) -> Vec<PciSlot> {
        let (false, Ok(known)) = (self.pulse.is_for_care(), &self.recorded.machine) else {
            return Vec::new();
        };
        let slots: BTreeSet<PciSlot> =
            known.file.machine().held().map(|attached| attached.device.address.slot).collect();
        slots.into_iter().filter(|slot| self.request_watch.rests(*slot)).collect()
    }

    fn look_at_stores(&mut self) {
        let Ok(known) = &self.recorded.machine else { return };
        let machine = known.file.machine();
        let silences = self.silences(machine);
        let mut changed = Vec::new();
        self.silent_stores.retain(|told| {
            let stays = silences.iter().any(|silence| told.is(silence));
            if !stays {
                changed.extend(farewell(told, &silences, machine));
            }
            stays
        });
        for silence in silences {
            if self.silent_stores.iter().any(|told| told.is(&silence)) {
                continue;
            }
            let Some(store) = SilentStore::one_of(silence, now()) else { continue };
            changed.push(format!("{store}, does not answer"));
            self.silent_stores.push(store);
        }
        if changed.is_empty() {
            return;
        }
        changed.iter().for_each(|sentence| self.log.say(sentence));
        self.publish();
        let silent = self.silent_stores.iter();
        let silent =
            silent.map(|store| format!("{store} and has not answered since {}", store.since));
        let silent = silent.collect::<Vec<_>>().join(" and ");
        self.feed(Input::Stores(Some(silent).filter(|silent| !silent.is_empty())));
    }

    /// What does not answer: a store that was read in vain, and one of all that are on an adapter whose requests wait.
    fn silences(&self, machine: &record::Machine) -> Vec<Vec<DeviceStore>> {
        // Of a store that comes at the next reset the guest wants nothing yet.
        let unread = self.store_watch.silent().into_iter().filter_map(|(address, path)| {
            let kind = StoreWatch::kind_of(machine, address, &path)?;
            Some(DeviceStore { address, kind, path })
        });
        let unread: Vec<DeviceStore> = unread.collect();
        let is_explained = |slot: &PciSlot| unread.iter().any(|store| store.address.slot == *slot);
        let waiting = self.request_watch.silent().filter(|slot| !is_explained(slot));
        let of_adapters = waiting.map(|slot| stores_on(machine, slot));
        let of_adapters: Vec<_> = of_adapters.collect();
        unread.into_iter().map(|store| vec![store]).chain(of_adapters).collect()
    }
}

fn stores_on(machine: &record::Machine, slot: PciSlot) -> Vec<DeviceStore> {
    let stores = machine.devices_in(slot).filter_map(|attached| {
        let StorageDevice { address, kind, backing, .. } = &attached.device;
        let path = backing.store()?.to_owned();
        Some(DeviceStore { address: *address, kind: *kind, path })
    });
    stores.collect()
}

/// What is said of a silence that is over; nothing where it is only known better now.
fn farewell(
    told: &SilentStore,
    silences: &[Vec<DeviceStore>],
    machine: &record::Machine,
) -> Option<String> {
    let is_there =
        |store: &DeviceStore| StoreWatch::kind_of(machine, store.address, &store.path).is_some();
    if silences.iter().flatten().any(|silent| told.stores().any(|store| store == silent)) {
        return None;
    }
    Some(match told.stores().any(is_there) {
        true => format!("{told}, answers again; it did not since {}", told.since),
        false => format!("{told}, is of no use to the guest any more"),
    })
}
