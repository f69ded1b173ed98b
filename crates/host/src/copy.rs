//! Copies the content of a disk to a file or a block device, at the speed of what it is written to. Called by hpvmclone;
//! what the content means, and whose it is, is not known here.
//!
//! | where | how |
//! | --- | --- |
//! | the file system shares blocks | one `FICLONE`, whatever the size |
//! | a file | only what the source has data for: its holes stay holes |
//! | a block device | zeroed where the source has none, and behind its end |
//!
//! Several writers write past the page cache at once, into room that was reserved before: the disk is busy from the first
//! moment, nothing of the guests' cached files is driven out of memory, and the sync at the end has nothing left to write.

use std::fs::File;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

pub mod attended;
pub(crate) mod spliced;

/// What one writer reads and writes at a time: large enough for the disk, small enough to stop soon.
const PIECE_BYTES: u64 = 1 << 20;
/// Requests in flight.
const WRITERS: usize = 6;
/// Direct reading and writing wants memory, places and lengths at multiples of this, or of less.
const BLOCK_BYTES: u64 = 4096;
/// What is zeroed between two looks at whether to go on: so little that the slowest device is done within
/// [`attended::WRITTEN_WITHIN`].
const ZEROED_BYTES: u64 = 32 << 20;
/// How often whoever watches is asked whether to go on, at the least.
const LOOK: Duration = Duration::from_millis(100);

/// How a copy was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Both have the same blocks until one of them is written.
    Shared,
    Written,
}

/// How far a copy is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    pub whole: u64,
}

/// Where a copy goes.
#[derive(Debug)]
pub struct Target<'a> {
    file: &'a File,
    writes: Arc<Writes>,
}

/// How many changes of a target there were, for whoever watches whether they come to an end.
#[derive(Debug, Default)]
struct Writes {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Writes {
    fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }

    fn are_under_way(&self) -> bool {
        let ended = self.ended();
        self.begun.load(Ordering::Relaxed) > ended
    }
}

impl Target<'_> {
    /// Nothing is written yet.
    #[must_use]
    pub fn new(file: &File) -> Target<'_> {
        Target { file, writes: Arc::default() }
    }

    /// Whether it may be another than it was.
    pub fn may_be_written(&self) -> bool {
        self.writes.begun.load(Ordering::Relaxed) > 0
    }

    fn write<T>(&self, write: impl FnOnce(&File) -> T) -> T {
        self.writes.begun.fetch_add(1, Ordering::Relaxed);
        let written = write(self.file);
        self.writes.ended.fetch_add(1, Ordering::Relaxed);
        written
    }
}

/// Copies `source` to `target` and returns when what was written is on the disk. A copy that shares blocks has nothing of its
/// own but its length and where they are: that is synced by the caller, with the name it gives to it. The target is an empty
/// file or a block device, opened to be read and written through a description of its own. `watch` is told how far it is
/// before the first byte and ten times a second, and ends the copy with [`io::ErrorKind::Interrupted`].
pub fn copy(
    source: &File,
    target: &Target<'_>,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> io::Result<How> {
    let is_device = target.file.metadata()?.file_type().is_block_device();
    go_on(watch(Progress { done: 0, whole: size(source)? }))?;
    let how = match is_device {
        false if rustix::fs::ioctl_ficlone(target.file, source).is_ok() => return Ok(How::Shared),
        false => write_file(source, target, watch)?,
        true => write_device(source, target, watch)?,
    };
    target.file.sync_all()?;
    Ok(how)
}

/// The size of a file or a block device.
pub fn size(file: &File) -> io::Result<u64> {
    Ok(rustix::fs::seek(file, SeekFrom::End(0))?)
}

