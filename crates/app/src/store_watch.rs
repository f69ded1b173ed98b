//! Whether what backs the guest's disks and drives answers, and what lies under it. Called by the owner once a beat.
//!
//! QEMU tells nothing of a request that is left unanswered, neither by an event nor by its counters, so a few bytes of each
//! store are read beside it, through a descriptor of our own and past the memory of the VM Host. One thread reads store after
//! store; one that does not come back is left with its store, and another thread goes on with the others. So a store that
//! hangs costs one thread, and stores that answer cost one short read a beat.

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use hpvm_host::process::boottime_ms;
use hpvm_model::StorageAddress;
use hpvm_plan::record::{Attached, Machine};
use rustix::fs::{Advice, fadvise};

/// A read that takes longer is left unanswered for all a guest can tell: with the second between two reads, and before the
/// third one is over, it is told.
pub(crate) const LATE: Duration = Duration::from_millis(900);
const STACK_BYTES: usize = 128 << 10;
/// As large and aligned as any block device wants a read past the host's memory.
const READ_BYTES: usize = 4096;
/// The kernel keeps files in parts as large as this at most (a huge page), and forgets only whole ones.
const CACHED_PART_BYTES: Option<NonZeroU64> = NonZeroU64::new(2 << 20);
/// What comes to the guest is watched before the guest has it; by then it has it, or never gets it.
const COMING_BOUND: Duration = Duration::from_secs(150);

#[derive(Debug, Default)]
pub(crate) struct StoreWatch {
    stores: Vec<Arc<Store>>,
    reader: Option<Sender<Vec<Arc<Store>>>>,
}

#[derive(Debug)]
struct Store {
    address: StorageAddress,
    path: String,
    file: File,
    added_at: Instant,
    has_come: AtomicBool,
    /// When the read began that has not come back, in milliseconds since the host booted; 0: none is under way.
    asked_ms: AtomicU64,
}

impl StoreWatch {
    /// Watches the stores of these devices too, and what lies under them: the files of each follow each other, under its
    /// address.
    pub(crate) fn add_all<'a>(
        &mut self,
        devices: impl IntoIterator<Item = &'a Attached>,
        files: impl IntoIterator<Item = (StorageAddress, File)>,
    ) {
        let stores = devices.into_iter().map(|attached| (attached.device.address, paths(attached)));
        let mut paths: BTreeMap<StorageAddress, _> = stores.collect();
        for (address, file) in files {
            if let Some(path) = paths.get_mut(&address).and_then(Iterator::next) {
                self.add(address, path, file);
            }
        }
    }

    /// Watches a store of a device.
    pub(crate) fn add(&mut self, address: StorageAddress, path: &str, file: File) {
        self.stores.retain(|store| (store.address, store.path.as_str()) != (address, path));
        self.stores.push(Arc::new(Store {
            address,
            path: path.to_owned(),
            file,
            added_at: Instant::now(),
            has_come: AtomicBool::new(false),
            asked_ms: AtomicU64::new(0),
        }));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.stores.is_empty()
    }

    pub(crate) fn has(&self, address: StorageAddress, path: &str) -> bool {
        self.stores.iter().any(|store| (store.address, store.path.as_str()) == (address, path))
    }

    /// Gives up stores that the machine has no more, then reads each of the others.
    pub(crate) fn beat(&mut self, machine: &Machine) {
        self.stores.retain(|store| store.is_of(machine));
        let (asked, free): (Vec<_>, Vec<_>) =
            self.stores.iter().cloned().partition(|store| store.is_asked());
        if !asked.is_empty() {
            // Its thread ends when its read comes back, whenever that is.
            self.reader = None;
        }
        if free.is_empty() {
            return;
        }
        // Without a thread nothing is told this time, and the next beat tries again.
        let reader = self.reader.take().or_else(start_reader);
        self.reader = reader.filter(|reader| reader.send(free).is_ok());
    }

    /// What has not answered for too long, by path, with the device that it backs or lies under.
    pub(crate) fn silent(&self) -> Vec<(StorageAddress, String)> {
        let late = self.stores.iter().filter(|store| store.is_late());
        late.map(|store| (store.address, store.path.clone())).collect()
    }

    /// Tells later, when asked, whether there are any.
    pub(crate) fn any_silent(&self) -> impl Fn() -> bool + use<> {
        let stores = self.stores.clone();
        move || stores.iter().any(|store| store.is_late())
    }
}

/// Of the store of a device and of what lies under it.
fn paths(attached: &Attached) -> impl Iterator<Item = &str> {
    let layers = attached.layers.iter().map(|layer| layer.backing.path.as_str());
    attached.device.backing.store().into_iter().chain(layers)
}

impl Store {
    /// Whether the machine has it, or is just getting it.
    fn is_of(&self, machine: &Machine) -> bool {
        let device = machine.device_at(self.address);
        let has = device.is_some_and(|device| paths(device).any(|path| path == self.path));
        self.has_come.fetch_or(has, Ordering::Relaxed);
        has || !self.has_come.load(Ordering::Relaxed) && self.added_at.elapsed() < COMING_BOUND
    }

    fn is_asked(&self) -> bool {
        self.asked_ms.load(Ordering::Acquire) != 0
    }

    fn is_late(&self) -> bool {
        let asked_ms = self.asked_ms.load(Ordering::Acquire);
        let late_ms = u64::try_from(LATE.as_millis()).unwrap_or(u64::MAX);
        asked_ms != 0 && boottime_ms().saturating_sub(asked_ms) >= late_ms
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
            self.asked_ms.store(0, Ordering::Release);
        }
    }
}

fn start_reader() -> Option<Sender<Vec<Arc<Store>>>> {
    let (sender, rounds): (_, Receiver<Vec<Arc<Store>>>) = channel();
    let read = move || {
        for round in rounds {
            round.iter().for_each(|store| store.ask());
        }
    };
    std::thread::Builder::new().stack_size(STACK_BYTES).spawn(read).ok()?;
    Some(sender)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::OpenOptionsExt;

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
            added_at: Instant::now(),
            has_come: AtomicBool::new(true),
            asked_ms: AtomicU64::new(0),
        };
        for _ in 0..2 {
            // The guest has read it all a moment ago.
            fs::read(&path).unwrap();
            let before = fetched();
            store.ask();
            assert!(fetched() > before, "the memory of the VM Host answered");
        }
    }

    /// A hung server is not covered up by what its client remembers.
    #[test]
    fn a_store_answers_and_not_the_memory_of_the_host() {
        answers_from_storage(OFlags::DIRECT);
        answers_from_storage(OFlags::empty());
    }
}
