//! A file system in a file that can let copies share blocks, for the rows about clones by reflink: xfs or btrfs, where kernel
//! and tools are there. It is mounted below a benchmark's own folder and goes when it is dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::process::timed;

/// Room for a 4 GiB disk and its copies, of which blocks are shared; what is not written takes none.
const IMAGE_BYTES: u64 = 12 << 30;

/// The kinds there are.
pub(super) const KINDS: [&str; 2] = ["xfs", "btrfs"];

pub(super) struct SharingFileSystem {
    pub(super) mount: PathBuf,
}

/// Why this machine has none, in a few words.
pub(super) struct Lacking(pub(super) String);

impl SharingFileSystem {
    pub(super) fn in_folder(
        folder: &Path,
        kind: &str,
    ) -> Result<Result<SharingFileSystem, Lacking>> {
        let (image, mount) = (folder.join(format!("{kind}.img")), folder.join(kind));
        fs::create_dir_all(&mount)?;
        File::create(&image)?.set_len(IMAGE_BYTES)?;
        let made = timed(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image));
        let mounted = || timed(Command::new("mount").arg("-oloop").args([&image, &mount]));
        let lacking = match made.map(|_| mounted()) {
            Ok(Ok(_)) => return Ok(Ok(SharingFileSystem { mount })),
            Ok(Err(_)) => Lacking(format!("{kind} cannot be mounted")),
            Err(_) => Lacking(format!("no mkfs.{kind}")),
        };
        fs::remove_file(&image).context("removing the image of a file system")?;
        Ok(Err(lacking))
    }
}

impl Drop for SharingFileSystem {
    fn drop(&mut self) {
        // The loop device goes with the mount, and the image with the benchmark's folder.
        let _ = timed(Command::new("umount").arg(&self.mount));
    }
}
