//! The folders that are the VM Host's own and restricted without anybody saying so. They are real paths of this machine,
//! whatever HPVM_ROOT says; only hpvm's own state has one below each root.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hpvm_host::Root;
use hpvm_model::FileIdentity;

/// Programs, configuration and boot files of the host, and what is no file on a disk at all. `/stand` is A.03.50's.
pub(crate) const HOST_FOLDERS: [&str; 11] = [
    "/bin",
    "/boot",
    "/etc",
    "/lib",
    "/lib64",
    "/opt/hpvm",
    "/proc",
    "/sbin",
    "/stand",
    "/sys",
    "/usr",
];

/// Where hpvm keeps its state when there is no other root.
const STATE: &str = "/var/opt/hpvm";

/// What in a state folder is hpvm's own. Images and disks that lie beside it are not.
const OWN_FOLDERS: [&str; 3] = ["uuids", "guests", "common"];
const OWN_FILES: &str = "hpvm.db";

#[derive(Debug)]
pub(crate) struct Presets {
    folders: Vec<(PathBuf, FileIdentity)>,
    states: Vec<PathBuf>,
}

impl Presets {
    /// As they are on this machine now: a folder that is a link stands for what it leads to.
    pub(crate) fn of(root: &Root) -> Presets {
        let there = |folder: &str| {
            let metadata = fs::metadata(folder).ok()?;
            let identity = FileIdentity { device: metadata.dev(), inode: metadata.ino() };
            Some((fs::canonicalize(folder).ok()?, identity))
        };
        let mut states = vec![PathBuf::from(STATE)];
        if root.state() != states[0] {
            states.push(root.state());
        }
        Presets { folders: HOST_FOLDERS.into_iter().filter_map(there).collect(), states }
    }

    /// The preset that is this very folder, by whatever name it was reached.
    pub(crate) fn at(&self, folder: &str, identity: FileIdentity) -> Option<String> {
        let is_it = |(path, known): &&(PathBuf, FileIdentity)| {
            path == Path::new(folder) || *known == identity
        };
        self.folders.iter().find(is_it).map(|(path, _)| path.display().to_string())
    }

    /// The part of hpvm's own state that a path lies in.
    pub(crate) fn state_of(&self, path: &str) -> Option<String> {
        self.states.iter().find_map(|state| {
            let below = Path::new(path).strip_prefix(state).ok()?;
            let first = below.components().next()?.as_os_str().to_str()?;
            let is_own = OWN_FOLDERS.contains(&first) || first.starts_with(OWN_FILES);
            is_own.then(|| state.display().to_string())
        })
    }

    /// Those that lie below a folder, which is given as its real path; a state folder holds more than the state.
    pub(crate) fn below(&self, folder: &str) -> Vec<String> {
        let folders = self.folders.iter().map(|(path, _)| path);
        let inner = folders.filter(|path| *path != Path::new(folder));
        let states = self.states.iter().filter(|state| state.exists());
        let below = inner.chain(states).filter(|path| path.starts_with(folder));
        below.map(|path| path.display().to_string()).collect()
    }

    /// Those on a file system, given by its device.
    pub(crate) fn on(&self, device: u64) -> Vec<String> {
        let folders = self.folders.iter().filter(|(_, identity)| identity.device == device);
        let is_on = |state: &&PathBuf| fs::metadata(state).is_ok_and(|found| found.dev() == device);
        let states = self.states.iter().filter(is_on);
        let paths = folders.map(|(path, _)| path).chain(states);
        paths.map(|path| path.display().to_string()).collect()
    }

    /// The outermost of them, for a list.
    pub(crate) fn names(&self) -> Vec<String> {
        let folders = self.folders.iter().map(|(path, _)| path);
        let mut names: Vec<String> =
            folders.chain(&self.states).map(|path| path.display().to_string()).collect();
        names.sort();
        // On most machines /bin is a link into /usr, which says it all.
        names.dedup_by(|later, earlier| Path::new(later).starts_with(earlier));
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_beside_the_state_are_not_the_hosts_own() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path()).unwrap();
        let presets = Presets::of(&root);
        let own = |below: &str| presets.state_of(root.state().join(below).to_str().unwrap());
        for below in ["hpvm.db", "hpvm.db-wal", "hpvm.db.version-1", "uuids/x/nvram", "guests/web"]
        {
            assert!(own(below).is_some(), "{below}");
        }
        for below in ["ISO-images/a.iso", "disks/web.img", "uuid"] {
            assert_eq!(own(below), None, "{below}");
        }
        assert!(presets.state_of("/var/opt/hpvm/common/x").is_some(), "whatever the root");
    }

    #[test]
    fn what_lies_below_a_folder_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path()).unwrap();
        let presets = Presets::of(&root);
        let etc = fs::canonicalize("/etc").unwrap().display().to_string();
        assert!(presets.below("/").contains(&etc) && !presets.below(&etc).contains(&etc));
        assert!(presets.below(folder.path().to_str().unwrap()).is_empty(), "no state yet");
        fs::create_dir_all(root.state().join("ISO-images")).unwrap();
        let state = root.state().display().to_string();
        for above in [folder.path(), &root.state()] {
            assert_eq!(presets.below(above.to_str().unwrap()), [&*state]);
        }
        assert!(presets.below(&format!("{state}/ISO-images")).is_empty());
    }

    #[test]
    fn a_preset_is_known_by_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let presets = Presets::of(&Root::at(folder.path()).unwrap());
        let etc = fs::metadata("/etc").unwrap();
        let identity = FileIdentity { device: etc.dev(), inode: etc.ino() };
        assert_eq!(presets.at("/mnt/elsewhere", identity), presets.at("/etc", identity));
        let own = fs::metadata(folder.path()).unwrap();
        let identity = FileIdentity { device: own.dev(), inode: own.ino() };
        assert_eq!(presets.at(folder.path().to_str().unwrap(), identity), None);
    }
}