/// Zeroes a block device from a place on, in `watch`'s sight.
pub fn zero_from(
    target: &Target<'_>,
    begin: u64,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> io::Result<()> {
    let room = size(target.file)?;
    zero(target, begin..room.max(begin), watch, room)
}

fn write_file(source: &File, target: &Target<'_>, watch: Watch<'_>) -> io::Result<How> {
    let whole = size(source)?;
    let data = data(source, whole)?;
    target.write(|file| file.set_len(whole))?;
    for extent in &data {
        // Reserved room can be written by all at once. Where it cannot be reserved, writing finds it.
        match fallocate(target.file, FallocateFlags::KEEP_SIZE, extent.start, length(extent)) {
            Err(Errno::NOSPC) => return Err(Errno::NOSPC.into()),
            _ => continue,
        }
    }
    let end = whole.next_multiple_of(BLOCK_BYTES);
    write_pieces(source, target, &data, end, watch)?;
    // The last block was written whole.
    target.write(|file| file.set_len(whole))?;
    Ok(How::Written)
}

fn write_device(source: &File, target: &Target<'_>, watch: Watch<'_>) -> io::Result<How> {
    let (whole, room) = (size(source)?, size(target.file)?);
    if room < whole {
        let text = format!("it has {room} bytes, and what is to be copied has {whole}");
        return Err(io::Error::new(io::ErrorKind::StorageFull, text));
    }
    let data = data(source, whole)?;
    for hole in holes(&data, room) {
        zero(target, hole, watch, whole)?;
    }
    write_pieces(source, target, &data, room, watch)?;
    Ok(How::Written)
}

type Watch<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// Where the source has data, in whole blocks; all of it where nobody can tell.
fn data(source: &File, whole: u64) -> io::Result<Vec<Range<u64>>> {
    let mut extents: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < whole {
        let begin = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            Err(Errno::NXIO) => break,
            Err(_) => return Ok(std::iter::once(0..whole).collect()),
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(begin))?.min(whole);
        if end <= begin {
            // The source became shorter under our hands; reading tells.
            break;
        }
        let begin = begin / BLOCK_BYTES * BLOCK_BYTES;
        match extents.last_mut() {
            Some(last) if last.end >= begin => last.end = end,
            _ => extents.push(begin..end),
        }
        at = end;
    }
    for extent in &mut extents {
        extent.end = extent.end.next_multiple_of(BLOCK_BYTES);
    }
    Ok(extents)
}

fn holes(data: &[Range<u64>], room: u64) -> Vec<Range<u64>> {
    let begins = std::iter::once(0).chain(data.iter().map(|extent| extent.end));
    let ends = data.iter().map(|extent| extent.start).chain(std::iter::once(room));
    begins.zip(ends).map(|(begin, end)| begin..end).filter(|hole| !hole.is_empty()).collect()
}

fn length(extent: &Range<u64>) -> u64 {
    extent.end - extent.start
}

/// The kernel lets the device forget the range if it can, and writes zeroes if not.
fn zero(target: &Target<'_>, hole: Range<u64>, watch: Watch<'_>, whole: u64) -> io::Result<()> {
    let mut at = hole.start;
    while at < hole.end {
        let step = ZEROED_BYTES.min(hole.end - at);
        let zeroed = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        target.write(|file| fallocate(file, zeroed, at, step))?;
        at += step;
        go_on(watch(Progress { done: 0, whole }))?;
    }
    Ok(())
}

fn go_on(flow: ControlFlow<()>) -> io::Result<()> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(io::ErrorKind::Interrupted.into()),
    }
}

/// Writes what the source has data for. Nothing is written from `end` on.
fn write_pieces(
    source: &File,
    target: &Target<'_>,
    data: &[Range<u64>],
    end: u64,
    watch: Watch<'_>,
) -> io::Result<()> {
    let _direct = Direct::set(target.file);
    let whole = data.iter().map(length).sum();
    let pieces = Mutex::new(pieces(data, end));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let writer = Writer { source, target, pieces: &pieces, is_over: &is_over };
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                let tell = tell.clone();
                scope.spawn(move || writer.write(&tell))
            })
            .collect();
        drop(tell);
        let watched = follow(&told, whole, watch);
        is_over.store(watched.is_err(), Ordering::Relaxed);
        let mut written = Ok(());
        for writer in writers {
            let ended = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            written = written.and(ended);
        }
        watched.and(written)
    })
}

