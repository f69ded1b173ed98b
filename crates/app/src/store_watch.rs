//! Whether the backing stores of the guest's disks answer. Called by the owner once a beat.
//!
//! QEMU tells nothing of a request that is left unanswered, neither by an event nor by its counters, so a few bytes of each
//! store are read beside it, through a descriptor of our own and past the memory of the VM Host. One thread reads store after
//! store; one that does not come back is left with its store, and another thread goes on with the others. So a store that
//! hangs costs one thread, and stores that answer cost one short read a beat.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use hpvm_host::process::boottime_ms;
use hpvm_model::StorageAddress;
use hpvm_plan::record::Machine;

/// A read that takes longer is left unanswered for all a guest can tell: with the second between two reads, and before the
/// third one is over, it is told.
pub(crate) const LATE: Duration = Duration::from_millis(900);
const STACK_BYTES: usize = 128 << 10;
/// As large and aligned as any block device wants a read past the host's memory.
const READ_BYTES: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct StoreWatch {
    stores: Vec<Arc<Store>>,
    reader: Option<Sender<Vec<Arc<Store>>>>,
}

#[derive(Debug)]
struct Store {
    address: StorageAddress,
    file: File,
    /// When the read began that has not come back, in milliseconds since the host booted; 0: none is under way.
    asked_ms: AtomicU64,
}

impl StoreWatch {
    pub(crate) fn of(stores: Vec<(StorageAddress, File)>) -> StoreWatch {
        let mut watch = StoreWatch::default();
        for (address, file) in stores {
            watch.add(address, file);
        }
        watch
    }

    pub(crate) fn add(&mut self, address: StorageAddress, file: File) {
        self.stores.retain(|store| store.address != address);
        self.stores.push(Arc::new(Store { address, file, asked_ms: AtomicU64::new(0) }));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.stores.is_empty()
    }

    /// Gives up stores that the machine has no more, then reads each of the others.
    pub(crate) fn beat(&mut self, machine: &Machine) {
        self.stores.retain(|store| machine.device_at(store.address).is_some());
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

    /// The disks whose stores have not answered for too long.
    pub(crate) fn silent(&self) -> Vec<StorageAddress> {
        self.stores.iter().filter(|store| store.is_late()).map(|store| store.address).collect()
    }

    /// Tells later, when asked, whether there are any.
    pub(crate) fn any_silent(&self) -> impl Fn() -> bool + use<> {
        let stores = self.stores.clone();
        move || stores.iter().any(|store| store.is_late())
    }
}

impl Store {
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
            let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
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
