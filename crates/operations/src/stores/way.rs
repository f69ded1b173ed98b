//! Where a path leads, and by what folders. Looked at once for each store, by [`super::Stores`], which waits for an answer in
//! time: any part of the way may lie on a file system that gives none.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use hpvm_model::FileIdentity;

/// A file or folder on the way to a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) path: String,
    pub(crate) identity: FileIdentity,
}

/// The way to what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    /// Links followed.
    pub(crate) real: PathBuf,
    /// The thing itself, then the folders above it, nearest first.
    pub(crate) spots: Vec<Spot>,
}

impl Way {
    /// `None`: it leads nowhere.
    pub(crate) fn to(path: &Path) -> Option<Way> {
        let real = fs::canonicalize(path).ok()?;
        let spots = real.ancestors().filter_map(spot).collect();
        Some(Way { real, spots })
    }
}

/// The way to a path, and to the folder that its name lies in: of what is not there yet, or does not answer, the folder is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ways {
    pub(crate) own: Option<Way>,
    pub(crate) folder: Option<Way>,
}

impl Ways {
    pub(crate) fn of(path: &Path) -> Ways {
        Ways { own: Way::to(path), folder: path.parent().and_then(Way::to) }
    }
}

/// The folder that the name of a path lies in.
pub(crate) fn folder(path: &str) -> Option<&str> {
    Path::new(path).parent()?.to_str()
}

fn spot(path: &Path) -> Option<Spot> {
    let identity = identity_at(path)?;
    Some(Spot { path: path.to_str()?.to_owned(), identity })
}

/// What the kernel knows at a path by, devices by their number.
pub(super) fn identity_at(path: &Path) -> Option<FileIdentity> {
    let metadata = fs::metadata(path).ok()?;
    let kind = metadata.file_type();
    Some(match kind.is_block_device() || kind.is_char_device() {
        true => FileIdentity::of_device(metadata.rdev()),
        false => FileIdentity { device: metadata.dev(), inode: metadata.ino() },
    })
}
