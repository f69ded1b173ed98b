//! Whether what backs the guest's disks and drives answers, and what lies under it. Called by the owner once a beat,
//! for what the guest may want something of.
//!
//! QEMU tells nothing of a request that is left unanswered, neither by an event nor by the counters of its disks, so a few
//! bytes of a store are read beside it, through a descriptor of our own and past the memory of the VM Host. One thread
//! reads store after store; one that does not come back is left with its store, and another thread goes on with the others.
//! So a store that hangs costs one thread, and stores that answer cost one short read a beat while they are in use. What
//! answers reads and nothing else shows in the guest's requests, see [`crate::request_watch`].

use std::collections::BTreeSet;
use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SendError, Sender, channel};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use hpvm_engine::media;
use hpvm_host::identity;
use hpvm_host::image_lock;
use hpvm_host::process::boottime_ms;
use hpvm_model::{Bytes, DeviceKind, FileIdentity, StorageAddress};
use hpvm_plan::record::{Attached, Machine};
use rustix::fs::{Advice, fadvise};

/// What is under way for so long at a beat has not come back since the beat before, the one of which may have come late and the
/// other early: with the time between two beats that is told within two seconds of the first request that a guest is left with.
pub(crate) const LATE: Duration = Duration::from_millis(700);
const STACK_BYTES: usize = 128 << 10;
/// As large and aligned as any block device wants a read past the host's memory.
const READ_BYTES: usize = 4096;
/// The kernel keeps files in parts as large as this at most (a huge page), and forgets only whole ones.
const CACHED_PART_BYTES: Option<NonZeroU64> = NonZeroU64::new(2 << 20);
/// The link to a keeper has room for so many descriptors, and some messages, when the next worker begins.
const KEPT_MAX: usize = 250;

#[derive(Debug, Default)]
pub(crate) struct StoreWatch {
    stores: Vec<Arc<Store>>,
    reader: Option<Sender<Round>>,
    last_tag: u32,
    /// What the keeper holds for the workers to come.
    kept: BTreeSet<u32>,
}

/// What is read, one store after the other.
type Round = Arc<Vec<Arc<Store>>>;

/// Reads that were begun together.
#[derive(Debug)]
pub(crate) struct Reading {
    /// As long as its reader is at it.
    round: Weak<Vec<Arc<Store>>>,
    /// The same round, where there was no thread that could read: it is never over.
    untaken: Option<Round>,
    /// All that were wanted: those that another reader was at, now or when its turn came, this one passed over.
    stores: Vec<Arc<Store>>,
}

impl Reading {
    /// Whether each of these stores has answered.
    pub(crate) fn is_over(&self) -> bool {
        let is_read = self.untaken.is_none() && self.round.strong_count() == 0;
        is_read && !self.stores.iter().any(|store| store.is_asked())
    }
}

#[derive(Debug)]
struct Store {
    address: StorageAddress,
    path: String,
    file: File,
    /// Under which the keeper is to hold it, if it came to the running guest: given when the keeper is told of it, by when all
    /// tags of workers before us are known. Those of the start each worker is given anyway.
    tag: Option<OnceLock<u32>>,
    /// When the read began that has not come back, in milliseconds since the host booted; 0: none is under way.
    asked_ms: AtomicU64,
    /// How long the file was at the last read, and at most: 0 of what is no file.
    length: AtomicU64,
    longest: AtomicU64,
}

