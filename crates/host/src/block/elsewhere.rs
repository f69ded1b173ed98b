//! By what other paths a file or folder is found, where its file system, or a part of it, is mounted more than once.
//!
//! Called through [`Places::other_paths`] by whoever compares a path with folders: a bind mount ends the way upwards, and what
//! lies above the folder that was bound is seen from another mount alone. The decision is pure.

use std::path::{Path, PathBuf};

use super::mounts::{self, Mount};
use super::places::Places;

impl Places {
    /// The other paths to what lies at a path without links, which was found through this mount. Of the mounts that this process
    /// sees, since it is this process that follows the path.
    #[must_use]
    pub fn other_paths(&self, path: &Path, mount: u64) -> Vec<PathBuf> {
        let mounts = mounts::of_process(&self.proc, "self").unwrap_or_default();
        other_paths(&mounts, path, mount)
    }
}

/// A mount that another one hides counts too: what is restricted by a name stays so, whatever is mounted over that name.
fn other_paths(mounts: &[Mount], path: &Path, mount: u64) -> Vec<PathBuf> {
    let Some(own) = mounts.iter().find(|known| known.id == mount) else { return Vec::new() };
    let Ok(below) = path.strip_prefix(&own.at) else { return Vec::new() };
    let inside = at(&own.root, below);
    let others = mounts.iter().filter(|other| other.id != own.id && other.number == own.number);
    let mut paths: Vec<PathBuf> = others
        .filter_map(|other| Some(at(&other.at, inside.strip_prefix(&other.root).ok()?)))
        .filter(|other| other != path)
        .collect();
    paths.sort();
    paths.dedup();
    paths
}

/// The folder, or the file, itself where there is nothing below it: with a slash behind it a file is not found.
fn at(folder: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { folder.to_owned() } else { folder.join(below) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 8:1 /kept/sub /mnt/part rw - ext4 /dev/sda1 rw
3 1 8:1 /etc/passwd /srv/file rw - ext4 /dev/sda1 rw
4 1 8:2 / /data rw - xfs /dev/sda2 rw
5 1 8:2 / /kept/disk rw - xfs /dev/sda2 rw
6 1 0:30 /@home /home rw - btrfs /dev/sdb rw
7 1 0:30 / /top rw - btrfs /dev/sdb rw
8 1 0:31 / /tmp rw - tmpfs tmpfs rw
";

    #[test]
    fn what_is_mounted_more_than_once_has_several_paths() {
        let mounts = mounts::mounts(TABLE);
        for (path, mount, others) in [
            ("/mnt/part/a.img", 2, &["/kept/sub/a.img"][..]),
            ("/mnt/part", 2, &["/kept/sub"]),
            ("/srv/file", 3, &["/etc/passwd"]),
            ("/data/a/b", 4, &["/kept/disk/a/b"]),
            ("/home/web/a", 6, &["/top/@home/web/a"]),
            ("/top/@home/a", 7, &["/home/a"]),
            ("/top/@homes/a", 7, &[]),
            ("/kept/sub/x/a.img", 1, &["/mnt/part/x/a.img"]),
            ("/kept/subs/a.img", 1, &[]),
            ("/tmp/a", 8, &[]),
            ("/elsewhere", 2, &[]),
            ("/tmp/a", 99, &[]),
        ] {
            let others: Vec<PathBuf> = others.iter().map(PathBuf::from).collect();
            assert_eq!(other_paths(&mounts, Path::new(path), mount), others, "{path}");
        }
    }
}
