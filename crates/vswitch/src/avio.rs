//! An AVIO guest's end of a port: its two rings, frames gathered from the one and put into the other.
//!
//! Both directions work on batches, so that what the other processor has in its cache is fetched for many frames at once:
//! first all descriptors are read and their buffers asked for, then frames are copied, then the driver is shown once.

#![allow(unsafe_code)]

use std::sync::Arc;

use crate::event::RingFault;
use crate::features::{MRG_RXBUF, Offloads, VERSION_1};
use crate::frame::{BATCH, Batch, HEAD_BYTES, View, copy_small};
use crate::memory::{DirtyLog, Memory};
use crate::offload;
use crate::ring::{Ring, Segment, prefetch_to_read, prefetch_to_write};
use crate::wire::OffloadHeader;

/// The header before a frame, with the count of buffers it fills (virtio 1.2, 5.1.6; without it in the oldest form).
const HEADER_BYTES: u32 = 12;
const HEADER_BYTES_LEGACY: u32 = 10;
/// The count of buffers behind the last two bytes of the common header.
const ONE_BUFFER: u32 = 1 << 16;
const CACHE_LINE: usize = 64;
/// Up to so many frames at once, what matters is how long one waits for memory; beyond, how much is asked of it at once.
pub(crate) const IN_STEP_MAX: usize = 4;

/// Whether a receiver took a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    Done,
    NoRoom,
    /// No buffer of this receiver is long enough, however many there are.
    TooLong,
}

/// A guest whose driver runs.
#[derive(Debug)]
pub(crate) struct AvioPeer {
    /// What the guest sends.
    transmit: Ring,
    /// Buffers for what it receives.
    receive: Ring,
    /// Keeps what the rings point into; handed back to the conversation, which unmaps it.
    memory: Arc<Memory>,
    log: Option<Arc<DirtyLog>>,
    header_bytes: u32,
    mergeable: bool,
    takes: u8,
    /// Heads of the chains that the batch was gathered from.
    gathered: Vec<u16>,
    /// The same with their buffers, while they are gathered.
    singles: [(u16, Option<Segment>); BATCH],
    ahead: Ahead,
    scattered: Vec<Segment>,
    chains: Vec<(u16, u32)>,
}

/// Receive buffers looked up before they are needed.
#[derive(Debug)]
struct Ahead {
    buffers: [(u16, Option<Segment>); BATCH],
    count: usize,
    used: usize,
}

/// Where the rings stand: what a driver that takes them up again must be told (vhost-user, GET_VRING_BASE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bases {
    pub(crate) receive: u16,
    pub(crate) transmit: u16,
}

/// The rings of a driver that is ready.
#[derive(Debug)]
pub(crate) struct Rings {
    pub(crate) receive: Ring,
    pub(crate) transmit: Ring,
    pub(crate) memory: Arc<Memory>,
    pub(crate) log: Option<Arc<DirtyLog>>,
    pub(crate) features: u64,
}

impl AvioPeer {
    pub(crate) fn new(rings: Rings) -> AvioPeer {
        let Rings { receive, transmit, memory, log, features } = rings;
        let long = features & (VERSION_1 | MRG_RXBUF) != 0;
        AvioPeer {
            transmit,
            receive,
            memory,
            log,
            header_bytes: if long { HEADER_BYTES } else { HEADER_BYTES_LEGACY },
            mergeable: features & MRG_RXBUF != 0,
            takes: offload::mask(Offloads::of_guest(features)),
            gathered: Vec::with_capacity(BATCH),
            singles: [(0, None); BATCH],
            ahead: Ahead { buffers: [(0, None); BATCH], count: 0, used: 0 },
            scattered: Vec::with_capacity(BATCH),
            chains: Vec::with_capacity(BATCH),
        }
    }

    pub(crate) fn bases(&self) -> Bases {
        Bases { receive: self.receive.base(), transmit: self.transmit.base() }
    }

    pub(crate) fn into_memory(self) -> Arc<Memory> {
        self.memory
    }

    pub(crate) fn takes(&self) -> u8 {
        self.takes
    }

