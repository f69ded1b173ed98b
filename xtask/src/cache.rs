//! The cache of built things, `.cache/` at the top of the checkout.
//!
//! A product of a task (a guest's disk, an option ROM) is named by a key over everything it was made from: the source of
//! its recipe and the versions of its packages. It is made under another name and renamed when complete, so that what has
//! its final name is whole. `.cache/images/NAME` is a link to the newest one, for tests and scripts.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Top of the checkout this task was built from.
pub(crate) fn checkout() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR");
    let xtask = manifest.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    xtask.parent().map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// A folder of the cache, made when it is not there.
pub(crate) fn folder(name: &str) -> Result<PathBuf> {
    let path = checkout().join(".cache").join(name);
    fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
    Ok(path)
}

/// An empty folder for one build, removed with all it holds when the value is dropped.
pub(crate) struct Scratch {
    pub(crate) path: PathBuf,
}

impl Scratch {
    fn new(images: &Path, name: &str) -> Result<Self> {
        let path = images.join(format!(".{name}.{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self { path })
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("xtask: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// What identifies a product besides its name.
pub(crate) struct Key(u64);

impl Key {
    /// The key of a product made of these parts; a changed, added or missing part changes it.
    pub(crate) fn of<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        // FNV-1a: stable between Rust versions, as the standard hasher is not; nobody attacks this cache.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in parts.into_iter().flat_map(|part| part.bytes().chain([0])) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Self(hash)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

/// Gives `.cache/images/STEM-KEY.EXTENSION`, made by `build` unless it is there, and points the link STEM.EXTENSION at
/// it. `build` gets a scratch folder and returns the path of what it made below it.
pub(crate) fn product(
    stem: &str,
    extension: &str,
    key: &Key,
    build: impl FnOnce(&Scratch) -> Result<PathBuf>,
) -> Result<PathBuf> {
    let images = folder("images")?;
    let link = images.join(format!("{stem}.{extension}"));
    let file = format!("{stem}-{key}.{extension}");
    let finished = images.join(&file);
    if fs::read_link(&link).is_ok_and(|target| target == Path::new(&file)) && finished.exists() {
        return Ok(link);
    }
    // Two tasks that want the same product: the second waits for the first, then finds it made.
    let lock_path = images.join(format!(".{stem}.lock"));
    let lock =
        File::create(&lock_path).with_context(|| format!("making {}", lock_path.display()))?;
    lock.lock().with_context(|| format!("locking {}", lock_path.display()))?;
    if !finished.exists() {
        eprintln!("{file}:");
        remove_leftovers(&images, stem)?;
        let scratch = Scratch::new(&images, stem)?;
        let built = build(&scratch)?;
        fs::rename(&built, &finished).with_context(|| format!("renaming {}", built.display()))?;
    }
    point(&link, &file)?;
    remove_older(&images, stem, extension, &file)?;
    Ok(link)
}

/// Replaces `link` in one step, so that readers always find a whole product.
fn point(link: &Path, target: &str) -> Result<()> {
    let fresh = link.with_extension("link");
    let _absent_is_fine = fs::remove_file(&fresh);
    symlink(target, &fresh)
        .and_then(|()| fs::rename(&fresh, link))
        .with_context(|| format!("pointing {} at {target}", link.display()))
}

/// Scratch folders of builds that were killed; we hold the lock, so none is in use.
fn remove_leftovers(images: &Path, stem: &str) -> Result<()> {
    let of_a_build = |name: &str| {
        name.strip_prefix(&format!(".{stem}.")).is_some_and(|pid| pid.parse::<u32>().is_ok())
    };
    for path in entries(images, of_a_build)? {
        fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

fn remove_older(images: &Path, stem: &str, extension: &str, newest: &str) -> Result<()> {
    let older = |name: &str| {
        let key = name
            .strip_prefix(&format!("{stem}-"))
            .and_then(|rest| rest.strip_suffix(&format!(".{extension}")));
        name != newest
            && key.is_some_and(|key| key.len() == 16 && u64::from_str_radix(key, 16).is_ok())
    };
    for path in entries(images, older)? {
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

fn entries(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let reading = || format!("reading {}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        if entry.file_name().to_str().is_some_and(&wanted) {
            paths.push(entry.path());
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_tells_where_a_part_ends() {
        assert_ne!(Key::of(["ab", "c"]).0, Key::of(["a", "bc"]).0);
        assert_ne!(Key::of(["ab"]).0, Key::of(["ab", ""]).0);
        assert_eq!(Key::of(["ab", "c"]).0, Key::of(["ab", "c"]).0);
    }
}
