//! Opens what backs a device, once per use: two uses of one open description would not see each other's image locks. What
//! the plan believed about the file is checked on the descriptor itself.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use hpvm_model::DeviceKind;
use hpvm_plan::facts::FileIdentity;
use hpvm_plan::record::Attached;

use crate::launch::LaunchError;

/// Opens the file behind a device: a disk to be written, a dvd to be read.
pub fn open(attached: &Attached) -> Result<File, LaunchError> {
    let path = attached.device.backing.path();
    let failed = |source| LaunchError::File { action: "open", path: PathBuf::from(path), source };
    let file = OpenOptions::new()
        .read(true)
        .write(attached.device.kind == DeviceKind::Disk)
        // A pipe put in the file's place must not hold us up.
        .custom_flags(i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or_default())
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let identity = FileIdentity { device: metadata.dev(), inode: metadata.ino() };
    if !metadata.is_file() || attached.identity.is_some_and(|expected| expected != identity) {
        return Err(LaunchError::Changed { path: path.to_owned() });
    }
    Ok(file)
}
