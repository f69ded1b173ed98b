//! By what a store can be found in the device database: its own names, those of what has the same bytes, and the folders
//! above it. Looked at once; the decisions made of it look at nothing.

use std::collections::BTreeSet;
use std::path::Path;

use hpvm_host::block::Store;
use hpvm_model::{Bytes, FileIdentity, StoreIdentity};
use hpvm_registry::{Entry, Keys};

use crate::stores::Stores;
pub(crate) use crate::stores::way::Spot;
use crate::stores::way::{Namesakes, Sight, Way, Ways};

/// Names of one block device or of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    pub(crate) paths: BTreeSet<String>,
    pub(crate) identifiers: BTreeSet<String>,
    /// Tell devices apart, and do not find them: others may have the same.
    pub(crate) serials: BTreeSet<String>,
    pub(crate) files: BTreeSet<FileIdentity>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trail {
    /// Links followed; the path itself where it leads nowhere.
    pub(crate) real_path: String,
    /// The store under all its names.
    pub(crate) own: Names,
    /// What it lies on: a restriction there holds for it too.
    pub(crate) under: Names,
    /// What lies on it, and other names of it and of what it lies on: a restriction there holds for it too, since it has those
    /// bytes.
    pub(crate) over: Names,
    /// The store, which may itself be a folder, if it is there, and the folders above it, nearest first.
    pub(crate) way: Vec<Spot>,
    /// The other ways to its bytes: by other mounts of its file system, and to the file under a loop device. A restriction of
    /// a folder there holds for it too.
    pub(crate) elsewhere: Vec<Way>,
    /// A file that has more names than the one by which it was found: the store, or what lies under it.
    pub(crate) namesakes: Option<Namesakes>,
    /// Whether all that could forbid it is seen.
    pub(crate) sight: Sight,
    /// Of a block device.
    pub(crate) identity: Option<StoreIdentity>,
}

impl Trail {
    pub(crate) fn of(path: &str, stores: &Stores) -> Trail {
        let ways = stores.ways(path);
        let Some(way) = ways.own else {
            return Trail::to_nothing(path, ways.folder);
        };
        let itself = way.spots.first().filter(|spot| Path::new(&spot.path) == way.real);
        let itself = itself.map(|spot| spot.identity);
        let mut trail = Trail::along(way);
        trail.own.files.extend(itself);
        if let Some(store) = stores.store(path) {
            trail.relations(store, stores);
        }
        trail
    }

    /// What is not there yet, such as the target of a copy, will lie where its folder lies, and so does what does not answer.
    fn to_nothing(path: &str, folder: Option<Way>) -> Trail {
        let Some((folder, name)) = folder.zip(Path::new(path).file_name()) else {
            return Trail { real_path: path.to_owned(), ..Trail::default() };
        };
        Trail::along(folder.on_to(name))
    }

    fn along(way: Way) -> Trail {
        let namesakes = Namesakes::of(&way);
        let Way { real, spots: way, elsewhere, sight, .. } = way;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let others = elsewhere.iter().map(|way| text(&way.real));
        let paths = others.chain([text(&real)]).collect();
        let own = Names { paths, ..Names::default() };
        let real_path = text(&real);
        Trail { real_path, own, way, elsewhere, namesakes, sight, ..Trail::default() }
    }

    fn relations(&mut self, store: Store, stores: &Stores) {
        let lineage = stores.blocks.lineage(store);
        self.own.add(store, stores);
        for other in lineage.over.union(&stores.blocks.loop_doubles(store)) {
            self.over.add(*other, stores);
        }
        for under in stores.blocks.bearers(store) {
            self.under.add(under, stores);
            for path in stores.blocks.attached_paths(under) {
                self.lies_on(stores.ways(&path.to_string_lossy()));
            }
        }
        if let Store::Device(number) = store
            && let Some(device) = stores.blocks.device(number)
        {
            let identifier = device.identifier.as_ref().map(ToString::to_string);
            let size = Bytes(device.size_bytes);
            self.identity = Some(StoreIdentity { identifier, size });
        }
    }

    /// Takes over how the file is reached that a loop device under the store is attached to.
    fn lies_on(&mut self, Ways { own, folder }: Ways) {
        let ways = own.iter().flat_map(Way::all);
        self.under.paths.extend(ways.map(|way| way.real.to_string_lossy().into_owned()));
        let namesakes = own.as_ref().and_then(Namesakes::of);
        self.namesakes = self.namesakes.take().or(namesakes);
        self.elsewhere.extend(own.or(folder).iter().flat_map(Way::all).cloned());
    }

    /// All that lies on the ways to the store and to what it lies on.
    pub(crate) fn spots(&self) -> impl Iterator<Item = &Spot> {
        self.way.iter().chain(self.elsewhere.iter().flat_map(|way| &way.spots))
    }

    /// All that may find an entry.
    pub(crate) fn keys(&self) -> Keys {
        let all = || [&self.own, &self.under, &self.over].into_iter();
        Keys {
            paths: all()
                .flat_map(|names| names.paths.iter().cloned())
                .chain(self.spots().map(|spot| spot.path.clone()))
                .collect(),
            identifiers: all().flat_map(|names| names.identifiers.iter().cloned()).collect(),
            files: all()
                .flat_map(|names| names.files.iter().copied())
                .chain(self.spots().map(|spot| spot.identity))
                .collect(),
        }
    }

    /// What finds the entries of the store itself.
    pub(crate) fn own_keys(&self, path: &str) -> Keys {
        Keys {
            paths: self.own.paths.iter().cloned().chain([path.to_owned()]).collect(),
            identifiers: self.own.identifiers.iter().cloned().collect(),
            files: BTreeSet::new(),
        }
    }
}

impl Names {
    fn add(&mut self, store: Store, stores: &Stores) {
        self.files.insert(store.identity());
        let Store::Device(number) = store else { return };
        let Some(device) = stores.blocks.device(number) else { return };
        self.paths.insert(format!("/dev/{}", device.kernel_name()));
        if let Some(identifier) = &device.identifier {
            let names = match identifier.is_unique() {
                true => &mut self.identifiers,
                false => &mut self.serials,
            };
            names.insert(identifier.to_string());
        }
    }
}

/// Whether an entry is about the device of this identifier, whatever it is called now. Serial numbers and no identifier at
/// all leave it to the name.
pub(super) fn is_about(entry: &Entry, identifier: Option<&str>, name: &str) -> bool {
    let known = entry.identity.as_ref();
    let is_unique = known.is_some_and(|known| known.unique_identifier().is_some());
    known.and_then(|known| known.identifier.as_deref()) == identifier
        && (is_unique || entry.id.name() == name)
}
