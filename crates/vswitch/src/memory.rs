//! A guest's memory as its hypervisor shares it: mapped once per port, and the one place where an address that a guest
//! wrote becomes a pointer.
//!
//! Regions are few (QEMU: one to three without hot-added memory), so a search is a walk with the last hit first.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::options::GuestMemory;

/// Pages of the dirty log are 4 KiB (vhost-user, "Migration").
const LOG_PAGE_BYTES: u64 = 4096;

/// A part of a file, mapped for reading and writing until it is dropped.
#[derive(Debug)]
struct Mapping {
    address: NonNull<u8>,
    bytes: usize,
    /// Where in the mapping the wanted part begins.
    lead: usize,
}

// SAFETY: the mapping belongs to this value alone; what lies in it is shared with another process anyway and only
// reached through raw pointers.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method changes the value.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `bytes` bytes of a file from `offset` on. Fails when the file does not have them or, if asked, could lose them.
    fn new(file: &File, offset: u64, bytes: u64, trust: GuestMemory) -> io::Result<Mapping> {
        let refused = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, why);
        let status = fstat(file)?;
        let end = offset.checked_add(bytes).ok_or_else(|| refused("the region has no end"))?;
        if u64::try_from(status.st_size).unwrap_or(0) < end {
            return Err(refused("the file is shorter than the region"));
        }
        if trust == GuestMemory::Sealed && !fcntl_get_seals(file)?.contains(SealFlags::SHRINK) {
            return Err(refused("the memory is not sealed against shrinking"));
        }
        // Huge pages are mapped and unmapped whole.
        let page = u64::try_from(status.st_blksize).unwrap_or(0).max(LOG_PAGE_BYTES);
        let lead = offset % page;
        let length = usize::try_from((lead + bytes).next_multiple_of(page))
            .map_err(|_| refused("the region is too long"))?;
        // SAFETY: a fresh mapping at an address of the kernel's choice; no memory of ours is replaced.
        let address = unsafe {
            mmap(
                ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                file,
                offset - lead,
            )?
        };
        let address =
            NonNull::new(address.cast()).ok_or_else(|| refused("the region is at address 0"))?;
        Ok(Mapping { address, bytes: length, lead: usize::try_from(lead).unwrap_or(0) })
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: `lead` is less than the mapping's length.
        unsafe { self.address.as_ptr().add(self.lead) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: address and length are those of our own mapping, and whoever has a pointer into it has this value too.
        let _ = unsafe { munmap(self.address.as_ptr().cast(), self.bytes) };
    }
}

/// One region of the table (vhost-user, "Memory regions description").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegionAddress {
    /// Where the guest sees it.
    pub(crate) guest: u64,
    /// Where the hypervisor has it mapped; ring addresses are given so.
    pub(crate) user: u64,
    pub(crate) bytes: u64,
    pub(crate) file_offset: u64,
}

#[derive(Debug)]
pub(crate) struct Region {
    address: RegionAddress,
    host: *mut u8,
    _mapping: Mapping,
}

// SAFETY: `host` points into the mapping that the value owns.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    pub(crate) fn new(
        address: RegionAddress,
        file: &File,
        trust: GuestMemory,
    ) -> io::Result<Region> {
        let mapping = Mapping::new(file, address.file_offset, address.bytes, trust)?;
        Ok(Region { address, host: mapping.start(), _mapping: mapping })
    }

    pub(crate) fn address(&self) -> RegionAddress {
        self.address
    }
}

/// All memory of one guest.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    regions: Vec<std::sync::Arc<Region>>,
}

impl Memory {
    pub(crate) fn new(regions: Vec<std::sync::Arc<Region>>) -> Memory {
        Memory { regions }
    }

    /// The pointer to `bytes` bytes at a guest's address, if they lie in one region.
    #[inline]
    pub(crate) fn at(&self, guest: u64, bytes: u32) -> Option<*mut u8> {
        self.regions.iter().find_map(|region| {
            let offset = guest.wrapping_sub(region.address.guest);
            let fits =
                offset < region.address.bytes && u64::from(bytes) <= region.address.bytes - offset;
            // SAFETY: the offset is within the region, which is mapped as long as this value lives.
            fits.then(|| unsafe { region.host.add(offset as usize) })
        })
    }

    /// The pointer to what lies at a guest's address, and how many of `bytes` follow there before the region ends.
    #[inline]
    pub(crate) fn part_at(&self, guest: u64, bytes: u32) -> Option<(*mut u8, u32)> {
        self.regions.iter().find_map(|region| {
            let offset = guest.wrapping_sub(region.address.guest);
            (offset < region.address.bytes).then(|| {
                let left = (region.address.bytes - offset).min(u64::from(bytes));
                // SAFETY: as in `at`. `left` is at most `bytes`, so it fits.
                (unsafe { region.host.add(offset as usize) }, left as u32)
            })
        })
    }

    /// The pointer to `bytes` bytes at an address of the hypervisor's, and their guest address.
    pub(crate) fn at_user(&self, user: u64, bytes: u64) -> Option<(*mut u8, u64)> {
        self.regions.iter().find_map(|region| {
            let offset = user.wrapping_sub(region.address.user);
            let fits = offset < region.address.bytes && bytes <= region.address.bytes - offset;
            fits.then(|| {
                // SAFETY: as in `at`.
                let host = unsafe { region.host.add(offset as usize) };
                (host, region.address.guest + offset)
            })
        })
    }
}

/// The bits that tell a migrating hypervisor which pages were written: bit N of the log is page N of the guest.
#[derive(Debug)]
pub(crate) struct DirtyLog {
    mapping: Mapping,
    bytes: usize,
}

impl DirtyLog {
    pub(crate) fn new(
        file: &File,
        offset: u64,
        bytes: u64,
        trust: GuestMemory,
    ) -> io::Result<DirtyLog> {
        let mapping = Mapping::new(file, offset, bytes, trust)?;
        Ok(DirtyLog { mapping, bytes: usize::try_from(bytes).unwrap_or(0) })
    }

    /// Notes that `bytes` bytes at a guest's address were written. Pages beyond the log are nobody's.
    pub(crate) fn note(&self, guest: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let last = guest.saturating_add(bytes - 1) / LOG_PAGE_BYTES;
        for page in guest / LOG_PAGE_BYTES..=last {
            let byte = usize::try_from(page / 8).unwrap_or(usize::MAX);
            if byte >= self.bytes {
                return;
            }
            // SAFETY: the byte lies within the mapping, which lives as long as this value; an atomic byte has the layout
            // of a byte, and the other side changes it atomically too.
            let cell = unsafe { AtomicU8::from_ptr(self.mapping.start().add(byte)) };
            cell.fetch_or(1 << (page % 8), Ordering::Relaxed);
        }
    }
}
