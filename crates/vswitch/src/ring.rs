//! One split virtqueue in a guest's memory (virtio 1.2, 2.7), walked by the device.
//!
//! ```text
//!   descriptors   [ address u64 | length u32 | flags u16 | next u16 ] × size     the driver writes
//!   available     flags u16, index u16, [ head u16 ] × size, used_event u16     the driver writes
//!   used          flags u16, index u16, [ head u32 | length u32 ] × size, avail_event u16     we write
//! ```
//!
//! Indices count on beyond the size; the place is the index modulo the size, a power of two. The driver puts a chain's head
//! into `available` and then raises its index; we take chains in that order, put their heads into `used` in the same order,
//! and then raise ours. `used_event` and `avail_event` (EVENT_IDX) say at which index the other side wants to be told.
//!
//! Everything the driver writes may change while we look and may be nonsense. So each value is read once, by a volatile or
//! atomic read, judged as the copy, and never read again; a number that is out of bounds is a [`RingFault`].

#![allow(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use crate::event::RingFault;
use crate::memory::{DirtyLog, Memory};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// In `available`: the driver does not want to be told of used buffers.
const NO_INTERRUPT: u16 = 1;
/// In `used`: we do not want to be told of available buffers.
const NO_NOTIFY: u16 = 1;
const DESCRIPTOR_BYTES: u32 = 16;
/// A ring's size at most (virtio 1.2, 2.7.1).
pub(crate) const SIZE_MAX: u16 = 32_768;

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

/// One at any address, as in a table of indirect descriptors.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned(Descriptor);

/// A stretch of a guest's memory, checked to be there. Valid as long as the [`Memory`] it was found in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) host: *mut u8,
    pub(crate) guest: u64,
    pub(crate) bytes: u32,
}

/// Who reads and who writes the buffers of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The guest wrote them for us to read.
    FromGuest,
    /// They are for us to write into.
    ToGuest,
}

/// What a ring is made from, as the protocol told it.
#[derive(Debug)]
pub(crate) struct RingPlace {
    pub(crate) size: u16,
    pub(crate) descriptors_user: u64,
    pub(crate) available_user: u64,
    pub(crate) used_user: u64,
    /// Where the driver and we stand: the index of the next available chain.
    pub(crate) base: u16,
    /// The guest address of `used` for the dirty log, if writes to it are noted.
    pub(crate) used_log: Option<u64>,
}

/// A ring in use. The pointers are valid as long as the [`Memory`] it was made in, which its owner keeps beside it.
#[derive(Debug)]
pub(crate) struct Ring {
    descriptors: *const Descriptor,
    available: *const u16,
    used: *mut u16,
    size: u16,
    /// An index's bits that are its place. A word of its own, because of two that lie side by side a compiler may load both
    /// at once, and a load that takes in what was stored just before waits for all stores to get out, to the guest's too.
    mask: usize,
    direction: Direction,
    event_index: bool,
    indirect: bool,
    /// The index of the next available chain to take.
    next: u16,
    /// The available index as last read.
    seen: u16,
    /// The index of the next used element to write.
    finished: u16,
    /// The used index as the driver sees it.
    published: u16,
    used_log: Option<u64>,
    call: Option<OwnedFd>,
}

// SAFETY: the pointers lead into memory that is shared with another process and mapped as long as the owner lives.
unsafe impl Send for Ring {}

// SAFETY: a segment is used by whoever has the memory it was found in, and says nothing about threads.
unsafe impl Send for Segment {}

