//! Opens what backs a device, once per use: two uses of one open description would not see each other's image locks. What
//! the plan believed about the store is checked on the descriptor itself.

use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use hpvm_model::StorageType;
use hpvm_plan::facts::FileIdentity;
use hpvm_plan::record::{Access, Attached, Cache};
use rustix::fs::OFlags;

use crate::launch::LaunchError;

/// Opens the store behind a device: a disk to be written, a dvd to be read, a SCSI device to be commanded.
///
/// A block device is opened for this guest alone (open(2), `O_EXCL` without `O_CREAT`): the kernel refuses it while the host,
/// another guest, a volume or a partition on it has it, and keeps all of them from taking it while the guest runs.
pub fn open(attached: &Attached) -> Result<File, LaunchError> {
    let path = &attached.device.backing.path;
    let failed = |source| LaunchError::File { action: "open", path: PathBuf::from(path), source };
    let file = OpenOptions::new()
        .read(true)
        .write(attached.access == Access::ReadWrite)
        .custom_flags(i32::try_from(flags(attached).bits()).unwrap_or_default())
        .open(path)
        .map_err(|error| match rustix::io::Errno::from_io_error(&error) {
            Some(rustix::io::Errno::BUSY) => LaunchError::StoreBusy { path: path.clone() },
            _ => failed(error),
        })?;
    let metadata = file.metadata().map_err(failed)?;
    let identity = identity(&metadata);
    if identity.is_none() || attached.identity.is_some() && attached.identity != identity {
        return Err(LaunchError::Changed { path: path.clone() });
    }
    Ok(file)
}

fn flags(attached: &Attached) -> OFlags {
    // A pipe put in the file's place must not hold us up, nor a drive without medium.
    let mut flags = OFlags::NONBLOCK;
    if matches!(attached.device.backing.storage, StorageType::Disk | StorageType::Lv) {
        flags |= OFlags::EXCL;
    }
    if attached.cache == Cache::Direct {
        flags |= OFlags::DIRECT;
    }
    flags
}

/// What a store is known by; `None` of what can be none.
#[must_use]
pub fn identity(metadata: &Metadata) -> Option<FileIdentity> {
    let kind = metadata.file_type();
    if kind.is_file() {
        return Some(FileIdentity { device: metadata.dev(), inode: metadata.ino() });
    }
    let is_device = kind.is_block_device() || kind.is_char_device();
    is_device.then(|| FileIdentity::of_device(metadata.rdev()))
}
