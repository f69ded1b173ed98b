//! What devices of guests and entries of the device database are called on command lines.

use std::path::Path;

/// A disk in a file, wherever there is a place for it.
pub(crate) fn disk_on(file: &Path) -> String {
    format!("disk:avio_stor::file:{}", file.display())
}

/// A disk in a file, at an address.
pub(crate) fn disk_at(address: &str, file: &Path) -> String {
    format!("disk:avio_stor:{address}:file:{}", file.display())
}

/// What the device database has of a path.
pub(crate) fn entry(kind: &str, path: &Path) -> String {
    format!("{kind}:{}", path.display())
}