    /// Gathers at most `limit` frames that the guest sent. Returns how many chains were taken and how many of them held no
    /// frame; [`AvioPeer::release`] gives them back.
    pub(crate) fn gather(
        &mut self,
        batch: &mut Batch,
        limit: usize,
    ) -> Result<(usize, usize), RingFault> {
        let count = self.gather_heads(limit)?;
        self.gather_buffers(count)?;
        self.gather_frames(batch, count)
    }

    /// The same with the buffers of the likely receiver looked up in step, so that what both rings are waited for comes at
    /// the same time. The receiver's fault is left for it to find.
    pub(crate) fn gather_towards(
        &mut self,
        receiver: &mut AvioPeer,
        batch: &mut Batch,
        limit: usize,
    ) -> Result<(usize, usize), RingFault> {
        let count = self.gather_heads(limit)?;
        if count == 0 || count > IN_STEP_MAX {
            self.gather_buffers(count)?;
            return self.gather_frames(batch, count);
        }
        let ready = receiver.prepare_heads(count).unwrap_or(0);
        self.gather_buffers(count)?;
        if receiver.prepare_buffers(ready).is_err() {
            receiver.ahead.count = 0;
        }
        self.gather_frames(batch, count)
    }

    #[inline(always)]
    fn gather_heads(&mut self, limit: usize) -> Result<usize, RingFault> {
        let count = usize::from(self.transmit.look()?).min(limit).min(BATCH);
        for (ahead, slot) in self.singles[..count].iter_mut().enumerate() {
            slot.0 = self.transmit.peek(ahead as u16)?;
            self.transmit.prefetch(slot.0);
        }
        Ok(count)
    }

    #[inline(always)]
    fn gather_buffers(&mut self, count: usize) -> Result<(), RingFault> {
        for slot in &mut self.singles[..count] {
            slot.1 = self.transmit.single(&self.memory, slot.0)?;
            if let Some(segment) = slot.1 {
                prefetch_to_read(segment.host);
                prefetch_to_read(segment.host.wrapping_add(CACHE_LINE));
            }
        }
        Ok(())
    }

    /// The batch is empty, so it has room.
    #[inline(always)]
    fn gather_frames(
        &mut self,
        batch: &mut Batch,
        count: usize,
    ) -> Result<(usize, usize), RingFault> {
        self.transmit.prefetch_used(count);
        let mut malformed = 0;
        for (head, single) in &self.singles[..count] {
            let pushed = match single {
                Some(segment) if segment.bytes >= self.header_bytes => {
                    batch.push_single(*segment, self.header_bytes)
                }
                _ => {
                    let first = batch.segments.len();
                    let total = self.transmit.walk(&self.memory, *head, &mut batch.segments)?;
                    if total < self.header_bytes {
                        return Err(RingFault::Header { length: total });
                    }
                    batch.push_segments(first, total, self.header_bytes)
                }
            };
            malformed += usize::from(pushed.is_err());
            self.transmit.take();
            self.gathered.push(*head);
        }
        Ok((count, malformed))
    }

    /// Leaves the last `frames` of the gathered chains in the ring: they come again.
    pub(crate) fn hold_back(&mut self, frames: usize) {
        let rest = self.gathered.len().saturating_sub(frames);
        let held = self.gathered.split_off(rest).len();
        self.transmit.untake(held as u16);
    }

    /// Whether the guest gave buffers since a frame found too few. A fault is left for the next frame to find.
    pub(crate) fn has_more_room(&mut self) -> bool {
        let known = self.receive.known();
        self.receive.look().map_or(true, |now| now > known)
    }

    /// Whether half of the buffers the guest can give are there.
    pub(crate) fn is_roomy(&mut self) -> bool {
        self.receive.is_half_free()
    }

    /// Gives the gathered chains back: the frames have been copied.
    pub(crate) fn release(&mut self) {
        for head in self.gathered.drain(..) {
            self.transmit.finish(head, 0);
        }
        self.transmit.publish(self.log.as_deref());
    }