impl StoreWatch {
    /// Watches the stores that the guest started with, as far as its devices have them still.
    pub(crate) fn of<'a>(
        devices: impl IntoIterator<Item = &'a Attached>,
        files: impl IntoIterator<Item = (StorageAddress, File)>,
    ) -> StoreWatch {
        let mut watch = StoreWatch::default();
        watch.put_all(devices, files, || None);
        watch
    }

    /// Watches what disks are copied to, by the addresses of those.
    pub(crate) fn of_copies<'a>(
        targets: impl IntoIterator<Item = (StorageAddress, &'a str, File)>,
    ) -> StoreWatch {
        let mut watch = StoreWatch::default();
        targets.into_iter().for_each(|(address, path, file)| watch.put(address, path, file, None));
        watch
    }

    /// Watches the stores of these devices too, which are coming, and what lies under them: the files of each follow each other,
    /// under its address. A file that is none of them, since the device has another one by now, is of no use.
    pub(crate) fn add_all<'a>(
        &mut self,
        devices: impl IntoIterator<Item = &'a Attached>,
        files: impl IntoIterator<Item = (StorageAddress, File)>,
    ) {
        self.put_all(devices, files, || Some(OnceLock::new()));
    }

    fn put_all<'a>(
        &mut self,
        devices: impl IntoIterator<Item = &'a Attached>,
        files: impl IntoIterator<Item = (StorageAddress, File)>,
        tag: impl Fn() -> Option<OnceLock<u32>>,
    ) {
        let mut stores: Vec<KnownStore<'a>> = devices.into_iter().flat_map(stores_of).collect();
        for (address, file) in files {
            let is_it = |store: &KnownStore<'_>| {
                let is_known = store.identity.is_none_or(|identity| identity::is(&file, identity));
                store.address == address && is_known
            };
            if let Some(place) = stores.iter().position(is_it) {
                let path = stores.remove(place).path;
                self.put(address, path, file, tag());
            }
        }
    }

    /// Watches what the keeper held for a worker before us: the first store that is this one and is not watched yet.
    pub(crate) fn add_kept<'a>(
        &mut self,
        devices: impl IntoIterator<Item = &'a Attached>,
        tag: u32,
        file: File,
    ) {
        self.kept.insert(tag);
        self.last_tag = self.last_tag.max(tag);
        let is_it = |store: &KnownStore<'_>| {
            store.identity.is_some_and(|identity| identity::is(&file, identity))
                && !self.has(store.address, store.path)
        };
        let found = devices.into_iter().flat_map(stores_of).find(is_it);
        if let Some(KnownStore { address, path, .. }) = found {
            self.put(address, path, file, Some(tag.into()));
        }
    }

    /// What the keeper holds, or is to hold, for the workers to come. What was held for us has come, or is lost.
    pub(crate) fn for_next_workers(&mut self) -> impl Iterator<Item = (u32, &File)> {
        for tag in self.stores.iter().filter_map(|store| store.tag.as_ref()) {
            tag.get_or_init(|| {
                self.last_tag = self.last_tag.wrapping_add(1);
                self.last_tag
            });
        }
        self.tagged()
    }

    fn tagged(&self) -> impl Iterator<Item = (u32, &File)> {
        let tagged = |store: &'_ Arc<Store>| store.tag.as_ref()?.get().copied();
        self.stores.iter().filter_map(move |s| Some((tagged(s)?, &s.file))).take(KEPT_MAX)
    }

    /// Has the keeper hold what has come, as far as it takes it, and release what is watched no more.
    pub(crate) fn tell_keeper(&mut self, keep: impl Fn(u32, &File) -> bool, release: impl Fn(u32)) {
        let wanted: BTreeSet<u32> = self.for_next_workers().map(|(tag, _)| tag).collect();
        self.kept.difference(&wanted).copied().for_each(release);
        let come = self.tagged().filter(|(tag, _)| !self.kept.contains(tag));
        let come: Vec<u32> =
            come.filter(|(tag, file)| keep(*tag, file)).map(|(tag, _)| tag).collect();
        self.kept.retain(|tag| wanted.contains(tag));
        self.kept.extend(come);
    }

    /// The devices of which something is not watched, by the paths of that.
    pub(crate) fn unwatched<'a>(
        &self,
        devices: impl IntoIterator<Item = &'a Attached>,
    ) -> Vec<(StorageAddress, &'a str)> {
        let watched = devices.into_iter().filter(|attached| media::is_watched(attached));
        let stores = watched.flat_map(stores_of).map(|store| (store.address, store.path));
        stores.filter(|(address, path)| !self.has(*address, path)).collect()
    }

    fn put(&mut self, address: StorageAddress, path: &str, file: File, tag: Option<OnceLock<u32>>) {
        self.stores.retain(|store| (store.address, store.path.as_str()) != (address, path));
        self.stores.push(Arc::new(Store {
            address,
            path: path.to_owned(),
            file,
            tag,
            asked_ms: AtomicU64::new(0),
            length: AtomicU64::new(0),
            longest: AtomicU64::new(0),
        }));
    }

    /// Gives up what the guest's engine has no more, and nobody brings.
    pub(crate) fn keep_those_of(&mut self, machine: &Machine) {
        self.stores.retain(|store| store.is_of(machine));
    }

    /// Of the device among these that has this store.
    pub(crate) fn kind_of<'a>(
        devices: impl IntoIterator<Item = &'a Attached>,
        address: StorageAddress,
        path: &str,
    ) -> Option<DeviceKind> {
        let mut there = devices.into_iter().filter(|attached| attached.device.address == address);
        let found = there.find(|a| stores_of(a).any(|store| store.path == path))?;
        Some(found.device.kind)
    }

    /// Ends the watch of what disks were copied to, once nobody writes it any more. A read that is under way keeps its
    /// description for a moment, and QEMU's locks by it are not to outlast the copy.
    pub(crate) fn end_of_copies(&mut self) {
        for store in std::mem::take(self).stores {
            // Where it has no locks, none was taken.
            let _ = image_lock::let_others_in(&store.file);
        }
    }

    /// All that is watched, with the devices' addresses.
    pub(crate) fn paths(&self) -> impl Iterator<Item = (StorageAddress, &str)> {
        self.stores.iter().map(|store| (store.address, store.path.as_str()))
    }

    pub(crate) fn has(&self, address: StorageAddress, path: &str) -> bool {
        self.stores.iter().any(|store| (store.address, store.path.as_str()) == (address, path))
    }

    /// Reads each store that is wanted, by its address.
    pub(crate) fn read(&mut self, is_wanted: impl Fn(StorageAddress) -> bool) -> Reading {
        let wanted = self.stores.iter().filter(|store| is_wanted(store.address));
        let stores: Vec<_> = wanted.cloned().collect();
        let free = stores.iter().filter(|store| !store.is_asked()).cloned().collect();
        if self.stores.iter().any(|store| store.is_asked()) {
            // Its thread ends when its read comes back, whenever that is.
            self.reader = None;
        }
        let round: Round = Arc::new(free);
        let begun = Arc::downgrade(&round);
        let untaken = Some(round).filter(|round| !round.is_empty());
        let untaken = untaken.and_then(|round| self.hand_over(round));
        Reading { round: begun, untaken, stores }
    }

    /// Gives the round back where no thread could be made: nothing is told this time, and the next beat tries again.
    fn hand_over(&mut self, round: Round) -> Option<Round> {
        let Some(reader) = self.reader.take().or_else(start_reader) else { return Some(round) };
        match reader.send(round) {
            Ok(()) => self.reader = Some(reader),
            Err(SendError(round)) => return Some(round),
        }
        None
    }

    /// The files that are shorter than they were while they were watched, by path, and how long they were.
    pub(crate) fn cut(&self) -> impl Iterator<Item = (&str, Bytes)> {
        let cut = self.stores.iter().filter_map(|store| Some((store, store.cut_from()?)));
        cut.map(|(store, length)| (store.path.as_str(), Bytes(length)))
    }

    /// What has not answered for too long, by path, with the device that it backs or lies under.
    pub(crate) fn silent(&self) -> Vec<(StorageAddress, String)> {
        let late = self.stores.iter().filter(|store| store.is_late());
        late.map(|store| (store.address, store.path.clone())).collect()
    }
}

