//! What every initramfs of ours starts from: busybox with a link for each of its commands, and a console.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::tool::{output, tool};

/// The archive with the busybox of the unpacked package `busybox-static` in `tree`.
pub(crate) fn with_busybox(tree: &Path) -> Result<Archive> {
    let busybox = tree.join("bin/busybox");
    let program =
        std::fs::read(&busybox).with_context(|| format!("reading {}", busybox.display()))?;
    let mut list = tool(&busybox.to_string_lossy(), Duration::from_secs(10));
    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "root", "run"] {
        archive.folder(folder);
    }
    // The kernel gives it to the first process as its input and outputs, before anything is mounted.
    archive.character_device("dev/console", 5, 1);
    archive.file("bin/busybox", &program);
    for command in output(list.arg("--list"))?.lines().filter(|command| *command != "busybox") {
        archive.link(&format!("bin/{command}"), "busybox");
    }
    archive.link("sbin", "bin");
    Ok(archive)
}
