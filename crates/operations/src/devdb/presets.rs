//! The folders that are the VM Host's own and restricted without anybody saying so. They are real paths of this machine,
//! whatever HPVM_ROOT says; only what is hpvm's own lies below each root too, and its programs where they were started from.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use hpvm_host::{Root, identity, paths};
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

/// Programs, firmware and settings of hpvm, as `make install` puts them below a root.
const OWN_BELOW_ROOT: [&str; 2] = ["opt/hpvm", "etc/opt/hpvm"];

/// Where hpvm keeps its state when there is no other root.
const STATE: &str = "/var/opt/hpvm";

/// What in a state folder is hpvm's own. Images and disks that lie beside it are not.
const OWN_FOLDERS: [&str; 3] = ["uuids", "guests", "common"];
const OWN_FILES: &str = "hpvm.db";

#[derive(Debug)]
pub(crate) struct Presets {
    folders: HostFolders,
    states: Vec<State>,
}

/// A state folder. It and the folders in it that are hpvm's own may be links, or mounts.
#[derive(Debug)]
struct State {
    path: PathBuf,
    /// None while it is not there.
    identity: Option<FileIdentity>,
    own: Vec<FileIdentity>,
    /// Looked for when it is told, as of [`HostFolder`].
    real: OnceCell<RealState>,
}

/// The real paths of the whole, which is more than the state, and of what of the state lies apart from it. None of one that is
/// not there.
#[derive(Debug, Default)]
struct RealState {
    whole: Option<PathBuf>,
    apart: Vec<PathBuf>,
}

impl RealState {
    fn of(state: &Path) -> RealState {
        let Ok(whole) = fs::canonicalize(state) else { return RealState::default() };
        let links = OWN_FOLDERS.iter().map(|name| whole.join(name)).filter(|own| own.is_symlink());
        let own = links.filter_map(|link| fs::canonicalize(link).ok());
        let apart = own.filter(|own| !own.starts_with(&whole)).collect();
        RealState { whole: Some(whole), apart }
    }
}

impl State {
    fn at(path: PathBuf) -> State {
        let own = OWN_FOLDERS.iter().filter_map(|name| identity::at(&path.join(name)));
        State { identity: identity::at(&path), own: own.collect(), path, real: OnceCell::new() }
    }

    /// The registry's files, and those that are kept for all guests and for each.
    fn files(&self) -> impl Iterator<Item = PathBuf> {
        let named = |folder: PathBuf| {
            fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
        };
        let is_registry = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(OWN_FILES))
        };
        let registry = named(self.path.clone()).filter(is_registry);
        let of_guests = named(self.path.join("uuids")).flat_map(named);
        registry.chain(named(self.path.join("common"))).chain(of_guests)
    }

    fn real(&self) -> &RealState {
        self.real.get_or_init(|| RealState::of(&self.path))
    }

    /// The real paths of what lies below a folder, given as its real path.
    fn below(&self, folder: &Path) -> impl Iterator<Item = &PathBuf> {
        let RealState { whole, apart } = self.real();
        let apart = apart.iter().filter(move |own| *own != folder);
        whole.iter().chain(apart).filter(move |path| path.starts_with(folder))
    }
}

/// Whether what lies so below a state folder is hpvm's own.
fn is_own(below: &Path) -> bool {
    let first = below.components().next().and_then(|first| first.as_os_str().to_str());
    first.is_some_and(|first| OWN_FOLDERS.contains(&first) || first.starts_with(OWN_FILES))
}

/// One that is there. A folder that is a link stands for what it leads to.
#[derive(Debug)]
struct HostFolder {
    name: PathBuf,
    identity: FileIdentity,
    /// Looked for when it is told: most commands only compare.
    real: OnceCell<PathBuf>,
}

impl HostFolder {
    fn called(name: PathBuf) -> Option<HostFolder> {
        let identity = identity::at(&name)?;
        Some(HostFolder { name, identity, real: OnceCell::new() })
    }

