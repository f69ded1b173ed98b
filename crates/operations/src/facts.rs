//! Collects what a decision may depend on: files, other guests' claims, the host. The only place where operations look.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use hpvm_model::{Bytes, DeviceKind, GuestConfig};
use hpvm_plan::facts::{FileFact, FileIdentity, Writable};

/// What each path of these configurations leads to.
pub(crate) fn files<'a>(
    configs: impl IntoIterator<Item = &'a GuestConfig>,
) -> BTreeMap<String, FileFact> {
    let paths: BTreeSet<&str> = configs
        .into_iter()
        .flat_map(|config| config.storage.iter().map(|device| device.backing.path()))
        .collect();
    paths.into_iter().map(|path| (path.to_owned(), file(Path::new(path)))).collect()
}

/// What one path leads to, links followed.
pub(crate) fn file(path: &Path) -> FileFact {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return FileFact::Missing;
        }
        Err(error) => return FileFact::Unreadable(error.to_string()),
    };
    let kind = metadata.file_type();
    match kind {
        kind if kind.is_dir() => FileFact::Folder,
        kind if kind.is_block_device() => FileFact::Special("block device"),
        kind if kind.is_char_device() => FileFact::Special("character device"),
        kind if kind.is_fifo() => FileFact::Special("named pipe"),
        kind if kind.is_socket() => FileFact::Special("socket"),
        _ => regular(path, &metadata),
    }
}

fn regular(path: &Path, metadata: &std::fs::Metadata) -> FileFact {
    use rustix::fs::{Access, access};
    if let Err(error) = access(path, Access::READ_OK) {
        return FileFact::Unreadable(std::io::Error::from(error).to_string());
    }
    let writable = match access(path, Access::WRITE_OK) {
        Ok(()) => Writable::Yes,
        Err(_) => Writable::No,
    };
    let identity = FileIdentity { device: metadata.dev(), inode: metadata.ino() };
    FileFact::Regular { identity, size: Bytes(metadata.size()), writable }
}

/// The identities of a configuration's files that are not shared freely, which is every one but a dvd's.
pub(crate) fn exclusive_identities(
    config: &GuestConfig,
    files: &BTreeMap<String, FileFact>,
) -> BTreeSet<FileIdentity> {
    config
        .storage
        .iter()
        .filter(|device| device.kind == DeviceKind::Disk)
        .filter_map(|device| match files.get(device.backing.file()?) {
            Some(FileFact::Regular { identity, .. }) => Some(*identity),
            _ => None,
        })
        .collect()
}

/// A guest's firmware variables: there, as large as the pristine copy, and beginning as a firmware volume does.
pub(crate) fn nvram(path: &Path, pristine: &Path) -> hpvm_plan::facts::Provision {
    let missing = match nvram_damage(path, pristine) {
        Ok(damage) => damage.map(str::to_owned),
        Err(error) => Some(error.to_string()),
    };
    hpvm_plan::facts::Provision { path: path.to_string_lossy().into_owned(), missing }
}

/// Offset and value of the signature of a firmware volume header (UEFI PI 1.8, volume 3, 3.2.1).
const VOLUME_SIGNATURE: (usize, &[u8]) = (40, b"_FVH");

/// What is wrong with firmware variables, if anything.
pub(crate) fn nvram_damage(path: &Path, pristine: &Path) -> std::io::Result<Option<&'static str>> {
    use std::io::Read;
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Some("it does not exist")),
        other => other?,
    };
    let size = file.metadata()?.len();
    if let Ok(wanted) = std::fs::metadata(pristine)
        && wanted.len() != size
    {
        return Ok(Some("its size is not that of firmware variables"));
    }
    let mut head = Vec::new();
    file.take(64).read_to_end(&mut head)?;
    let (offset, signature) = VOLUME_SIGNATURE;
    if head.get(offset..offset + signature.len()) != Some(signature) {
        return Ok(Some("its content is damaged"));
    }
    Ok(None)
}
