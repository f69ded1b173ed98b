//! What the disks of a running guest have done, as the worker tells it: since the guest has them, or since an administrator had
//! them counted from zero. QEMU's own counters only grow, so zero is where they stood then. The status snapshot keeps it for the
//! next worker.

use hpvm_model::{DiskId, StorageAddress};
use serde::{Deserialize, Serialize};

/// Requests of the guest, whatever QEMU makes of them. Times are from a request to its answer, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    pub reads: u64,
    pub read_bytes: u64,
    pub read_ns: u64,
    pub failed_reads: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub write_ns: u64,
    pub failed_writes: u64,
    pub flushes: u64,
    pub flush_ns: u64,
    pub failed_flushes: u64,
}

impl Counters {
    fn combined(self, other: Counters, with: fn(u64, u64) -> u64) -> Counters {
        Counters {
            reads: with(self.reads, other.reads),
            read_bytes: with(self.read_bytes, other.read_bytes),
            read_ns: with(self.read_ns, other.read_ns),
            failed_reads: with(self.failed_reads, other.failed_reads),
            writes: with(self.writes, other.writes),
            written_bytes: with(self.written_bytes, other.written_bytes),
            write_ns: with(self.write_ns, other.write_ns),
            failed_writes: with(self.failed_writes, other.failed_writes),
            flushes: with(self.flushes, other.flushes),
            flush_ns: with(self.flush_ns, other.flush_ns),
            failed_flushes: with(self.failed_flushes, other.failed_flushes),
        }
    }

    /// What came since they stood at `zero`.
    #[must_use]
    pub fn since(self, zero: Counters) -> Counters {
        self.combined(zero, u64::saturating_sub)
    }

    /// Of both.
    #[must_use]
    pub fn and(self, other: Counters) -> Counters {
        self.combined(other, u64::saturating_add)
    }
}

/// Where a disk's counters stood when an administrator had them counted from zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zero {
    pub address: StorageAddress,
    /// Of the disk itself: another one at the same address counts from its own beginning.
    pub id: DiskId,
    /// RFC 3339.
    pub at: String,
    pub counters: Counters,
}

/// What one disk has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    pub address: StorageAddress,
    pub counters: Counters,
    /// Since when, RFC 3339; absent: since the guest has it.
    pub since: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_is_where_the_counters_stood() {
        let zero = Counters { reads: 5, read_bytes: 4096, flush_ns: 9, ..Counters::default() };
        let now = Counters { reads: 8, read_bytes: 8192, failed_writes: 1, flush_ns: 9, ..zero };
        let since = now.since(zero);
        assert_eq!((since.reads, since.read_bytes, since.failed_writes), (3, 4096, 1));
        assert_eq!(since.flush_ns, 0);
        assert_eq!(zero.and(since), now);
        assert_eq!(now.since(Counters::default()), now);
    }
}
