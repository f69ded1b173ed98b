//! Stores that do not answer: noticed, told and forgotten; and what is put off for them, since QEMU opens, closes, drains and
//! looks at no store without waiting for all of the guest's, and the guest waits with it.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::os::fd::AsFd;

use hpvm_app::protocol::BEGINS_WITHIN;
use hpvm_app::snapshot::{CutImage, DeviceStore, Role, SilentStore, Snapshot};
use hpvm_engine::devices::requests::{self, RequestQueue};
use hpvm_model::{Bytes, PciSlot, StorageAddress, StorageType};
use hpvm_plan::command_line::device_id;
use hpvm_plan::record::{self, Attached};
use hpvm_qmp::answer::VirtQueue;

use super::silences::{Sight, Silent};
use super::*;
use crate::changes::Changes;
use crate::machine::{ORDER_PATIENCE, STORE_PATIENCE, Silence};
use crate::request_watch::{RequestWatch, Told};
use crate::store_watch::{LATE, Reading, StoreWatch, held_or_brought};

/// How long reads wait for QEMU to tell which stores are in use. What is read then is late by the next beat all the same, if it
/// does not come back.
const TOLD_WITHIN: Duration = Duration::from_millis(100);
/// For so many beats with an answer of QEMU a worker that takes over believes the one before it, whatever it has not seen itself
/// by then: a store is read at the first of them, and requests are known to wait at the second at the earliest.
const BELIEVED_BEATS: u32 = 4;

/// How long what touches stores waits for a read of each: one that does not answer is known long before, and those that do may
/// be many.
const READ_WITHIN: Duration = Duration::from_secs(3);
/// Whoever asks waits longer than for all that he may wait for here: order, reads, a silence that these show, and reads once more.
const _: () = assert!(
    ORDER_PATIENCE.as_secs() + STORE_PATIENCE.as_secs() + 2 * READ_WITHIN.as_secs()
        <= BEGINS_WITHIN.as_secs()
);
/// Between two looks whether they have been read.
const READ_LOOK: Duration = Duration::from_millis(2);

/// What is done when each store has answered, or one is known not to.
type Next = Box<dyn FnOnce(&mut Driver)>;

/// What waits for a read of each store that was begun for it: one that was begun before may lack what it brings.
struct Waiting {
    reading: Reading,
    until: Instant,
    next: Next,
}

impl Waiting {
    fn is_over(&self) -> bool {
        self.reading.is_over() || Instant::now() >= self.until
    }
}

/// What backs the guest's disks and drives.
#[derive(Default)]
pub(super) struct Stores {
    pub(super) watch: StoreWatch,
    /// What disks are being copied to: QEMU lets the guest wait for it too.
    pub(super) copies: StoreWatch,
    pub(super) requests: RequestWatch,
    silent: Vec<Silent>,
    /// Images that became shorter, by whom nobody knows.
    pub(super) cut: Vec<CutImage>,
    /// For so many beats to come what the worker before us told of them is believed.
    believed_beats: u32,
    /// QEMU has answered since the last beat.
    has_qemu_answered: bool,
    /// When stores are read whose turn it is; QEMU is asked which of them are in use.
    reads_due: Option<Instant>,
    /// Something is left to do when all of them answer.
    was_put_off: bool,
    /// What waits for a read of each, in the order in which it came.
    waiting: VecDeque<Waiting>,
    /// The keeper has said what it holds of them for us, so it is one that gives it to the next worker too.
    are_kept: bool,
    /// By the next beat all that was kept for us has come.
    begins: bool,
    /// Those of which nobody gave us a descriptor.
    unwatched: Vec<(StorageAddress, String)>,
}

impl Stores {
    /// Of a guest that starts.
    pub(super) fn first(machine: &record::Machine, files: Vec<(StorageAddress, File)>) -> Stores {
        Stores { watch: StoreWatch::of(machine.held(), files), ..Stores::default() }
    }

    /// Of a guest that a worker before us looked after, which published this.
    pub(super) fn next(
        machine: &record::Machine,
        files: Vec<(StorageAddress, File)>,
        before: Option<&Snapshot>,
    ) -> Stores {
        let silent = before.map(|snapshot| snapshot.silent_stores.clone()).unwrap_or_default();
        let silent = silent.into_iter().map(|store| Silent { store, since: Duration::ZERO });
        Stores {
            silent: silent.collect(),
            cut: before.map(|snapshot| snapshot.cut_images.clone()).unwrap_or_default(),
            believed_beats: BELIEVED_BEATS,
            begins: true,
            ..Stores::first(machine, files)
        }
    }

    /// For people.
    pub(super) fn unwatched_in_words(&self) -> impl Iterator<Item = String> {
        self.unwatched.iter().map(|(address, path)| {
            format!(
                "'{path}' at {address} is not watched until the guest's next start, so nobody is told when it does not answer"
            )
        })
    }

