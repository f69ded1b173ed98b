//! Frames on their way: a batch gathered from one port, and a frame as one receiver shall see it.
//!
//! The first [`HEAD_BYTES`] bytes of each frame are copied before anything is decided, and the copy is what receivers get:
//! a guest that changes its buffer meanwhile changes nothing that was judged. The rest, the tail, stays where the sender
//! has it and is copied once, into the receiver's memory.

#![allow(unsafe_code)]

use crate::FRAME_BYTES_MAX;
use crate::offload;
use crate::packet;
use crate::ring::Segment;
use crate::vlan::{Edit, TAG_BYTES, UNTAGGED, VLAN_MASK};
use crate::wire::OffloadHeader;

/// How many frames are taken from a port at once.
pub(crate) const BATCH: usize = 32;
/// Two cache lines: enough for Ethernet, a tag, IPv6 and what it announces, or TCP with options.
pub(crate) const HEAD_BYTES: usize = 128;
pub(crate) const ETHERNET_BYTES: usize = 14;
const ADDRESS_MASK: u64 = 0xffff_ffff_ffff;

#[derive(Clone, Debug)]
#[repr(align(64))]
pub(crate) struct Head(pub(crate) [u8; HEAD_BYTES]);

/// One frame of a batch, beside its head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) header: OffloadHeader,
    /// What a receiver has to take for this frame to pass as it is: a mask of [`offload`].
    pub(crate) needs: u8,
    /// How many bytes of the head are the frame's.
    pub(crate) head_bytes: u8,
    /// Whether the frame carries a tag, as it was received.
    pub(crate) tagged: bool,
    /// The VLAN it belongs to, or [`UNTAGGED`].
    pub(crate) domain: u16,
    /// Its length without check sequence.
    pub(crate) octets: u32,
    tail_start: u32,
    tail_count: u32,
}

/// That what was received is no frame.
#[derive(Debug)]
pub(crate) struct Malformed;

/// Frames gathered from one port. Segments point into that port's memory: a batch is empty again before the port's peer
/// may go.
#[derive(Debug)]
pub(crate) struct Batch {
    frames: Vec<Frame>,
    heads: Box<[Head; BATCH]>,
    pub(crate) segments: Vec<Segment>,
}

impl Batch {
    pub(crate) fn new() -> Batch {
        let heads = vec![Head([0; HEAD_BYTES]); BATCH].into_boxed_slice();
        Batch {
            frames: Vec::with_capacity(BATCH),
            heads: heads.try_into().unwrap_or_else(|_| unreachable!("made of that length")),
            segments: Vec::with_capacity(4 * BATCH),
        }
    }

