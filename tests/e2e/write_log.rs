//! What reached a store, in order: the log that QEMU's blklogwrites keeps. It has the layout of Linux's dm-log-writes:
//! sectors of 512 bytes, the first one about the log itself; then for each request a sector with where it begins and how long
//! it is, both in sectors, and what it is, and after it what was written.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const SECTOR: u64 = 512;
const IS_FLUSH: u64 = 1;
const IS_DISCARD: u64 = 4;

pub(crate) struct WriteLog {
    file: File,
    pub(crate) entries: Vec<Entry>,
}

pub(crate) struct Entry {
    at: u64,
    length: u64,
    flags: u64,
    /// Where in the log its data are.
    data: u64,
}

impl Entry {
    pub(crate) fn is_flush(&self) -> bool {
        self.flags & IS_FLUSH != 0
    }
}

impl WriteLog {
    /// As far as it has been written.
    pub(crate) fn read(path: &Path) -> WriteLog {
        let file = File::open(path).expect("the log");
        let end = file.metadata().expect("the log").len();
        let (mut entries, mut at) = (Vec::new(), SECTOR);
        while at + SECTOR <= end {
            let mut words = [0; 32];
            file.read_exact_at(&mut words, at).expect("an entry");
            let word = |place: usize| {
                u64::from_le_bytes(words[8 * place..8 * place + 8].try_into().expect("eight bytes"))
            };
            let (start, length, flags) = (word(0) * SECTOR, word(1) * SECTOR, word(2));
            let data = at + SECTOR;
            at = data + if flags & IS_DISCARD == 0 { length } else { 0 };
            // The last one may have been cut off.
            if at <= end {
                entries.push(Entry { at: start, length, flags, data });
            }
        }
        WriteLog { file, entries }
    }

    /// Does to a store what one entry tells.
    pub(crate) fn replay(&self, entry: &Entry, store: &File) {
        let mut bytes = vec![0; usize::try_from(entry.length).expect("within memory")];
        if entry.flags & IS_DISCARD == 0 {
            self.file.read_exact_at(&mut bytes, entry.data).expect("what was written");
        }
        store.write_all_at(&bytes, entry.at).expect("the store");
    }
}