    pub(super) fn silent(&self) -> impl Iterator<Item = &SilentStore> {
        self.silent.iter().map(|silent| &silent.store)
    }

    pub(super) fn qemu_answered(&mut self) {
        self.has_qemu_answered = true;
    }

    /// Whether all has come that is held of them for us.
    pub(super) fn are_given(&self) -> bool {
        self.are_kept || !self.begins
    }

    /// `None`: all of them answer.
    pub(super) fn silence(&self) -> Option<Silence> {
        let words =
            |store: &SilentStore| format!("{store} and has not answered since {}", store.since);
        let since = self.silent.iter().map(|silent| silent.since).min()?;
        let words = self.silent().map(words).collect::<Vec<_>>().join(" and ");
        Some(Silence { words, since })
    }

    /// Whether QEMU may be asked for what touches a store. If not, whoever asked is put off: the devices are looked at when all
    /// stores answer.
    pub(super) fn may_be_touched(&mut self) -> bool {
        self.was_put_off |= !self.silent.is_empty();
        self.silent.is_empty()
    }

    /// Whether somebody was put off, who has his turn now.
    pub(super) fn was_put_off(&mut self) -> bool {
        std::mem::take(&mut self.was_put_off)
    }

    /// Whether what waits first is to wait no longer: beside a silent store it is not done anyway.
    fn is_next_read(&self) -> bool {
        !self.silent.is_empty() || self.waiting.front().is_some_and(Waiting::is_over)
    }

    /// When somebody is to look at them again.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let look = self.waiting.front().map(|_| Instant::now() + READ_LOOK);
        self.reads_due.into_iter().chain(look).min()
    }
}

impl Driver {
    /// What a worker before us was handed when it came to the guest.
    pub(super) fn store_kept(&mut self, tag: u32, store: Option<OwnedFd>) {
        match (&self.recorded.machine, store) {
            (Ok(known), Some(store)) => {
                let devices = held_or_brought(known.file.machine());
                self.stores.watch.add_kept(devices, tag, store.into());
            }
            _ => self.link.send(ToKeeper::Release { tag }),
        }
    }

    /// From here on tags are ours to give.
    pub(super) fn all_stores_kept(&mut self) {
        self.stores.are_kept = true;
        self.tell_keeper_of_stores();
        self.take_over();
    }

    /// What the keeper is to hold from now on, and what no longer.
    pub(super) fn tell_keeper_of_stores(&mut self) {
        if !self.stores.are_kept {
            return;
        }
        let link = &self.link;
        self.stores.watch.tell_keeper(
            |tag, store| link.keep(tag, store.as_fd()).is_ok(),
            |tag| link.send(ToKeeper::Release { tag }),
        );
    }

    /// Closes, here and in the keeper, what the guest has no more. No change is under way that brings something.
    pub(super) fn forget_stores(&mut self) {
        let Ok(known) = &self.recorded.machine else { return };
        let machine = known.file.machine();
        self.stores.watch.keep_those_of(machine);
        let stays = |store: &(StorageAddress, String)| {
            let (address, path) = store;
            StoreWatch::kind_of(machine.held(), *address, path).is_some()
                && !self.stores.watch.has(*address, path)
        };
        let before = self.stores.unwatched.len();
        self.stores.unwatched.retain(stays);
        let is_told = self.stores.unwatched.len() == before;
        self.tell_keeper_of_stores();
        if !is_told {
            self.publish();
        }
    }

    /// Of what nobody has a descriptor of by now, nobody is given one before the guest's next start.
    fn look_for_unwatched(&mut self) {
        let Ok(known) = &self.recorded.machine else { return };
        let unwatched = self.stores.watch.unwatched(known.file.machine().held());
        let told: BTreeSet<String> = self.stores.unwatched_in_words().collect();
        self.stores.unwatched =
            unwatched.into_iter().map(|(address, path)| (address, path.to_owned())).collect();
        let untold: Vec<_> =
            self.stores.unwatched_in_words().filter(|words| !told.contains(words)).collect();
        if untold.is_empty() {
            return;
        }
        untold.iter().for_each(|sentence| self.log.say(sentence));
        self.publish();
    }

    /// What the worker before us was bringing is the guest's by now, or it is not.
    pub(super) fn look_for_unwatched_again(&mut self) {
        if !self.stores.begins {
            self.look_for_unwatched();
        }
    }