/// As the boot record has it.
struct KnownStore<'a> {
    address: StorageAddress,
    path: &'a str,
    identity: Option<FileIdentity>,
}

/// All devices whose stores the guest's engine has open, and those that a change under way brings: a worker that died of it left
/// them there perhaps.
pub(crate) fn held_or_brought(machine: &Machine) -> impl Iterator<Item = &Attached> {
    machine.held().chain(machine.pending.iter().flat_map(|pending| pending.change.media()))
}

/// The store of a device and what lies under it.
fn stores_of(attached: &Attached) -> impl Iterator<Item = KnownStore<'_>> {
    let address = attached.device.address;
    let own = attached.device.backing.store().map(|path| (path, attached.identity));
    let layers = attached.layers.iter().map(|l| (l.backing.path.as_str(), l.identity));
    own.into_iter().chain(layers).map(move |(path, identity)| KnownStore {
        address,
        path,
        identity,
    })
}

impl Store {
    /// Whether the guest's engine has it, or may.
    fn is_of(&self, machine: &Machine) -> bool {
        let mut stores = held_or_brought(machine).flat_map(stores_of);
        stores.any(|store| (store.address, store.path) == (self.address, &self.path))
    }

    fn is_asked(&self) -> bool {
        self.asked_ms.load(Ordering::Acquire) != 0
    }