    pub(crate) fn clear(&mut self) {
        self.frames.clear();
        self.segments.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    pub(crate) fn room(&self) -> usize {
        BATCH - self.frames.len()
    }

    #[inline]
    pub(crate) fn frame(&self, index: usize) -> &Frame {
        &self.frames[index]
    }

    #[inline]
    pub(crate) fn frame_mut(&mut self, index: usize) -> &mut Frame {
        &mut self.frames[index]
    }

    #[inline]
    pub(crate) fn head(&self, index: usize) -> &[u8; HEAD_BYTES] {
        &self.heads[index].0
    }

    /// Where the frame goes and where it comes from, as numbers (`shared::bits`).
    #[inline]
    pub(crate) fn addresses(&self, index: usize) -> (u64, u64) {
        let head = &self.heads[index].0;
        let load = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&head[at..at + 8]);
            u64::from_le_bytes(bytes) & ADDRESS_MASK
        };
        (load(0), load(6))
    }

    /// Adds the frame that lies in one segment, its header of `header_bytes` first.
    #[inline]
    pub(crate) fn push_single(
        &mut self,
        segment: Segment,
        header_bytes: u32,
    ) -> Result<(), Malformed> {
        let octets = segment.bytes.wrapping_sub(header_bytes);
        if segment.bytes < header_bytes || !is_frame_length(octets) {
            return Err(Malformed);
        }
        let index = self.frames.len();
        let head_bytes = (octets as usize).min(HEAD_BYTES);
        let mut header = [0; OffloadHeader::BYTES];
        // SAFETY: the segment was checked to be there and to hold header and frame; the copies end in our own memory.
        unsafe {
            segment.host.copy_to_nonoverlapping(header.as_mut_ptr(), OffloadHeader::BYTES);
            let from = segment.host.add(header_bytes as usize);
            copy_head(from, &mut self.heads[index].0, head_bytes);
        }
        let tail_start = self.segments.len() as u32;
        let tail_bytes = octets - head_bytes as u32;
        if tail_bytes > 0 {
            let skipped = header_bytes as usize + HEAD_BYTES;
            self.segments.push(Segment {
                // SAFETY: the segment is longer than what is skipped.
                host: unsafe { segment.host.add(skipped) },
                guest: 0,
                bytes: tail_bytes,
            });
        }
        self.add(OffloadHeader::from_bytes(header), octets, head_bytes, tail_start)
    }

    /// Adds the frame that lies in one segment without a header, so that nothing is left to do with it.
    pub(crate) fn push_bare(&mut self, segment: Segment) -> Result<(), Malformed> {
        if !is_frame_length(segment.bytes) {
            return Err(Malformed);
        }
        let first = self.segments.len();
        self.segments.push(segment);
        self.push_segments(first, segment.bytes, 0)
    }

    /// Adds the frame that lies in the segments from `first` on, `total` bytes together, its header first.
    pub(crate) fn push_segments(
        &mut self,
        first: usize,
        total: u32,
        header_bytes: u32,
    ) -> Result<(), Malformed> {
        let octets = total.wrapping_sub(header_bytes);
        if total < header_bytes || !is_frame_length(octets) {
            return Err(Malformed);
        }
        let mut header = [0; 16];
        let index = self.frames.len();
        let head_bytes = (octets as usize).min(HEAD_BYTES);
        let mut rest = first;
        self.consume(&mut rest, header_bytes as usize, |copied, from, bytes| {
            // SAFETY: `from` has `bytes` bytes; a header is shorter than the array.
            unsafe {
                from.copy_to_nonoverlapping(header[copied..copied + bytes].as_mut_ptr(), bytes);
            }
        });
        let mut head = std::mem::replace(&mut self.heads[index], Head([0; HEAD_BYTES]));
        self.consume(&mut rest, head_bytes, |copied, from, bytes| {
            // SAFETY: `from` has `bytes` bytes, and so has the slice.
            unsafe {
                from.copy_to_nonoverlapping(head.0[copied..copied + bytes].as_mut_ptr(), bytes);
            }
        });
        self.heads[index] = head;
        let mut ten = [0; OffloadHeader::BYTES];
        ten.copy_from_slice(&header[..OffloadHeader::BYTES]);
        self.add(OffloadHeader::from_bytes(ten), octets, head_bytes, rest as u32)
    }

    /// Copies the next `wanted` bytes and takes them off the segments from `rest` on.
    fn consume(
        &mut self,
        rest: &mut usize,
        wanted: usize,
        mut copy: impl FnMut(usize, *const u8, usize),
    ) {
        let mut copied = 0;
        while copied < wanted {
            let segment = &mut self.segments[*rest];
            let bytes = (segment.bytes as usize).min(wanted - copied);
            copy(copied, segment.host, bytes);
            copied += bytes;
            // SAFETY: the segment has at least `bytes` bytes.
            segment.host = unsafe { segment.host.add(bytes) };
            segment.bytes -= bytes as u32;
            if segment.bytes == 0 {
                *rest += 1;
            }
        }
    }

    #[inline]
    fn add(
        &mut self,
        header: OffloadHeader,
        octets: u32,
        head_bytes: usize,
        tail_start: u32,
    ) -> Result<(), Malformed> {
        let head = &self.heads[self.frames.len()].0[..head_bytes];
        let tagged = head[12] == 0x81 && head[13] == 0x00;
        if tagged && head_bytes < ETHERNET_BYTES + TAG_BYTES {
            return Err(Malformed);
        }
        let needs = match header.flags | header.gso_type {
            0 => 0,
            _ => offload::judge(&header, head, octets).ok_or(Malformed)?,
        };
        self.frames.push(Frame {
            header,
            needs,
            head_bytes: head_bytes as u8,
            tagged,
            domain: UNTAGGED,
            octets,
            tail_start,
            tail_count: self.segments.len() as u32 - tail_start,
        });
        Ok(())
    }

    /// The address the last frame came from.
    pub(crate) fn last_source(&self) -> Option<u64> {
        Some(self.addresses(self.len().checked_sub(1)?).1)
    }

    /// The tag a frame carries.
    pub(crate) fn tag(&self, index: usize) -> Option<u16> {
        let head = &self.heads[index].0;
        self.frames[index].tagged.then(|| u16::from_be_bytes([head[14], head[15]]))
    }

    /// Whether a tag without a VLAN stands before another tag: whoever takes the first away puts the frame into the second's
    /// VLAN.
    #[inline]
    pub(crate) fn hides_vlan(&self, index: usize) -> bool {
        self.tag(index).is_some_and(|tag| tag & VLAN_MASK == 0)
            && packet::word(self.head(index), 16).is_some_and(packet::is_tag)
    }

    /// A frame as a receiver shall see it. `scratch` holds the head where the receiver's differs.
    #[inline]
    pub(crate) fn view<'a>(
        &'a self,
        index: usize,
        edit: Edit,
        scratch: &'a mut EditedHead,
    ) -> View<'a> {
        let plain = self.plain(index);
        match edit {
            Edit::Keep => plain,
            _ => edited(plain, edit, self.tag(index), self.frames[index].domain, scratch),
        }
    }

    /// A frame as it came.
    #[inline(always)]
    pub(crate) fn plain(&self, index: usize) -> View<'_> {
        let frame = &self.frames[index];
        let head = &self.heads[index].0[..usize::from(frame.head_bytes)];
        let tail_start = frame.tail_start as usize;
        let tail = &self.segments[tail_start..tail_start + frame.tail_count as usize];
        View { header: frame.header, head, tail, octets: frame.octets }
    }
}

