//! Signs on a device that it belongs to something which is not running: a volume group, a RAID set, a pool.
//!
//! Called by `uses`, only when asked for, since a guest may have written them on its own disk. It reads a few places of the
//! device through a [`Probe`] and believes nothing more than what makes the sign certain.
//!
//! | sign | where | source |
//! | --- | --- | --- |
//! | LVM2 | `LABELONE` at the start of one of sectors 0–3, its own number at 8, `LVM2 001` at 24 | lvm2 lib/label/label.h |
//! | md 1.1, 1.2, 1.0 | magic at 0, at 4 KiB, and 8 KiB before the end on a 4 KiB boundary; own sector at 128 | md_p.h |
//! | md 0.90 | magic in the last whole 64 KiB block | md_p.h |
//! | DDF, Intel | `DE11DE11` in the last sector; `Intel Raid ISM Cfg Sig. ` in the last but one | SNIA DDF 2.0; mdadm |
//! | LUKS | `LUKS` BA BE at 0, version 1 or 2 | LUKS2 on-disk format |
//! | btrfs | `_BHRfS_M` at 64 KiB + 64 | btrfs_tree.h |
//! | ZFS | an uberblock's magic in the second half of a 256 KiB label: two at the start, two at the end | ZFS on-disk format |
//! | swap | `SWAPSPACE2` or `SWAP-SPACE` in the last 10 bytes of a page of 4, 8, 16 or 64 KiB | linux/swap.h |
//! | bcache | its uuid at 4 KiB + 24 | bcache_ondisk.h |
//! | Ceph | `bluestore block device` at 0 | ceph BlueStore.cc |

use std::fmt;

use super::device::Device;
use super::probe::{Probe, ProbeError};

/// What a device belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signature {
    Lvm,
    Raid,
    FirmwareRaid,
    Luks { version: u16 },
    Btrfs,
    Zfs,
    Swap,
    Bcache,
    Ceph,
}

impl fmt::Display for Signature {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lvm => out.write_str("holds an LVM physical volume"),
            Self::Raid => out.write_str("holds a member of a RAID set (md)"),
            Self::FirmwareRaid => out.write_str("holds a member of a RAID set of the firmware"),
            Self::Luks { version } => write!(out, "holds an encrypted volume (LUKS{version})"),
            Self::Btrfs => out.write_str("holds a member of a btrfs file system"),
            Self::Zfs => out.write_str("holds a ZFS pool member"),
            Self::Swap => out.write_str("holds swap space"),
            Self::Bcache => out.write_str("holds a member of a bcache set"),
            Self::Ceph => out.write_str("holds a Ceph object store"),
        }
    }
}

const KIB: u64 = 1024;
const SECTOR: u64 = 512;
const MD_MAGIC: u32 = 0xa92b_4efc;
const MD_SUPER_SECTOR: usize = 128;
const DDF_MAGIC: [u8; 4] = [0xde, 0x11, 0xde, 0x11];
const INTEL: &[u8] = b"Intel Raid ISM Cfg Sig. ";
const LUKS: &[u8] = b"LUKS\xba\xbe";
const BTRFS: &[u8] = b"_BHRfS_M";
const CEPH: &[u8] = b"bluestore block device";
const BCACHE: [u8; 16] = [
    0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81,
];
const ZFS_LABEL: u64 = 256 * KIB;
const ZFS_UBERBLOCKS: u64 = 128 * KIB;
const ZFS_MAGIC: u64 = 0x00ba_b10c;
const PAGES: [u64; 4] = [4 * KIB, 8 * KIB, 16 * KIB, 64 * KIB];

/// What is read of a device's start at once: everything that lies there but btrfs, ZFS and large pages.
const HEAD: usize = 16 * 1024;

/// The signatures on a device, each once.
pub fn signatures(probe: &dyn Probe, device: &Device) -> Result<Vec<Signature>, ProbeError> {
    let bytes = Bytes { probe, device, size: device.size_bytes };
    let head = bytes.at(0, HEAD)?;
    let mut found = Vec::new();
    let mut note = |is_there: bool, signature| {
        if is_there {
            found.push(signature);
        }
    };
    note(is_lvm(&head), Signature::Lvm);
    note(is_raid(&bytes, &head)?, Signature::Raid);
    note(is_firmware_raid(&bytes)?, Signature::FirmwareRaid);
    note(is_at(&bytes.at(64 * KIB + 64, BTRFS.len())?, 0, BTRFS), Signature::Btrfs);
    note(is_zfs(&bytes)?, Signature::Zfs);
    note(is_swap(&bytes, &head)?, Signature::Swap);
    note(is_at(&head, 4096 + 24, &BCACHE), Signature::Bcache);
    note(is_at(&head, 0, CEPH), Signature::Ceph);
    if let Some(version) = luks_version(&head) {
        found.push(Signature::Luks { version });
    }
    Ok(found)
}

