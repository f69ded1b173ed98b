//! Whether what backs the guest's disks and drives answers, and what lies under it. Called by the owner once a beat.
//!
//! QEMU tells nothing of a request that is left unanswered, neither by an event nor by its counters, so each store is asked
//! beside it, through a descriptor of our own. A few bytes of it are read, past the memory of the VM Host. Of what the guest
//! writes to it is also seen whether the kernel lets a writer in, which costs the store no request. A flush would cost one, and
//! tells nothing of a file system that is frozen. Not seen is a device that answers what is read and keeps what is written: the
//! kernel's counters of requests in flight do not tell of that either (dm-delay counts one once it goes on; Linux 6.1, tried).
//!
//! One thread asks store after store; one that does not come back is left with its store, and other threads go on with the
//! others: those that were left behind it are looked after at once, since what hangs is often the server of all of them. So a
//! store that hangs costs one thread, and stores that answer cost one short read a beat.
//!
//! ```text
//! beat      0         0.5         1         1.5         2 s
//! asked     read      -           read      -           read
//!           writer    writer      writer    writer      writer
//! looked                 0.85  …                1.85  …    who is late is told, and who answers again
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hpvm_host::process::boottime_ms;
use hpvm_model::{DeviceKind, StorageAddress};
use hpvm_plan::record::{Access, Attached, Machine};
use rustix::fs::{Advice, fadvise, fremovexattr};

/// When after a beat it is looked who is late, and how often from then on while somebody has not answered.
pub(crate) const LOOK: Duration = Duration::from_millis(850);
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A read that takes longer is left unanswered for all a guest can tell: with the second between two reads, and before the
/// third one is over, it is told.
const READ_LATE: Duration = Duration::from_millis(800);
/// A living store may keep a writer out for as long as it writes out what it holds: a second is not much for that. So this is as
/// long as the two seconds allow, with half a second between two attempts.
const WRITE_LATE: Duration = Duration::from_millis(1250);
const BETWEEN_WRITERS: Duration = Duration::from_millis(500);
/// A round of stores that answer is over sooner.
const LEFT_AFTER_MS: u64 = 200;
/// Threads that are started at once for what was left behind a store that hangs.
const MORE_READERS_MAX: usize = 16;
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
    use_of_it: Use,
    added_at: Instant,
    has_come: AtomicBool,
    /// Since when it is its turn, in milliseconds since the host booted; 0: it has answered.
    due_ms: AtomicU64,
    /// After how long what it is asked just now is late; 0: it is asked nothing.
    late_after_ms: AtomicU64,
}

/// How stores stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Glance {
    AllAnswered,
    /// One has still to answer.
    Asked,
    /// One has not answered for too long, or was left behind one that did not.
    Late,
}

/// What the guest does with a store.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Use {
    Reads,
    Writes,
}

impl Use {
    /// Of the store of a device.
    fn of(attached: &Attached) -> Use {
        match (attached.device.kind, attached.access) {
            (DeviceKind::Disk, Access::ReadWrite) => Use::Writes,
            _ => Use::Reads,
        }
    }
}

