//! Partitions that a machine is started from and that nothing need have mounted, told by their types.
//!
//! Called by `read` about partitions of disks that the VM Host uses. udev has read the type of each; where there is no udev,
//! the partition table is read. Pure but for these two files.
//!
//! Sources: UEFI 2.10, 5.2.1 (MBR), 5.3.2 and 5.3.3 (GPT header and entries; a GUID's first three fields are little-endian);
//! the Discoverable Partitions Specification; GRUB's manual, 'BIOS installation'; udev's builtin blkid (`ID_PART_ENTRY_TYPE`).

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use super::device::{Device, DeviceNumber};
use super::places::Places;
use super::probe;
use crate::answers;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Boot {
    /// EFI system partition.
    Efi,
    /// What does not fit into that: kernels (XBOOTLDR).
    Extended,
    /// GRUB's own program, for firmware that is no UEFI.
    Bios,
    /// The loader of Power machines (PReP).
    Prep,
}

impl fmt::Display for Boot {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::Efi => "an EFI system partition",
            Self::Extended => "an extended boot partition (XBOOTLDR)",
            Self::Bios => "a BIOS boot partition",
            Self::Prep => "a PReP boot partition",
        };
        write!(out, "is {what} of a disk that this VM Host uses")
    }
}

/// By the text of a GUID.
const GPT_TYPES: [(&str, Boot); 4] = [
    ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", Boot::Efi),
    ("bc13c2ff-59e6-4262-a352-b275fd6f7172", Boot::Extended),
    ("21686148-6449-6e6f-744e-656564454649", Boot::Bios),
    ("9e1a2d38-c612-4316-aa26-8b49521e5a8b", Boot::Prep),
];
/// By the number in an MBR.
const MBR_TYPES: [(u8, Boot); 2] = [(0xef, Boot::Efi), (0x41, Boot::Prep)];

/// What a partition is for, of this number in this disk's table.
pub(super) fn of(places: &Places, partition: &Device, disk: &Device, number: u32) -> Option<Boot> {
    match recorded(places, partition.number) {
        Some(text) => named(&text),
        None => read(places, disk, number),
    }
}

/// The type that udev has read.
pub(super) fn recorded(places: &Places, number: DeviceNumber) -> Option<String> {
    let record = fs::read_to_string(places.udev.join(format!("b{number}"))).ok()?;
    let value = record.lines().find_map(|line| line.strip_prefix("E:ID_PART_ENTRY_TYPE="));
    value.map(str::to_owned)
}

fn named(text: &str) -> Option<Boot> {
    if let Some(number) = text.strip_prefix("0x") {
        return in_mbr(u8::from_str_radix(number, 16).ok()?);
    }
    let is_it = |(known, _): &&(&str, Boot)| text.eq_ignore_ascii_case(known);
    GPT_TYPES.iter().find(is_it).map(|(_, boot)| *boot)
}

fn in_mbr(number: u8) -> Option<Boot> {
    MBR_TYPES.iter().find(|(known, _)| *known == number).map(|(_, boot)| *boot)
}

/// The table itself, if the disk answers in time.
fn read(places: &Places, disk: &Device, number: u32) -> Option<Boot> {
    let (node, wanted) = (places.dev.join(disk.kernel_name()), disk.number);
    let block_bytes = u64::from(disk.block_bytes);
    answers::in_time(move || {
        let file = probe::open(&node, wanted, rustix::fs::OFlags::empty()).ok()?;
        in_table(&file, block_bytes, number).ok().flatten()
    })
    .flatten()
}

/// Larger entries and more of them than any table has.
const ENTRY_BYTES_MAX: u32 = 4096;
const ENTRIES_MAX: u32 = 1024;
const MBR_ENTRIES: u64 = 446;
const MBR_ENTRY_BYTES: u64 = 16;
/// The type of the one entry of an MBR that stands before a GPT.
const PROTECTIVE: u8 = 0xee;

