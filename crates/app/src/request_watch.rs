//! Whether the guest's requests to its AVIO disks are answered. Called by the owner with what QEMU tells once a beat.
//!
//! A store may answer reads and leave the guest's writes: a file system that is frozen, a pool that is full and waits for
//! room. QEMU counts, for each queue, the requests it has taken and those it has answered. Where some are taken and none is
//! answered from one look to the next, one of them has waited all that time; what was answered in between may hide one that
//! was not, until the others rest. Requests to emulated adapters are counted nowhere.
//!
//! ```text
//!              some are taken               none is answered, and it is late
//!  Answered ────────────────────► Waits ────────────────────────────────────► Silent
//!   │ ▲  ▲                          │                                           │
//!   ▼ │  └──────────────────────────┴───────────────────────────────────────────┘
//!  Rests    one is answered, none is taken any more; QEMU tells nothing (of what is not silent)
//! ```
//!
//! A silence lasts until it is known to be over, whoever tells nothing meanwhile: QEMU that hangs, or holds the guest.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use hpvm_engine::devices::requests::RequestQueue;
use hpvm_engine::media;
use hpvm_model::{AdapterKind, PciSlot};
use hpvm_plan::record::Machine;
use hpvm_qmp::answer::VirtQueue;
use hpvm_qmp::{Class, Error as QmpError};

#[derive(Debug, Default)]
pub(crate) struct RequestWatch {
    /// How many looks were begun.
    looks: u64,
    /// QEMU does not know the question.
    is_unknown: bool,
    queues: BTreeMap<RequestQueue, Queue>,
}

/// What QEMU told at a look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told<'a> {
    pub(crate) queues: &'a [(RequestQueue, VirtQueue)],
    /// The guest runs, and QEMU told it at once. What QEMU holds waits for no store, and one that stood still itself until then
    /// has left requests unanswered that no store did.
    pub(crate) time_counts: bool,
}

/// A queue as it was told last.
#[derive(Clone, Copy, Debug)]
struct Queue {
    /// How many requests were answered.
    answered: u16,
    standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// From the look before to this one the guest asked for nothing.
    Rests,
    /// Nothing is known to wait.
    Answered,
    /// Some are taken, and none was answered since this look.
    Waits { since: Instant },
    /// They are left unanswered.
    Silent,
}

impl Queue {
    /// What becomes of it with what is told now.
    fn after(
        before: Option<Queue>,
        told: VirtQueue,
        time_counts: bool,
        now: Instant,
        late: Duration,
    ) -> Queue {
        let answered = told.used_idx;
        let unmoved = before.filter(|before| before.answered == answered).map(|b| b.standing);
        let standing = match (told.inuse, unmoved) {
            (0, Some(Standing::Rests | Standing::Answered)) if time_counts => Standing::Rests,
            (0, _) => Standing::Answered,
            (_, Some(Standing::Silent)) => Standing::Silent,
            (_, Some(Standing::Waits { since })) if time_counts => match now - since >= late {
                true => Standing::Silent,
                false => Standing::Waits { since },
            },
            _ => Standing::Waits { since: now },
        };
        Queue { answered, standing }
    }
}

impl RequestWatch {
    /// The adapters that QEMU is to be asked about; what was known of others is of no interest any more. One whose disks are
    /// silent stays, whatever it gets beside them.
    pub(crate) fn adapters(&mut self, machine: &Machine) -> Vec<PciSlot> {
        let slots = match self.is_unknown {
            true => BTreeSet::new(),
            false => avio_adapters(machine),
        };
        let silent: BTreeSet<PciSlot> = self.silent().collect();
        let is_asked = |slot: &PciSlot| silent.contains(slot) || answers_at_once(machine, *slot);
        let adapters: Vec<PciSlot> = slots.into_iter().filter(is_asked).collect();
        self.queues.retain(|queue, _| adapters.contains(&queue.adapter));
        adapters
    }

    /// The number of the look that begins.
    pub(crate) fn begin_look(&mut self) -> u64 {
        self.looks += 1;
        self.looks
    }

    /// What comes of an earlier one comes too late.
    pub(crate) fn last_look(&self) -> u64 {
        self.looks
    }

    /// What the look brought. Requests that wait for so long (`late`) are left unanswered.
    pub(crate) fn looked(&mut self, told: Told<'_>, now: Instant, late: Duration) {
        let before = self.queues.clone();
        self.nothing_told();
        for (queue, state) in told.queues {
            let before = before.get(queue).copied();
            self.queues.insert(*queue, Queue::after(before, *state, told.time_counts, now, late));
        }
    }

    /// The look failed.
    pub(crate) fn refused(&mut self, error: &QmpError) {
        self.nothing_told();
        if error.refusal().is_some_and(|refusal| refusal.class == Class::CommandNotFound) {
            self.is_unknown = true;
            self.queues.clear();
        }
    }