fn is_frame_length(octets: u32) -> bool {
    (ETHERNET_BYTES as u32..=FRAME_BYTES_MAX as u32).contains(&octets)
}

/// A head with a tag more.
pub(crate) type EditedHead = [u8; HEAD_BYTES + TAG_BYTES];

/// A frame as one receiver shall see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) header: OffloadHeader,
    pub(crate) head: &'a [u8],
    pub(crate) tail: &'a [Segment],
    pub(crate) octets: u32,
}

impl View<'_> {
    /// Copies the frame's first bytes, at most as many as `into` holds, and returns how many.
    pub(crate) fn copy_start(&self, into: &mut [u8]) -> usize {
        let head = self.head.len().min(into.len());
        into[..head].copy_from_slice(&self.head[..head]);
        let mut done = head;
        for segment in self.tail {
            let bytes = (segment.bytes as usize).min(into.len() - done);
            // SAFETY: the segment has that many bytes in the sender's memory, and so has the slice.
            unsafe {
                segment.host.copy_to_nonoverlapping(into[done..done + bytes].as_mut_ptr(), bytes);
            }
            done += bytes;
        }
        done
    }

    /// Appends the whole frame.
    pub(crate) fn append_to(&self, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.resize(start + self.octets as usize, 0);
        self.copy_start(&mut bytes[start..]);
    }
}

#[cold]
fn edited<'a>(
    plain: View<'a>,
    edit: Edit,
    tag: Option<u16>,
    domain: u16,
    scratch: &'a mut EditedHead,
) -> View<'a> {
    const PRIORITY: u16 = 0xf000;
    let head = plain.head;
    let rest = if tag.is_some() { 12 + TAG_BYTES } else { 12 };
    scratch[..12].copy_from_slice(&head[..12]);
    let mut length = 12;
    if edit != Edit::Strip {
        let [high, low] = (tag.unwrap_or(0) & PRIORITY | domain).to_be_bytes();
        scratch[12..12 + TAG_BYTES].copy_from_slice(&[0x81, 0x00, high, low]);
        length += TAG_BYTES;
    }
    scratch[length..length + head.len() - rest].copy_from_slice(&head[rest..]);
    length += head.len() - rest;
    let moved = length as i32 - head.len() as i32;
    let mut header = plain.header;
    let shift = |word: u16| (i32::from(word) + moved).clamp(0, i32::from(u16::MAX)) as u16;
    if header.flags & OffloadHeader::NEEDS_CHECKSUM != 0 {
        header.checksum_start = shift(header.checksum_start);
    }
    if header.gso_type != OffloadHeader::GSO_NONE {
        header.header_length = shift(header.header_length);
    }
    View {
        header,
        head: &scratch[..length],
        tail: plain.tail,
        octets: plain.octets.wrapping_add_signed(moved),
    }
}

/// Copies a frame's first bytes. Small frames are the most, and a call of memcpy costs as much as their copy.
///
/// # Safety
/// `from` has `bytes` bytes, and `bytes` is at most [`HEAD_BYTES`].
#[inline]
unsafe fn copy_head(from: *const u8, to: &mut [u8; HEAD_BYTES], bytes: usize) {
    // SAFETY: the caller's promise; each copy stays within the first `bytes` bytes of both.
    unsafe { copy_small(from, to.as_mut_ptr(), bytes) }
}

/// Copies at most [`HEAD_BYTES`] bytes in pieces of fixed lengths, of which the last two may overlap.
///
/// # Safety
/// `from` has and `to` takes `bytes` bytes, they do not overlap, and `bytes` is at most [`HEAD_BYTES`].
#[inline(always)]
pub(crate) unsafe fn copy_small(from: *const u8, to: *mut u8, bytes: usize) {
    /// A number, since an array of bytes would go through memory.
    type Piece = u128;
    const PIECE: usize = size_of::<Piece>();
    /// Copies the pieces at these places.
    #[inline(always)]
    unsafe fn pieces<const N: usize>(from: *const u8, to: *mut u8, places: [usize; N]) {
        for at in places {
            // SAFETY: the caller's promise: a piece at each of the places.
            unsafe {
                let piece = from.add(at).cast::<Piece>().read_unaligned();
                to.add(at).cast::<Piece>().write_unaligned(piece);
            }
        }
    }
    // SAFETY: the caller's promise, and no arm's places reach beyond `bytes`.
    unsafe {
        match bytes {
            97.. => {
                pieces(from, to, [0, PIECE, 2 * PIECE, 3 * PIECE, 4 * PIECE, 5 * PIECE]);
                pieces(from, to, [bytes - 2 * PIECE, bytes - PIECE]);
            }
            65.. => {
                pieces(from, to, [0, PIECE, 2 * PIECE, 3 * PIECE]);
                pieces(from, to, [bytes - 2 * PIECE, bytes - PIECE]);
            }
            33.. => pieces(from, to, [0, PIECE, bytes - 2 * PIECE, bytes - PIECE]),
            16.. => pieces(from, to, [0, bytes - PIECE]),
            _ => from.copy_to_nonoverlapping(to, bytes),
        }
    }
}