    fn real_path(&self) -> &Path {
        self.real.get_or_init(|| fs::canonicalize(&self.name).unwrap_or_else(|_| self.name.clone()))
    }
}

/// Those that are the same below each root.
#[derive(Debug)]
pub(crate) struct HostFolders(Vec<HostFolder>);

impl HostFolders {
    fn found() -> HostFolders {
        let mut found = HostFolders(Vec::new());
        found.add(HOST_FOLDERS.into_iter().map(PathBuf::from));
        found
    }

    /// With all that may be asked of them later, for a thread that has the time.
    pub(crate) fn whole() -> HostFolders {
        let found = HostFolders::found();
        found.look_all_up();
        found
    }

    fn look_all_up(&self) {
        for folder in &self.0 {
            folder.real_path();
        }
    }

    fn add(&mut self, names: impl Iterator<Item = PathBuf>) {
        let HostFolders(folders) = self;
        for folder in names.filter_map(HostFolder::called) {
            if folders.iter().all(|known| known.identity != folder.identity) {
                folders.push(folder);
            }
        }
    }
}

impl Presets {
    /// As they are on this machine now.
    pub(crate) fn of(root: &Root) -> Presets {
        Presets::with(HostFolders::found(), root)
    }

    /// The same, with folders that were found before and all that may be asked later.
    pub(crate) fn whole(folders: HostFolders, root: &Root) -> Presets {
        let presets = Presets::with(folders, root);
        presets.folders.look_all_up();
        for state in &presets.states {
            state.real();
        }
        presets
    }

    fn with(mut folders: HostFolders, root: &Root) -> Presets {
        let mut states = vec![PathBuf::from(STATE)];
        if root.state() != states[0] {
            states.push(root.state());
        }
        let below_root = OWN_BELOW_ROOT.into_iter().map(|below| root.prefix().join(below));
        folders.add(below_root.chain(paths::installed_programs()));
        Presets { folders, states: states.into_iter().map(State::at).collect() }
    }

    /// The preset that is this very folder, by whatever name it was reached.
    pub(crate) fn at(&self, identity: FileIdentity) -> Option<String> {
        let found = self.folders.0.iter().find(|folder| folder.identity == identity)?;
        Some(found.real_path().display().to_string())
    }

    /// The part of hpvm's own state that a path lies in.
    pub(crate) fn state_of(&self, path: &str) -> Option<String> {
        self.states.iter().find_map(|state| {
            let below = Path::new(path).strip_prefix(&state.path).ok()?;
            is_own(below).then(|| state.path.display().to_string())
        })
    }

    /// The same of what lies so below this very folder, by whatever name it was reached.
    pub(crate) fn state_at(&self, identity: FileIdentity, below: &Path) -> Option<String> {
        let is_of = |state: &&State| {
            state.own.contains(&identity) || state.identity == Some(identity) && is_own(below)
        };
        self.states.iter().find(is_of).map(|state| state.path.display().to_string())
    }

    /// The file of hpvm's own state that this is. Only a file with several names is worth the look.
    pub(crate) fn own_file(&self, file: FileIdentity) -> Option<PathBuf> {
        self.own_file_among(&BTreeSet::from([file])).map(|(_, path)| path)
    }

    /// One of these that is such a file.
    pub(crate) fn own_file_among(
        &self,
        files: &BTreeSet<FileIdentity>,
    ) -> Option<(FileIdentity, PathBuf)> {
        let own = self.states.iter().flat_map(State::files);
        let mut known = own.filter_map(|path| Some((identity::at(&path)?, path)));
        known.find(|(own, _)| files.contains(own))
    }

    /// Those that lie below a folder, which is given as its real path; a state folder holds more than the state.
    pub(crate) fn below(&self, folder: &str) -> Vec<String> {
        let folder = Path::new(folder);
        let folders = self.folders.0.iter().map(HostFolder::real_path);
        let inner = folders.filter(|path| *path != folder && path.starts_with(folder));
        let states = self.states.iter().flat_map(|state| state.below(folder));
        let below = inner.chain(states.map(PathBuf::as_path));
        below.map(|path| path.display().to_string()).collect()
    }