    /// Nobody can tell how long requests wait now. What was silent may still be.
    pub(crate) fn nothing_told(&mut self) {
        for queue in self.queues.values_mut() {
            if queue.standing != Standing::Silent {
                queue.standing = Standing::Answered;
            }
        }
    }

    /// A disk on this adapter answered, be it that it has no space.
    pub(crate) fn answered(&mut self, adapter: PciSlot) {
        for (_, queue) in self.queues.iter_mut().filter(|(queue, _)| queue.adapter == adapter) {
            queue.standing = Standing::Answered;
        }
    }

    /// It has no requests under way.
    pub(crate) fn guest_was_reset(&mut self) {
        self.queues.clear();
    }

    /// The adapters of whose disks one leaves requests unanswered.
    pub(crate) fn silent(&self) -> impl Iterator<Item = PciSlot> {
        let silent = self.queues.iter().filter(|(_, queue)| queue.standing == Standing::Silent);
        let adapters: BTreeSet<PciSlot> = silent.map(|(queue, _)| queue.adapter).collect();
        adapters.into_iter()
    }

    /// Whether the guest has wanted nothing of this adapter's disks for a while, as far as QEMU tells.
    pub(crate) fn rests(&self, adapter: PciSlot) -> bool {
        let mut queues =
            self.queues.iter().filter(|(queue, _)| queue.adapter == adapter).peekable();
        queues.peek().is_some() && queues.all(|(_, queue)| queue.standing == Standing::Rests)
    }
}

fn avio_adapters(machine: &Machine) -> BTreeSet<PciSlot> {
    let avio = machine.storage.iter().filter(|a| a.device.adapter == AdapterKind::AvioStor);
    avio.map(|attached| attached.device.address.slot).collect()
}

/// Whether each of its disks answers at once or is silent: a tape winds for minutes, and a drive of the VM Host has to find its
/// disc.
fn answers_at_once(machine: &Machine, adapter: PciSlot) -> bool {
    let mut stores = machine.devices_in(adapter).filter(|a| a.device.backing.store().is_some());
    stores.all(media::is_watched)
}

#[cfg(test)]
mod tests {
    use hpvm_qmp::Refusal;

    use super::*;
    use crate::store_watch::tests::{disk, machine};

    const LATE: Duration = Duration::from_millis(800);
    const APART: Duration = Duration::from_millis(900);

    /// What one look brings of the one queue of an adapter: taken and not answered, answered.
    #[derive(Clone, Copy, Debug)]
    enum Look {
        Told(u32, u16),
        /// QEMU hung until then, or holds the guest.
        Stood(u32, u16),
        Untold,
        /// Refused in these words, which QEMU may have many of.
        Refused,
        Reset,
    }

    use Look::*;

    fn adapter() -> PciSlot {
        PciSlot::new(0, 1).unwrap()
    }

    fn refusal(class: Class) -> QmpError {
        let refusal = Refusal { class, description: "no".into() };
        QmpError::Refused { command: "x-query-virtio-queue-status", refusal }
    }

    fn take(watch: &mut RequestWatch, look: Look, now: Instant) {
        let queue = RequestQueue { adapter: adapter(), number: 2 };
        match look {
            Told(inuse, used_idx) | Stood(inuse, used_idx) => {
                let queues = [(queue, VirtQueue { inuse, used_idx })];
                let time_counts = matches!(look, Told(..));
                watch.looked(super::Told { queues: &queues, time_counts }, now, LATE);
            }
            Untold => watch.nothing_told(),
            Refused => watch.refused(&refusal(Class::Generic)),
            Reset => watch.guest_was_reset(),
        }
    }

    /// One look after the other. Gives whether the adapter is silent after each.
    fn silent_after<const N: usize>(looks: [Look; N]) -> [bool; N] {
        let (mut watch, mut now) = (RequestWatch::default(), Instant::now());
        looks.map(|look| {
            take(&mut watch, look, now);
            now += APART;
            watch.silent().eq([adapter()])
        })
    }

    #[test]
    fn what_waits_from_one_look_to_the_next_is_left_unanswered() {
        assert_eq!(
            silent_after([Told(0, 7), Told(1, 7), Told(1, 7), Told(3, 7), Told(0, 10)]),
            [false, false, true, true, false]
        );
    }

    #[test]
    fn a_guest_that_rests_or_is_answered_is_let_be() {
        assert_eq!(silent_after([Told(0, 7), Told(0, 7), Told(0, 7)]), [false; 3]);
        // Always busy, and always answered.
        assert_eq!(silent_after([Told(32, 7), Told(32, 65_535), Told(32, 4)]), [false; 3]);
    }