    /// Looks who has not answered since the beat before, then reads a little of each store; of those that the guest wants
    /// nothing of, when QEMU has told which these are.
    pub(super) fn watch_stores(&mut self) {
        if std::mem::take(&mut self.stores.has_qemu_answered) {
            self.stores.believed_beats = self.stores.believed_beats.saturating_sub(1);
        }
        if std::mem::take(&mut self.stores.begins) {
            self.look_for_unwatched();
            self.take_over();
        }
        self.look_at_stores();
        self.look_for_cut_images();
        let silence = self.stores.silence();
        if silence.is_some_and(|silence| silence.denial(self.began.elapsed()).is_some()) {
            // What is put off for it waits no longer.
            self.begin_step();
        }
        match self.pulse.is_looking() {
            true => self.stores.reads_due = Some(Instant::now() + TOLD_WITHIN),
            false => self.read_stores(|_| true),
        }
    }

    /// QEMU makes an image longer, and never shorter.
    fn look_for_cut_images(&mut self) {
        let Ok(known) = &self.recorded.machine else { return };
        let backings = || known.file.machine().held().flat_map(|held| held.device.backings());
        let is_image =
            |path: &str| backings().any(|b| b.storage == StorageType::Qcow2 && b.path == path);
        let untold = |(path, length): &(&str, Bytes)| {
            !self.stores.cut.iter().any(|cut| cut.path == *path && cut.length >= *length)
        };
        let found = self.stores.watch.cut().filter(untold).filter(|(path, _)| is_image(path));
        let found: Vec<CutImage> =
            found.map(|(path, length)| CutImage { path: path.to_owned(), length }).collect();
        if found.is_empty() {
            return;
        }
        self.stores.cut.retain(|cut| !found.iter().any(|anew| anew.path == cut.path));
        for CutImage { path, length } in &found {
            self.log.say(&format!("'{path}' has become shorter than the {length} that it had"));
        }
        self.stores.cut.extend(found);
        self.publish();
    }

    /// Reads stores, if it is time to, whatever QEMU has told by then.
    pub(super) fn read_stores_if_due(&mut self) {
        if self.stores.reads_due.is_some_and(|due| due <= Instant::now()) {
            self.read_stores(|_| true);
        }
    }

    /// Before QEMU is asked for what touches stores, each is read once: one of which the guest has wanted nothing may be silent, and
    /// nobody has noticed. What is done then looks itself whether all answer.
    pub(super) fn when_stores_are_read(&mut self, next: impl FnOnce(&mut Driver) + 'static) {
        self.stores.reads_due = None;
        let reading = self.stores.watch.read(|_| true);
        let _ = self.stores.copies.read(|_| true);
        let (until, next) = (Instant::now() + READ_WITHIN, Box::new(next));
        self.stores.waiting.push_back(Waiting { reading, until, next });
    }

    /// Called by the loop alone, so that nothing of it is done in the middle of something else, or after the guest's end.
    pub(super) fn go_on_when_read(&mut self) {
        let is_any_silent =
            || !self.stores.watch.silent().is_empty() || !self.stores.copies.silent().is_empty();
        if !self.stores.waiting.is_empty() && is_any_silent() {
            self.look_at_stores();
        }
        while self.stores.is_next_read()
            && let Some(waiting) = self.stores.waiting.pop_front()
        {
            (waiting.next)(self);
        }
    }

    fn read_stores(&mut self, is_wanted: impl Fn(StorageAddress) -> bool) {
        self.stores.reads_due = None;
        let _ = self.stores.watch.read(is_wanted);
        let _ = self.stores.copies.read(|_| true);
    }

