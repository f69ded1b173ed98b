//! A file system in a file that can let copies share blocks, for the row about clones by reflink: xfs, else btrfs, whichever
//! kernel and tools there are. It is mounted below a benchmark's own folder and goes when it is dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::process::timed;

/// Room for a 4 GiB disk and its copies, of which blocks are shared; what is not written takes none.
const IMAGE_BYTES: u64 = 12 << 30;

pub(super) struct SharingFileSystem {
    pub(super) mount: PathBuf,
    pub(super) kind: &'static str,
}

/// Why this machine has none, in a few words.
pub(super) struct Lacking(pub(super) String);

impl SharingFileSystem {
    pub(super) fn in_folder(folder: &Path) -> Result<Result<SharingFileSystem, Lacking>> {
        let image = folder.join("sharing.img");
        let mount = folder.join("sharing");
        fs::create_dir_all(&mount)?;
        let mut reasons = Vec::new();
        for kind in ["xfs", "btrfs"] {
            File::create(&image)?.set_len(IMAGE_BYTES)?;
            let made = timed(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image));
            if made.is_err() {
                reasons.push(format!("no mkfs.{kind}"));
                continue;
            }
            let mounted = timed(
                Command::new("mount").args(["-t", kind, "-o", "loop"]).args([&image, &mount]),
            );
            match mounted {
                Ok(_) => return Ok(Ok(SharingFileSystem { mount, kind })),
                Err(_) => reasons.push(format!("{kind} cannot be mounted")),
            }
        }
        fs::remove_file(&image).context("removing the image of a file system")?;
        Ok(Err(Lacking(reasons.join(", "))))
    }
}

impl Drop for SharingFileSystem {
    fn drop(&mut self) {
        // The loop device goes with the mount, and the image with the benchmark's folder.
        let _ = timed(Command::new("umount").arg(&self.mount));
    }
}
