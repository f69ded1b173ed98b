//! What an image's header says, read strictly (QEMU, docs/interop/qcow2.rst, 'Header'; the bounds beyond that are those of its
//! block/qcow2.c). Called when an image is named, so that one that QEMU would never open is refused then, in words that say
//! what it is about, and once more on the very file that a guest gets. The header alone is looked at: tables and clusters are
//! QEMU's to judge.
//!
//! ```text
//! 0  magic            24  size of the disk             56  refcount table's clusters   80  compatible features
//! 4  version          32  encryption                   60  snapshots                   88  features to clear
//! 8  backing file's   36  first-level table's entries  64  their table's place         96  bits of a refcount, as a power
//!    name: place      40  its place                    72  incompatible features       100 length of the header
//! 16 its length       48  refcount table's place           (from here on version 3)    104 compression
//! 20 bytes of a cluster, as a power
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use hpvm_model::Below;

use super::{FORMAT_EXTENSION, MAGIC, NAME_BYTES_MAX, SECTOR_BYTES};

/// What a file is by its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// Whatever it is, it does not begin as an image does.
    Other,
    Image(Header),
    Unusable(HeaderFault),
}

/// An image that QEMU can be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub below: Below,
}

/// Why an image is of no use to a guest: a clause whose subject is the image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    #[error("it ends after {0} bytes, within its header")]
    Short(u64),
    #[error("it is of version {0}, and versions 2 and 3 can be used")]
    Version(u32),
    #[error("its clusters have 2^{0} bytes, and 2^9 to 2^21 can be used")]
    ClusterBits(u32),
    #[error("its clusters have 2^{0} bytes, which is too little for the extended entries it has")]
    ExtendedEntries(u32),
    #[error("its header says that it has {0} bytes itself, which it cannot have")]
    HeaderLength(u32),
    #[error("it has features that QEMU does not know (bits {0:#x})")]
    Features(u64),
    #[error("it is marked as damaged; `qemu-img check -r all` mends what can be mended")]
    Corrupt,
    #[error(
        "its data are in another file, and an image given to a guest has to stand alone; `qemu-img convert -O qcow2` makes such a copy"
    )]
    ExternalData,
    #[error(
        "it is encrypted, and guests are given no keys; `qemu-img convert -O qcow2` makes a copy without encryption"
    )]
    Encrypted,
    #[error("it says one thing of its compression in one place and another in another")]
    Compression,
    #[error("its refcounts have 2^{0} bits, and 2^6 can be used at most")]
    RefcountBits(u32),
    #[error("its disk is said to have {0} bytes, which is more than QEMU can offer")]
    DiskSize(u64),
    #[error("it has no refcount table")]
    NoRefcounts,
    #[error("its {0} is said to be larger than QEMU takes")]
    Large(Table),
    #[error("its {0} is said to lie where it cannot be")]
    Place(Table),
    #[error("its first-level table is too small for a disk of {0} bytes")]
    FirstLevel(u64),
    #[error("the name of the file on which it is built is said to lie where it cannot be")]
    Name,
}

/// A table that the header says the place of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    FirstLevel,
    Refcounts,
    Snapshots,
}

impl std::fmt::Display for Table {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Table::FirstLevel => "first-level table",
            Table::Refcounts => "refcount table",
            Table::Snapshots => "table of snapshots",
        })
    }
}

impl Table {
    fn bytes_max(self) -> u64 {
        match self {
            Table::FirstLevel => 32 << 20,
            Table::Refcounts => 8 << 20,
            Table::Snapshots => 64 << 20,
        }
    }
}

/// How many bytes are looked at: all that any known version has, and what the first extension is.
const LOOKED_AT: usize = 116;
/// The length of a version 2 header, and the least of a version 3 one.
const VERSION_2_BYTES: u32 = 72;
const VERSION_3_BYTES_MIN: u32 = 104;

/// Incompatible features.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_L2;

/// Parts of a cluster that extended entries tell of; none may be smaller than a sector.
const SUBCLUSTER_BITS: u32 = 5;

/// Reads what a file is by its head.
pub fn head(image: &File) -> io::Result<Head> {
    let length = image.metadata()?.len();
    Ok(judge(&first_bytes(image, length)?, length))
}

/// The size of the disk in an image, whatever else its header says; `None`: it is no image of this format.
pub fn disk_size(image: &File) -> io::Result<Option<u64>> {
    let head = first_bytes(image, image.metadata()?.len())?;
    let is_image = head.starts_with(&MAGIC) && head.len() >= VERSION_2_BYTES as usize;
    Ok(is_image.then(|| Fields(&head).disk_bytes()))
}

fn first_bytes(image: &File, length: u64) -> io::Result<Vec<u8>> {
    // A hint: the kernel would read ahead a thousand times as much.
    let _ = rustix::fs::fadvise(image, 0, None, rustix::fs::Advice::Random);
    let mut head = vec![0; usize::try_from(length).unwrap_or(LOOKED_AT).min(LOOKED_AT)];
    image.read_exact_at(&mut head, 0)?;
    Ok(head)
}

/// What a file of this length is that begins so.
#[must_use]
pub fn judge(head: &[u8], length: u64) -> Head {
    match head.starts_with(&MAGIC) {
        false => Head::Other,
        true => match parse(&Fields(head), length) {
            Ok(header) => Head::Image(header),
            Err(fault) => Head::Unusable(fault),
        },
    }
}

