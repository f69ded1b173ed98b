//! What the VM Host mounts and swaps on when it is asked to, whether it does so now or not: /etc/fstab, line by line.
//!
//! Called by `read` and `record`. It knows the format (fstab(5), and mount(8) for tags and options), not what lies behind a
//! name. A line that says nothing is passed over, as mount(8) does.

use std::path::{Path, PathBuf};

use super::names;

/// More than any host has.
const LINES_MAX: usize = 4096;

/// What a device is kept for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    Mount(PathBuf),
    Swap,
}

/// How a line names its device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// By a path that is the device's wherever it is.
    Path(PathBuf),
    /// By what is written on the device, which whoever has it may change: udev's link for that.
    Content(PathBuf),
}

impl Named {
    pub(super) fn path(&self) -> &Path {
        let (Self::Path(path) | Self::Content(path)) = self;
        path
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) named: Named,
    pub(super) purpose: Purpose,
}

/// Tags, and the folders of udev's links for them. Paths below these folders are names of the same sort.
const TAGS: [(&[u8], &str); 4] = [
    (b"UUID", "/dev/disk/by-uuid"),
    (b"LABEL", "/dev/disk/by-label"),
    (b"PARTUUID", "/dev/disk/by-partuuid"),
    (b"PARTLABEL", "/dev/disk/by-partlabel"),
];

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
    if is_other || options.split(|byte| *byte == b',').any(is_bind) {
        return None;
    }
    let purpose = match *kind {
        b"swap" => Purpose::Swap,
        _ => Purpose::Mount(names::unescaped(at)),
    };
    Some(Line { named: named(source)?, purpose })
}

fn named(source: &[u8]) -> Option<Named> {
    if source.starts_with(b"/") {
        let path = names::unescaped(source);
        let is_by_content = TAGS.iter().any(|(_, folder)| path.starts_with(folder));
        return Some(if is_by_content { Named::Content(path) } else { Named::Path(path) });
    }
    let equals = source.iter().position(|byte| *byte == b'=')?;
    let (tag, value) = (&source[..equals], names::unescaped(&source[equals + 1..]));
    let (_, folder) = TAGS.iter().find(|(known, _)| *known == tag)?;
    let value = value.to_str()?;
    let quoted = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    let name = names::link_name(quoted.unwrap_or(value));
    let is_name = !matches!(name.as_str(), "" | "." | "..");
    is_name.then(|| Named::Content(Path::new(folder).join(name)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
