//! Run folders of roots that are gone. A root other than `/` has its run folder outside of itself, so whoever removes the root
//! leaves that behind. Called by the doctor.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;

use super::run_base;
use crate::names::run_folder;

/// A run folder whose root is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abandoned {
    pub run: PathBuf,
    pub root: PathBuf,
    pub sockets: Sockets,
}

/// Whether a guest may still run there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sockets {
    None,
    /// Those of a guest, which go with its end.
    Some,
}

/// The run folders of this user in which no root is any more. Told by who keeps the machine's own VM Host, so none when another
/// is named.
#[must_use]
pub fn abandoned() -> Vec<Abandoned> {
    match std::env::var_os("HPVM_ROOT") {
        Some(_) => Vec::new(),
        None => abandoned_in(&run_base()),
    }
}

fn abandoned_in(base: &Path) -> Vec<Abandoned> {
    let mut abandoned: Vec<Abandoned> =
        folders(base).filter(|run| is_ours(run)).filter_map(read).collect();
    abandoned.sort_by(|one, other| one.run.cmp(&other.run));
    abandoned
}

fn is_ours(run: &Path) -> bool {
    let name = run.file_name().unwrap_or_default().to_string_lossy();
    let id = name.strip_prefix("hpvm-").unwrap_or_default();
    let is_id = id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let metadata = fs::symlink_metadata(run);
    is_id && metadata.is_ok_and(|m| m.is_dir() && m.uid() == geteuid().as_raw())
}

fn read(run: PathBuf) -> Option<Abandoned> {
    let root = fs::read_link(run.join("root")).ok()?;
    let seen = fs::symlink_metadata(&root);
    seen.is_err_and(|error| error.kind() == ErrorKind::NotFound).then(|| {
        let has_sockets = folders(&run).any(|folder| folder.join(run_folder::RESCUE).exists());
        let sockets = if has_sockets { Sockets::Some } else { Sockets::None };
        Abandoned { run, root, sockets }
    })
}

fn folders(path: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_folders_of_roots_that_are_gone_are_told_of() {
        let base = tempfile::tempdir().unwrap();
        let make = |name: &str, root: &Path| {
            let run = base.path().join(name);
            fs::create_dir(&run).unwrap();
            symlink(root, run.join("root")).unwrap();
            run
        };
        let gone = Path::new("/nonexistent/root");
        let rest = make("hpvm-0123456789ab", gone);
        let used = make("hpvm-0123456789ac", gone);
        fs::create_dir(used.join("7")).unwrap();
        fs::write(used.join("7").join(run_folder::RESCUE), "").unwrap();
        make("hpvm-0123456789ad", base.path());
        make("hpvm-of-somebody", gone);
        fs::create_dir(base.path().join("hpvm-0123456789ae")).unwrap();
        let root = gone.to_owned();
        assert_eq!(
            abandoned_in(base.path()),
            [
                Abandoned { run: rest, root: root.clone(), sockets: Sockets::None },
                Abandoned { run: used, root, sockets: Sockets::Some },
            ]
        );
    }
}
