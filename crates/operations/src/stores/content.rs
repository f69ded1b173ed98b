//! What the head and the end of a regular file say of its use as a disk. Called where stores are looked at; what follows from it
//! is the judge's.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use hpvm_host::durable;
use hpvm_host::qcow2::{self, Head, Header};
use hpvm_model::Bytes;
use hpvm_plan::facts::{Content, Ending, FILE_BLOCK_BYTES};
use hpvm_plan::growth::node_bytes;
use hpvm_plan::record::Cache;
use rustix::fs::OFlags;
use rustix::io::Errno;

const BLOCK_BYTES_MIN: u64 = 512;

pub(crate) fn content(path: &Path) -> Content {
    match durable::open_regular(path).and_then(|file| qcow2::head(&file)) {
        Ok(Head::Other) => Content::Other,
        Ok(Head::Unusable(fault)) => Content::Unusable(fault.to_string()),
        Ok(Head::Image(Header { below })) => Content::Qcow2(below),
        Err(_) => Content::Unread,
    }
}

/// How the file system lets a file be read past the memory of the host, and whether the file ends with a block of such
/// reading, which only trying tells. A size that fits every file system costs no read.
pub(crate) fn reading(path: &Path, size: Bytes) -> (Cache, Ending) {
    let Ok(file) = durable::open_untouched(path, OFlags::DIRECT) else {
        return (Cache::Page, Ending::WithBlock);
    };
    if size.0.is_multiple_of(FILE_BLOCK_BYTES) {
        return (Cache::Direct, Ending::WithBlock);
    }
    let ending = match block_bytes(&file) {
        Some(block) if !node_bytes(size.0).is_multiple_of(block) => Ending::WithinBlock,
        _ => Ending::WithBlock,
    };
    (Cache::Direct, ending)
}

/// The block that QEMU finds by the same trials (block/file-posix.c, `raw_probe_alignment`): the smallest piece that is read;
/// `None` where none is, for a reason that has nothing to do with its size. A single byte is read where no disk is asked, of a
/// hole or of a file system in memory: then nothing is told, and the block is the largest.
fn block_bytes(file: &File) -> Option<u64> {
    // Twice as long as the largest, so that one lies in it as such reading demands.
    let mut room = vec![0; 2 * usize::try_from(FILE_BLOCK_BYTES).ok()?];
    let start = room.as_ptr().align_offset(usize::try_from(FILE_BLOCK_BYTES).ok()?);
    let mut is_read = |length: u64| {
        let piece = room.get_mut(start..start + usize::try_from(length).ok()?)?;
        match file.read_at(piece, 0) {
            Ok(_) => Some(true),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => Some(false),
            Err(_) => None,
        }
    };
    if is_read(1)? {
        return Some(FILE_BLOCK_BYTES);
    }
    let mut block = BLOCK_BYTES_MIN;
    while block <= FILE_BLOCK_BYTES {
        if is_read(block)? {
            return Some(block);
        }
        block *= 2;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::unix::fs::OpenOptionsExt;

    use hpvm_host::qcow2::{Base, Format};
    use hpvm_model::Below;

    use super::*;

    #[test]
    fn an_image_is_known_by_its_head() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let short = Content::Unusable("it ends after 4 bytes, within its header".into());
        for (bytes, is) in
            [(&b""[..], Content::Other), (&[0; 512], Content::Other), (b"QFI\xfb", short)]
        {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(content(&path), is);
        }
        let file = File::create(&path).unwrap();
        qcow2::write_empty(&file, 1 << 20).unwrap();
        assert_eq!(content(&path), Content::Qcow2(Below::Nothing));
        assert_eq!(content(&folder.path().join("missing")), Content::Unread);
        let base = Base { path: &path, format: Format::Qcow2, size: 1 << 20 };
        let over = folder.path().join("over");
        qcow2::write_overlay(&File::create(&over).unwrap(), &base).unwrap();
        assert_eq!(content(&over), Content::Qcow2(Below::Named));
    }

    /// Whatever the file system under the tests is: what it says must hold for reading a file of that length.
    #[test]
    fn a_file_ends_with_a_block_or_within_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let file = File::create(&path).unwrap();
        for (size, fits) in [(8192, Some(true)), (4096 + 512, None), (12_345 << 10, None)] {
            file.set_len(size).unwrap();
            let (cache, ending) = reading(&path, Bytes(size));
            let whole = match cache {
                Cache::Page => true,
                Cache::Direct => {
                    let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap();
                    let direct =
                        OpenOptions::new().read(true).custom_flags(flags).open(&path).unwrap();
                    size.is_multiple_of(block_bytes(&direct).unwrap())
                }
            };
            assert_eq!(ending == Ending::WithBlock, fits.unwrap_or(whole), "{size}");
        }
    }
}
