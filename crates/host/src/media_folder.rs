//! A folder of images that somebody without rights on the VM Host chooses from: which files it offers, and one of them
//! opened. Called by the worker, which was given the folder held open and reaches no other. Which of its files have other names
//! too is for the commands that judge it; one that got such a name after that is not offered.
//!
//! Nothing leads out of the folder: links, `..` and absolute names are followed by the kernel within it only
//! (openat2(2), `RESOLVE_BENEATH`). A file that everybody may write to is not offered: nobody could say what a guest boots
//! from it. Nor is a disk that a guest writes to, which QEMU would refuse. What is no regular file is never opened, since
//! opening alone may move a tape or wait for a pipe.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use hpvm_model::FileIdentity;
use jiff::Timestamp;
use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use crate::{identity, image_lock};

/// More entries of a folder are not looked at.
pub const ENTRIES_MAX: usize = 4096;

/// Why an image is not given.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("there is no '{0}' in the folder of images")]
    Missing(String),
    #[error("'{0}' leads out of the folder of images")]
    Outside(String),
    #[error(
        "'{0}' is not in the folder of images itself; the administrator changes the drive's folder"
    )]
    Deeper(String),
    #[error("'{0}' is no regular file")]
    NoFile(String),
    #[error("'{0}' may be written by everyone, so nobody can say what is in it; chmod o-w it")]
    WritableByAll(String),
    #[error("'{0}' is a disk that a guest, or another program, writes to")]
    Written(String),
    #[error(
        "'{0}' has other names (hard links) and was changed since they were looked at, which was before the guest's start; the administrator puts it in with hpvmmodify, or a copy of it into the folder"
    )]
    Renamed(String),
    #[error("'{name}' cannot be opened by the guest's worker; it needs to be readable by everyone")]
    Open { name: String, source: io::Error },
}

/// The names in a folder that lead to images which [`open`] gives, sorted.
pub fn images(folder: BorrowedFd<'_>, judged: Timestamp) -> io::Result<Vec<String>> {
    let mut names = names(folder)?;
    names.retain(|name| open(folder, name, judged).is_ok());
    Ok(names)
}

/// An image that has other names than the one in its folder (hard links).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namesake {
    pub name: String,
    pub names: u32,
    pub identity: FileIdentity,
}

/// Those of a folder, whoever may read them, sorted by their names there.
pub fn namesakes(folder: &Path) -> io::Result<Vec<Namesake>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    let namesake = |name: String| {
        let metadata = look(folder.as_fd(), &name).ok()?;
        let names = u32::try_from(metadata.nlink()).unwrap_or(u32::MAX);
        (names > 1).then(|| Namesake { name, names, identity: identity::of(&metadata) })
    };
    Ok(names(folder.as_fd())?.into_iter().filter_map(namesake).collect())
}

fn names(folder: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(folder, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&opened)?.take(ENTRIES_MAX) {
        let entry = entry?;
        // A name that is no text could not be typed.
        let Ok(name) = entry.file_name().to_str() else { continue };
        if !name.starts_with('.') {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Opens an image for reading, by one of the names that [`images`] gives; what has a folder of its own would make that the one
/// to choose from. Gives it with what the kernel says of the very file that was opened. Which images had other names was looked at
/// when the folder was judged.
pub fn open(
    folder: BorrowedFd<'_>,
    name: &str,
    judged: Timestamp,
) -> Result<(OwnedFd, Metadata), ImageError> {
    look(folder, name)?;
    if name.contains('/') {
        return Err(ImageError::Deeper(name.to_owned()));
    }
    let file = File::from(beneath(folder, name, OFlags::RDONLY | OFlags::NONBLOCK)?);
    // Between the look and the opening somebody may have exchanged it.
    let metadata = check(name, &file)?;
    // Where the file system has no locks nobody can tell.
    if image_lock::has_writer(&file).unwrap_or(false) {
        return Err(ImageError::Written(name.to_owned()));
    }
    if metadata.nlink() > 1 && changed(&metadata) > judged {
        return Err(ImageError::Renamed(name.to_owned()));
    }
    Ok((file.into(), metadata))
}

fn look(folder: BorrowedFd<'_>, name: &str) -> Result<Metadata, ImageError> {
    let held = File::from(beneath(folder, name, OFlags::PATH)?);
    check(name, &held)
}

fn check(name: &str, file: &File) -> Result<Metadata, ImageError> {
    const WRITABLE_BY_ALL: u32 = 0o002;
    let metadata =
        file.metadata().map_err(|source| ImageError::Open { name: name.to_owned(), source })?;
    match metadata.is_file() {
        false => Err(ImageError::NoFile(name.to_owned())),
        true if metadata.mode() & WRITABLE_BY_ALL != 0 => {
            Err(ImageError::WritableByAll(name.to_owned()))
        }
        true => Ok(metadata),
    }
}

/// When the file last got a name, among other changes.
fn changed(metadata: &Metadata) -> Timestamp {
    let nanoseconds = i32::try_from(metadata.ctime_nsec()).unwrap_or_default();
    Timestamp::new(metadata.ctime(), nanoseconds).unwrap_or(Timestamp::MAX)
}

fn beneath(folder: BorrowedFd<'_>, name: &str, flags: OFlags) -> Result<OwnedFd, ImageError> {
    let flags = flags | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    openat2(folder.as_fd(), name, flags, Mode::empty(), resolve).map_err(|error| match error {
        Errno::NOENT | Errno::NOTDIR => ImageError::Missing(name.to_owned()),
        Errno::XDEV | Errno::LOOP => ImageError::Outside(name.to_owned()),
        other => ImageError::Open { name: name.to_owned(), source: other.into() },
    })
}
