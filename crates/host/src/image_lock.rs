//! Whether another program keeps QEMU from a disk image, and which. QEMU marks what it does with an image, and what it allows
//! others to do, by read locks on single bytes of it (OFD locks, which belong to an open description). Called before a start
//! and by `hpvm why`; it takes no lock itself, so it disturbs nobody.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::lock::is_held;

/// The bytes that stand in the way of a disk to be written: somebody writes it (the 2nd of those for uses, from 100 on), or
/// allows nobody to read or to write it (the 1st and 2nd of those for what is not shared, from 200 on).
const IN_THE_WAY: [u64; 3] = [101, 200, 201];

/// A process that has a lock on the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub pid: i32,
    /// Its name, as `ps` shows it.
    pub program: String,
}

/// Whether a disk could not be opened to be written because another program has it.
pub fn is_locked(image: &Path) -> io::Result<bool> {
    let file = File::open(image)?;
    for byte in IN_THE_WAY {
        if is_held(&file, byte)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Who has locks on the image, as far as /proc shows other users' processes. The kernel names no process for these locks but
/// beside the descriptor itself, so every descriptor is looked at.
pub fn holders(image: &Path) -> io::Result<Vec<Holder>> {
    let image = fs::metadata(image)?;
    let processes = fs::read_dir("/proc")?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let holders = pids.filter(|pid| has_lock(*pid, &image)).map(|pid| {
        let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Holder { pid, program: program.trim_end().to_owned() }
    });
    Ok(holders.collect())
}

/// Two file systems may each have a file of that inode, and the kernel's word for the device is not always stat's: the
/// descriptor itself tells which file it is.
fn has_lock(pid: i32, image: &Metadata) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let is_of_image = |name: OsString| {
        fs::metadata(Path::new(&format!("/proc/{pid}/fd")).join(name))
            .is_ok_and(|file| (file.dev(), file.ino()) == (image.dev(), image.ino()))
    };
    descriptors.into_iter().any(|entry| {
        let info = fs::read_to_string(entry.path()).unwrap_or_default();
        let is_locked = info.lines().any(|line| locked_inode(line) == Some(image.ino()));
        is_locked && is_of_image(entry.file_name())
    })
}

/// `lock: 1: OFDLCK ADVISORY READ -1 00:2f:12345 101 101`: device, in hexadecimal, and inode are the sixth word.
fn locked_inode(line: &str) -> Option<u64> {
    let mut words = line.strip_prefix("lock:")?.split_whitespace();
    words.nth(5)?.rsplit(':').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inode_is_read_from_a_lock_line() {
        let line = "lock:\t1: OFDLCK  ADVISORY  READ -1 00:2f:12345 101 101";
        assert_eq!(locked_inode(line), Some(12_345));
        assert_eq!(locked_inode("flags:\t02"), None);
        assert_eq!(locked_inode("lock:\t1: OFDLCK"), None);
    }

    #[test]
    fn a_lock_is_seen_with_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::write(&image, [0; 512]).unwrap();
        assert!(!is_locked(&image).unwrap());
        assert_eq!(holders(&image).unwrap(), []);
        let file = File::options().read(true).write(true).open(&image).unwrap();
        let held = crate::lock::ByteLock::try_acquire(file, IN_THE_WAY[0]).unwrap();
        assert!(is_locked(&image).unwrap());
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(holders(&image).unwrap().iter().map(|h| h.pid).collect::<Vec<_>>(), [own]);
        drop(held);
        assert!(!is_locked(&image).unwrap());
    }
}