    /// Those on a file system, given by its device.
    pub(crate) fn on(&self, device: u64) -> Vec<String> {
        let folders = self.folders.0.iter().filter(|folder| folder.identity.device == device);
        let is_on = |state: &&State| {
            state.identity.iter().chain(&state.own).any(|folder| folder.device == device)
        };
        let states = self.states.iter().filter(is_on).map(|state| state.path.as_path());
        let paths = folders.map(HostFolder::real_path).chain(states);
        paths.map(|path| path.display().to_string()).collect()
    }

    /// The outermost of them, for a list; of a state folder what is hpvm's own.
    pub(crate) fn names(&self) -> Vec<String> {
        let folders = self.folders.0.iter().map(|folder| folder.real_path().to_owned());
        let own = OWN_FOLDERS.into_iter().chain([OWN_FILES]);
        let of_state =
            |state: &State| own.clone().map(|own| state.path.join(own)).collect::<Vec<_>>();
        let states = self.states.iter().flat_map(of_state);
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
    fn programs_and_settings_below_a_root_are_hpvms_own() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path()).unwrap();
        fs::create_dir_all(root.lbin()).unwrap();
        fs::create_dir_all(root.conf().parent().unwrap()).unwrap();
        let presets = Presets::of(&root);
        for own in [root.lbin().parent().unwrap(), root.conf().parent().unwrap()] {
            let found = presets.at(identity::at(own).unwrap());
            assert_eq!(found, Some(own.display().to_string()));
        }
        assert_eq!(presets.at(identity::at(&root.prefix().join("opt")).unwrap()), None);
    }

    #[test]
    fn a_file_of_the_state_is_known_by_its_other_names() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path()).unwrap();
        fs::create_dir_all(root.state().join("uuids/x")).unwrap();
        fs::create_dir_all(root.state().join("disks")).unwrap();
        let presets = Presets::of(&root);
        for (number, below, is_own) in [
            (1, "hpvm.db", true),
            (2, "hpvm.db-wal", true),
            (3, "uuids/x/nvram", true),
            (4, "disks/web.img", false),
        ] {
            let (file, link) = (root.state().join(below), folder.path().join(number.to_string()));
            fs::write(&file, below).unwrap();
            fs::hard_link(&file, &link).unwrap();
            let found = presets.own_file(identity::at(&link).unwrap());
            assert_eq!(found, is_own.then_some(file), "{below}");
        }
    }

    /// Whoever has more room elsewhere moves the state there, or a part of it.
    #[test]
    fn state_that_lies_elsewhere_is_known_by_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(folder.path()).unwrap();
        let root = Root::at(&base.join("root")).unwrap();
        let (there, apart) = (base.join("there"), base.join("apart"));
        fs::create_dir_all(there.join("guests")).unwrap();
        fs::create_dir_all(&apart).unwrap();
        fs::create_dir_all(root.state().parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&there, root.state()).unwrap();
        std::os::unix::fs::symlink(&apart, there.join("uuids")).unwrap();
        let presets = Presets::of(&root);
        let at = |folder: &Path, below: &str| {
            presets.state_at(identity::at(folder).unwrap(), Path::new(below))
        };
        let state = Some(root.state().display().to_string());
        for below in ["hpvm.db", "hpvm.db-wal", "guests/web", "common"] {
            assert_eq!(at(&there, below), state, "{below}");
        }
        assert_eq!(at(&apart, "x/nvram"), state);
        assert_eq!((at(&there, "ISO-images/a.iso"), at(&base, "there/hpvm.db")), (None, None));
        let below = presets.below(base.to_str().unwrap());
        assert_eq!(below, [&there, &apart].map(|path| path.display().to_string()));
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
        let presets = Presets::of(&root);
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
        let etc = identity::at(Path::new("/etc")).unwrap();
        assert_eq!(presets.at(etc), Some("/etc".into()));
        let own = identity::at(folder.path()).unwrap();
        assert_eq!(presets.at(own), None);
    }
}