    /// Gets ready to take about `count` frames: asks for the memory of the next buffers, unless that was done.
    pub(crate) fn prepare(&mut self, count: usize) -> Result<(), RingFault> {
        if self.ahead.count - self.ahead.used >= count.min(BATCH) {
            return Ok(());
        }
        let ready = self.prepare_heads(count)?;
        self.prepare_buffers(ready)
    }

    #[inline(always)]
    fn prepare_heads(&mut self, count: usize) -> Result<usize, RingFault> {
        let known = usize::from(self.receive.look()?);
        let count = known.min(count).min(BATCH);
        self.ahead.used = 0;
        self.ahead.count = 0;
        for ahead in 0..count {
            let head = self.receive.peek(ahead as u16)?;
            self.receive.prefetch(head);
            self.ahead.buffers[ahead].0 = head;
        }
        Ok(count)
    }

    #[inline(always)]
    fn prepare_buffers(&mut self, count: usize) -> Result<(), RingFault> {
        for buffer in &mut self.ahead.buffers[..count] {
            buffer.1 = self.receive.single(&self.memory, buffer.0)?;
            if let Some(segment) = buffer.1 {
                // A header that has its line to itself will likely stay as it is.
                let frame = segment.host.wrapping_add(self.header_bytes as usize);
                match frame.addr() % CACHE_LINE {
                    0 => prefetch_to_read(segment.host),
                    _ => prefetch_to_write(segment.host),
                }
                prefetch_to_write(frame.wrapping_add(CACHE_LINE - 1));
            }
        }
        self.ahead.count = count;
        self.receive.prefetch_used(count);
        Ok(())
    }

    /// Copies a frame into the guest's next buffer, for those who do it rarely.
    pub(crate) fn put_any(&mut self, view: &View<'_>) -> Result<Put, RingFault> {
        self.put(*view)
    }

    /// Copies a frame into the guest's next buffer.
    ///
    /// The view comes as a value and stays in registers. In memory it would be stored in pieces and loaded in others, and
    /// such a load waits until all stores before it are out, those into the last guest's buffers among them.
    #[inline(always)]
    pub(crate) fn put(&mut self, view: View<'_>) -> Result<Put, RingFault> {
        let needed = self.header_bytes + view.octets;
        if self.ahead.used < self.ahead.count
            && let (head, Some(segment)) = self.ahead.buffers[self.ahead.used]
            && segment.bytes >= needed
        {
            // SAFETY: the segment was checked to be there and to hold header and frame.
            unsafe { self.write_single(segment.host, &view) };
            if let Some(log) = &self.log {
                log.note(segment.guest, u64::from(needed));
            }
            self.ahead.used += 1;
            self.receive.take();
            self.receive.finish(head, needed);
            return Ok(Put::Done);
        }
        self.put_scattered(view, needed)
    }

    /// Writes header and frame one behind the other.
    ///
    /// # Safety
    /// `to` takes that many bytes.
    #[inline(always)]
    unsafe fn write_single(&self, to: *mut u8, view: &View<'_>) {
        let (low, high) = view.header.words();
        // SAFETY: the caller's promise; each piece is written behind the last, and their sum is what was promised. Pieces
        // of the tail were checked to be in the sender's memory.
        unsafe {
            assign(to.cast::<u64>(), low.to_le());
            match self.header_bytes {
                HEADER_BYTES => assign(to.add(8).cast(), (ONE_BUFFER | u32::from(high)).to_le()),
                _ => assign(to.add(8).cast(), high.to_le()),
            }
            let mut to = to.add(self.header_bytes as usize);
            match view.head.len() {
                bytes @ ..=HEAD_BYTES => copy_small(view.head.as_ptr(), to, bytes),
                bytes => to.copy_from_nonoverlapping(view.head.as_ptr(), bytes),
            }
            to = to.add(view.head.len());
            for segment in view.tail {
                to.copy_from_nonoverlapping(segment.host, segment.bytes as usize);
                to = to.add(segment.bytes as usize);
            }
        }
    }

    /// The header for this guest, which says how many buffers the frame fills.
    #[inline]
    fn header(&self, view: &View<'_>, buffers: u16) -> [u8; HEADER_BYTES as usize] {
        let mut bytes = [0; HEADER_BYTES as usize];
        bytes[..OffloadHeader::BYTES].copy_from_slice(&view.header.to_bytes());
        bytes[OffloadHeader::BYTES..].copy_from_slice(&buffers.to_le_bytes());
        bytes
    }