/// The bytes of a header; what is beyond their end is 0, as QEMU reads it.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn byte(&self, place: usize) -> u8 {
        self.0.get(place).copied().unwrap_or_default()
    }

    fn number32(&self, place: usize) -> u32 {
        u32::from_be_bytes(std::array::from_fn(|at| self.byte(place + at)))
    }

    fn number64(&self, place: usize) -> u64 {
        u64::from_be_bytes(std::array::from_fn(|at| self.byte(place + at)))
    }

    fn disk_bytes(&self) -> u64 {
        self.number64(24)
    }
}

fn parse(fields: &Fields<'_>, length: u64) -> Result<Header, HeaderFault> {
    let version = fields.number32(4);
    let least = if version == 3 { VERSION_3_BYTES_MIN } else { VERSION_2_BYTES };
    if length < u64::from(least) {
        return Err(HeaderFault::Short(length));
    }
    if !matches!(version, 2 | 3) {
        return Err(HeaderFault::Version(version));
    }
    let cluster_bits = fields.number32(20);
    if !(9..=21).contains(&cluster_bits) {
        return Err(HeaderFault::ClusterBits(cluster_bits));
    }
    let cluster_bytes = 1u64 << cluster_bits;
    let header_bytes = if version == 2 { VERSION_2_BYTES } else { fields.number32(100) };
    if version == 3 && header_bytes < VERSION_3_BYTES_MIN || u64::from(header_bytes) > cluster_bytes
    {
        return Err(HeaderFault::HeaderLength(header_bytes));
    }
    if length < u64::from(header_bytes) {
        return Err(HeaderFault::Short(length));
    }
    let features = if version == 2 { 0 } else { fields.number64(72) };
    self::features(features)?;
    if fields.number32(32) != 0 {
        return Err(HeaderFault::Encrypted);
    }
    // Behind the bytes that each version 3 header has.
    let compression = if header_bytes > VERSION_3_BYTES_MIN { fields.byte(104) } else { 0 };
    if (compression != 0) != (features & COMPRESSION != 0) {
        return Err(HeaderFault::Compression);
    }
    let refcount_order = if version == 2 { 4 } else { fields.number32(96) };
    if refcount_order > 6 {
        return Err(HeaderFault::RefcountBits(refcount_order));
    }
    let is_extended = features & EXTENDED_L2 != 0;
    if is_extended && cluster_bytes >> SUBCLUSTER_BITS < SECTOR_BYTES {
        return Err(HeaderFault::ExtendedEntries(cluster_bits));
    }
    tables(fields, length, cluster_bits, is_extended)?;
    Ok(Header { below: below(fields, header_bytes, cluster_bytes)? })
}

fn features(features: u64) -> Result<(), HeaderFault> {
    match features {
        unknown if unknown & !KNOWN != 0 => Err(HeaderFault::Features(unknown & !KNOWN)),
        external if external & EXTERNAL_DATA != 0 => Err(HeaderFault::ExternalData),
        corrupt if corrupt & CORRUPT != 0 => Err(HeaderFault::Corrupt),
        _ => Ok(()),
    }
}

fn tables(
    fields: &Fields<'_>,
    length: u64,
    cluster_bits: u32,
    is_extended: bool,
) -> Result<(), HeaderFault> {
    let (disk_bytes, entries) = (fields.disk_bytes(), u64::from(fields.number32(36)));
    if i64::try_from(disk_bytes).is_err() {
        return Err(HeaderFault::DiskSize(disk_bytes));
    }
    let place = |table: Table, at: u64, bytes: u64| {
        if bytes > table.bytes_max() {
            return Err(HeaderFault::Large(table));
        }
        let is_whole = at.is_multiple_of(1 << cluster_bits);
        // Nothing is in the header's own place, nor behind the file's end.
        match bytes == 0 || is_whole && at != 0 && at < length {
            true => Ok(()),
            false => Err(HeaderFault::Place(table)),
        }
    };
    let refcount_clusters = u64::from(fields.number32(56));
    if refcount_clusters == 0 {
        return Err(HeaderFault::NoRefcounts);
    }
    place(Table::Refcounts, fields.number64(48), refcount_clusters << cluster_bits)?;
    place(Table::FirstLevel, fields.number64(40), entries * 8)?;
    // 40 bytes each, and what belongs to them.
    place(Table::Snapshots, fields.number64(64), u64::from(fields.number32(60)) * 40)?;
    // A second-level table is a cluster of entries, of which extended ones have twice the bytes.
    let entry_bits = if is_extended { 4 } else { 3 };
    let covered = 1u64 << (cluster_bits + cluster_bits - entry_bits);
    match entries < disk_bytes.div_ceil(covered) {
        true => Err(HeaderFault::FirstLevel(disk_bytes)),
        false => Ok(()),
    }
}

/// Where a base's path was too long for a header, linked clones were once made that name its format alone; QEMU writes that
/// extension first, and none without a name that was not there already.
fn below(fields: &Fields<'_>, header_bytes: u32, cluster_bytes: u64) -> Result<Below, HeaderFault> {
    let (place, length) = (fields.number64(8), u64::from(fields.number32(16)));
    if place == 0 {
        let first = usize::try_from(header_bytes).map_or(0, |place| fields.number32(place));
        return Ok(if first == FORMAT_EXTENSION { Below::Named } else { Below::Nothing });
    }
    let room = cluster_bytes.checked_sub(place).ok_or(HeaderFault::Name)?;
    match length <= room.min(NAME_BYTES_MAX as u64) {
        true => Ok(Below::Named),
        false => Err(HeaderFault::Name),
    }
}
