//! The kernel's tables of mounts and swap areas, line by line.
//!
//! Called by `read`. It knows the format (filesystems/proc.rst, section 3.5; mm/swapfile.c, swap_show), not what a line means.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::device::DeviceNumber;
use super::names;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) id: u64,
    /// The file system's device. Its major is 0 where it has none, or several (btrfs).
    pub(super) number: DeviceNumber,
    /// Which folder of the file system is mounted.
    pub(super) root: PathBuf,
    pub(super) at: PathBuf,
    pub(super) file_system: String,
    /// What it is said to be mounted from.
    pub(super) source: PathBuf,
    /// Nothing is written to the file system, by whatever mount.
    pub(super) is_read_only: bool,
    /// Paths below /dev that the mount names: source, external journal, and the like.
    pub(super) devices: Vec<PathBuf>,
}

/// Options whose value is a second device of a file system: XFS, ext4, reiserfs.
const DEVICE_OPTIONS: [&[u8]; 4] = [b"logdev", b"rtdev", b"journal_path", b"jdev"];

/// The mounts that a process sees. For each piece of the table that is read the kernel makes it anew, so small ones cost more.
pub(super) fn of_process(proc: &Path, process: &str) -> io::Result<Vec<Mount>> {
    let mut text = Vec::with_capacity(32 << 10);
    File::open(proc.join(process).join("mountinfo"))?.read_to_end(&mut text)?;
    Ok(mounts(&text))
}

pub(super) fn mounts(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n').filter_map(mount).collect()
}

fn mount(line: &[u8]) -> Option<Mount> {
    let mut words = line.split(|byte| *byte == b' ');
    let id = utf8(words.next()?)?.parse().ok()?;
    let number = utf8(words.nth(1)?)?.parse().ok()?;
    let (root, at) = (names::unescaped(words.next()?), names::unescaped(words.next()?));
    words.by_ref().find(|word| *word == b"-")?;
    let file_system = utf8(words.next()?)?.to_owned();
    let source = words.next()?;
    let options = words.next().unwrap_or_default();
    // bcachefs names all its members: /dev/sda:/dev/sdb.
    let sources = source.split(|byte| *byte == b':' && file_system == "bcachefs");
    let devices = sources.chain(options.split(|byte| *byte == b',').filter_map(second_device));
    let devices = devices.map(names::unescaped).filter(|path| path.starts_with("/dev"));
    let devices = devices.collect();
    let source = names::unescaped(source);
    let is_read_only = options.split(|byte| *byte == b',').any(|option| option == b"ro");
    Some(Mount { id, number, root, at, file_system, source, is_read_only, devices })
}

fn second_device(option: &[u8]) -> Option<&[u8]> {
    let equals = option.iter().position(|byte| *byte == b'=')?;
    DEVICE_OPTIONS.contains(&&option[..equals]).then_some(&option[equals + 1..])
}

fn utf8(word: &[u8]) -> Option<&str> {
    std::str::from_utf8(word).ok()
}

/// The device nodes and files that are swap areas.
pub(super) fn swaps(text: &[u8]) -> Vec<PathBuf> {
    let lines = text.split(|byte| *byte == b'\n').skip(1);
    let paths = lines.filter_map(|line| line.split(|byte| byte.is_ascii_whitespace()).next());
    let paths = paths.filter(|path| path.starts_with(b"/")).map(names::unescaped);
    paths.collect()
}

/// Which of two mounts of one file system tells people more.
pub(super) fn better(one: &Mount, other: &Mount) -> bool {
    let rank = |mount: &Mount| {
        let whole = mount.root == Path::new("/");
        (mount.at != Path::new("/"), !whole, mount.at.as_os_str().len())
    };
    rank(one) < rank(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_past_its_optional_fields() {
        let text = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\n";
        let mount = &mounts(text)[0];
        assert_eq!((mount.id, mount.number.to_string()), (36, "98:0".to_owned()));
        assert_eq!((mount.root.to_str(), mount.at.to_str()), (Some("/mnt1"), Some("/mnt 2")));
        assert_eq!(mount.devices, [Path::new("/dev/root")]);
        assert!(!mount.is_read_only);
        let image =
            b"37 35 7:0 / /srv rw,relatime - iso9660 /dev/loop0 ro,nojoliet,blocksize=2048\n";
        assert!(mounts(image)[0].is_read_only, "whatever the mount says of itself");
    }

    #[test]
    fn further_devices_of_a_file_system_are_named() {
        let xfs = b"1 1 8:1 / /a rw - xfs /dev/sda1 rw,logdev=/dev/sdb1,noquota,rtdev=/dev/sdc\n";
        assert_eq!(mounts(xfs)[0].devices.len(), 3);
        let bcachefs = b"1 1 0:40 / /b rw - bcachefs /dev/sda:/dev/sdb rw\n";
        assert_eq!(mounts(bcachefs)[0].devices, [Path::new("/dev/sda"), Path::new("/dev/sdb")]);
    }

    #[test]
    fn what_is_no_mount_is_passed_over() {
        assert_eq!(mounts(b"\n36 35\n36 35 98 / / - a b c\nx 1 8:1 / / rw - a b c\n"), []);
    }

    #[test]
    fn swap_areas_are_paths() {
        let text = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/dm-1    partition\t1\t0\t-2\n/a\\040b file 1 0 -3\n";
        assert_eq!(swaps(text), [Path::new("/dev/dm-1"), Path::new("/a b")]);
    }
}
