//! What the kernel knows a file by, as [`FileIdentity`]: made here of each kind of answer that it gives. A node of a device is
//! its device, whichever node that is. Only locks on a node belong to that one node (`image_lock`).

use std::fs::{self, File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use hpvm_model::FileIdentity;
use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, makedev, statx};

use crate::block::DeviceNumber;

/// Of whatever was looked at, a folder too.
#[must_use]
pub fn of(metadata: &Metadata) -> FileIdentity {
    match is_device(metadata) {
        true => of_device(DeviceNumber::from_raw(metadata.rdev())),
        false => FileIdentity { device: metadata.dev(), inode: metadata.ino() },
    }
}

/// Of what can back a device of a guest; `None` of a folder, a pipe or a socket.
#[must_use]
pub fn of_store(metadata: &Metadata) -> Option<FileIdentity> {
    (metadata.is_file() || is_device(metadata)).then(|| of(metadata))
}

fn is_device(metadata: &Metadata) -> bool {
    let kind = metadata.file_type();
    kind.is_block_device() || kind.is_char_device()
}

#[must_use]
pub fn of_device(number: DeviceNumber) -> FileIdentity {
    FileIdentity::of_device(number.to_raw())
}

/// The same as [`of`], by an answer for which type and inode were asked.
#[must_use]
pub fn of_status(status: &Statx) -> FileIdentity {
    match FileType::from_raw_mode(status.stx_mode.into()) {
        FileType::BlockDevice | FileType::CharacterDevice => {
            of_device(DeviceNumber { major: status.stx_rdev_major, minor: status.stx_rdev_minor })
        }
        _ => FileIdentity {
            device: makedev(status.stx_dev_major, status.stx_dev_minor),
            inode: status.stx_ino,
        },
    }
}

/// Of what a path leads to; `None`: nothing that can be looked at.
#[must_use]
pub fn at(path: &Path) -> Option<FileIdentity> {
    Some(of(&fs::metadata(path).ok()?))
}

/// Of what has a path as its name, which may be a link.
#[must_use]
pub fn of_named(path: &Path) -> Option<FileIdentity> {
    Some(of(&fs::symlink_metadata(path).ok()?))
}

/// Whether an open file is what is known by that. A file system that does not answer is not asked.
#[must_use]
pub fn is(file: &File, identity: FileIdentity) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let status = statx(file, "", flags, StatxFlags::TYPE | StatxFlags::INO);
    status.is_ok_and(|status| of_status(&status) == identity)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::CWD;

    use super::*;

    #[test]
    fn each_way_to_look_finds_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "").unwrap();
        symlink(&file, &link).unwrap();
        for path in [&*file, folder.path(), Path::new("/dev/null")] {
            let metadata = fs::metadata(path).unwrap();
            let status = statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS).unwrap();
            assert_eq!(of_status(&status), of(&metadata), "{path:?}");
            assert_eq!(at(path), Some(of(&metadata)));
            assert!(is(&File::open(path).unwrap(), of(&metadata)));
            assert_eq!(of_store(&metadata).is_none(), metadata.is_dir());
        }
        assert_eq!(at(&link), at(&file));
        assert_eq!(of_named(&file), at(&file));
        assert_ne!(of_named(&link), at(&link));
        assert_ne!(at(folder.path()), at(&file));
        assert_eq!(at(&folder.path().join("missing")), None);
    }

    #[test]
    fn a_device_is_known_by_its_number_alone() {
        let null = DeviceNumber { major: 1, minor: 3 };
        assert_eq!(at(Path::new("/dev/null")), Some(of_device(null)));
        assert_ne!(at(Path::new("/dev/zero")), Some(of_device(null)));
        assert_eq!(DeviceNumber::from_raw(null.to_raw()), null);
    }
}