    fn is_late(&self) -> bool {
        let asked_ms = self.asked_ms.load(Ordering::Acquire);
        let late_ms = u64::try_from(LATE.as_millis()).unwrap_or(u64::MAX);
        asked_ms != 0 && boottime_ms().saturating_sub(asked_ms) >= late_ms
    }

    fn cut_from(&self) -> Option<u64> {
        // Who grows is as long as his longest, or longer.
        let longest = self.longest.load(Ordering::Acquire);
        (self.length.load(Ordering::Acquire) < longest).then_some(longest)
    }

    /// What comes back does not matter, nor does an error: QEMU tells of those.
    fn ask(&self) {
        let now = boottime_ms().max(1);
        if self.asked_ms.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            let mut buffer = vec![0; 2 * READ_BYTES];
            let aligned = buffer.as_ptr().align_offset(READ_BYTES);
            let part = buffer.get_mut(aligned..aligned + READ_BYTES).unwrap_or_default();
            // Where the host's memory cannot be passed, what it has of this part is dropped first.
            let _ = fadvise(&self.file, 0, CACHED_PART_BYTES, Advice::DontNeed);
            let _ = self.file.read_at(part, 0);
            if let Ok(now) = self.file.metadata() {
                self.length.store(now.len(), Ordering::Release);
                self.longest.fetch_max(now.len(), Ordering::Release);
            }
            self.asked_ms.store(0, Ordering::Release);
        }
    }
}