fn is_lvm(head: &[u8]) -> bool {
    (0..4).any(|sector: u64| {
        let at = sector as usize * SECTOR as usize;
        is_at(head, at, b"LABELONE")
            && is_at(head, at + 8, &sector.to_le_bytes())
            && is_at(head, at + 24, b"LVM2 001")
    })
}

fn is_raid(bytes: &Bytes<'_>, head: &[u8]) -> Result<bool, ProbeError> {
    let sectors = bytes.size / SECTOR;
    let places = [(0, 0), (4096, 8)];
    if places.iter().any(|(at, sector)| is_md_1(head.get(*at..).unwrap_or_default(), *sector)) {
        return Ok(true);
    }
    if let Some(sector) = sectors.checked_sub(16).map(|sector| sector & !7)
        && is_md_1(&bytes.at(sector * SECTOR, 256)?, sector)
    {
        return Ok(true);
    }
    let Some(last) = (bytes.size & !(64 * KIB - 1)).checked_sub(64 * KIB) else {
        return Ok(false);
    };
    // 0.90 is in the byte order of the machine that wrote it.
    let block = bytes.at(last, 8)?;
    let written = |to_bytes: fn(u32) -> [u8; 4]| {
        is_at(&block, 0, &to_bytes(MD_MAGIC)) && is_at(&block, 4, &to_bytes(0))
    };
    Ok(written(u32::to_le_bytes) || written(u32::to_be_bytes))
}

fn is_md_1(block: &[u8], sector: u64) -> bool {
    is_at(block, 0, &MD_MAGIC.to_le_bytes())
        && is_at(block, 4, &1_u32.to_le_bytes())
        && is_at(block, MD_SUPER_SECTOR, &sector.to_le_bytes())
}

fn is_firmware_raid(bytes: &Bytes<'_>) -> Result<bool, ProbeError> {
    let Some(at) = (bytes.size / SECTOR).checked_sub(2).map(|sector| sector * SECTOR) else {
        return Ok(false);
    };
    let last = bytes.at(at, 2 * SECTOR as usize)?;
    Ok(is_at(&last, 0, INTEL) || is_at(&last, SECTOR as usize, &DDF_MAGIC))
}

fn is_zfs(bytes: &Bytes<'_>) -> Result<bool, ProbeError> {
    let end = bytes.size & !(ZFS_LABEL - 1);
    let labels =
        [Some(0), Some(ZFS_LABEL), end.checked_sub(2 * ZFS_LABEL), end.checked_sub(ZFS_LABEL)];
    for label in labels.into_iter().flatten() {
        let ring = bytes.at(label + ZFS_UBERBLOCKS, (ZFS_LABEL - ZFS_UBERBLOCKS) as usize)?;
        // Each uberblock begins on a KiB at least, in the byte order of its writer.
        let is_uberblock = |block: &[u8]| {
            is_at(block, 0, &ZFS_MAGIC.to_le_bytes()) || is_at(block, 0, &ZFS_MAGIC.to_be_bytes())
        };
        if ring.chunks(KIB as usize).any(is_uberblock) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_swap(bytes: &Bytes<'_>, head: &[u8]) -> Result<bool, ProbeError> {
    let is_sign = |text: &[u8]| is_at(text, 0, b"SWAPSPACE2") || is_at(text, 0, b"SWAP-SPACE");
    for page in PAGES {
        let at = (page - 10) as usize;
        let there = match head.get(at..at + 10) {
            Some(text) => is_sign(text),
            None => is_sign(&bytes.at(at as u64, 10)?),
        };
        if there {
            return Ok(true);
        }
    }
    Ok(false)
}

fn luks_version(head: &[u8]) -> Option<u16> {
    let version = u16::from_be_bytes(head.get(6..8)?.try_into().ok()?);
    (is_at(head, 0, LUKS) && (1..=2).contains(&version)).then_some(version)
}

fn is_at(bytes: &[u8], at: usize, wanted: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(wanted))
}

/// A device's content. What lies beyond its end is empty.
struct Bytes<'probe> {
    probe: &'probe dyn Probe,
    device: &'probe Device,
    size: u64,
}

impl Bytes<'_> {
    fn at(&self, offset: u64, length: usize) -> Result<Vec<u8>, ProbeError> {
        let left = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = length.min(left);
        if length == 0 {
            return Ok(Vec::new());
        }
        self.probe.read(self.device, offset, length)
    }
}