impl StoreWatch {
    /// Watches the stores of these devices too, and what lies under them: the files of each follow each other, under its
    /// address.
    pub(crate) fn add_all<'a>(
        &mut self,
        devices: impl IntoIterator<Item = &'a Attached>,
        files: impl IntoIterator<Item = (StorageAddress, File)>,
    ) {
        let stores = devices
            .into_iter()
            .map(|attached| (attached.device.address, (attached, paths(attached).enumerate())));
        let mut stores: BTreeMap<StorageAddress, _> = stores.collect();
        for (address, file) in files {
            let Some((attached, paths)) = stores.get_mut(&address) else { continue };
            match paths.next() {
                Some((0, path)) => self.add(address, path, Use::of(attached), file),
                // What lies under a store is only read.
                Some((_, path)) => self.add(address, path, Use::Reads, file),
                None => {}
            }
        }
    }

    /// Watches a store of a device.
    pub(crate) fn add(&mut self, address: StorageAddress, path: &str, use_of_it: Use, file: File) {
        self.stores.retain(|store| (store.address, store.path.as_str()) != (address, path));
        self.stores.push(Arc::new(Store {
            address,
            path: path.to_owned(),
            file,
            use_of_it,
            added_at: Instant::now(),
            has_come: AtomicBool::new(false),
            due_ms: AtomicU64::new(0),
            late_after_ms: AtomicU64::new(0),
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

    /// Asks those that nobody has come to, with a thread for each as far as there may be so many.
    pub(crate) fn ask_left(&self) {
        let left = self.stores.iter().filter(|store| store.is_left()).cloned();
        let left: Vec<Arc<Store>> = left.collect();
        for part in left.chunks(left.len().div_ceil(MORE_READERS_MAX).max(1)) {
            let part = part.to_vec();
            // What gets no thread is asked at the next beat.
            let _ = spawn(move || part.iter().for_each(|store| store.ask()));
        }
    }

    /// What has not answered for too long, by path, with the device that it backs or lies under.
    pub(crate) fn silent(&self) -> Vec<(StorageAddress, String)> {
        let late = self.stores.iter().filter(|store| store.is_late());
        late.map(|store| (store.address, store.path.clone())).collect()
    }

    /// Tells later, when asked, whether there is anything to see.
    pub(crate) fn glance(&self) -> impl Fn() -> Glance + use<> {
        let stores = self.stores.clone();
        move || {
            if stores.iter().any(|store| store.is_left() || store.is_late()) {
                Glance::Late
            } else if stores.iter().any(|store| store.is_asked()) {
                Glance::Asked
            } else {
                Glance::AllAnswered
            }
        }
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
        self.late_after_ms.load(Ordering::Acquire) != 0
    }

    /// For so long it has been its turn.
    fn is_due_for(&self, ms: u64) -> bool {
        let due_ms = self.due_ms.load(Ordering::Acquire);
        due_ms != 0 && boottime_ms().saturating_sub(due_ms) >= ms
    }

    fn is_left(&self) -> bool {
        !self.is_asked() && self.is_due_for(LEFT_AFTER_MS)
    }

    fn is_late(&self) -> bool {
        let late_after_ms = self.late_after_ms.load(Ordering::Acquire);
        late_after_ms != 0 && self.is_due_for(late_after_ms)
    }

    /// Its turn begins, unless it goes on.
    fn comes_up(&self) {
        let now = boottime_ms().max(1);
        let _ = self.due_ms.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Once a beat.
    fn ask(&self) {
        self.comes_up();
        if self.take_in(READ_LATE, || self.read()) && self.takes_writers() {
            self.due_ms.store(0, Ordering::Release);
        }
    }

    /// Between two beats.
    fn ask_for_writers(&self) {
        self.comes_up();
        if self.takes_writers() {
            self.due_ms.store(0, Ordering::Release);
        }
    }

    /// Whether it does, or has none.
    fn takes_writers(&self) -> bool {
        match self.use_of_it {
            Use::Reads => true,
            Use::Writes => self.take_in(WRITE_LATE, || self.let_writer_in()),
        }
    }

    /// Asks it something and hears the answer, unless it still has to answer what somebody else asked.
    fn take_in(&self, late_after: Duration, ask: impl FnOnce()) -> bool {
        let late_after = u64::try_from(late_after.as_millis()).unwrap_or(u64::MAX);
        let unasked =
            self.late_after_ms.compare_exchange(0, late_after, Ordering::AcqRel, Ordering::Acquire);
        if unasked.is_ok() {
            ask();
            self.late_after_ms.store(0, Ordering::Release);
        }
        unasked.is_ok()
    }

    /// What comes back does not matter, nor does an error: QEMU tells of those.
    fn read(&self) {
        let mut buffer = vec![0; 2 * READ_BYTES];
        let aligned = buffer.as_ptr().align_offset(READ_BYTES);
        let part = buffer.get_mut(aligned..aligned + READ_BYTES).unwrap_or_default();
        // Where the host's memory cannot be passed, what it has of this part is dropped first.
        let _ = fadvise(&self.file, 0, CACHED_PART_BYTES, Advice::DontNeed);
        let _ = self.file.read_at(part, 0);
    }

    /// Waits where whoever writes waits, at a file system that is frozen and for the file's own lock, and changes nothing: only
    /// the kernel's administrator has attributes of this kind, so behind that the answer is no (Linux, fs/xattr.c, `xattr_permission`).
    /// It needs a file that is open for reading only.
    fn let_writer_in(&self) {
        let _ = fremovexattr(&self.file, "trusted.hpvm");
    }
}

fn start_reader() -> Option<Sender<Vec<Arc<Store>>>> {
    let (sender, rounds) = channel();
    spawn(move || serve(&rounds)).ok()?;
    Some(sender)
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().stack_size(STACK_BYTES).spawn(work)
}

/// Asks each of a round, and for writers once more before the next. Nothing of a round is kept longer: a store that left is let
/// go.
fn serve(rounds: &Receiver<Vec<Arc<Store>>>) {
    let mut next = rounds.recv().ok();
    while let Some(round) = next {
        let writers_at = Instant::now() + BETWEEN_WRITERS;
        round.iter().for_each(|store| store.comes_up());
        round.iter().for_each(|store| store.ask());
        let left = writers_at.saturating_duration_since(Instant::now());
        next = match rounds.recv_timeout(left) {
            Ok(early) => Some(early),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                round.iter().for_each(|store| store.comes_up());
                round.iter().for_each(|store| store.ask_for_writers());
                drop(round);
                rounds.recv().ok()
            }
        };
    }
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
            use_of_it: Use::Reads,
            added_at: Instant::now(),
            has_come: AtomicBool::new(true),
            due_ms: AtomicU64::new(0),
            late_after_ms: AtomicU64::new(0),
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