    /// Asks QEMU how the guest's requests stand, if the guest runs and QEMU tells it; says whether it did.
    pub(super) fn look_at_requests(&mut self) -> bool {
        if self.machine.is_silent() {
            // It answers nobody, so it is no store that does not.
            self.stores.requests.nothing_told();
            return false;
        }
        let (Some(client), Ok(known)) = (self.monitor.client().cloned(), &self.recorded.machine)
        else {
            self.stores.requests.nothing_told();
            return false;
        };
        let machine = known.file.machine();
        let adapters = self.stores.requests.adapters(machine);
        match self.shown.phase {
            Phase::Running { .. } => {}
            // What QEMU itself holds still waits for nothing. What was silent before may come back.
            Phase::Starting | Phase::Paused { .. } => {
                self.stores.requests.nothing_told();
                if self.stores.requests.silent().next().is_none() {
                    return false;
                }
            }
            Phase::Stopping { .. } | Phase::Ended { .. } => {
                self.stores.requests.nothing_told();
                return false;
            }
        }
        if adapters.is_empty() {
            return false;
        }
        let look = self.stores.requests.begin_look();
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
        if look != self.stores.requests.last_look() {
            return;
        }
        match told {
            Ok(told) => {
                self.stores.qemu_answered();
                let runs = matches!(self.shown.phase, Phase::Running { .. });
                let time_counts = runs && self.pulse.was_answered_at_once();
                let told = Told { queues: &told, time_counts };
                self.stores.requests.looked(told, std::time::Instant::now(), LATE);
            }
            Err(error) => self.stores.requests.refused(&error),
        }
        let had_hung = self.machine.is_silent();
        self.answered();
        if had_hung {
            // It says what has become of the guest meanwhile.
            self.ask_status();
        }
        self.look_at_stores();
        if self.stores.reads_due.is_some() {
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
        slots.into_iter().filter(|slot| self.stores.requests.rests(*slot)).collect()
    }

    fn look_at_stores(&mut self) {
        let Ok(known) = &self.recorded.machine else { return };
        let before = std::mem::take(&mut self.stores.silent);
        let machine = known.file.machine();
        let devices = self.backed(machine);
        let sight = Sight {
            silences: self.silences(machine, &devices),
            is_predecessor_believed: self.stores.believed_beats > 0,
            is_there: &|store| self.is_there(store, &devices),
            now: (self.began.elapsed(), now()),
        };
        let (silent, sentences) = silences::compare(before, sight);
        self.stores.silent = silent;
        if sentences.is_empty() {
            return;
        }
        sentences.iter().for_each(|sentence| self.log.say(sentence));
        self.publish();
        let all_answer = self.stores.silent.is_empty();
        if all_answer {
            self.look_after_silence();
        }
        self.tell_machine_of_stores();
        if all_answer {
            self.make_missed();
            self.next_step();
        }
    }

    /// What commands wait for begins when all of them answer.
    pub(super) fn tell_machine_of_stores(&mut self) {
        let silence = self.stores.silence();
        self.feed(Input::Stores(silence));
    }

    /// What backs a device by its place in QEMU.
    pub(super) fn store_behind(&self, qom_path: &str) -> Option<DeviceStore> {
        let machine = self.recorded.machine.as_ref().ok()?.file.machine();
        let is_its = |attached: &&Attached| {
            let id = device_id(attached.device.address);
            qom_path.split('/').any(|part| part == id)
        };
        store_of(machine.storage.iter().find(is_its)?)
    }

    /// Whose stores QEMU has open, may have, or is about to open.
    fn backed<'a>(&'a self, machine: &'a record::Machine) -> Vec<&'a Attached> {
        let coming = self.changes.iter().flat_map(Changes::media);
        held_or_brought(machine).chain(coming).collect()
    }

    fn is_there(&self, store: &DeviceStore, devices: &[&Attached]) -> bool {
        let DeviceStore { address, path, .. } = store;
        match store.role {
            Role::Backing => StoreWatch::kind_of(devices.iter().copied(), *address, path).is_some(),
            Role::Copy => self.stores.copies.has(*address, path),
        }
    }

    /// What does not answer: a store that was read in vain, and one of all that are on an adapter whose requests wait.
    fn silences(&self, machine: &record::Machine, devices: &[&Attached]) -> Vec<Vec<DeviceStore>> {
        let unread = self.stores.watch.silent().into_iter().filter_map(|(address, path)| {
            let kind = StoreWatch::kind_of(devices.iter().copied(), address, &path)?;
            Some(DeviceStore { address, kind, path, role: Role::Backing })
        });
        let uncopied = self.stores.copies.silent().into_iter();
        let uncopied = uncopied.map(|(address, path)| copied_to(address, path));
        let unread: Vec<DeviceStore> = unread.chain(uncopied).collect();
        let is_explained = |slot: &PciSlot| unread.iter().any(|store| store.address.slot == *slot);
        let waiting = self.stores.requests.silent().filter(|slot| !is_explained(slot));
        let copies = |slot: PciSlot| {
            let copies = self.stores.copies.paths();
            let copies = copies.filter(move |(address, _)| address.slot == slot);
            copies.map(|(address, path)| copied_to(address, path.to_owned()))
        };
        let of_adapters =
            waiting.map(|slot| copies(slot).chain(stores_on(machine, slot)).collect());
        let of_adapters: Vec<_> = of_adapters.collect();
        unread.into_iter().map(|store| vec![store]).chain(of_adapters).collect()
    }
}

/// A disk alone is copied.
fn copied_to(address: StorageAddress, path: String) -> DeviceStore {
    DeviceStore { address, kind: DeviceKind::Disk, path, role: Role::Copy }
}

fn stores_on(machine: &record::Machine, slot: PciSlot) -> Vec<DeviceStore> {
    machine.devices_in(slot).filter_map(store_of).collect()
}

fn store_of(attached: &Attached) -> Option<DeviceStore> {
    let StorageDevice { address, kind, backing, .. } = &attached.device;
    let path = backing.store()?.to_owned();
    Some(DeviceStore { address: *address, kind: *kind, path, role: Role::Backing })
}
