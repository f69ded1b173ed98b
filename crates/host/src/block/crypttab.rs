//! /etc/crypttab, line by line: the encrypted volumes that are opened when the machine starts, or on demand.
//!
//! Called by `expected`. It knows the format (crypttab(5)), not what lies behind a name.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::expected::{LINES_MAX, Line, Purpose, named};

pub(super) fn lines(text: &[u8]) -> Vec<Line> {
    text.split(|byte| *byte == b'\n').take(LINES_MAX).filter_map(line).collect()
}

fn line(line: &[u8]) -> Option<Line> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let name = words.next().filter(|name| !name.starts_with(b"#"))?;
    let named = named(Path::new(OsStr::from_bytes(words.next()?)))?;
    Some(Line { named, purpose: Purpose::Open(String::from_utf8_lossy(name).into_owned()) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_volume_is_read_with_what_it_lies_on() {
        let text = b"# name source key options\n\
            home UUID=12-ab none luks,noauto\n\
            \tswap /dev/sdb2 /dev/urandom swap,cipher=aes-xts-plain64\n\
            box /srv/box.img\n\
            alone\n\
            \n";
        let read: Vec<(String, Purpose)> = lines(text)
            .into_iter()
            .map(|Line { named, purpose }| (named.path().display().to_string(), purpose))
            .collect();
        let expected =
            [("/dev/disk/by-uuid/12-ab", "home"), ("/dev/sdb2", "swap"), ("/srv/box.img", "box")];
        assert_eq!(read, expected.map(|(path, name)| (path.into(), Purpose::Open(name.into()))));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn nonsense_is_no_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            lines(&text);
        }
    }
}