    #[test]
    fn a_silence_lasts_until_it_is_known_to_be_over() {
        for nothing in [Untold, Refused, Stood(1, 7)] {
            let looks = [Told(1, 7), Told(1, 7), nothing, nothing, Told(1, 7), nothing];
            assert_eq!(silent_after(looks), [false, true, true, true, true, true], "{nothing:?}");
        }
        // A request that was answered, the last of them, however it ended, and a guest that begins anew.
        for end in [Told(1, 8), Stood(1, 8), Told(0, 7), Stood(0, 7), Reset] {
            let looks = [Told(1, 7), Told(1, 7), Untold, end, Untold];
            assert_eq!(silent_after(looks), [false, true, true, false, false], "{end:?}");
        }
    }

    #[test]
    fn what_tells_nothing_begins_no_silence() {
        for nothing in [Untold, Refused, Stood(1, 7)] {
            let looks = [Told(1, 7), nothing, nothing, Told(1, 7), nothing, Told(1, 7)];
            let begins = match nothing {
                // It was told then how it stood, and so it stood until the next look.
                Stood(..) => [false, false, false, true, true, true],
                _ => [false; 6],
            };
            assert_eq!(silent_after(looks), begins, "{nothing:?}");
        }
    }

    /// Whatever is told in which order.
    #[test]
    fn no_silence_begins_or_ends_without_a_word_of_qemu() {
        const LOOKS: [Look; 7] =
            [Told(0, 7), Told(1, 7), Told(1, 8), Stood(1, 7), Untold, Refused, Reset];
        for number in 0..LOOKS.len().pow(5) {
            let looks: [Look; 5] = std::array::from_fn(|place| {
                LOOKS[number / LOOKS.len().pow(place as u32) % LOOKS.len()]
            });
            let silent = silent_after(looks);
            for (place, now) in silent.into_iter().enumerate() {
                let before = place > 0 && silent[place - 1];
                match (before, now, looks[place]) {
                    (false, true, Told(1, _)) | (true, false, Told(..) | Stood(..) | Reset) => {}
                    (false, true, _) | (true, false, _) => panic!("{looks:?}: {silent:?}"),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn each_queue_counts_for_itself() {
        let (mut watch, mut now) = (RequestWatch::default(), Instant::now());
        let silent = [[(4, 1), (1, 9)], [(4, 5), (1, 9)], [(4, 8), (0, 10)]].map(|queues| {
            let told: Vec<_> = (2..)
                .zip(queues)
                .map(|(number, (inuse, used_idx))| {
                    (RequestQueue { adapter: adapter(), number }, VirtQueue { inuse, used_idx })
                })
                .collect();
            watch.looked(super::Told { queues: &told, time_counts: true }, now, LATE);
            now += APART;
            watch.silent().count() == 1
        });
        assert_eq!(silent, [false, true, false]);
    }

    /// Only a QEMU that does not know the question is never asked again; what else it refuses, it may tell at the next look.
    #[test]
    fn a_question_that_is_not_known_is_not_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(&folder.path().join("disk.img"));
        let (slot, machine) = (disk.device.address.slot, machine(vec![disk]));
        let mut watch = RequestWatch::default();
        watch.looked(super::Told { queues: &[], time_counts: true }, Instant::now(), LATE);
        for class in [Class::Generic, Class::DeviceNotFound] {
            watch.refused(&refusal(class));
            assert_eq!(watch.adapters(&machine), [slot]);
        }
        watch.refused(&refusal(Class::CommandNotFound));
        assert_eq!(watch.adapters(&machine), []);
    }

    /// Two looks that QEMU answered at once, since it had hung, are no time.
    #[test]
    fn two_looks_at_once_tell_nothing() {
        let (mut watch, now) = (RequestWatch::default(), Instant::now());
        for after in [0, 50] {
            take(&mut watch, Told(1, 7), now + Duration::from_millis(after));
            assert_eq!(watch.silent().count(), 0);
        }
        // It stood still itself until then.
        take(&mut watch, Stood(1, 7), now + LATE);
        assert_eq!(watch.silent().count(), 0);
        take(&mut watch, Told(1, 7), now + 2 * LATE);
        assert!(watch.silent().eq([adapter()]));
    }

    /// Its stores are read all the same as long as it may have asked for something.
    #[test]
    fn a_guest_rests_when_nothing_has_moved_between_two_looks() {
        for (looks, rests) in [
            (&[Told(0, 7), Told(0, 7)][..], true),
            (&[Told(0, 7), Told(0, 7), Told(0, 7)], true),
            (&[], false),
            (&[Told(0, 7)], false),
            (&[Told(0, 7), Told(0, 8)], false),
            (&[Told(0, 7), Told(1, 7)], false),
            (&[Told(1, 7), Told(0, 7)], false),
            (&[Told(0, 7), Stood(0, 7)], false),
            (&[Told(0, 7), Told(0, 7), Untold], false),
            (&[Told(0, 7), Told(0, 7), Reset], false),
        ] {
            let (mut watch, mut now) = (RequestWatch::default(), Instant::now());
            for look in looks {
                take(&mut watch, *look, now);
                now += APART;
            }
            assert_eq!(watch.rests(adapter()), rests, "{looks:?}");
        }
    }
}
