//! Images in QEMU's qcow2 format: what the header of one says (`header`), and images that hold nothing yet, alone or over
//! another store. Those are made by hpvmclone for linked clones, and for copies that QEMU fills.
//! An image is laid out as QEMU's docs/interop/qcow2.txt (version 3) says, in clusters of 64 KiB:
//!
//! ```text
//! cluster 0   header, its extensions, the name of what lies below
//! cluster 1   refcount table: one entry, which leads to cluster 2
//! cluster 2   refcounts of the first 32,768 clusters: 1 for each that is here
//! cluster 3…  first-level table: one entry for each 512 MiB of the disk, all 0 (look below)
//! ```
//!
//! The name of what lies below stands there for people and their tools; hpvm tells QEMU itself and reads no name.

pub mod header;

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub use header::{Head, Header, HeaderFault, disk_size, head};

const MAGIC: [u8; 4] = *b"QFI\xfb";
const CLUSTER_BITS: u32 = 16;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;
const HEADER_BYTES: u32 = 104;
/// What one entry of the first-level table covers: a cluster full of 8-byte entries, each of a cluster.
const COVERED_BYTES: u64 = CLUSTER_BYTES / 8 * CLUSTER_BYTES;
/// The header extension that names the format of what lies below.
const FORMAT_EXTENSION: u32 = 0xe279_2aca;
/// A longer path cannot be written there, and of such a one the file's own name is.
const NAME_BYTES_MAX: usize = 1023;
const FIRST_LEVEL_CLUSTER: u64 = 3;
/// QEMU takes no larger first-level table (32 MiB).
const FIRST_LEVEL_ENTRIES_MAX: u64 = (32 << 20) / 8;
const SECTOR_BYTES: u64 = 512;

/// What lies below an image.
#[derive(Clone, Copy, Debug)]
pub struct Base<'a> {
    pub path: &'a Path,
    pub format: Format,
    /// Of the disk, as the guest sees it.
    pub size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Raw,
    Qcow2,
}

/// Makes an empty file an image over `base`. Not synced.
pub fn write_overlay(image: &File, base: &Base<'_>) -> io::Result<()> {
    write(image, base.size, Some(base))
}

/// Makes an empty file the image of a disk of `size` bytes that nothing was written to yet. Not synced.
pub fn write_empty(image: &File, size: u64) -> io::Result<()> {
    write(image, size, None)
}

fn write(image: &File, size: u64, base: Option<&Base<'_>>) -> io::Result<()> {
    let size = size.next_multiple_of(SECTOR_BYTES);
    let entries = size.div_ceil(COVERED_BYTES);
    if entries > FIRST_LEVEL_ENTRIES_MAX {
        return Err(io::Error::other("the disk is too large for an image"));
    }
    let clusters = FIRST_LEVEL_CLUSTER + (entries * 8).div_ceil(CLUSTER_BYTES).max(1);
    image.set_len(clusters * CLUSTER_BYTES)?;
    image.write_all_at(&header(base, size, entries), 0)?;
    image.write_all_at(&(2 * CLUSTER_BYTES).to_be_bytes(), CLUSTER_BYTES)?;
    let counts: Vec<u8> = (0..clusters).flat_map(|_| 1u16.to_be_bytes()).collect();
    image.write_all_at(&counts, 2 * CLUSTER_BYTES)
}

/// What is written of a path. Without any name the image would say that nothing lies below it.
fn name(path: &Path) -> &[u8] {
    let whole = path.as_os_str().as_bytes();
    match path.file_name() {
        Some(own) if whole.len() > NAME_BYTES_MAX => own.as_bytes(),
        _ => whole,
    }
}

fn header(base: Option<&Base<'_>>, size: u64, entries: u64) -> Vec<u8> {
    let name = base.map(|base| name(base.path)).unwrap_or_default();
    // Behind the header and two extensions: the format with its head of 8 bytes, and the end.
    let name_place = if name.is_empty() { 0 } else { u64::from(HEADER_BYTES) + 16 + 8 };
    let mut bytes = MAGIC.to_vec();
    let number32 = |bytes: &mut Vec<u8>, value: u32| bytes.extend(value.to_be_bytes());
    let number64 = |bytes: &mut Vec<u8>, value: u64| bytes.extend(value.to_be_bytes());
    number32(&mut bytes, 3); // version
    number64(&mut bytes, name_place);
    number32(&mut bytes, u32::try_from(name.len()).unwrap_or_default());
    number32(&mut bytes, CLUSTER_BITS);
    number64(&mut bytes, size);
    number32(&mut bytes, 0); // not encrypted
    number32(&mut bytes, u32::try_from(entries).unwrap_or_default());
    number64(&mut bytes, FIRST_LEVEL_CLUSTER * CLUSTER_BYTES);
    number64(&mut bytes, CLUSTER_BYTES); // refcount table
    number32(&mut bytes, 1); // its clusters
    number32(&mut bytes, 0); // snapshots
    number64(&mut bytes, 0); // their table
    number64(&mut bytes, 0); // incompatible features
    number64(&mut bytes, 0); // compatible features
    number64(&mut bytes, 0); // features to clear
    number32(&mut bytes, 4); // a refcount has 2^4 bits
    number32(&mut bytes, HEADER_BYTES);
    if let Some(base) = base {
        let format: &[u8] = match base.format {
            Format::Raw => b"raw\0\0\0\0\0",
            Format::Qcow2 => b"qcow2\0\0\0",
        };
        number32(&mut bytes, FORMAT_EXTENSION);
        number32(&mut bytes, if base.format == Format::Raw { 3 } else { 5 });
        bytes.extend(format);
    }
    number64(&mut bytes, 0); // end of extensions
    bytes.extend(name);
    bytes
}