    /// The same for buffers in pieces, and for frames that fill several (MRG_RXBUF).
    #[cold]
    fn put_scattered(&mut self, view: View<'_>, needed: u32) -> Result<Put, RingFault> {
        self.scattered.clear();
        self.chains.clear();
        let mut capacity: u64 = 0;
        while capacity < u64::from(needed) {
            let ahead = self.chains.len() as u16;
            if ahead > 0 && !self.mergeable {
                return Ok(Put::TooLong);
            }
            if ahead >= self.receive.known() && ahead >= self.receive.look()? {
                return Ok(Put::NoRoom);
            }
            let head = self.receive.peek(ahead)?;
            let bytes = self.receive.walk(&self.memory, head, &mut self.scattered)?;
            if ahead == 0 && bytes < self.header_bytes {
                return Err(RingFault::Header { length: bytes });
            }
            capacity += u64::from(bytes);
            self.chains.push((head, bytes));
        }
        let header = self.header(&view, self.chains.len() as u16);
        let mut writer = Writer { segments: &self.scattered, at: 0, done: 0 };
        writer.write(header.as_ptr(), self.header_bytes as usize);
        writer.write(view.head.as_ptr(), view.head.len());
        for segment in view.tail {
            writer.write(segment.host, segment.bytes as usize);
        }
        if let Some(log) = &self.log {
            for segment in &self.scattered {
                log.note(segment.guest, u64::from(segment.bytes));
            }
        }
        let mut left = needed;
        for (head, bytes) in &self.chains {
            let written = left.min(*bytes);
            left -= written;
            self.receive.take();
            self.receive.finish(*head, written);
        }
        // What was looked up ahead is passed over as far as it was taken here.
        self.ahead.used = (self.ahead.used + self.chains.len()).min(self.ahead.count);
        Ok(Put::Done)
    }

    /// Shows the guest what it received.
    pub(crate) fn flush(&mut self) {
        self.receive.publish(self.log.as_deref());
    }

    /// Stops the guest's kicks for what it sends: the ring is looked at anyway.
    pub(crate) fn silence(&mut self) {
        self.transmit.silence();
    }

    /// Has the guest kick when it sends, and returns whether it sent already.
    pub(crate) fn listen(&mut self) -> Result<bool, RingFault> {
        self.transmit.listen()
    }

    /// At the start: nobody needs to be told of buffers to receive into, and what happened while nobody looked is news.
    pub(crate) fn begin(&mut self) {
        self.receive.silence();
        self.receive.call();
        self.transmit.call();
    }
}

/// Writes a number unless it is there already. A driver that uses its buffers again finds the header of before, and a line
/// of the cache that nobody changes is in both processors' caches at once.
///
/// # Safety
/// `to` can be read and written.
#[inline(always)]
unsafe fn assign<N: Copy + PartialEq>(to: *mut N, number: N) {
    // SAFETY: the caller's promise.
    unsafe {
        if to.read_unaligned() != number {
            to.write_unaligned(number);
        }
    }
}

/// Writes pieces one behind the other into segments.
struct Writer<'a> {
    segments: &'a [Segment],
    at: usize,
    done: usize,
}

impl Writer<'_> {
    /// What does not fit is left out; the caller made room for all.
    fn write(&mut self, from: *const u8, bytes: usize) {
        let mut copied = 0;
        while copied < bytes {
            let Some(segment) = self.segments.get(self.at) else { return };
            let piece = (segment.bytes as usize - self.done).min(bytes - copied);
            // SAFETY: the segment has `piece` bytes from `done` on, and `from` has `bytes` bytes; one is in the receiver's
            // mapping and the other in the sender's or in memory of ours.
            unsafe {
                segment.host.add(self.done).copy_from_nonoverlapping(from.add(copied), piece);
            }
            copied += piece;
            self.done += piece;
            if self.done == segment.bytes as usize {
                self.at += 1;
                self.done = 0;
            }
        }
    }
}
