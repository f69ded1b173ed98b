//! What file system something lies on, told from the table of mounts alone: one that does not answer cannot be asked.

use std::fmt;
use std::path::PathBuf;

use super::device::DeviceNumber;
use super::mounts::{self, Mount};
use super::names;
use super::places::Places;

/// A file system that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// Such as `nfs4`.
    pub kind: String,
    /// A device, or what a server calls it: `server:/export`.
    pub source: PathBuf,
    pub at: PathBuf,
}

impl Places {
    /// The file system that gives files this device number (`st_dev`).
    #[must_use]
    pub fn file_system(&self, device: u64) -> Option<FileSystem> {
        let mounts = mounts::of_process(&self.proc, "self").unwrap_or_default();
        file_system(mounts, DeviceNumber::from_raw(device))
    }
}

fn file_system(mounts: Vec<Mount>, number: DeviceNumber) -> Option<FileSystem> {
    let of_it = mounts.into_iter().filter(|mount| mount.number == number);
    let told = of_it.reduce(|one, other| if mounts::better(&other, &one) { other } else { one })?;
    Some(FileSystem { kind: told.file_system, source: told.source, at: told.at })
}

impl fmt::Display for FileSystem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FileSystem { kind, source, at } = self;
        write!(out, "{} ({kind}), mounted at {}", names::shown(source), names::shown(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:40 /vm /srv/vm rw - nfs4 files:/export rw
3 1 0:40 / /srv rw - nfs4 files:/export rw
";

    #[test]
    fn a_file_system_is_told_by_where_the_whole_of_it_is_mounted() {
        let told = |major, minor| {
            let number = DeviceNumber { major, minor };
            file_system(mounts::mounts(TABLE), number).map(|found| found.to_string())
        };
        assert_eq!(told(0, 40).as_deref(), Some("files:/export (nfs4), mounted at /srv"));
        assert_eq!(told(8, 1).as_deref(), Some("/dev/sda1 (ext4), mounted at /"));
        assert_eq!(told(0, 41), None, "it is mounted no more, or for others");
    }
}
