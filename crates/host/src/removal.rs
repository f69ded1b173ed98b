//! Removing what may be gone already: somebody else's removal is as good as ours.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

/// Removes a file or a link.
pub fn file(path: &Path) -> io::Result<()> {
    gone(fs::remove_file(path))
}

/// Removes a folder and everything in it.
pub fn folder(path: &Path) -> io::Result<()> {
    gone(fs::remove_dir_all(path))
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
