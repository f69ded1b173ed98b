//! Whether another program keeps QEMU from a disk image, and which. QEMU marks what it does with an image, and what it allows
//! others to do, by read locks on single bytes of it (OFD locks, which belong to an open description). Called before a start
//! and by `hpvm why`, which take no lock themselves, so they disturb nobody; and by hpvmclone, which keeps writers from what it
//! copies, and everybody from what it overwrites.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::lock::{is_held, release, share};

/// Somebody reads it, or writes it (the 1st and 2nd of those for uses, from 100 on).
const READ: u64 = 100;
const WRITTEN: u64 = 101;
/// Nobody else may read it, or write it (the 1st and 2nd of those for what is not shared, from 200 on).
const NO_READERS: u64 = 200;
const NO_WRITERS: u64 = 201;

/// A process that has a lock on the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub pid: i32,
    /// Its name, as `ps` shows it.
    pub program: String,
}

/// Whether a disk could not be opened to be written because another program has it.
pub fn is_locked(image: &Path) -> io::Result<bool> {
    is_any_held(image, &[WRITTEN, NO_READERS, NO_WRITERS])
}

/// Whether another program writes a disk, or has it for itself.
pub fn is_written(image: &Path) -> io::Result<bool> {
    has_writer(&File::open(image)?)
}

/// The same of one that is open.
pub fn has_writer(disk: &File) -> io::Result<bool> {
    is_one_held(disk, &[WRITTEN, NO_READERS])
}

/// Keeps every QEMU from opening a disk to write it, for as long as this description of it is open. Who writes it already is
/// seen by [`is_written`] afterwards.
pub fn keep_writers_out(disk: &File) -> io::Result<()> {
    share(disk, NO_WRITERS)
}

/// Keeps everybody from a disk that is written through this description, until it is closed or [`let_others_in`]. False:
/// another has it, and nobody is kept from it.
pub fn keep_others_out(disk: &File) -> io::Result<bool> {
    lock_for_writing(disk)?;
    let is_others = is_one_held(disk, &[WRITTEN, NO_READERS, NO_WRITERS])?;
    if is_others {
        let_others_in(disk)?;
    }
    Ok(!is_others)
}

/// Has another description of the disk keep everybody out instead of this one, which did: the one that QEMU gets to write it
/// by. QEMU's own locks join those of its description, where those of another would be in its way, and end them too.
pub fn hand_over(disk: &File, to: &File) -> io::Result<()> {
    lock_for_writing(to)?;
    let_others_in(disk)
}

fn lock_for_writing(disk: &File) -> io::Result<()> {
    [WRITTEN, NO_WRITERS].into_iter().try_for_each(|byte| share(disk, byte))
}

/// Ends what [`keep_others_out`] began.
pub fn let_others_in(disk: &File) -> io::Result<()> {
    [WRITTEN, NO_WRITERS].into_iter().try_for_each(|byte| release(disk, byte))
}

/// Whether nobody has a disk but who keeps writers out of it so: a QEMU that reads it says that too.
pub fn is_copied(image: &Path) -> io::Result<bool> {
    Ok(is_any_held(image, &[NO_WRITERS])? && !is_any_held(image, &[READ, WRITTEN, NO_READERS])?)
}

fn is_any_held(image: &Path, bytes: &[u64]) -> io::Result<bool> {
    is_one_held(&File::open(image)?, bytes)
}

