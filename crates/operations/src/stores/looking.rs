//! A look at stores that goes on beside a command, together with what is the VM Host's own, and what is made of its answers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use hpvm_host::block::{Blocks, Claims, InUse, Lead, Places, Store};
use hpvm_host::{Root, answers};
use hpvm_model::GuestConfig;
use hpvm_plan::facts::{FileFact, Lack};

use super::asked::{Answers, Asking};
use super::way::{Namesakes, Way, Ways};
use super::{Stores, fact, leads, paths};
use crate::devdb::{HostFolders, Presets};
use crate::helper::{Helper, Pending};

/// A look at stores that was begun, and goes on beside whoever wants to know.
pub(crate) struct Looking {
    paths: BTreeSet<String>,
    asking: Asking<Seen>,
    beside: Option<Pending<Beside>>,
}

/// What is the VM Host's own by name, whichever stores are looked at.
pub(crate) struct HostsOwn {
    claims: Claims,
    folders: HostFolders,
}

impl HostsOwn {
    pub(crate) fn read() -> HostsOwn {
        HostsOwn { claims: Claims::read(&Places::default()), folders: HostFolders::whole() }
    }
}

/// The same, and what it is.
pub(crate) struct Beside {
    in_use: InUse,
    presets: Presets,
}

impl Beside {
    pub(crate) fn found(HostsOwn { claims, folders }: HostsOwn, root: &Root) -> Beside {
        let presets = Presets::whole(folders, root);
        Beside { in_use: claims.found(&Places::default()), presets }
    }
}

impl Looking {
    /// At these paths, which are those of a guest's devices: a folder is one of images, and is looked through.
    pub(crate) fn at<'a>(paths: impl IntoIterator<Item = &'a str>) -> Looking {
        Looking::begin(paths, Seen::through)
    }

    /// At these paths, and through no folder.
    pub(super) fn through_no_folder<'a>(paths: impl IntoIterator<Item = &'a str>) -> Looking {
        Looking::begin(paths, Seen::at)
    }

    /// The same as `Looking::at`, by a thread that is there already.
    pub(crate) fn by<'a>(helper: &Helper, paths: impl IntoIterator<Item = &'a str>) -> Looking {
        let paths = paths.into_iter().map(str::to_owned).collect();
        let asking = Asking::begin_by(&paths, Seen::through, |task| helper.give(task));
        Looking { paths, asking, beside: None }
    }

    fn begin<'a>(paths: impl IntoIterator<Item = &'a str>, look: fn(&Path) -> Seen) -> Looking {
        let paths = paths.into_iter().map(str::to_owned).collect();
        Looking { asking: Asking::begin(&paths, look), paths, beside: None }
    }

    /// With what is judged with them.
    pub(crate) fn and_beside(self, beside: Pending<Beside>) -> Looking {
        Looking { beside: Some(beside), ..self }
    }

    /// What was seen of a configuration's stores, which is looked for anew if it has others.
    pub(crate) fn stores_of(self, config: &GuestConfig) -> Stores {
        match self.paths.iter().map(String::as_str).eq(paths([config])) {
            true => self.stores(),
            false => Stores::look([config]),
        }
    }

    /// What was seen, of those stores that answered in time.
    pub(super) fn stores(self) -> Stores {
        let Looking { paths, asking, beside } = self;
        if paths.is_empty() {
            return Stores::default();
        }
        let beside = beside.map(Pending::wait);
        let (in_use, presets) = beside.map(|beside| (beside.in_use, beside.presets)).unzip();
        let answers = asking.answers();
        let places = Places::default();
        let has_any = |stores: &BTreeSet<Store>| {
            in_use.unwrap_or_else(|| InUse::now(&places)).has_any(stores, &places)
        };
        let leads = leads(&places, answers.own.keys());
        let starts: Vec<Lead> = leads.values().cloned().collect();
        let blocks = match Blocks::are_plain_files(&starts, has_any) {
            true => Blocks::default(),
            false => Blocks::read_around(&places, &starts),
        };
        let Looked { mut facts, mut ways, namesakes } = Looked::of(&paths, answers);
        ways.extend(ways_under(&blocks, &starts));
        let mut fact = |path: &str| match (facts.remove(path), leads.get(path)) {
            (None, _) => FileFact::Unreadable(Lack::Unfit(answers::silence())),
            (Some(_), Some(Lead::Block(_))) => fact::of(Path::new(path), &blocks),
            (Some(fact), _) => fact,
        };
        let files = paths.iter().map(|path| (path.clone(), fact(path))).collect();
        Stores { files, leads, ways, blocks, namesakes, presets }
    }
}

/// The ways to the files under loop devices.
fn ways_under(blocks: &Blocks, starts: &[Lead]) -> BTreeMap<String, Ways> {
    let stores: BTreeSet<Store> = starts.iter().filter_map(Lead::store).collect();
    let under: BTreeSet<Store> = stores.into_iter().flat_map(|s| blocks.bearers(s)).collect();
    let paths = under.into_iter().flat_map(|store| blocks.attached_paths(store));
    let paths: BTreeSet<String> = paths.map(|path| path.to_string_lossy().into_owned()).collect();
    if paths.is_empty() {
        return BTreeMap::new();
    }
    let mut answers = Asking::begin(&paths, Way::to).answers();
    let ways = |path: String| {
        let own = answers.own.remove(&path).flatten();
        let ways = answers.ways(&path, own);
        (path, ways)
    };
    paths.into_iter().map(ways).collect()
}

/// What one look at a path tells.
#[derive(Debug)]
struct Seen {
    way: Option<Way>,
    fact: FileFact,
    namesakes: Vec<Namesakes>,
}

impl Seen {
    fn at(path: &Path) -> Seen {
        Seen { way: Way::to(path), fact: fact::of_no_device(path), namesakes: Vec::new() }
    }

    /// And through it, where it is a folder.
    fn through(path: &Path) -> Seen {
        let seen = Seen::at(path);
        let namesakes = match seen.fact {
            FileFact::Folder(_) => Namesakes::within(path),
            _ => Vec::new(),
        };
        Seen { namesakes, ..seen }
    }
}

/// What paths lead to. Those at which nobody answers have no fact, and the way to their folder at most.
#[derive(Default)]
struct Looked {
    facts: BTreeMap<String, FileFact>,
    ways: BTreeMap<String, Ways>,
    namesakes: BTreeMap<String, Vec<Namesakes>>,
}

impl Looked {
    fn of(paths: &BTreeSet<String>, mut answers: Answers<Seen>) -> Looked {
        let mut looked = Looked::default();
        for path in paths {
            let seen = answers.own.remove(path);
            let own = seen.and_then(|Seen { way, fact, namesakes }| {
                looked.facts.insert(path.clone(), fact);
                looked.namesakes.insert(path.clone(), namesakes);
                way
            });
            looked.ways.insert(path.clone(), answers.ways(path, own));
        }
        looked
    }
}