impl Ring {
    /// A ring, if it lies in the guest's memory and is aligned (virtio 1.2, 2.7).
    pub(crate) fn new(
        place: &RingPlace,
        memory: &Memory,
        direction: Direction,
        features: u64,
        call: Option<OwnedFd>,
    ) -> Option<Ring> {
        let size = place.size;
        let entries = u64::from(size);
        let (descriptors, _) = memory.at_user(place.descriptors_user, 16 * entries)?;
        let (available, _) = memory.at_user(place.available_user, 6 + 2 * entries)?;
        let (used, _) = memory.at_user(place.used_user, 6 + 8 * entries)?;
        let aligned = descriptors.cast::<Descriptor>().is_aligned()
            && available.cast::<u16>().is_aligned()
            && used.cast::<u32>().is_aligned();
        if !aligned || !size.is_power_of_two() || size > SIZE_MAX {
            return None;
        }
        Some(Ring {
            descriptors: descriptors.cast(),
            available: available.cast(),
            used: used.cast(),
            size,
            mask: usize::from(size) - 1,
            direction,
            event_index: features & crate::features::EVENT_IDX != 0,
            indirect: features & crate::features::INDIRECT_DESC != 0,
            next: place.base,
            seen: place.base,
            finished: place.base,
            published: place.base,
            used_log: place.used_log,
            call,
        })
    }

    /// Where we stand: the index of the next chain that is not used.
    pub(crate) fn base(&self) -> u16 {
        self.finished
    }

    /// How many chains can be taken, as far as is known without a look at the driver's index.
    #[inline]
    pub(crate) fn known(&self) -> u16 {
        self.seen.wrapping_sub(self.next)
    }

    /// Looks at the driver's index: how many chains can be taken.
    #[inline]
    pub(crate) fn look(&mut self) -> Result<u16, RingFault> {
        self.seen = self.available_word(1).load(Ordering::Acquire);
        // Chains are used in order and at once, so those the driver may have given us since are no more than the ring holds.
        let claimed = self.seen.wrapping_sub(self.next);
        if claimed > self.size {
            self.seen = self.next;
            return Err(RingFault::Available { claimed, size: self.size });
        }
        Ok(claimed)
    }

    /// The head of the chain `ahead` chains after the next. It must be known to be there.
    #[inline]
    pub(crate) fn peek(&self, ahead: u16) -> Result<u16, RingFault> {
        debug_assert!(ahead < self.known());
        let place = usize::from(self.next.wrapping_add(ahead)) & self.mask;
        let head = self.available_word(2 + place).load(Ordering::Relaxed);
        if head >= self.size {
            return Err(RingFault::Index { index: head, size: self.size });
        }
        Ok(head)
    }

    /// Brings a chain's first descriptor nearer.
    #[inline]
    pub(crate) fn prefetch(&self, head: u16) {
        // SAFETY: a prefetch reads nothing; the descriptor is in the table, `peek` checked.
        prefetch_to_read(unsafe { self.descriptors.add(usize::from(head)) }.cast());
    }

    /// The buffer of a chain that consists of one descriptor in one region: nearly all do.
    #[inline]
    pub(crate) fn single(&self, memory: &Memory, head: u16) -> Result<Option<Segment>, RingFault> {
        let descriptor = self.descriptor(head);
        let wanted = if self.direction == Direction::ToGuest { WRITE } else { 0 };
        if descriptor.flags & (NEXT | WRITE | INDIRECT) != wanted {
            return Ok(None);
        }
        let Descriptor { address, length, .. } = descriptor;
        Ok(memory.at(address, length).map(|host| Segment { host, guest: address, bytes: length }))
    }

