//! /etc/zfs/zpool.cache: the pools that are imported now, and when the machine starts, with the paths of what they lie on.
//!
//! Called by `expected`. It knows how the file writes a path, and nothing of the tree around it.
//!
//! Source: OpenZFS, module/nvpair/nvpair.c (`nvs_xdr_nvpair`): name, type, number of values, value; a text as its length and its
//! bytes, filled up to four; all numbers big-endian (RFC 4506, 4.11). include/sys/fs/zfs.h: `ZPOOL_CONFIG_PATH`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::expected::{LINES_MAX, Line, Purpose, named};

/// The name `path`, type 9 (`DATA_TYPE_STRING`), one value.
const PATH: &[u8] = b"\0\0\0\x04path\0\0\0\x09\0\0\0\x01";

pub(super) fn lines(cache: &[u8]) -> Vec<Line> {
    let ends = cache.windows(PATH.len()).enumerate().filter(|(_, window)| *window == PATH);
    let values = ends.filter_map(|(at, _)| text(&cache[at + PATH.len()..]));
    let named = values.filter_map(|path| named(Path::new(OsStr::from_bytes(path))));
    named.take(LINES_MAX).map(|named| Line { named, purpose: Purpose::Pool }).collect()
}

fn text(value: &[u8]) -> Option<&[u8]> {
    let (length, bytes) = value.split_first_chunk()?;
    bytes.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair(name: &str, value: &str) -> Vec<u8> {
        let text = |text: &str| {
            let length = u32::try_from(text.len()).expect("short");
            let mut bytes = [&length.to_be_bytes(), text.as_bytes()].concat();
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let sizes = [0, 0, 0, 60, 0, 0, 0, 64];
        [&sizes[..], &text(name), &[0, 0, 0, 9, 0, 0, 0, 1], &text(value)].concat()
    }

    #[test]
    fn what_pools_lie_on_is_named_by_its_path() {
        let cache = [
            pair("name", "tank"),
            pair("path", "/dev/disk/by-id/wwn-1-part1"),
            pair("phys_path", "pci-0000:00:04.0"),
            pair("path", "/dev/sdb1"),
        ];
        let paths = lines(&cache.concat());
        let paths: Vec<&Path> = paths.iter().map(|line| line.named.path()).collect();
        assert_eq!(paths, [Path::new("/dev/disk/by-id/wwn-1-part1"), Path::new("/dev/sdb1")]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn nonsense_is_no_panic(before in any::<Vec<u8>>(), after in any::<Vec<u8>>()) {
            lines(&[&before, PATH, &after].concat());
        }
    }
}