fn in_table(disk: &File, block_bytes: u64, number: u32) -> io::Result<Option<Boot>> {
    let mut mbr = [0; 512];
    disk.read_exact_at(&mut mbr, 0)?;
    if mbr[510..] != [0x55, 0xaa] || number == 0 {
        return Ok(None);
    }
    let mbr_type = |entry: u64| mbr[(MBR_ENTRIES + entry * MBR_ENTRY_BYTES + 4) as usize];
    if (0..4).all(|entry| mbr_type(entry) != PROTECTIVE) {
        return Ok((1..=4)
            .contains(&number)
            .then(|| mbr_type(u64::from(number) - 1))
            .and_then(in_mbr));
    }
    let mut header = [0; 92];
    disk.read_exact_at(&mut header, block_bytes)?;
    let short = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let entries_at = u64::from(short(72)) | u64::from(short(76)) << 32;
    let (count, size) = (short(80), short(84));
    let is_sound = header.starts_with(b"EFI PART")
        && (128..=ENTRY_BYTES_MAX).contains(&size)
        && number <= count.min(ENTRIES_MAX);
    if !is_sound {
        return Ok(None);
    }
    let at = u64::from(size) * u64::from(number - 1);
    let Some(at) = entries_at.checked_mul(block_bytes).and_then(|start| start.checked_add(at))
    else {
        return Ok(None);
    };
    let mut guid = [0; 16];
    disk.read_exact_at(&mut guid, at)?;
    Ok(named(&text_of(guid)))
}

fn text_of(guid: [u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = guid;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let parts = [hex(&[d, c, b, a]), hex(&[f, e]), hex(&[h, g]), hex(&rest[..2]), hex(&rest[2..])];
    parts.join("-")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    const EFI: [u8; 16] = [
        0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9,
        0x3b,
    ];

    fn disk(pieces: &[(usize, &[u8])]) -> File {
        let mut bytes = vec![0; 64 << 10];
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        for (at, piece) in pieces {
            bytes[*at..at + piece.len()].copy_from_slice(piece);
        }
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&bytes).expect("written");
        file
    }

    /// A header for entries of 128 bytes at block 2.
    fn header() -> Vec<u8> {
        let mut header = vec![0; 92];
        header[..8].copy_from_slice(b"EFI PART");
        (header[72], header[80], header[84]) = (2, 128, 128);
        header
    }

    #[test]
    fn a_table_tells_what_its_partitions_are() {
        for block in [512_u64, 4096] {
            let second = block as usize * 2 + 128;
            let gpt = disk(&[(450, &[PROTECTIVE]), (block as usize, &header()), (second, &EFI)]);
            let of = |number| in_table(&gpt, block, number).expect("read");
            assert_eq!((of(1), of(2), of(129)), (None, Some(Boot::Efi), None), "{block}");
        }
        let mbr = disk(&[(450, &[0x83]), (466, &[0xef]), (482, &[0x41])]);
        let of = |number| in_table(&mbr, 512, number).expect("read");
        assert_eq!([1, 2, 3, 5].map(of), [None, Some(Boot::Efi), Some(Boot::Prep), None]);
        assert_eq!(in_table(&disk(&[(510, &[0, 0])]), 512, 1).expect("read"), None);
    }

    #[test]
    fn udev_writes_a_type_as_a_guid_or_a_number() {
        assert_eq!(named("C12A7328-F81F-11D2-BA4B-00A0C93EC93B"), Some(Boot::Efi));
        assert_eq!(named("21686148-6449-6e6f-744e-656564454649"), Some(Boot::Bios));
        assert_eq!(
            (named("0xef"), named("0x83"), named("0x"), named("")),
            (Some(Boot::Efi), None, None, None)
        );
        assert_eq!(text_of(EFI), GPT_TYPES[0].0);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn nonsense_in_a_table_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 84), number in any::<u32>()) {
            let mut header = header();
            header[8..].copy_from_slice(&bytes);
            let _ = in_table(&disk(&[(450, &[PROTECTIVE]), (512, &header)]), 512, number);
        }
    }
}
