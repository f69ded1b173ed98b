//! Files that survive a power cut: each is synced before its name counts on it.
//!
//! Called by whoever makes files of a guest. Syncing costs most of a creation's time, so a folder is synced by the caller,
//! once, after all that went into it; what says `replace` does it itself.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::copy::spliced;
use crate::removal;

mod replaced;

pub use replaced::{Prepared, Replaced, has_no_links};

/// Which step on which file failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}", path.display())]
pub struct DurableError {
    pub operation: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

/// What became of an operation on a path.
pub fn failed<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> DurableError + 'a {
    move |source| DurableError { operation, path: path.to_owned(), source }
}

/// Makes a file that is not there yet, with its content on the disk. Its name is safe after [`sync_folder`].
pub fn create_file(path: &Path, content: &[u8], mode: u32) -> Result<File, DurableError> {
    let file = write_file(path, content, mode)?;
    file.sync_all().map_err(failed("sync", path))?;
    Ok(file)
}

/// Copies a file to one that is not there yet. Its name is safe after [`sync_folder`].
pub fn copy_file(from: &Path, to: &Path, mode: u32) -> Result<File, DurableError> {
    let file = write_copy(from, to, mode)?;
    file.sync_all().map_err(failed("sync", to))?;
    Ok(file)
}

/// Files, links and the folders that name them, made together and synced together: to a file system with a journal the
/// first sync brings most of the others along. Nothing of it is safe before [`Batch::sync`].
#[derive(Debug, Default)]
#[must_use]
pub struct Batch {
    files: Vec<(PathBuf, File)>,
    folders: Vec<PathBuf>,
}

impl Batch {
    /// Copies a file to one that is not there yet.
    pub fn copy_file(&mut self, from: &Path, to: &Path, mode: u32) -> Result<(), DurableError> {
        self.begin(to, write_copy(from, to, mode)?);
        Ok(())
    }

    /// Takes up a file that was made and written elsewhere.
    pub fn include(&mut self, path: &Path, file: File) {
        self.begin(path, file);
    }

    /// Makes a symbolic link as [`replace_symlink`] does.
    pub fn replace_symlink(&mut self, target: &Path, link: &Path) -> Result<(), DurableError> {
        swap_symlink(target, link)?;
        self.names_in(link.parent().unwrap_or(Path::new("/")));
        Ok(())
    }

    /// The names in this folder are to be safe too.
    pub fn names_in(&mut self, folder: &Path) {
        self.folders.push(folder.to_owned());
    }

    pub fn sync(self) -> Result<(), DurableError> {
        for (path, file) in &self.files {
            file.sync_all().map_err(failed("sync", path))?;
        }
        self.folders.iter().try_for_each(|folder| sync_folder(folder))
    }

    /// Starts the writing, so that all of the batch is on its way, with its room on the disk, when the first sync comes.
    fn begin(&mut self, path: &Path, file: File) {
        // A hint: without it the sync writes everything itself.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        self.files.push((path.to_owned(), file));
    }
}

/// Puts a file in the place of another: a reader sees the old content or the new, never a part, also after a power cut.
pub fn replace_file(path: &Path, content: &[u8], mode: u32) -> Result<(), DurableError> {
    let fresh = sibling(path);
    discard(&fresh)?;
    create_file(&fresh, content, mode)
        .map(drop)
        .and_then(|()| rename(&fresh, path))
        .inspect_err(leaving(&fresh))
}

/// Copies a file in the place of another, as [`replace_file`] does.
pub fn replace_by_copy(from: &Path, path: &Path, mode: u32) -> Result<(), DurableError> {
    let fresh = sibling(path);
    discard(&fresh)?;
    copy_file(from, &fresh, mode)
        .map(drop)
        .and_then(|()| rename(&fresh, path))
        .inspect_err(leaving(&fresh))
}

/// Puts a file in the place of another without syncing, for what no boot of the host survives anyway.
pub fn swap_file(path: &Path, content: &[u8], mode: u32) -> Result<(), DurableError> {
    Unsynced::beside(path, content, mode)?.put()
}

/// Such a file that has not its place yet: goes again unless it is put there.
#[derive(Debug)]
pub struct Unsynced {
    fresh: PathBuf,
    path: PathBuf,
    is_put: bool,
}

impl Unsynced {
    pub fn beside(path: &Path, content: &[u8], mode: u32) -> Result<Unsynced, DurableError> {
        let unsynced = Unsynced { fresh: sibling(path), path: path.to_owned(), is_put: false };
        discard(&unsynced.fresh)?;
        write_file(&unsynced.fresh, content, mode)?;
        Ok(unsynced)
    }

    pub fn put(mut self) -> Result<(), DurableError> {
        swap_name(&self.fresh, &self.path)?;
        self.is_put = true;
        Ok(())
    }
}

impl Drop for Unsynced {
    fn drop(&mut self) {
        if !self.is_put {
            let _ = std::fs::remove_file(&self.fresh);
        }
    }
}

/// Makes a symbolic link, or points an existing one elsewhere, at once and for good. What is there and is no link is
/// somebody else's, and stays.
pub fn replace_symlink(target: &Path, link: &Path) -> Result<(), DurableError> {
    swap_symlink(target, link)?;
    sync_folder(link.parent().unwrap_or(Path::new("/")))
}

fn swap_symlink(target: &Path, link: &Path) -> Result<(), DurableError> {
    // Where nothing is in the way there is nothing to take the place of.
    match symlink(target, link) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made.map_err(failed("make the link", link)),
    }
    if std::fs::symlink_metadata(link).is_ok_and(|there| !there.is_symlink()) {
        return Err(failed("make the link", link)(io::ErrorKind::AlreadyExists.into()));
    }
    let fresh = sibling(link);
    discard(&fresh)?;
    symlink(target, &fresh).map_err(failed("make the link", &fresh))?;
    std::fs::rename(&fresh, link).map_err(failed("put into its place", link))
}

