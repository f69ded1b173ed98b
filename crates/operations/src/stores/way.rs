//! Where a path leads, and by what folders. Looked at once for each store, by [`super::Stores`], which waits for an answer in
//! time: any part of the way may lie on a file system that gives none.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use hpvm_host::block::Places;
use hpvm_host::identity;
use hpvm_host::media_folder::{self, Namesake};
use hpvm_model::FileIdentity;
use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, statx};

/// A file or folder on the way to a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) path: String,
    pub(crate) identity: FileIdentity,
}

/// A file by how many names it has, all in its file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Namesakes {
    pub(crate) names: u32,
    pub(crate) file: Spot,
}

impl Namesakes {
    pub(crate) fn of(way: &Way) -> Option<Namesakes> {
        let file = way.spots.first()?;
        (way.names > 1).then(|| Namesakes { names: way.names, file: file.clone() })
    }

    /// Those of the images in a folder, as far as it can be read.
    pub(crate) fn within(folder: &Path) -> Vec<Namesakes> {
        let images = media_folder::namesakes(folder).unwrap_or_default().into_iter();
        let spot = |Namesake { name, names, identity }: Namesake| {
            let path = folder.join(name).to_string_lossy().into_owned();
            Namesakes { names, file: Spot { path, identity } }
        };
        images.map(spot).collect()
    }
}

/// The way to what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    /// Links followed.
    pub(crate) real: PathBuf,
    /// The thing itself, then the folders above it, nearest first.
    pub(crate) spots: Vec<Spot>,
    /// How many names it has, of a file.
    pub(crate) names: u32,
    /// The ways to it by other mounts of its file system. What lies on the root's own mount is looked for on no other.
    pub(crate) elsewhere: Vec<Way>,
    pub(crate) sight: Sight,
}

/// Whether the folders above something are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sight {
    #[default]
    Seen,
    /// It is reached through what another process has, by a link of /proc (`root`, `cwd`, `fd/N`), and by no path of our own.
    Hidden,
}

impl Way {
    /// `None`: it leads nowhere.
    pub(crate) fn to(path: &Path) -> Option<Way> {
        let real = fs::canonicalize(path).ok().filter(|real| is_same(path, real));
        let Some(real) = real else { return Way::hidden(path) };
        let (mut way, mounts) = Way::along(real);
        if let (Some(own), Some(root)) = (mounts.first(), mounts.last())
            && own != root
        {
            let others = Places::default().other_paths(&way.real, *own);
            way.elsewhere = others.into_iter().map(|other| Way::along(other).0).collect();
        }
        Some(way)
    }

    /// The kernel goes on from such a link where the other process is, and what the link's text says may be another thing here:
    /// only the thing itself is known, where there is one.
    fn hidden(path: &Path) -> Option<Way> {
        let spots = vec![spot(path, &status(path)?)];
        let real = path.to_owned();
        Some(Way { real, spots, names: 1, elsewhere: Vec::new(), sight: Sight::Hidden })
    }

    /// Along a path without links; the numbers of the mounts on it.
    fn along(real: PathBuf) -> (Way, Vec<u64>) {
        let seen = |path: &Path| Some((path.to_owned(), status(path)?));
        let seen: Vec<(PathBuf, Statx)> = real.ancestors().filter_map(seen).collect();
        let mounts = seen.iter().map(|(_, status)| mount(status)).collect();
        let itself = seen.first().filter(|(path, status)| *path == real && is_file(status));
        let names = itself.map_or(1, |(_, status)| status.stx_nlink);
        let spots = seen.iter().map(|(path, status)| spot(path, status)).collect();
        (Way { real, spots, names, elsewhere: Vec::new(), sight: Sight::Seen }, mounts)
    }

    /// The way and those elsewhere.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Way> {
        [self].into_iter().chain(&self.elsewhere)
    }

    /// The way on to a name in this folder, where nothing is yet.
    pub(crate) fn on_to(self, name: &OsStr) -> Way {
        let Way { real, spots, names: _, elsewhere, sight } = self;
        let elsewhere = elsewhere.into_iter().map(|way| way.on_to(name)).collect();
        Way { real: real.join(name), spots, names: 1, elsewhere, sight }
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

/// Whether the kernel finds at a path what it finds where the texts of its links lead.
fn is_same(path: &Path, real: &Path) -> bool {
    let found = |path| status(path).map(|status| (identity::of_status(&status), mount(&status)));
    path == real || found(path) == found(real)
}

fn spot(path: &Path, status: &Statx) -> Spot {
    Spot { path: path.to_string_lossy().into_owned(), identity: identity::of_status(status) }
}

fn status(path: &Path) -> Option<Statx> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    statx(CWD, path, AtFlags::empty(), wanted).ok()
}

fn is_file(status: &Statx) -> bool {
    FileType::from_raw_mode(u32::from(status.stx_mode)) == FileType::RegularFile
}

/// The same for all where a kernel tells none (before Linux 5.8).
fn mount(status: &Statx) -> u64 {
    let told = StatxFlags::from_bits_retain(status.stx_mask).contains(StatxFlags::MNT_ID);
    if told { status.stx_mnt_id } else { 0 }
}
