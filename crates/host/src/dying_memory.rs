//! Gives a dying QEMU's guest memory back beside the kernel, which does all of it by one thread: freeing pages is most of what
//! a hard stop waits for, seconds of it with a large guest. Called by a hard stop, and only helps: QEMU ends without it too.
//!
//! Nothing of a guest's may ever see its memory emptied: a thread of QEMU that still runs would write zeroes to a disk. So it
//! waits until every thread is past the point from which none returns to its program, and none submits or retries I/O. Pages
//! of transfers that are under way are held by these, and keep what they have.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::lock::pause_for;
use crate::process;

/// How QEMU names the memory of its machine, memory-backend-memfd.
const NAME: &[u8] = b"/memfd:memory-backend-memfd";

const PAUSE_LEAST: Duration = Duration::from_micros(100);
const PAUSE_MOST: Duration = Duration::from_millis(1);

/// The memory of a guest that is about to be ended.
pub struct DyingMemory {
    pid: i32,
    start_time: u64,
    memory: File,
}

impl DyingMemory {
    /// Takes hold of the memory of this QEMU. `None`: it has none that this process may open.
    #[must_use]
    pub fn of(pid: i32, start_time: u64) -> Option<DyingMemory> {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let path = descriptors
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| is_memory(path))?;
        let memory = OpenOptions::new().read(true).write(true).open(path).ok()?;
        // Looked at after opening: if the start time is right now, the memory is that of the process that is meant.
        process::is_alive(pid, start_time).then_some(DyingMemory { pid, start_time, memory })
    }

    /// Frees the memory once no thread of the process can run again. `false`: it ended before that was seen, or did not
    /// begin to within the bound, or `is_over` said that there is nothing left to wait for.
    pub fn free_when_dying(self, bound: Duration, is_over: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + bound;
        let mut pause = PAUSE_LEAST;
        loop {
            match self.is_dying() {
                Some(true) => break,
                Some(false) if Instant::now() < deadline && !is_over() => {}
                _ => return false,
            }
            pause_for(pause);
            pause = PAUSE_MOST.min(pause * 2);
        }
        let Ok(found) = self.memory.metadata() else { return false };
        let in_place = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.memory, in_place, 0, found.len()).is_ok()
    }

    /// Whether all threads are on their way out; `None`: the process has gone.
    ///
    /// QEMU's first thread never ends alone, so when it does the process was killed, and its threads become no more. As many
    /// as there are then must be seen to end, for a listing breaks off when the thread it has come to is gone.
    fn is_dying(&self) -> Option<bool> {
        let first = process::stat(self.pid).filter(|stat| stat.start_time == self.start_time)?;
        if !first.is_exiting() {
            return Some(false);
        }
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).ok()?;
        let mut ending = 0;
        for thread in threads {
            let Ok(thread) = thread else { return Some(false) };
            let is_exiting = match fs::read(thread.path().join("stat")) {
                Ok(line) => process::parse_stat(&line).is_some_and(|stat| stat.is_exiting()),
                // Only a thread that has gone has no line; of one that cannot be looked at nothing is known.
                Err(error) => {
                    matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::SRCH))
                }
            };
            if !is_exiting {
                return Some(false);
            }
            ending += 1;
        }
        Some(ending >= first.threads)
    }
}

fn is_memory(path: &Path) -> bool {
    fs::read_link(path).is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(NAME))
}