    /// Appends the buffers of the chain at `head` and returns how long they are together.
    pub(crate) fn walk(
        &self,
        memory: &Memory,
        head: u16,
        segments: &mut Vec<Segment>,
    ) -> Result<u32, RingFault> {
        let mut total: u32 = 0;
        let mut descriptor = self.descriptor(head);
        if descriptor.flags & INDIRECT != 0 {
            return self.walk_indirect(memory, descriptor, segments);
        }
        for _ in 0..self.size {
            if descriptor.flags & INDIRECT != 0 {
                return Err(RingFault::IndirectNested);
            }
            total = self.append(memory, descriptor, total, segments)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(total);
            }
            let index = descriptor.next;
            if index >= self.size {
                return Err(RingFault::Index { index, size: self.size });
            }
            descriptor = self.descriptor(index);
        }
        Err(RingFault::Chain { max: self.size })
    }

    /// The same for a chain whose descriptors lie in a table of their own (virtio 1.2, 2.7.5.3).
    fn walk_indirect(
        &self,
        memory: &Memory,
        outer: Descriptor,
        segments: &mut Vec<Segment>,
    ) -> Result<u32, RingFault> {
        let Descriptor { address, length, flags, .. } = outer;
        let max = u32::from(self.size) * DESCRIPTOR_BYTES;
        if !self.indirect {
            return Err(RingFault::IndirectRefused);
        }
        if flags & NEXT != 0 {
            return Err(RingFault::IndirectNested);
        }
        if length == 0 || length % DESCRIPTOR_BYTES != 0 || length > max {
            return Err(RingFault::IndirectLength { length, max });
        }
        let outside = RingFault::Address { address, length };
        let table = memory.at(address, length).ok_or(outside)?.cast::<Unaligned>();
        let size = (length / DESCRIPTOR_BYTES) as u16;
        let mut total: u32 = 0;
        let mut index = 0;
        for _ in 0..size {
            // SAFETY: the index is within the table, which lies in the guest's memory; at any address such a descriptor is
            // aligned, and any bytes are one.
            let Unaligned(descriptor) = unsafe { table.add(usize::from(index)).read_volatile() };
            if descriptor.flags & INDIRECT != 0 {
                return Err(RingFault::IndirectNested);
            }
            total = self.append(memory, descriptor, total, segments)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(total);
            }
            index = descriptor.next;
            if index >= size {
                return Err(RingFault::Index { index, size });
            }
        }
        Err(RingFault::Chain { max: size })
    }

    /// Appends one descriptor's buffer, in pieces where it crosses regions. It must have bytes, as for QEMU's own devices: so a
    /// chain costs no more reads than it has bytes, however many chains share its descriptors.
    fn append(
        &self,
        memory: &Memory,
        descriptor: Descriptor,
        total: u32,
        segments: &mut Vec<Segment>,
    ) -> Result<u32, RingFault> {
        let Descriptor { address, length, flags, .. } = descriptor;
        match (self.direction, flags & WRITE != 0) {
            (Direction::FromGuest, true) => return Err(RingFault::Writable),
            (Direction::ToGuest, false) => return Err(RingFault::ReadOnly),
            _ => {}
        }
        if length == 0 {
            return Err(RingFault::Empty);
        }
        let outside = RingFault::Address { address, length };
        let sum = total.checked_add(length).ok_or(outside)?;
        let mut guest = address;
        let mut left = length;
        while left > 0 {
            let (host, bytes) = memory.part_at(guest, left).ok_or(outside)?;
            segments.push(Segment { host, guest, bytes });
            left -= bytes;
            // A region's end is an address too, so this is none that wraps round.
            guest = guest.wrapping_add(u64::from(bytes));
        }
        Ok(sum)
    }

    /// Brings the places of the next `count` used elements nearer, which the driver's processor has. Not the index: a driver
    /// that polls takes it back at once.
    #[inline]
    pub(crate) fn prefetch_used(&self, count: usize) {
        const ELEMENT_WORDS: usize = 4;
        const LINE_ELEMENTS: usize = 8;
        for ahead in (0..count).step_by(LINE_ELEMENTS) {
            let place = usize::from(self.finished).wrapping_add(ahead) & self.mask;
            prefetch_to_write(self.used.wrapping_add(2 + ELEMENT_WORDS * place).cast());
        }
    }

    /// Takes the next chain: it will be used.
    #[inline]
    pub(crate) fn take(&mut self) {
        self.next = self.next.wrapping_add(1);
    }

    /// Takes the last `count` chains no more: they are the next again. None of them is used.
    pub(crate) fn untake(&mut self, count: u16) {
        debug_assert!(count <= self.next.wrapping_sub(self.finished));
        self.next = self.next.wrapping_sub(count);
    }

    /// Whether half a ring of chains can be taken.
    pub(crate) fn is_half_free(&mut self) -> bool {
        self.look().is_ok_and(|known| known >= self.size / 2)
    }

    /// Writes the next used element: the chain at `head` is done, `written` bytes of it were written by us. The driver
    /// does not see it before [`Ring::publish`].
    #[inline]
    pub(crate) fn finish(&mut self, head: u16, written: u32) {
        let place = usize::from(self.finished) & self.mask;
        let element = u64::from(head) | u64::from(written) << 32;
        // SAFETY: the place is within the ring, which was checked to lie in the guest's memory.
        unsafe { self.used.add(2 + 4 * place).cast::<u64>().write_unaligned(element.to_le()) };
        self.finished = self.finished.wrapping_add(1);
    }

    /// Shows the driver all used elements and tells it, if it wants to be told.
    #[inline]
    pub(crate) fn publish(&mut self, log: Option<&DirtyLog>) {
        if self.finished == self.published {
            return;
        }
        let before = std::mem::replace(&mut self.published, self.finished);
        self.used_word(1).store(self.finished, Ordering::Release);
        if let (Some(log), Some(used)) = (log, self.used_log) {
            log.note(used, 6 + 8 * u64::from(self.size));
        }
        // The driver stores its wish and then looks at our index; we store the index and then look at its wish.
        fence(Ordering::SeqCst);
        if self.wants_call(before) {
            self.call();
        }
    }

    fn wants_call(&self, before: u16) -> bool {
        if self.event_index {
            let event = self.available_word(2 + usize::from(self.size)).load(Ordering::Relaxed);
            return crossed(event, before, self.finished);
        }
        self.available_word(0).load(Ordering::Relaxed) & NO_INTERRUPT == 0
    }

    /// Interrupts the guest.
    pub(crate) fn call(&self) {
        if let Some(call) = &self.call {
            let _ = rustix::io::write(call, &1u64.to_ne_bytes());
        }
    }

    /// Asks the driver not to tell us of new chains: we look by ourselves.
    pub(crate) fn silence(&mut self) {
        if !self.event_index {
            self.used_word(0).store(NO_NOTIFY, Ordering::Relaxed);
        }
        // With EVENT_IDX the wish that is there lies behind, and is met again only after 65,536 chains: one needless kick.
    }

    /// Asks the driver to tell us of the next new chain, and returns whether there is one already.
    pub(crate) fn listen(&mut self) -> Result<bool, RingFault> {
        match self.event_index {
            true => self.used_word(2 + 4 * usize::from(self.size)),
            false => self.used_word(0),
        }
        .store(if self.event_index { self.next } else { 0 }, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        Ok(self.look()? > 0)
    }

    #[inline]
    fn descriptor(&self, index: u16) -> Descriptor {
        debug_assert!(index < self.size);
        // SAFETY: every caller checked the index against the size; the table was checked to lie in the guest's memory.
        unsafe { self.descriptors.add(usize::from(index)).read_volatile() }
    }

    /// The 16-bit word at a place in `available`.
    #[inline]
    fn available_word(&self, word: usize) -> &AtomicU16 {
        // SAFETY: flags, index, heads and used_event are words 0 to 2 + size of an area that was checked to be there and
        // aligned; the driver changes them as atomically as we read.
        unsafe { AtomicU16::from_ptr(self.available.cast_mut().add(word)) }
    }

    /// The 16-bit word at a place in `used`.
    #[inline]
    fn used_word(&self, word: usize) -> &AtomicU16 {
        // SAFETY: as above, for words 0 to 2 + 4 · size.
        unsafe { AtomicU16::from_ptr(self.used.add(word)) }
    }
}

/// Whether an index wished for lies among those passed (virtio 1.2, 2.7.10, `vring_need_event`).
fn crossed(event: u16, before: u16, after: u16) -> bool {
    after.wrapping_sub(event).wrapping_sub(1) < after.wrapping_sub(before)
}

/// Brings a cache line nearer for reading.
#[inline]
pub(crate) fn prefetch_to_read(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch changes nothing and does not fault, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Brings a cache line nearer for writing: away from the core that wrote it last.
#[inline]
pub(crate) fn prefetch_to_write(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above. Processors without the instruction take it for a no-operation (AMD64, PREFETCHW).
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) address, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
