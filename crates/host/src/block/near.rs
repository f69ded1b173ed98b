//! Which paths lie on file systems that answer. Called before a thread of ours asks at a path, by `answers` and by `far`.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::device::DeviceNumber;
use super::mounts::{self, Mount};

/// File systems on this machine's own disks and in its memory, which answer. Any other may be on a server, or over one that is.
const NEAR: [&str; 18] = [
    "bcachefs", "btrfs", "devtmpfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "iso9660",
    "jfs", "ntfs3", "squashfs", "tmpfs", "udf", "vfat", "xfs", "zfs",
];

/// File systems on servers, and in programs, of which every file has the number of the mount (`st_dev`), which no other file
/// system has.
const FAR: [&str; 8] = ["9p", "cifs", "fuse", "fuseblk", "nfs", "nfs4", "smb3", "virtiofs"];

/// The mounts, and when they were read: a command looks at many paths, and what is mounted changes rarely.
static KNOWN: Mutex<Option<(Instant, Vec<Mount>)>> = Mutex::new(None);
const KNOWN_FOR: Duration = Duration::from_secs(1);

/// Whether a path lies on a file system of this machine's own, as it is mounted now.
pub(crate) fn is_near(path: &Path) -> bool {
    let known = known_mounts();
    known.as_ref().is_some_and(|(_, mounts)| is_on_near(mounts, path))
}

/// The number of the file system of a path that lies on a server.
pub(super) fn server_of(path: &Path) -> Option<DeviceNumber> {
    let known = known_mounts();
    known.as_ref().and_then(|(_, mounts)| server_on(mounts, path))
}

fn known_mounts() -> MutexGuard<'static, Option<(Instant, Vec<Mount>)>> {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if known.as_ref().is_none_or(|(at, _)| at.elapsed() > KNOWN_FOR) {
        let mounts = mounts::of_process(Path::new("/proc"), "self").unwrap_or_default();
        *known = Some((Instant::now(), mounts));
    }
    known
}

fn is_on_near(mounts: &[Mount], path: &Path) -> bool {
    mount_of(mounts, path).is_some_and(|mount| NEAR.contains(&mount.file_system.as_str()))
}

fn server_on(mounts: &[Mount], path: &Path) -> Option<DeviceNumber> {
    let mount = mount_of(mounts, path)?;
    let kind = mount.file_system.strip_prefix("fuse.").map_or(&*mount.file_system, |_| "fuse");
    FAR.contains(&kind).then_some(mount.number)
}

/// The last mount on the longest way is the one that is seen.
fn mount_of<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let above = mounts.iter().filter(|mount| path.starts_with(&mount.at));
    above.max_by_key(|mount| mount.at.components().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_near_when_its_own_mount_is() {
        let mounts = mounts::mounts(
            b"1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:30 / /far rw - nfs4 server:/ rw
3 2 8:2 / /far/near rw - xfs /dev/sda2 rw
4 1 8:3 / /srv rw - ext4 /dev/sda3 rw
5 4 0:31 / /srv rw - fuse.sshfs server: rw
6 1 0:32 / /over rw - overlay overlay rw
",
        );
        for (path, near, server) in [
            ("/a", true, None),
            ("/far", false, Some("0:30")),
            ("/far/a", false, Some("0:30")),
            ("/farther", true, None),
            ("/far/near/a", true, None),
            ("/srv/a", false, Some("0:31")),
            ("/over/a", false, None),
        ] {
            assert_eq!(is_on_near(&mounts, Path::new(path)), near, "{path}");
            let number = server_on(&mounts, Path::new(path)).map(|number| number.to_string());
            assert_eq!(number.as_deref(), server, "{path}");
        }
        assert!(!is_on_near(&[], Path::new("/a")), "nobody knows");
        assert_eq!(server_on(&[], Path::new("/a")), None, "nobody knows");
    }
}
