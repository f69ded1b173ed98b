//! The wire's end of the switch: frames from and to a network interface.

#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::BorrowedFd;

use crate::avio::Put;
use crate::frame::{BATCH, Batch, EditedHead, HEAD_BYTES, View};
use crate::offload;
use crate::ring::Segment;
use crate::vlan::TAG_BYTES;
use crate::wire::{OffloadHeader, Wire, WireFrame, WireSlot};

/// How many frames are asked of the interface at once. Each takes a slot for the longest frame, touched only as far as used.
const SLOTS: usize = 32;
/// Where a tag that the kernel took out belongs: behind the two addresses.
const ADDRESSES_BYTES: usize = 12;

pub(crate) struct DevicePeer {
    wire: Box<dyn Wire>,
    slots: Vec<WireSlot>,
    /// Slots with frames that are still to be gathered.
    held: Range<usize>,
    waiting: Vec<Waiting>,
    /// Of `waiting`, in use.
    count: usize,
    segments: Vec<Segment>,
}

/// A frame that is to be sent when the batch is through: its header and head are copied, its tail is where it is.
struct Waiting {
    header: [u8; OffloadHeader::BYTES],
    head: Vec<u8>,
    first: usize,
    end: usize,
    octets: usize,
}

impl DevicePeer {
    pub(crate) fn new(wire: Box<dyn Wire>) -> DevicePeer {
        DevicePeer {
            wire,
            slots: (0..SLOTS).map(|_| WireSlot::new()).collect(),
            held: 0..0,
            waiting: Vec::new(),
            count: 0,
            segments: Vec::new(),
        }
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.wire.descriptor()
    }

    pub(crate) fn takes(&self) -> u8 {
        offload::mask(self.wire.offloads())
    }

    /// Gathers frames that came. Returns how many were taken and how many of them were none. They stay in the slots until
    /// the next call.
    pub(crate) fn gather(&mut self, batch: &mut Batch, limit: usize) -> io::Result<(usize, usize)> {
        let limit = limit.min(batch.room()).min(SLOTS);
        if self.held.is_empty() {
            self.held = 0..self.wire.receive(&mut self.slots[..limit])?.min(limit);
        }
        let slots = self.held.start..self.held.end.min(self.held.start + limit);
        self.held.start = slots.end;
        let (count, mut malformed) = (slots.len(), 0);
        for slot in &mut self.slots[slots] {
            malformed += usize::from(push(batch, slot).is_err());
        }
        Ok((count, malformed))
    }

    /// Whether there are frames in the slots that were not gathered, or held back since.
    pub(crate) fn has_frames(&self) -> bool {
        !self.held.is_empty()
    }

    /// Leaves the last `frames` of those gathered in their slots: they come again.
    pub(crate) fn hold_back(&mut self, frames: usize) {
        self.held.start = self.held.start.saturating_sub(frames);
    }

    /// Keeps a frame for [`DevicePeer::flush`].
    pub(crate) fn put(&mut self, view: &View<'_>) -> Put {
        if self.count == self.waiting.len() {
            self.waiting.push(Waiting::empty());
        }
        let waiting = &mut self.waiting[self.count];
        waiting.header = view.header.to_bytes();
        waiting.octets = view.octets as usize;
        waiting.head.clear();
        waiting.head.extend_from_slice(view.head);
        waiting.first = self.segments.len();
        self.segments.extend_from_slice(view.tail);
        waiting.end = self.segments.len();
        self.count += 1;
        Put::Done
    }

    /// Whether no more frames should be kept: [`DevicePeer::flush`] first.
    pub(crate) fn full(&self) -> bool {
        self.count >= BATCH
    }

    /// Sends what was kept; returns how many frames had no room. Must be called before the tails' memory may change hands.
    pub(crate) fn flush(&mut self) -> io::Result<usize> {
        let waiting = &self.waiting[..std::mem::take(&mut self.count)];
        if waiting.is_empty() {
            return Ok(0);
        }
        let mut parts: Vec<IoSlice<'_>> = Vec::with_capacity(4 * waiting.len());
        let mut ends = Vec::with_capacity(waiting.len());
        for frame in waiting {
            parts.push(IoSlice::new(&frame.header));
            parts.push(IoSlice::new(&frame.head));
            parts.extend(self.segments[frame.first..frame.end].iter().map(|segment| {
                // SAFETY: the segment is in memory that stays mapped while a batch is under way. Its guest may write
                // meanwhile; only the kernel reads through the slice, as the contract of `WireFrame` says.
                IoSlice::new(unsafe {
                    std::slice::from_raw_parts(segment.host, segment.bytes as usize)
                })
            }));
            ends.push(parts.len());
        }
        let mut start = 0;
        let mut frames = Vec::with_capacity(waiting.len());
        for (end, frame) in ends.iter().zip(waiting) {
            frames.push(WireFrame { parts: &parts[start..*end], octets: frame.octets });
            start = *end;
        }
        let sent = self.wire.send(&frames)?;
        self.segments.clear();
        Ok(waiting.len() - sent.min(waiting.len()))
    }
}

impl Waiting {
    fn empty() -> Waiting {
        Waiting {
            header: [0; OffloadHeader::BYTES],
            head: Vec::with_capacity(HEAD_BYTES + TAG_BYTES),
            first: 0,
            end: 0,
            octets: 0,
        }
    }
}

/// Adds the frame in a slot, with the tag that the kernel took out put back in front of what follows the addresses.
fn push(batch: &mut Batch, slot: &mut WireSlot) -> Result<(), crate::frame::Malformed> {
    let tag = slot.tag();
    let filled = slot.filled().len();
    let segment = |bytes: &mut [u8]| Segment {
        host: bytes.as_mut_ptr(),
        guest: 0,
        bytes: bytes.len() as u32,
    };
    let Some(tag) = tag else {
        let whole = &mut slot.buffer()[..filled];
        return batch.push_single(segment(whole), OffloadHeader::BYTES as u32);
    };
    let [high, low] = tag.to_be_bytes();
    let mut tagged: EditedHead = [0; HEAD_BYTES + TAG_BYTES];
    let start = OffloadHeader::BYTES + ADDRESSES_BYTES;
    if filled < start {
        return Err(crate::frame::Malformed);
    }
    let buffer = slot.buffer();
    let header = OffloadHeader::from_bytes(
        buffer[..OffloadHeader::BYTES].try_into().map_err(|_| crate::frame::Malformed)?,
    );
    tagged[..OffloadHeader::BYTES].copy_from_slice(&header.tagged().to_bytes());
    tagged[OffloadHeader::BYTES..start].copy_from_slice(&buffer[OffloadHeader::BYTES..start]);
    tagged[start..start + TAG_BYTES].copy_from_slice(&[0x81, 0x00, high, low]);
    let first = batch.segments.len();
    batch.segments.push(segment(&mut tagged[..start + TAG_BYTES]));
    batch.segments.push(segment(&mut buffer[start..filled]));
    // The segment in `tagged` ends within the head, so it is copied before this function ends.
    batch.push_segments(first, (filled + TAG_BYTES) as u32, OffloadHeader::BYTES as u32)
}
