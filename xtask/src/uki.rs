//! Unified kernel images: kernel, command line and initramfs in one EFI program.
//!
//! systemd's EFI stub looks for them in sections of its own file. Debian 12 has no tool that adds sections to it, so the
//! few header fields are written here:
//!
//! ```text
//! 0x3c            offset of the PE header
//! PE + 6          u16  number of sections              (raised)
//! PE + 20         u16  size of the optional header
//! PE + 24 + 32    u32  alignment of sections in memory
//! PE + 24 + 36    u32  alignment of sections in the file
//! PE + 24 + 56    u32  size of the image in memory     (raised)
//! PE + 24 + 60    u32  size of all headers             (the table must fit below)
//! PE + 24 + size of the optional header: the table, 40 bytes a section:
//!      0  name          8  size in memory   12  address in memory
//!     16  size in file  20  offset in file  24  unused here        36  flags
//! ```

use std::path::Path;

use anyhow::{Context, Result, ensure};

const SECTION_HEADER: usize = 40;
/// Initialized data, readable.
const DATA_FLAGS: u32 = 0x4000_0040;
/// Sections start on a page, whatever the stub's own alignment: the kernel inside asks for it.
const PAGE: u32 = 4096;

/// The stub of the unpacked package `systemd-boot-efi` in `tree`.
pub(crate) fn stub(tree: &Path) -> Result<Vec<u8>> {
    let path = tree.join("usr/lib/systemd/boot/efi/linuxx64.efi.stub");
    std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

/// What goes into the image beside the stub.
pub(crate) struct Parts<'a> {
    pub(crate) stub: &'a [u8],
    pub(crate) os_release: &'a str,
    pub(crate) command_line: &'a str,
    pub(crate) kernel: &'a [u8],
    pub(crate) initramfs: &'a [u8],
}

/// The bytes of `BOOTX64.EFI`.
pub(crate) fn build(parts: &Parts<'_>) -> Result<Vec<u8>> {
    let command_line = format!("{}\0", parts.command_line);
    let mut image = Image::parse(parts.stub)?;
    image.add(".osrel", parts.os_release.as_bytes())?;
    image.add(".cmdline", command_line.as_bytes())?;
    image.add(".linux", parts.kernel)?;
    image.add(".initrd", parts.initramfs)?;
    Ok(image.bytes)
}

/// An EFI program that sections can be added to.
struct Image {
    bytes: Vec<u8>,
    pe: usize,
    table: usize,
    headers_end: usize,
    file_alignment: u32,
}

impl Image {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let mut image =
            Self { bytes: bytes.to_vec(), pe: 0, table: 0, headers_end: 0, file_alignment: 0 };
        image.pe = image.u32(0x3c)? as usize;
        ensure!(
            bytes.get(image.pe..image.pe + 4) == Some(b"PE\0\0"),
            "the EFI stub is no PE program"
        );
        let optional_header = image.pe + 24;
        image.table = optional_header + usize::from(image.u16(image.pe + 20)?);
        image.file_alignment = image.u32(optional_header + 36)?;
        image.headers_end = image.u32(optional_header + 60)? as usize;
        ensure!(image.file_alignment.is_power_of_two(), "the EFI stub has an odd file alignment");
        Ok(image)
    }

    fn add(&mut self, name: &str, data: &[u8]) -> Result<()> {
        let count = usize::from(self.u16(self.pe + 6)?);
        let header = self.table + count * SECTION_HEADER;
        ensure!(
            header + SECTION_HEADER <= self.headers_end,
            "no room for section {name} in the headers of the EFI stub"
        );
        ensure!(name.len() <= 8, "section name {name} is longer than 8 bytes");

        let size = u32::try_from(data.len()).with_context(|| format!("section {name}"))?;
        let address = self.memory_end(count)?.next_multiple_of(PAGE);
        let offset = u32::try_from(self.bytes.len())?.next_multiple_of(self.file_alignment);
        let file_size = size.next_multiple_of(self.file_alignment);

        let mut entry = Vec::with_capacity(SECTION_HEADER);
        entry.extend_from_slice(name.as_bytes());
        entry.resize(8, 0);
        for field in [size, address, file_size, offset, 0, 0, 0, DATA_FLAGS] {
            entry.extend_from_slice(&field.to_le_bytes());
        }
        self.put(header, &entry);
        self.put(self.pe + 6, &u16::try_from(count + 1)?.to_le_bytes());
        self.put(self.pe + 24 + 56, &(address + size).next_multiple_of(PAGE).to_le_bytes());

        self.bytes.resize(offset as usize, 0);
        self.bytes.extend_from_slice(data);
        self.bytes.resize((offset + file_size) as usize, 0);
        Ok(())
    }

    /// Where the last of `count` sections ends in memory.
    fn memory_end(&self, count: usize) -> Result<u32> {
        let mut end = 0;
        for header in (0..count).map(|index| self.table + index * SECTION_HEADER) {
            end = end.max(self.u32(header + 8)? + self.u32(header + 12)?);
        }
        Ok(end)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn u16(&self, at: usize) -> Result<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let bytes = self.bytes.get(at..at + N).context("the EFI stub is cut short")?;
        Ok(bytes.try_into()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PE program with one section and headers of `headers` bytes.
    fn stub(headers: usize) -> Vec<u8> {
        let pe = 0x40;
        let mut bytes = vec![0; headers];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0x3c, &u32::to_le_bytes(0x40));
        put(pe, b"PE\0\0");
        put(pe + 6, &1_u16.to_le_bytes());
        put(pe + 20, &112_u16.to_le_bytes());
        put(pe + 24 + 36, &512_u32.to_le_bytes());
        put(pe + 24 + 60, &u32::try_from(headers).unwrap().to_le_bytes());
        put(pe + 24 + 112 + 8, &100_u32.to_le_bytes());
        put(pe + 24 + 112 + 12, &0x1000_u32.to_le_bytes());
        bytes
    }

    fn parts<'a>(stub: &'a [u8], kernel: &'a [u8]) -> Parts<'a> {
        Parts { stub, os_release: "ID=t\n", command_line: "quiet", kernel, initramfs: b"rd" }
    }

    #[test]
    fn sections_overlap_neither_in_memory_nor_in_the_file() {
        let kernel = vec![7; 5000];
        let bytes = build(&parts(&stub(1024), &kernel)).unwrap();
        let image = Image::parse(&bytes).unwrap();
        assert_eq!(image.u16(image.pe + 6).unwrap(), 5);
        let (mut memory, mut file) = (0, 0);
        for header in (1..5).map(|index| image.table + index * SECTION_HEADER) {
            let field = |at| image.u32(header + at).unwrap();
            assert!(field(12) >= memory && field(12) % PAGE == 0);
            assert!(field(20) >= file && field(20) % 512 == 0);
            memory = field(12) + field(8);
            file = field(20) + field(16);
        }
        assert_eq!(file as usize, bytes.len());
        assert!(image.u32(image.pe + 24 + 56).unwrap() >= memory);
        let linux = image.table + 3 * SECTION_HEADER;
        let start = image.u32(linux + 20).unwrap() as usize;
        assert_eq!(&bytes[start..start + kernel.len()], kernel);
    }

    #[test]
    fn a_stub_without_room_for_four_headers_is_refused() {
        let error = build(&parts(&stub(0x40 + 24 + 112 + 3 * SECTION_HEADER), b"k")).unwrap_err();
        assert!(error.to_string().contains("no room for section"), "{error}");
    }

    #[test]
    fn what_is_no_program_is_refused() {
        assert!(build(&parts(b"MZ", b"k")).is_err());
    }
}
