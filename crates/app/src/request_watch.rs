//! Whether the guest's requests to its AVIO disks are answered. Called by the owner with what QEMU tells once a beat.
//!
//! A store may answer reads and leave the guest's writes: a file system that is frozen, a pool that is full and waits for
//! room. QEMU counts, for each queue, the requests it has taken and those it has answered. Where some are taken and none is
//! answered from one look to the next, one of them has waited all that time; what was answered in between may hide one that
//! was not, until the others rest. Requests to emulated adapters are counted nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use hpvm_engine::devices::requests::RequestQueue;
use hpvm_engine::media;
use hpvm_model::{AdapterKind, PciSlot};
use hpvm_plan::record::Machine;
use hpvm_qmp::answer::VirtQueue;

#[derive(Debug, Default)]
pub(crate) struct RequestWatch {
    /// How many looks were begun.
    looks: u64,
    asked: Vec<PciSlot>,
    /// QEMU told nothing of all these when it was asked.
    untold: Vec<PciSlot>,
    waiting: BTreeMap<RequestQueue, Waiting>,
    silent: BTreeSet<PciSlot>,
}

/// What QEMU told at a look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told<'a> {
    pub(crate) queues: &'a [(RequestQueue, VirtQueue)],
    /// It did so at once. One that stood still itself until then has left requests unanswered that no store did.
    pub(crate) is_prompt: bool,
}

/// Requests of a queue that were taken and not answered.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// How many were answered before.
    answered: u16,
    /// The first look that found it so.
    since: Instant,
}

impl RequestWatch {
    /// The number of the look at these adapters, if QEMU is to be asked; otherwise nothing is known of any.
    pub(crate) fn begin_look(&mut self, adapters: &[PciSlot]) -> Option<u64> {
        if adapters.is_empty() || self.untold == adapters {
            self.forget();
            return None;
        }
        adapters.clone_into(&mut self.asked);
        self.looks += 1;
        Some(self.looks)
    }

    /// What comes of an earlier one comes too late.
    pub(crate) fn last_look(&self) -> u64 {
        self.looks
    }

    /// What the look brought. Requests that wait for so long (`late`) are left unanswered.
    pub(crate) fn looked(&mut self, told: Told<'_>, now: Instant, late: Duration) {
        let Told { queues, is_prompt } = told;
        self.untold = if queues.is_empty() { self.asked.clone() } else { Vec::new() };
        let taken = queues.iter().filter(|(_, state)| state.inuse > 0);
        let waiting = taken.map(|(queue, state)| {
            let answered = state.used_idx;
            let before = self.waiting.get(queue).filter(|before| before.answered == answered);
            let since = before.filter(|_| is_prompt).map_or(now, |before| before.since);
            (*queue, Waiting { answered, since })
        });
        self.waiting = waiting.collect();
        let silent = self.waiting.iter().filter(|(_, waiting)| now - waiting.since >= late);
        self.silent = silent.map(|(queue, _)| queue.adapter).collect();
    }

    /// Nobody waits for an answer now.
    pub(crate) fn forget(&mut self) {
        self.waiting.clear();
        self.silent.clear();
    }

    /// The adapters of whose disks one leaves requests unanswered.
    pub(crate) fn silent(&self) -> impl Iterator<Item = PciSlot> {
        self.silent.iter().copied()
    }
}

/// The AVIO adapters whose disks all answer at once or are silent: a tape winds for minutes, and a drive of the VM Host has to
/// find its disc.
pub(crate) fn watched_adapters(machine: &Machine) -> Vec<PciSlot> {
    let avio = machine.storage.iter().filter(|a| a.device.adapter == AdapterKind::AvioStor);
    let slots: BTreeSet<PciSlot> = avio.map(|attached| attached.device.address.slot).collect();
    let answers_at_once = |slot: &PciSlot| {
        let mut stores = machine.devices_in(*slot).filter(|a| a.device.backing.store().is_some());
        stores.all(media::is_watched)
    };
    slots.into_iter().filter(answers_at_once).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE: Duration = Duration::from_millis(800);

    fn prompt(queues: &[(RequestQueue, VirtQueue)]) -> Told<'_> {
        Told { queues, is_prompt: true }
    }

    /// One look after the other, 900 ms apart: what each queue of one adapter has taken and not answered, and how many it has
    /// answered. Gives whether the adapter is silent after each.
    fn silent_after<const N: usize>(looks: [&[(u32, u16)]; N]) -> [bool; N] {
        let adapter = PciSlot::new(0, 1).unwrap();
        let (mut watch, mut now) = (RequestWatch::default(), Instant::now());
        looks.map(|queues| {
            assert!(watch.begin_look(&[adapter]).is_some());
            let told = (2..).zip(queues).map(|(number, &(inuse, used_idx))| {
                (RequestQueue { adapter, number }, VirtQueue { inuse, used_idx })
            });
            watch.looked(prompt(&told.collect::<Vec<_>>()), now, LATE);
            now += Duration::from_millis(900);
            watch.silent().eq([adapter])
        })
    }

    #[test]
    fn what_waits_from_one_look_to_the_next_is_left_unanswered() {
        assert_eq!(
            silent_after([&[(0, 7)], &[(1, 7)], &[(1, 7)], &[(3, 7)], &[(0, 10)]]),
            [false, false, true, true, false]
        );
    }

    #[test]
    fn a_guest_that_rests_or_is_answered_is_let_be() {
        assert_eq!(silent_after([&[(0, 7)], &[(0, 7)], &[(0, 7)]]), [false; 3]);
        // Always busy, and always answered.
        assert_eq!(silent_after([&[(32, 7)], &[(32, 65_535)], &[(32, 4)]]), [false; 3]);
    }

    #[test]
    fn each_queue_counts_for_itself() {
        let busy_and_stuck: [&[_]; 3] = [&[(4, 1), (1, 9)], &[(4, 5), (1, 9)], &[(4, 8), (0, 10)]];
        assert_eq!(silent_after(busy_and_stuck), [false, true, false]);
    }

    /// A guest without such adapters costs no question, nor does a QEMU that does not know it.
    #[test]
    fn nobody_is_asked_in_vain() {
        let [one, other] = [1, 2].map(|device| PciSlot::new(0, device).unwrap());
        let mut watch = RequestWatch::default();
        assert_eq!(watch.begin_look(&[]), None);
        assert_eq!(watch.begin_look(&[one]), Some(1));
        watch.looked(prompt(&[]), Instant::now(), LATE);
        assert_eq!(watch.begin_look(&[one]), None);
        assert_eq!(watch.begin_look(&[]), None);
        assert_eq!(watch.begin_look(&[one, other]), Some(2), "it may tell of the new one");
    }

    /// Two looks that QEMU answered at once, since it had hung, are no time.
    #[test]
    fn two_looks_at_once_tell_nothing() {
        let adapter = PciSlot::new(0, 1).unwrap();
        let told = [(RequestQueue { adapter, number: 2 }, VirtQueue { inuse: 1, used_idx: 7 })];
        let (mut watch, now) = (RequestWatch::default(), Instant::now());
        for after in [0, 50] {
            watch.looked(prompt(&told), now + Duration::from_millis(after), LATE);
            assert_eq!(watch.silent().count(), 0);
        }
        // It stood still itself until then.
        watch.looked(Told { is_prompt: false, ..prompt(&told) }, now + LATE, LATE);
        assert_eq!(watch.silent().count(), 0);
        watch.looked(prompt(&told), now + 2 * LATE, LATE);
        assert!(watch.silent().eq([adapter]));
        watch.forget();
        assert_eq!(watch.silent().count(), 0);
    }
}