/// Makes a folder that is not there yet, with this mode whatever the umask. Its name is safe after [`sync_folder`].
pub fn create_folder(path: &Path, mode: u32) -> Result<(), DurableError> {
    std::fs::create_dir(path).map_err(failed("make the folder", path))?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode))
        .map_err(failed("set the mode of", path))
}

/// Renames within one folder, for good.
pub fn rename(from: &Path, to: &Path) -> Result<(), DurableError> {
    swap_name(from, to)?;
    sync_folder(to.parent().unwrap_or(Path::new("/")))
}

/// Renames. The new name is safe after [`sync_folder`].
pub fn swap_name(from: &Path, to: &Path) -> Result<(), DurableError> {
    std::fs::rename(from, to).map_err(failed("put into its place", to))
}

/// Makes the names in a folder survive a power cut.
pub fn sync_folder(folder: &Path) -> Result<(), DurableError> {
    let opened = File::open(folder).map_err(failed("open the folder", folder))?;
    opened.sync_all().map_err(failed("sync the folder", folder))
}

/// Opens a file to be read to its end. A pipe or a device, which may have none, is refused.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = open_untouched(path, OFlags::empty())?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(no_regular_file()),
    }
}

/// What is said of anything else in the place of a file of ours.
#[must_use]
pub fn no_regular_file() -> io::Error {
    io::Error::other("it is no regular file")
}

/// Opens a file to be read without noting when that was, where that is ours to say (open(2), O_NOATIME): on a file system that
/// hangs, the note would hold up who reads what is in memory, and him who ends meanwhile. A pipe is not waited for.
pub fn open_untouched(path: &Path, flags: OFlags) -> io::Result<File> {
    let opened = |flags: OFlags| {
        let flags = i32::try_from((flags | OFlags::NONBLOCK).bits()).unwrap_or_default();
        OpenOptions::new().read(true).custom_flags(flags).open(path)
    };
    match opened(flags | OFlags::NOATIME) {
        Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => opened(flags),
        other => other,
    }
}

/// Reads such a file whole.
pub fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open_regular(path)?.read_to_end(&mut content)?;
    Ok(content)
}

fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<File, DurableError> {
    let mut file = create(path, mode)?;
    file.write_all(content).map_err(failed("write", path))?;
    Ok(file)
}

fn write_copy(from: &Path, to: &Path, mode: u32) -> Result<File, DurableError> {
    let mut source = open_regular(from).map_err(failed("open", from))?;
    let mut file = create(to, mode)?;
    if spliced::copy(&source, &file).is_err() {
        io::copy(&mut source, &mut file).map_err(failed("write", to))?;
    }
    Ok(file)
}

/// Makes an empty file that is not there yet, with this mode whatever the umask. Nothing of it is safe yet.
pub fn create(path: &Path, mode: u32) -> Result<File, DurableError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(failed("make", path))?;
    file.set_permissions(PermissionsExt::from_mode(mode))
        .map_err(failed("set the mode of", path))?;
    Ok(file)
}

/// As many bytes of a name as leave room for what is put around them: a file system takes 255.
const NAME_KEPT: usize = 200;

/// The name a file has until it takes the place of `path`. Hidden, and told by its ending from what people make.
#[must_use]
pub fn sibling(path: &Path) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mut name = sibling_begin(path, std::process::id());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    name.push(format!("{count}{SIBLING_END}"));
    path.with_file_name(name)
}

/// The files under such names that a process left which made them for `path`.
#[must_use]
pub fn left_siblings(path: &Path, pid: u32) -> Vec<PathBuf> {
    let begin = sibling_begin(path, pid);
    let is_one = |name: &OsStr| {
        let rest = name.as_bytes().strip_prefix(begin.as_bytes());
        let count = rest.and_then(|rest| rest.strip_suffix(SIBLING_END.as_bytes()));
        count.is_some_and(|count| !count.is_empty() && count.iter().all(u8::is_ascii_digit))
    };
    let folder = path.parent().unwrap_or(Path::new("/"));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| is_one(&entry.file_name())).map(|entry| entry.path()).collect()
}

/// What the file under such a name was made for, and by which process.
#[must_use]
pub fn made_for(name: &str) -> Option<(&str, i32)> {
    let made = name.strip_prefix('.')?.strip_suffix(SIBLING_END)?;
    let (rest, count) = made.rsplit_once('.')?;
    count.parse::<u32>().ok()?;
    let (path, pid) = rest.rsplit_once('.')?;
    Some((path, pid.parse().ok()?))
}

const SIBLING_END: &str = ".new";

fn sibling_begin(path: &Path, pid: u32) -> OsString {
    let mut name = OsString::from(".");
    let whole = path.file_name().unwrap_or_default().as_bytes();
    name.push(OsStr::from_bytes(&whole[..whole.len().min(NAME_KEPT)]));
    name.push(format!(".{pid}."));
    name
}

/// A replacement that failed leaves nothing behind: on a full disk least of all. What failed first is what is told.
fn leaving(fresh: &Path) -> impl FnOnce(&DurableError) + '_ {
    move |_| {
        let _ = std::fs::remove_file(fresh);
    }
}

/// A process that had our number may have died here.
fn discard(leftover: &Path) -> Result<(), DurableError> {
    removal::file(leftover).map_err(failed("remove", leftover))
}
