//! The memory of a guest that a test plays: a sealed memfd, as QEMU's, mapped here and lent to the switch.

use std::fs::File;
use std::os::fd::AsRawFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vhost::VhostUserMemoryRegionInfo;

pub(crate) const BYTES: usize = 64 << 20;
/// Where the guest sees it: not where anybody else does.
pub(crate) const GUEST_BASE: u64 = 0x4000_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seals {
    Shrink,
    None,
}

pub(crate) struct Memory {
    file: File,
    start: *mut u8,
}

impl Memory {
    pub(crate) fn new(seals: Seals) -> Memory {
        let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
        let descriptor = memfd_create("guest", flags).expect("a memfd");
        ftruncate(&descriptor, BYTES as u64).expect("its length");
        if seals == Seals::Shrink {
            fcntl_add_seals(&descriptor, SealFlags::SHRINK).expect("its seal");
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let start = unsafe {
            mmap(std::ptr::null_mut(), BYTES, protection, MapFlags::SHARED, &descriptor, 0)
        };
        Memory { file: descriptor.into(), start: start.expect("a mapping").cast() }
    }

    /// Two regions, so that addresses are looked for and buffers can lie across.
    pub(crate) fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let half = (BYTES / 2) as u64;
        let region = |offset: u64| VhostUserMemoryRegionInfo {
            guest_phys_addr: GUEST_BASE + offset,
            memory_size: half,
            userspace_addr: self.user(offset as usize),
            mmap_offset: offset,
            mmap_handle: self.file.as_raw_fd(),
        };
        vec![region(0), region(half)]
    }

    pub(crate) fn user(&self, offset: usize) -> u64 {
        self.start as u64 + offset as u64
    }

    pub(crate) fn guest(offset: usize) -> u64 {
        GUEST_BASE + offset as u64
    }

    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= BYTES);
        // SAFETY: the range lies in the mapping.
        unsafe {
            self.start.add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }

    pub(crate) fn read(&self, offset: usize, bytes: usize) -> Vec<u8> {
        assert!(offset + bytes <= BYTES);
        let mut read = vec![0; bytes];
        // SAFETY: the range lies in the mapping.
        unsafe { self.start.add(offset).copy_to_nonoverlapping(read.as_mut_ptr(), bytes) };
        read
    }

    /// The 16-bit word at an even offset, as both sides change it.
    pub(crate) fn word(&self, offset: usize) -> &std::sync::atomic::AtomicU16 {
        assert!(offset + 2 <= BYTES && offset.is_multiple_of(2));
        // SAFETY: the word lies in the mapping, aligned, as long as this value lives.
        unsafe { std::sync::atomic::AtomicU16::from_ptr(self.start.add(offset).cast()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody has a pointer into it beyond this value's life.
        let _ = unsafe { munmap(self.start.cast(), BYTES) };
    }
}
