//! Removing what may be gone already: somebody else's removal is as good as ours.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

/// Removes a file or a link.
pub fn file(path: &Path) -> io::Result<()> {
    gone(fs::remove_file(path))
}

/// How often somebody may put a file into a folder that is being emptied: who waits for a guest's lock makes it where it is missing.
const ATTEMPTS_MAX: u32 = 100;

/// Removes a folder and everything in it.
pub fn folder(path: &Path) -> io::Result<()> {
    let mut attempts = 1;
    loop {
        match fs::remove_dir_all(path) {
            Err(error)
                if error.kind() == ErrorKind::DirectoryNotEmpty && attempts < ATTEMPTS_MAX =>
            {
                attempts += 1;
            }
            removed => return gone(removed),
        }
    }
}

/// Removes whatever is there.
pub fn either(path: &Path) -> io::Result<()> {
    let is_folder = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    if is_folder { folder(path) } else { file(path) }
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