/// Whether one of these bytes is held through another description than this one.
fn is_one_held(disk: &File, bytes: &[u64]) -> io::Result<bool> {
    for &byte in bytes {
        if is_held(disk, byte)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// All that can be locked of a file.
pub const ALL_BYTES: RangeInclusive<u64> = 0..=u64::MAX;

/// Who has locks on some of these bytes of the image, as far as /proc shows other users' processes. The kernel names no process
/// for these locks but beside the descriptor itself, so every descriptor is looked at.
pub fn holders(image: &Path, bytes: &RangeInclusive<u64>) -> io::Result<Vec<Holder>> {
    let image = fs::metadata(image)?;
    let processes = fs::read_dir("/proc")?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let holders = pids.filter(|pid| has_lock(*pid, &image, bytes)).map(|pid| {
        let program = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Holder { pid, program: program.trim_end().to_owned() }
    });
    Ok(holders.collect())
}

/// The same of who writes it.
pub fn writers(image: &Path) -> io::Result<Vec<Holder>> {
    holders(image, &(WRITTEN..=WRITTEN))
}

/// Whether this process has a lock on some of these bytes.
pub fn is_held_by(pid: i32, image: &Path, bytes: &RangeInclusive<u64>) -> io::Result<bool> {
    Ok(has_lock(pid, &fs::metadata(image)?, bytes))
}

/// The bytes that this process has locks on.
pub fn held_by(pid: i32, image: &Path) -> io::Result<Vec<RangeInclusive<u64>>> {
    Ok(locks(pid, &fs::metadata(image)?).collect())
}

fn has_lock(pid: i32, image: &Metadata, bytes: &RangeInclusive<u64>) -> bool {
    locks(pid, image).any(|locked| locked.start() <= bytes.end() && bytes.start() <= locked.end())
}

/// Two file systems may each have a file of that inode, and the kernel's word for the device is not always stat's: the
/// descriptor itself tells which file it is. Of a device it has to be this very node: each has locks of its own.
fn locks(pid: i32, image: &Metadata) -> impl Iterator<Item = RangeInclusive<u64>> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let (device, inode) = (image.dev(), image.ino());
    let is_of_image = move |name: OsString| {
        fs::metadata(Path::new(&format!("/proc/{pid}/fd")).join(name))
            .is_ok_and(|file| (file.dev(), file.ino()) == (device, inode))
    };
    descriptors.flat_map(move |entry| {
        let info = fs::read_to_string(entry.path()).unwrap_or_default();
        let mut found: Vec<_> = info.lines().filter_map(locked).collect();
        found.retain(|(locked, _)| *locked == inode);
        if !found.is_empty() && !is_of_image(entry.file_name()) {
            found.clear();
        }
        found.into_iter().map(|(_, bytes)| bytes)
    })
}

/// `lock: 1: OFDLCK ADVISORY READ -1 00:2f:12345 101 101`: device, in hexadecimal, and inode are the sixth word, then come the
/// first byte and the last, `EOF` where the lock has no end.
fn locked(line: &str) -> Option<(u64, RangeInclusive<u64>)> {
    let mut words = line.strip_prefix("lock:")?.split_whitespace();
    let inode = words.nth(5)?.rsplit(':').next()?.parse().ok()?;
    let first = words.next()?.parse().ok()?;
    let last = words.next()?.parse().unwrap_or(u64::MAX);
    Some((inode, first..=last))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::lock::pause_for;

    #[test]
    fn inode_and_bytes_are_read_from_a_lock_line() {
        let line = "lock:\t1: OFDLCK  ADVISORY  READ -1 00:2f:12345 101 ";
        assert_eq!(locked(&format!("{line}103")), Some((12_345, 101..=103)));
        assert_eq!(locked(&format!("{line}EOF")), Some((12_345, 101..=u64::MAX)));
        assert_eq!(locked("flags:\t02"), None);
        assert_eq!(locked("lock:\t1: OFDLCK"), None);
    }

    #[test]
    fn a_lock_is_seen_with_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::write(&image, [0; 512]).unwrap();
        assert!(!is_locked(&image).unwrap());
        let holders = |bytes| {
            let holders = holders(&image, &bytes).unwrap();
            holders.iter().map(|holder| holder.pid).collect::<Vec<_>>()
        };
        assert!(holders(ALL_BYTES).is_empty());
        let file = File::options().read(true).write(true).open(&image).unwrap();
        let held = crate::lock::ByteLock::try_acquire(file, WRITTEN).unwrap();
        assert!(is_locked(&image).unwrap() && is_written(&image).unwrap());
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(holders(ALL_BYTES).contains(&own));
        assert!(writers(&image).unwrap().iter().any(|writer| writer.pid == own));
        assert!(holders(0..=0).is_empty(), "who reads the image is not who runs the guest");
        assert!(is_held_by(own, &image, &ALL_BYTES).unwrap());
        assert_eq!(held_by(own, &image).unwrap(), [WRITTEN..=WRITTEN]);
        assert!(!is_held_by(1, &image, &ALL_BYTES).unwrap());
        drop(held);
        // A process that another test is starting has it, too, until it runs its program.
        let deadline = Instant::now() + Duration::from_secs(10);
        while is_locked(&image).unwrap() {
            assert!(Instant::now() < deadline);
            pause_for(Duration::from_millis(1));
        }
    }

    #[test]
    fn who_only_reads_keeps_writers_out_and_no_readers() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::write(&image, [0; 512]).unwrap();
        let readers = [File::open(&image).unwrap(), File::open(&image).unwrap()];
        for reader in &readers {
            keep_writers_out(reader).unwrap();
        }
        assert!(is_locked(&image).unwrap() && !is_written(&image).unwrap());
        assert!(is_copied(&image).unwrap());
        crate::lock::share(&readers[0], READ).unwrap();
        assert!(!is_copied(&image).unwrap(), "a QEMU has it");
        drop(readers);
        assert!(!is_locked(&image).unwrap() && !is_copied(&image).unwrap());
    }

    #[test]
    fn who_overwrites_meets_neither_readers_nor_writers() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::write(&image, [0; 512]).unwrap();
        let [one, other] = [File::open(&image).unwrap(), File::open(&image).unwrap()];
        assert!(keep_others_out(&one).unwrap());
        assert!(is_written(&image).unwrap(), "a reader sees it");
        assert!(!keep_others_out(&other).unwrap());
        let_others_in(&one).unwrap();
        assert!(!is_locked(&image).unwrap(), "who was refused keeps nothing");
        keep_writers_out(&one).unwrap();
        assert!(!keep_others_out(&other).unwrap(), "it is read");
        assert!(!is_written(&image).unwrap());
    }

    #[test]
    fn another_description_keeps_others_out_instead() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        fs::write(&image, [0; 512]).unwrap();
        let [one, other] = [File::open(&image).unwrap(), File::open(&image).unwrap()];
        assert!(keep_others_out(&one).unwrap());
        hand_over(&one, &other).unwrap();
        assert!(is_locked(&image).unwrap() && is_written(&image).unwrap());
        assert!(!is_one_held(&other, &[WRITTEN, NO_READERS, NO_WRITERS]).unwrap(), "by it alone");
        drop(one);
        assert!(is_written(&image).unwrap());
        drop(other);
        assert!(!is_locked(&image).unwrap());
    }
}
