//! How names are written where several programs meet: LVM's in device-mapper, paths in /proc.
//!
//! Called by `device`, `mounts` and `places`. It only turns text into text.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// `vg0-root` is volume root of group vg0; a hyphen that is part of a name stands twice (`my--vg-my--lv`).
pub(super) fn group_and_volume(name: &str) -> (String, String) {
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'-' {
            at += 1;
        } else if bytes.get(at + 1) == Some(&b'-') {
            at += 2;
        } else {
            return (name[..at].replace("--", "-"), name[at + 1..].replace("--", "-"));
        }
    }
    (name.replace("--", "-"), String::new())
}

/// A path of mountinfo or swaps, where blank, tab, newline and backslash are `\ooo` (fs/seq_file.c, mangle_path).
pub(super) fn unescaped(text: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        match octal(rest) {
            Some(byte) => {
                path.push(byte);
                rest = &rest[4..];
            }
            None => {
                path.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

fn octal(text: &[u8]) -> Option<u8> {
    let [b'\\', digits @ ..] = text.get(..4)? else { return None };
    digits.iter().try_fold(0_u8, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value.checked_mul(8)?.checked_add(digit)
    })
}

/// The reverse of [`unescaped`], for recordings.
pub(super) fn escaped(path: &Path) -> Vec<u8> {
    let mut text = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => text.extend(format!("\\{byte:03o}").bytes()),
            _ => text.push(byte),
        }
    }
    text
}

/// What udev calls the link for a label: what is neither letter, digit nor one of a few signs is `\xHH`, of ASCII (systemd,
/// src/shared/device-nodes.c, encode_devnode_name).
pub(super) fn link_name(label: &str) -> String {
    let mut name = String::new();
    for character in label.chars() {
        match character {
            '#' | '+' | '-' | '.' | ':' | '=' | '@' | '_' => name.push(character),
            _ if character.is_ascii_alphanumeric() || !character.is_ascii() => name.push(character),
            _ => name.push_str(&format!("\\x{:02x}", character as u32)),
        }
    }
    name
}

/// A path for people: what would move their cursor or end the line is replaced.
pub(super) fn shown(path: &Path) -> String {
    path.to_string_lossy().replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hyphens_of_lvm_names_stand_twice() {
        for (name, group, volume) in [
            ("vg0-root", "vg0", "root"),
            ("my--vg-my--lv", "my-vg", "my-lv"),
            ("vg-lv-real", "vg", "lv-real"),
            ("vg", "vg", ""),
            ("a---b", "a-", "b"),
        ] {
            assert_eq!(group_and_volume(name), (group.into(), volume.into()), "{name}");
        }
    }

    #[test]
    fn what_is_no_escape_stays() {
        for (text, path) in [
            (&b"/a\\040b"[..], &b"/a b"[..]),
            (b"/a\\", b"/a\\"),
            (b"/a\\09x", b"/a\\09x"),
            (b"\\777", b"\\777"),
        ] {
            assert_eq!(unescaped(text).as_os_str().as_bytes(), path);
        }
    }

    proptest! {
        #[test]
        fn any_path_survives_escaping(bytes in prop::collection::vec(1_u8.., 0..40)) {
            let path = PathBuf::from(OsString::from_vec(bytes));
            prop_assert_eq!(unescaped(&escaped(&path)), path);
        }

        #[test]
        fn any_volume_is_split(name in "[-a-z\u{e9}]{0,12}") {
            group_and_volume(&name);
        }
    }
}