fn start_reader() -> Option<Sender<Round>> {
    let (sender, rounds): (_, Receiver<Round>) = channel();
    let read = move || {
        for round in rounds {
            round.iter().for_each(|store| store.ask());
        }
    };
    std::thread::Builder::new().stack_size(STACK_BYTES).spawn(read).ok()?;
    Some(sender)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::RefCell;
    use std::fs;
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::Path;

    use hpvm_model::*;
    use hpvm_plan::facts::Engine;
    use hpvm_plan::record::*;
    use rustix::fs::OFlags;

    use super::*;

    /// What this thread's reads have fetched from storage (proc(5), /proc/pid/io), in bytes.
    fn fetched() -> u64 {
        let io = fs::read_to_string("/proc/thread-self/io").unwrap();
        let line = io.lines().find_map(|line| line.strip_prefix("read_bytes: ")).unwrap();
        line.parse().unwrap()
    }

    fn answers_from_storage(flags: OFlags) {
        // Not in a folder that may lie in memory.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("store.img");
        fs::write(&path, vec![7; 8 << 20]).unwrap();
        let mut options = fs::OpenOptions::new();
        options.read(true).custom_flags(i32::try_from(flags.bits()).unwrap());
        let file = options.open(&path).unwrap();
        file.sync_all().unwrap();
        let store = Store {
            address: "0,0,1".parse().unwrap(),
            path: path.to_str().unwrap().to_owned(),
            file,
            tag: None,
            asked_ms: AtomicU64::new(0),
            length: AtomicU64::new(0),
            longest: AtomicU64::new(0),
        };
        for _ in 0..2 {
            // The guest has read it all a moment ago.
            fs::read(&path).unwrap();
            let before = fetched();
            store.ask();
            assert!(fetched() > before, "the memory of the VM Host answered");
        }
    }

    pub(crate) fn disk(path: &Path) -> Attached {
        File::create(path).unwrap();
        let (storage, path) = (StorageType::File, path.to_str().unwrap());
        let device = StorageDevice {
            kind: DeviceKind::Disk,
            adapter: AdapterKind::AvioStor,
            address: "0,0,1".parse().unwrap(),
            backing: Backing::new(storage, path),
            layers: Vec::new(),
            id: DiskId::from_random(7),
        };
        let identity = identity::of_store(&fs::metadata(path).unwrap());
        Attached { identity, ..Attached::of(device) }
    }

    pub(crate) fn machine(storage: Vec<Attached>) -> Machine {
        Machine::new(BootRecord {
            format: FORMAT,
            uuid: GuestUuid(uuid::Uuid::from_u128(7)),
            number: GuestNumber::new(7).unwrap(),
            name: "guest1".parse().unwrap(),
            serial_number: "VM02647001".into(),
            boot_id: "boot".into(),
            started_at: "2026-11-24T08:00:00Z".into(),
            engine: Engine { program: "/bin/false".into(), version: "10.0.2".into() },
            machine_type: "pc-q35-10.0".into(),
            accelerator: Accelerator::Tcg,
            vcpus: Vcpus::try_from(1).unwrap(),
            memory: Memory::at_least(Bytes(256 << 20)).unwrap(),
            firmware_code: "/code".into(),
            option_rom: None,
            lan_rom: None,
            ports: Vec::new(),
            storage,
            nics: Vec::new(),
            agent: AgentChannel::Absent,
            avio_service: AvioService::Processor,
            reservations: None,
            owner: None,
        })
    }

    /// What comes at a reset may wait for months, and is watched when the guest has it at last.
    #[test]
    fn what_comes_at_a_reset_is_watched_however_late_that_is() {
        let folder = tempfile::tempdir().unwrap();
        let [before, after] = ["before", "after"].map(|name| disk(&folder.path().join(name)));
        let mut machine = machine(vec![before.clone()]);
        let address = before.device.address;
        let mut watch = StoreWatch::default();
        let path = after.device.backing.path.as_str();
        watch.add_all([&after], [(address, File::open(path).unwrap())]);

        let slot = address.slot;
        let comes = DeviceChange::Attach {
            slot,
            kind: AdapterKind::AvioStor,
            adapter: AdapterPresence::Present,
            devices: vec![after.clone()],
        };
        let leaves = DeviceChange::Detach { address, consent: Consent::Given };
        for (seq, change) in [(1, comes), (2, leaves)] {
            let (at, due) = (String::new(), Due::NextReset);
            machine.replay(JournalLine::Asked { seq, at, change, due });
        }
        watch.keep_those_of(&machine);
        assert!(watch.has(address, path), "it comes");
        for seq in [2, 1] {
            let (at, outcome) = (String::new(), Outcome::Done);
            machine.replay(JournalLine::Settled { seq, at, outcome });
        }
        watch.keep_those_of(&machine);
        assert!(watch.has(address, path), "it has come");
        assert_eq!(StoreWatch::kind_of(machine.held(), address, path), Some(DeviceKind::Disk));
        watch.add_all([&after], [(address, File::open(&before.device.backing.path).unwrap())]);
        let watched = &watch.stores[0].file;
        assert!(identity::is(watched, after.identity.unwrap()), "and not the disk before it");
        assert_eq!(watch.unwatched(machine.held()), []);
    }

    /// What a watch has its keeper do, by tags.
    fn told(watch: &mut StoreWatch, takes: bool) -> Vec<(u32, &'static str)> {
        let told = RefCell::new(Vec::new());
        let keep = |tag, _: &File| {
            told.borrow_mut().push((tag, "keep"));
            takes
        };
        watch.tell_keeper(keep, |tag| told.borrow_mut().push((tag, "release")));
        told.into_inner()
    }

    fn file(disk: &Attached) -> (StorageAddress, File) {
        (disk.device.address, File::open(&disk.device.backing.path).unwrap())
    }

    #[test]
    fn the_keeper_holds_what_came_to_the_running_guest_and_nothing_that_left() {
        let folder = tempfile::tempdir().unwrap();
        let [started, mut comes] = ["one", "other"].map(|name| disk(&folder.path().join(name)));
        comes.device.address.target += 1;
        let mut machine = machine(vec![started.clone()]);
        let mut watch = StoreWatch::of(machine.held(), [file(&started)]);
        assert_eq!(told(&mut watch, true), []);
        watch.add_all([&comes], [file(&comes)]);
        machine.storage.push(comes.clone());
        let [(tag, "keep")] = told(&mut watch, false)[..] else { panic!("not kept") };
        assert_eq!(told(&mut watch, true), [(tag, "keep")], "when there is room again");
        assert_eq!(told(&mut watch, true), []);

        // The next worker is given both, in whatever way.
        let mut next = StoreWatch::of(machine.held(), [file(&started)]);
        assert_eq!(next.unwatched(machine.held()).len(), 1);
        next.add_kept(machine.held(), tag, file(&comes).1);
        assert_eq!(next.unwatched(machine.held()), []);
        assert_eq!(told(&mut next, true), [], "it is held already");
        next.add_all([&comes], [file(&comes)]);
        let [(before, "release"), (after, "keep")] = told(&mut next, true)[..] else {
            panic!("not replaced")
        };
        assert!(before == tag && after > tag, "{before} and {after}");
        machine.storage.clear();
        next.keep_those_of(&machine);
        assert_eq!(told(&mut next, true), [(after, "release")]);
        next.add_kept(machine.held(), tag, file(&comes).1);
        assert_eq!(told(&mut next, true), [(tag, "release")], "its device has gone meanwhile");
    }

    /// A command may bring a store before the keeper has told all that it holds.
    #[test]
    fn a_tag_is_no_other_stores_however_late_the_keeper_tells_of_that() {
        let folder = tempfile::tempdir().unwrap();
        let [kept, mut comes] = ["one", "other"].map(|name| disk(&folder.path().join(name)));
        comes.device.address.target += 1;
        let mut machine = machine(vec![kept.clone()]);
        let mut watch = StoreWatch::default();
        watch.add_all([&comes], [file(&comes)]);
        machine.storage.push(comes.clone());
        watch.add_kept(machine.held(), 1, file(&kept).1);
        assert_eq!(told(&mut watch, true), [(2, "keep")]);
        machine.storage.pop();
        watch.keep_those_of(&machine);
        assert_eq!(told(&mut watch, true), [(2, "release")]);
    }

    /// The worker that brought it died of that, so nobody knows whether the guest has it.
    #[test]
    fn what_may_have_come_is_watched_until_that_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let comes = disk(&folder.path().join("disk"));
        for (outcome, stays) in [(Outcome::Done, true), (Outcome::Failed("no".into()), false)] {
            let mut machine = machine(Vec::new());
            let change = DeviceChange::Attach {
                slot: comes.device.address.slot,
                kind: AdapterKind::AvioStor,
                adapter: AdapterPresence::Present,
                devices: vec![comes.clone()],
            };
            let (seq, at, due) = (1, String::new(), Due::Now);
            machine.replay(JournalLine::Asked { seq, at: at.clone(), change, due });
            let mut watch = StoreWatch::default();
            watch.add_kept(held_or_brought(&machine), 1, file(&comes).1);
            watch.keep_those_of(&machine);
            assert_eq!(told(&mut watch, true), []);
            machine.replay(JournalLine::Settled { seq, at, outcome });
            watch.keep_those_of(&machine);
            assert_eq!(told(&mut watch, true).is_empty(), stays);
            assert_eq!(watch.has(comes.device.address, &comes.device.backing.path), stays);
        }
    }

    #[test]
    fn no_more_is_kept_than_the_next_worker_can_be_given() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(&folder.path().join("disk"));
        let disks: Vec<Attached> = (0..=u8::try_from(KEPT_MAX).unwrap())
            .map(|number| {
                let mut disk = disk.clone();
                disk.device.address.target = number;
                disk
            })
            .collect();
        let mut watch = StoreWatch::default();
        watch.add_all(&disks, disks.iter().map(file));
        assert_eq!(told(&mut watch, true).len(), KEPT_MAX);
        assert_eq!(told(&mut watch, true), []);
    }

    /// Whoever waits for it goes on when he has waited for as long as he may.
    #[test]
    fn what_no_thread_reads_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(&folder.path().join("disk"));
        let mut watch = StoreWatch::of([&disk], [file(&disk)]);
        let (no_thread, _) = channel();
        watch.reader = Some(no_thread);
        assert!(!watch.read(|_| true).is_over());
        let reading = watch.read(|_| true);
        while !reading.is_over() {
            std::thread::yield_now();
        }
    }

    /// A hung server is not covered up by what its client remembers.
    #[test]
    fn a_store_answers_and_not_the_memory_of_the_host() {
        answers_from_storage(OFlags::DIRECT);
        answers_from_storage(OFlags::empty());
    }
}
