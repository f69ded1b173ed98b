//! The file with every byte of the serial console. QEMU appends; the worker reads its end when it starts, and keeps it
//! bounded.
//!
//! Bounded: beyond [`LOG_BYTES_MAX`] the older half goes. Where the file system can drop the front of a file that is one
//! step and loses nothing; elsewhere the end is read, the file emptied and the end appended again: bytes that QEMU adds
//! within those microseconds may be lost or come before older ones, in the file alone.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

const LOG_BYTES_MAX: u64 = 4 << 20;
/// The front is dropped in whole blocks of the file system.
const BLOCK_BYTES: u64 = 1 << 16;

/// The file and how far it has been read.
#[derive(Debug)]
pub(crate) struct ConsoleLog {
    file: File,
    read_to: Cell<u64>,
}

impl ConsoleLog {
    pub(crate) fn new(file: File) -> ConsoleLog {
        ConsoleLog { file, read_to: Cell::new(0) }
    }

    /// At most so many bytes from the end.
    pub(crate) fn tail(&self, bytes_max: usize) -> Vec<u8> {
        let length = self.length();
        self.read_to.set(length.saturating_sub(bytes_max as u64));
        self.unread()
    }

    /// What was added since it was read last.
    pub(crate) fn unread(&self) -> Vec<u8> {
        let from = self.read_to.get();
        let count = self.length().saturating_sub(from).min(LOG_BYTES_MAX);
        let mut bytes = vec![0; usize::try_from(count).unwrap_or(0)];
        let count = self.file.read_at(&mut bytes, from).unwrap_or(0);
        bytes.truncate(count);
        self.read_to.set(from + count as u64);
        bytes
    }

    /// So many bytes came another way.
    pub(crate) fn skip(&self, bytes: usize) {
        self.read_to.set(self.read_to.get() + bytes as u64);
    }

    /// Keeps the file bounded; cheap when there is nothing to do.
    pub(crate) fn bound(&self) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        if length <= LOG_BYTES_MAX {
            return Ok(());
        }
        let front = (length - LOG_BYTES_MAX / 2) / BLOCK_BYTES * BLOCK_BYTES;
        if fallocate(&self.file, FallocateFlags::COLLAPSE_RANGE, 0, front).is_err() {
            self.rewrite(front)?;
        }
        self.read_to.set(self.read_to.get().saturating_sub(front));
        Ok(())
    }

    fn rewrite(&self, front: u64) -> io::Result<()> {
        let mut kept = vec![0; usize::try_from(LOG_BYTES_MAX).unwrap_or(0)];
        let count = self.file.read_at(&mut kept, front)?;
        self.file.set_len(0)?;
        self.file.write_all_at(&kept[..count], 0)
    }

    fn length(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    struct Files {
        _folder: tempfile::TempDir,
        engine: File,
        log: ConsoleLog,
    }

    fn files() -> Files {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let engine = File::options().append(true).create(true).open(&path).unwrap();
        let ours = File::options().read(true).write(true).open(&path).unwrap();
        Files { _folder: folder, engine, log: ConsoleLog::new(ours) }
    }

    #[test]
    fn what_is_added_is_read_once() {
        let mut files = files();
        files.engine.write_all(b"before").unwrap();
        assert_eq!(files.log.tail(3), b"ore");
        files.engine.write_all(b" and after").unwrap();
        assert_eq!(files.log.unread(), b" and after");
        assert_eq!(files.log.unread(), b"");
        files.engine.write_all(b"by socket, by log").unwrap();
        files.log.skip("by socket, ".len());
        assert_eq!(files.log.unread(), b"by log");
    }

    /// The place up to which it was read moves along when the front goes, however that is done.
    #[test]
    fn a_log_that_grew_too_long_keeps_its_end() {
        let mut files = files();
        let mut written: u64 = 0;
        while written < 2 * LOG_BYTES_MAX {
            let line = format!("{written:>63}\n").repeat(1000);
            files.engine.write_all(line.as_bytes()).unwrap();
            written += line.len() as u64;
            files.log.skip(line.len());
            files.log.bound().unwrap();
            assert!(files.log.length() <= LOG_BYTES_MAX);
            assert_eq!(files.log.read_to.get(), files.log.length());
        }
        files.engine.write_all(b"the end").unwrap();
        assert_eq!(files.log.unread(), b"the end");
        let tail = files.log.tail(64 + 7);
        assert!(tail.starts_with(b" ") && tail.ends_with(b"\nthe end"), "{tail:?}");
    }
}
