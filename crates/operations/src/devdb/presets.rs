//! The folders that are the VM Host's own and restricted without anybody saying so. They are real paths of this machine,
//! whatever HPVM_ROOT says; only hpvm's own state has one below each root.

use std::cell::OnceCell;
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
    folders: Vec<HostFolder>,
    states: Vec<PathBuf>,
}

/// One that is there. A folder that is a link stands for what it leads to.
#[derive(Debug)]
struct HostFolder {
    name: &'static str,
    identity: FileIdentity,
    /// Looked for when it is told: most commands only compare.
    real: OnceCell<PathBuf>,
}

impl HostFolder {
    fn called(name: &'static str) -> Option<HostFolder> {
        let metadata = fs::metadata(name).ok()?;
        let identity = FileIdentity { device: metadata.dev(), inode: metadata.ino() };
        Some(HostFolder { name, identity, real: OnceCell::new() })
    }

    fn real_path(&self) -> &Path {
        self.real.get_or_init(|| fs::canonicalize(self.name).unwrap_or_else(|_| self.name.into()))
    }
}

impl Presets {
    /// As they are on this machine now.
    pub(crate) fn of(root: &Root) -> Presets {
        let mut states = vec![PathBuf::from(STATE)];
        if root.state() != states[0] {
            states.push(root.state());
        }
        let folders = HOST_FOLDERS.into_iter().filter_map(HostFolder::called).collect();
        Presets { folders, states }
    }

    /// The same, with all that may be asked of them later, for a thread that has the time.
    pub(crate) fn whole(root: &Root) -> Presets {
        let presets = Presets::of(root);
        for folder in &presets.folders {
            folder.real_path();
        }
        presets
    }

    /// The preset that is this very folder, by whatever name it was reached.
    pub(crate) fn at(&self, identity: FileIdentity) -> Option<String> {
        let found = self.folders.iter().find(|folder| folder.identity == identity)?;
        Some(found.real_path().display().to_string())
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
        let folders = self.folders.iter().map(HostFolder::real_path);
        let inner = folders.filter(|path| *path != Path::new(folder));
        let states = self.states.iter().filter(|state| state.exists()).map(PathBuf::as_path);
        let below = inner.chain(states).filter(|path| path.starts_with(folder));
        below.map(|path| path.display().to_string()).collect()
    }

    /// Those on a file system, given by its device.
    pub(crate) fn on(&self, device: u64) -> Vec<String> {
        let folders = self.folders.iter().filter(|folder| folder.identity.device == device);
        let is_on = |state: &&PathBuf| fs::metadata(state).is_ok_and(|found| found.dev() == device);
        let states = self.states.iter().filter(is_on).map(PathBuf::as_path);
        let paths = folders.map(HostFolder::real_path).chain(states);
        paths.map(|path| path.display().to_string()).collect()
    }

    /// The outermost of them, for a list; of a state folder what is hpvm's own.
    pub(crate) fn names(&self) -> Vec<String> {
        let folders = self.folders.iter().map(|folder| folder.real_path().to_owned());
        let own = OWN_FOLDERS.into_iter().chain([OWN_FILES]);
        let states = self.states.iter().flat_map(|state| own.clone().map(|own| state.join(own)));
        let paths = folders.chain(states);
        let mut names: Vec<String> = paths.map(|path| path.display().to_string()).collect();
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
        assert_eq!(presets.at(identity), Some("/etc".into()));
        let own = fs::metadata(folder.path()).unwrap();
        let identity = FileIdentity { device: own.dev(), inode: own.ino() };
        assert_eq!(presets.at(identity), None);
    }
}
