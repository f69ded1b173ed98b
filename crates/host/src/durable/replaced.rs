//! A file put in the place of another that goes back to it until the new one is kept. Going back needs no room on the disk, so
//! that a change which fails because there is none leaves all as it was.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::{DurableError, create_file, discard, failed, rename, replace_file, sibling};

/// Goes back when dropped. What cannot go back then is found by whoever compares it with what it stands for.
#[derive(Debug)]
#[must_use]
pub struct Replaced {
    path: PathBuf,
    mode: u32,
    before: Before,
}

/// What was there.
#[derive(Debug)]
enum Before {
    /// It has this second name.
    Kept(PathBuf),
    /// Some file systems have no second names.
    Content(Vec<u8>),
    Nothing,
    /// It is not wanted back.
    Gone,
}

/// A file that lies beside the place it is to have, with all the room that it takes there. It goes when dropped.
#[derive(Debug)]
#[must_use]
pub struct Prepared {
    fresh: Fresh,
    /// Until the file has its place this puts back what is there.
    replaced: Replaced,
}

/// A name that nothing is left under.
#[derive(Debug)]
struct Fresh(PathBuf);

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Prepared {
    /// Makes the file and gives what is there its second name: what may fail for want of room.
    pub fn beside(path: &Path, content: &[u8], mode: u32) -> Result<Prepared, DurableError> {
        let fresh = Fresh(sibling(path));
        discard(&fresh.0)?;
        create_file(&fresh.0, content, mode)?;
        let before = Before::of(path)?;
        Ok(Prepared { fresh, replaced: Replaced { path: path.to_owned(), mode, before } })
    }

    /// Puts it in its place.
    pub fn put(self) -> Result<Replaced, DurableError> {
        rename(&self.fresh.0, &self.replaced.path)?;
        Ok(self.replaced)
    }
}

impl Replaced {
    /// Puts a file in its place as [`replace_file`] does.
    pub fn file(path: &Path, content: &[u8], mode: u32) -> Result<Replaced, DurableError> {
        Prepared::beside(path, content, mode)?.put()
    }

    /// From now on nothing goes back.
    pub fn keep(mut self) {
        if let Before::Kept(kept) = std::mem::replace(&mut self.before, Before::Gone) {
            // Its name tells that it is left over.
            let _ = std::fs::remove_file(kept);
        }
    }
}

impl Before {
    fn of(path: &Path) -> Result<Before, DurableError> {
        let kept = sibling(path);
        discard(&kept)?;
        match std::fs::hard_link(path, &kept) {
            Ok(()) => Ok(Before::Kept(kept)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Before::Nothing),
            Err(error) if has_no_links(&error) => {
                std::fs::read(path).map(Before::Content).map_err(failed("read", path))
            }
            Err(error) => Err(failed("keep", path)(error)),
        }
    }
}

/// Whether it says that a file cannot have a second name there.
#[must_use]
pub fn has_no_links(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::PERM | Errno::NOTSUP | Errno::NOSYS | Errno::MLINK))
}

impl Drop for Replaced {
    fn drop(&mut self) {
        let Replaced { path, mode, before } = self;
        let _ = match before {
            Before::Kept(kept) => {
                let back = rename(kept, path);
                // Two names of one file change nothing when one takes the place of the other.
                let _ = std::fs::remove_file(kept);
                back
            }
            Before::Content(content) => replace_file(path, content, *mode),
            Before::Nothing => discard(path),
            Before::Gone => Ok(()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).expect("a folder");
        entries.map(|e| e.expect("a name").file_name().to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn it_goes_back_unless_it_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("guest.json");
        drop(Replaced::file(&path, b"first", 0o644).expect("made"));
        assert_eq!(names(folder.path()), Vec::<String>::new(), "there was nothing");
        Replaced::file(&path, b"first", 0o644).expect("made").keep();
        let second = Replaced::file(&path, b"second", 0o644).expect("replaced");
        assert_eq!(std::fs::read(&path).expect("there"), b"second");
        drop(second);
        assert_eq!(std::fs::read(&path).expect("there"), b"first");
        Replaced::file(&path, b"third", 0o644).expect("replaced").keep();
        assert_eq!(std::fs::read(&path).expect("there"), b"third");
        let prepared = Prepared::beside(&path, b"fourth", 0o644).expect("made");
        assert_eq!(std::fs::read(&path).expect("there"), b"third");
        drop(prepared);
        let prepared = Prepared::beside(&path, b"fourth", 0o644).expect("made");
        prepared.put().expect("replaced").keep();
        assert_eq!(std::fs::read(&path).expect("there"), b"fourth");
        assert_eq!(names(folder.path()), ["guest.json"], "nothing is left beside it");
    }
}
