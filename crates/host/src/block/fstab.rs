//! /etc/fstab, line by line: what is mounted and swapped on when that is asked for.
//!
//! Called by `expected`. It knows the format (fstab(5), and mount(8) for options), not what lies behind a name. A line that says
//! nothing is passed over, as mount(8) does.

use super::expected::{LINES_MAX, Line, Purpose, named};
use super::names;

pub(super) fn lines(text: &[u8]) -> Vec<Line> {
    text.split(|byte| *byte == b'\n').take(LINES_MAX).filter_map(line).collect()
}

fn line(line: &[u8]) -> Option<Line> {
    let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let words: Vec<&[u8]> = words.take(4).collect();
    let [source, at, kind, rest @ ..] = words.as_slice() else { return None };
    let options = rest.first().copied().unwrap_or_default();
    // What begins with two slashes is on a server. What a bind mount shows is a folder, whatever file system that is in.
    let is_bind = |option: &[u8]| matches!(option, b"bind" | b"rbind");
    let is_other = source.starts_with(b"#") || source.starts_with(b"//");
    let options = || options.split(|byte| *byte == b',');
    if is_other || options().any(is_bind) {
        return None;
    }
    let purpose = match *kind {
        b"swap" => Purpose::Swap,
        kind => Purpose::mount(names::unescaped(at), kind, options()),
    };
    Some(Line { named: named(&names::unescaped(source))?, purpose })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::block::expected::Named;

    fn one(text: &str) -> Option<(String, Purpose)> {
        let Line { named, purpose } = lines(text.as_bytes()).pop()?;
        let (sort, path) = match &named {
            Named::Path(path) => ("path", path),
            Named::Content(path) => ("content", path),
        };
        Some((format!("{sort} {}", path.display()), purpose))
    }

    #[test]
    fn each_way_to_name_a_device_is_read() {
        let at = |path: &str| Purpose::Mount(path.into());
        for (line, named, purpose) in [
            ("/dev/sda1 / ext4 defaults 0 1", "path /dev/sda1", at("/")),
            ("\t/dev/mapper/vg-a\t/a\\040b xfs", "path /dev/mapper/vg-a", at("/a b")),
            (
                "UUID=ABCD-12 /boot/efi vfat noauto",
                "content /dev/disk/by-uuid/ABCD-12",
                at("/boot/efi"),
            ),
            (
                "/srv/a.iso /a udf,iso9660 loop",
                "path /srv/a.iso",
                Purpose::MountReadOnly("/a".into()),
            ),
            ("/dev/sdb /b ext4 noauto,ro", "path /dev/sdb", Purpose::MountReadOnly("/b".into())),
            ("LABEL=\"x\" /x ext4", "content /dev/disk/by-label/x", at("/x")),
            ("LABEL=my\\040disk /x ext4", r"content /dev/disk/by-label/my\x20disk", at("/x")),
            ("PARTUUID=0a-b none swap sw", "content /dev/disk/by-partuuid/0a-b", Purpose::Swap),
            (
                "PARTLABEL=../../sda /x ext4",
                r"content /dev/disk/by-partlabel/..\x2f..\x2fsda",
                at("/x"),
            ),
            ("/dev/disk/by-uuid/a /x ext4", "content /dev/disk/by-uuid/a", at("/x")),
            ("/dev/disk/by-id/a /x ext4", "path /dev/disk/by-id/a", at("/x")),
            ("/swapfile none swap sw 0 0", "path /swapfile", Purpose::Swap),
        ] {
            assert_eq!(one(line), Some((named.to_owned(), purpose)), "{line}");
        }
    }

    #[test]
    fn what_names_no_device_is_passed_over() {
        for line in [
            "",
            "# /dev/sda1 / ext4",
            "#/dev/sda1 / ext4",
            "/dev/sda1 /",
            "proc /proc proc defaults",
            "server:/export /mnt nfs defaults",
            "//server/share /mnt cifs",
            "UUID= /x ext4",
            "LABEL=.. /x ext4",
            "ID=x /x ext4",
            "/srv/a /srv/b none bind",
            "/srv/a /srv/b none ro,rbind",
        ] {
            assert_eq!(one(line), None, "{line}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        /// No tag leads out of its folder, and none of its bytes is lost on the way.
        #[test]
        fn a_tag_is_one_name_in_its_folder(label in "[ -~äß]{1,24}") {
            let escaped: String = label.bytes().map(|byte| format!("\\{byte:03o}")).collect();
            let found = lines(format!("LABEL={escaped} /x ext4").as_bytes());
            let quoted = label.len() > 1 && label.starts_with('"') && label.ends_with('"');
            prop_assume!(!quoted && label != "." && label != "..");
            let name = found[0].named.path().strip_prefix("/dev/disk/by-label").expect("its folder");
            prop_assert!(!name.to_str().expect("text").contains('/'));
            let mut read = Vec::new();
            let mut rest = name.to_str().expect("text");
            while let Some(first) = rest.chars().next() {
                match rest.strip_prefix(r"\x") {
                    Some(hex) => {
                        read.push(u8::from_str_radix(&hex[..2], 16).expect("hex"));
                        rest = &hex[2..];
                    }
                    None => {
                        read.extend(first.to_string().bytes());
                        rest = &rest[first.len_utf8()..];
                    }
                }
            }
            prop_assert_eq!(read, label.into_bytes());
        }

        #[test]
        fn nonsense_is_no_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            lines(&text);
        }
    }
}
