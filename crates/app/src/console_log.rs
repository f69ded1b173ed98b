//! The file with every byte of the serial console. QEMU appends; the worker reads its end when it starts, and keeps it
//! bounded.
//!
//! Bounded: beyond [`LOG_BYTES_MAX`] the older half goes. Where the file system can drop the front of a file that is one
//! step and loses nothing; elsewhere the end is read, the file emptied and the end appended again: bytes that QEMU adds
//! within those microseconds may be lost or come before older ones, in the file alone.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

const LOG_BYTES_MAX: u64 = 4 << 20;
/// The front is dropped in whole blocks of the file system.
const BLOCK_BYTES: u64 = 1 << 16;

#[derive(Debug)]
pub(crate) struct ConsoleLog(File);

impl ConsoleLog {
    pub(crate) fn new(file: File) -> ConsoleLog {
        ConsoleLog(file)
    }

    /// At most so many bytes from the end.
    pub(crate) fn tail(&self, bytes_max: usize) -> Vec<u8> {
        let read = || -> io::Result<Vec<u8>> {
            let length = self.0.metadata()?.len();
            let start = length.saturating_sub(bytes_max as u64);
            let mut tail = vec![0; usize::try_from(length - start).unwrap_or(0)];
            let count = self.0.read_at(&mut tail, start)?;
            tail.truncate(count);
            Ok(tail)
        };
        read().unwrap_or_default()
    }

    /// Keeps the file bounded; cheap when there is nothing to do.
    pub(crate) fn bound(&self) -> io::Result<()> {
        let length = self.0.metadata()?.len();
        if length <= LOG_BYTES_MAX {
            return Ok(());
        }
        let front = (length - LOG_BYTES_MAX / 2) / BLOCK_BYTES * BLOCK_BYTES;
        match fallocate(&self.0, FallocateFlags::COLLAPSE_RANGE, 0, front) {
            Ok(()) => Ok(()),
            Err(_) => self.rewrite(),
        }
    }

    fn rewrite(&self) -> io::Result<()> {
        let tail = self.tail(usize::try_from(LOG_BYTES_MAX / 2).unwrap_or(0));
        self.0.set_len(0)?;
        self.0.write_all_at(&tail, 0)
    }
}