/// Adds up what the writers tell, until they end.
fn follow(told: &mpsc::Receiver<u64>, whole: u64, watch: Watch<'_>) -> io::Result<()> {
    let mut done = 0;
    loop {
        match told.recv_timeout(LOOK) {
            Ok(bytes) => done += bytes,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        go_on(watch(Progress { done, whole }))?;
    }
}

/// The extents in pieces, none beyond `end`.
fn pieces(data: &[Range<u64>], end: u64) -> impl Iterator<Item = Range<u64>> {
    data.iter().flat_map(move |extent| {
        let stop = extent.end.min(end);
        let begins = (extent.start..stop).step_by(usize::try_from(PIECE_BYTES).unwrap_or(1));
        begins.map(move |begin| begin..(begin + PIECE_BYTES).min(stop))
    })
}

struct Writer<'a, I> {
    source: &'a File,
    target: &'a Target<'a>,
    pieces: &'a Mutex<I>,
    /// One of the writers failed, or the copy was given up.
    is_over: &'a AtomicBool,
}

impl<I> Clone for Writer<'_, I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<I> Copy for Writer<'_, I> {}

impl<I: Iterator<Item = Range<u64>>> Writer<'_, I> {
    fn write(self, tell: &Sender<u64>) -> io::Result<()> {
        let mut memory = Aligned::new();
        while let Some(piece) = self.next() {
            let buffer = memory.of(length(&piece));
            let written = read_all(self.source, buffer, piece.start)
                .and_then(|()| self.target.write(|file| file.write_all_at(buffer, piece.start)));
            if let Err(error) = written {
                self.is_over.store(true, Ordering::Relaxed);
                return Err(error);
            }
            // Whoever listened may have given up.
            let _ = tell.send(length(&piece));
        }
        Ok(())
    }

    fn next(self) -> Option<Range<u64>> {
        if self.is_over.load(Ordering::Relaxed) {
            return None;
        }
        self.pieces.lock().ok()?.next()
    }
}

/// Reads until the buffer is full; zeroes stand for what lies behind the source's end.
fn read_all(source: &File, buffer: &mut [u8], place: u64) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read_at(&mut buffer[filled..], place + filled as u64) {
            Ok(0) => {
                buffer[filled..].fill(0);
                return Ok(());
            }
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Memory for one piece, aligned as direct writing wants it.
struct Aligned {
    bytes: Vec<u8>,
    skip: usize,
}

impl Aligned {
    fn new() -> Aligned {
        let bytes = vec![0; usize::try_from(PIECE_BYTES + BLOCK_BYTES).unwrap_or_default()];
        let skip = bytes.as_ptr().align_offset(usize::try_from(BLOCK_BYTES).unwrap_or(1));
        Aligned { bytes, skip }
    }

    fn of(&mut self, length: u64) -> &mut [u8] {
        let length = usize::try_from(length).unwrap_or_default();
        &mut self.bytes[self.skip..self.skip + length]
    }
}

/// Writing past the page cache, where the file system can, until dropped.
struct Direct<'a> {
    file: &'a File,
    before: Option<OFlags>,
}

impl Direct<'_> {
    fn set(file: &File) -> Direct<'_> {
        let before = fcntl_getfl(file).ok();
        let set = before.filter(|flags| fcntl_setfl(file, *flags | OFlags::DIRECT).is_ok());
        Direct { file, before: set }
    }

    fn is_set(&self) -> bool {
        self.before.is_some()
    }
}

impl Drop for Direct<'_> {
    fn drop(&mut self) {
        if let Some(flags) = self.before {
            // Best effort: the description ends with its owner.
            let _ = fcntl_setfl(self.file, flags);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is given up, or cannot be read, before the first byte is written leaves its target as it was.
    #[test]
    fn only_a_target_that_may_be_written_is_told_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("source");
        std::fs::write(&path, [1; 5000]).unwrap();
        let (read, not_read) =
            (File::open(&path).unwrap(), File::options().write(true).open(&path));
        let file = tempfile::tempfile_in(folder.path()).unwrap();
        let target = Target::new(&file);
        let error = copy(&read, &target, &mut |_| ControlFlow::Break(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        let whole = 0..5000;
        let (pieces, go_on) = (std::slice::from_ref(&whole), &mut |_| ControlFlow::Continue(()));
        write_pieces(&not_read.unwrap(), &target, pieces, 5000, go_on).unwrap_err();
        assert!(!target.may_be_written());
        assert_eq!(file.metadata().unwrap().len(), 0);
        copy(&read, &target, go_on).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 5000);
    }
}
