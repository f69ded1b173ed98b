//! What the backing stores of guests are on this host: what each path leads to, what the VM Host itself does with it, and
//! what hangs together with what. Collected once for each decision. Who looks at a store elsewhere, to write it or to find what
//! was left beside it, asks through `hpvm_host::answers` too.

mod asked;
mod content;
mod drives;
mod fact;
pub(crate) mod inodes;
pub(crate) mod way;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use hpvm_host::block::{Blocks, Claims, InUse, Lead, Places, Store, Use};
use hpvm_host::{Root, answers, generic, identity};
use hpvm_model::{EntryType, GuestConfig, StorageDevice, StoreIdentity};
use hpvm_plan::facts::{BlockFact, BlockKind, FileFact, FileIdentity, HostUse, Lack};
use hpvm_registry::Registry;

use self::asked::{Answers, Asking};
pub(crate) use self::drives::{empty_drives, free_drives};
pub(crate) use self::fact::is_meant_to_be_written;
use self::way::{Namesakes, Way, Ways};
use crate::Refusal;
use crate::devdb::{HostFolders, Presets};
use crate::helper::{Helper, Pending};

/// The stores of some configurations.
#[derive(Debug, Default)]
pub(crate) struct Stores {
    pub(crate) files: BTreeMap<String, FileFact>,
    leads: BTreeMap<String, Lead>,
    ways: BTreeMap<String, Ways>,
    pub(crate) blocks: Blocks,
    /// What has other names in the folders among them, where guests choose images.
    namesakes: BTreeMap<String, Vec<Namesakes>>,
    /// Where they were looked at beside the stores.
    pub(crate) presets: Option<Presets>,
}

impl Stores {
    /// Looks at every path of these configurations.
    pub(crate) fn look<'a>(configs: impl IntoIterator<Item = &'a GuestConfig>) -> Stores {
        Looking::at(paths(configs)).stores()
    }

    /// Looks at these paths, and through no folder.
    pub(crate) fn look_at<'a>(paths: impl IntoIterator<Item = &'a str>) -> Stores {
        Looking::begin(paths, Seen::at).stores()
    }

    /// Looks at folders where guests choose images.
    pub(crate) fn look_through<'a>(folders: impl IntoIterator<Item = &'a str>) -> Stores {
        Looking::at(folders).stores()
    }

    /// The same, and what guests have by other paths to the same disks: two paths that no multipath joins are known by the
    /// disk's world-wide name, and the device database knows which path a guest got with that name.
    pub(crate) fn with_other_paths(mut self, registry: &Registry) -> Result<Stores, Refusal> {
        let mut others = BTreeSet::new();
        for name in self.blocks.world_wide_names() {
            let entries = registry.entries_of_disk(EntryType::Guest, &name)?;
            // Where the guest's own name leads now counts; where it led then is what other names may still mean.
            let paths = entries.into_iter().map(|e| [e.id.name().to_owned(), e.real_path]);
            others.extend(paths.flatten());
        }
        others.retain(|path| !self.leads.contains_key(path));
        if others.is_empty() {
            return Ok(self);
        }
        let places = Places::default();
        let others = leads(&places, &others);
        let starts: Vec<Lead> = self.leads.values().chain(others.values()).cloned().collect();
        self.blocks = Blocks::read_around(&places, &starts);
        Ok(self)
    }

    /// The images of a folder that have other names, if it was looked through.
    pub(crate) fn namesakes(&self, folder: &str) -> &[Namesakes] {
        self.namesakes.get(folder).map_or(&[], Vec::as_slice)
    }

    /// What a path leads to, if it can be compared with other stores.
    pub(crate) fn store(&self, path: &str) -> Option<Store> {
        self.leads.get(path)?.store()
    }

    /// By what the file at a path is known again.
    pub(crate) fn file_identity(&self, path: &str) -> Option<StoreIdentity> {
        match self.files.get(path)? {
            FileFact::Regular { size, .. } => Some(StoreIdentity::of_file(*size)),
            _ => None,
        }
    }

    /// Where a path leads, as it was when it was looked at.
    pub(crate) fn ways(&self, path: &str) -> Ways {
        let looked = || answers::about(Path::new(path), Ways::of);
        self.ways.get(path).cloned().or_else(looked).unwrap_or_default()
    }

    /// A path and where its links lead.
    pub(crate) fn names(&self, path: &str) -> BTreeSet<String> {
        let real = self.ways(path).own.map(|way| way.real.to_string_lossy().into_owned());
        real.into_iter().chain([path.to_owned()]).collect()
    }

    /// What the VM Host does with each path, a clause each; nothing for those that may be given to a guest.
    pub(crate) fn used_by_host(&self) -> BTreeMap<String, Vec<HostUse>> {
        let told = |host: &Use, path: &str| HostUse {
            what: host.to_string(),
            is_read_only: host.is_read_only(),
            ended_by: host.ended_by(path),
        };
        let uses = |(path, lead): (&String, &Lead)| {
            let uses = self.blocks.uses(lead.store()?);
            let told = uses.iter().map(|host| told(host, path)).collect();
            (!uses.is_empty()).then(|| (path.clone(), told))
        };
        self.leads.iter().filter_map(uses).collect()
    }

    /// What the VM Host does with what one path leads to, in words.
    pub(crate) fn used_for(&self, path: &str) -> Option<String> {
        let uses = self.used_by_host().remove(path)?;
        Some(uses.into_iter().map(|host| host.what).collect::<Vec<_>>().join("; "))
    }

    /// By what other paths the bytes of some stores are found, through loop devices.
    pub(crate) fn doubles(&self) -> BTreeMap<String, BTreeSet<String>> {
        let dev = Places::default().dev;
        let paths = |double| match double {
            Store::File(_) => self.blocks.attached_paths(double).map(Path::to_owned).collect(),
            Store::Device(number) => {
                let device = self.blocks.device(number).into_iter();
                device.map(|device| dev.join(device.kernel_name())).collect::<Vec<PathBuf>>()
            }
        };
        let doubles = |(path, lead): (&String, &Lead)| {
            let doubles = self.blocks.loop_doubles(lead.store()?).into_iter().flat_map(paths);
            let doubles = doubles.map(|double| double.to_string_lossy().into_owned());
            let doubles: BTreeSet<String> = doubles.collect();
            (!doubles.is_empty()).then(|| (path.clone(), doubles))
        };
        self.leads.iter().filter_map(doubles).collect()
    }

    /// Those of these stores that share bytes, each with all the others that it shares some with.
    pub(crate) fn overlaps(&self) -> BTreeMap<FileIdentity, BTreeSet<FileIdentity>> {
        let stores = self.related(self.files.keys().map(String::as_str));
        let mut overlaps: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (one, related) in &stores {
            let others = related.iter().filter(|other| *other != one);
            for other in others.filter(|other| stores.contains_key(other)) {
                overlaps.entry(*one).or_default().insert(*other);
                overlaps.entry(*other).or_default().insert(*one);
            }
        }
        overlaps
    }

    /// The stores of a configuration that not everybody may have, which is every one but images of dvds; with each its other names
    /// and all that lies under and on it, which then is nobody else's either.
    pub(crate) fn exclusive(
        &self,
        config: &GuestConfig,
    ) -> BTreeMap<FileIdentity, BTreeSet<FileIdentity>> {
        let devices = config.storage.iter().filter(|device| !device.is_shared_freely());
        self.related(devices.flat_map(StorageDevice::stores))
    }

    /// The images of dvds of a configuration, with each the same.
    pub(crate) fn images(
        &self,
        config: &GuestConfig,
    ) -> BTreeMap<FileIdentity, BTreeSet<FileIdentity>> {
        let devices = config.storage.iter().filter(|device| device.is_shared_freely());
        self.related(devices.flat_map(StorageDevice::stores))
    }

    fn related<'a>(
        &self,
        paths: impl Iterator<Item = &'a str>,
    ) -> BTreeMap<FileIdentity, BTreeSet<FileIdentity>> {
        let related = |path: &str| {
            let identity = self.files.get(path)?.identity()?;
            let mut related = BTreeSet::from([identity]);
            if let Some(store) = self.leads.get(path).and_then(Lead::store) {
                related.extend(self.blocks.related(store).into_iter().map(Store::identity));
                related.extend(self.commanders(path, store));
            }
            Some((identity, related))
        };
        paths.filter_map(related).collect()
    }

    /// The generic nodes of a drive of optical media: a guest to which one is attached has the drive.
    fn commanders(&self, path: &str, store: Store) -> BTreeSet<FileIdentity> {
        use BlockKind::{EmptyDrive, Optical};
        match (self.files.get(path), store) {
            (
                Some(FileFact::Block(BlockFact { kind: Optical | EmptyDrive, .. })),
                Store::Device(number),
            ) => generic::doors_of_block(&Places::default().sysfs, number)
                .into_iter()
                .map(identity::of_device)
                .collect(),
            _ => BTreeSet::new(),
        }
    }
}

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

    /// The same by a thread that is there already.
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
    fn stores(self) -> Stores {
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

fn paths<'a>(configs: impl IntoIterator<Item = &'a GuestConfig>) -> BTreeSet<&'a str> {
    let devices = configs.into_iter().flat_map(|config| &config.storage);
    devices.flat_map(StorageDevice::backings).map(|backing| backing.path.as_str()).collect()
}

fn leads<'a>(
    places: &Places,
    paths: impl IntoIterator<Item = &'a String>,
) -> BTreeMap<String, Lead> {
    let lead = |path: &String| Some((path.clone(), places.lead(Path::new(path)).ok()?));
    paths.into_iter().filter_map(lead).collect()
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

/// Those of these paths at which nothing is; nobody knows that of those that do not answer in time.
pub(crate) fn missing<'a>(paths: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    let found = found(paths).into_iter();
    found.filter_map(|(path, found)| found.is_err_and(|e| is_absence(&e)).then_some(path)).collect()
}

/// What is at these paths, links followed, of those that answer in time.
pub(crate) fn found<'a>(
    paths: impl IntoIterator<Item = &'a str>,
) -> BTreeMap<String, io::Result<Metadata>> {
    let paths = paths.into_iter().map(str::to_owned).collect();
    Asking::begin(&paths, |path| std::fs::metadata(path)).answers().own
}

/// A file that would be made below /dev. Such a name is a node mistyped.
#[derive(Debug, thiserror::Error)]
#[error("'{}' would be a file among the nodes of devices, in the VM Host's memory and gone with its next boot; name a folder on a disk", .0.display())]
pub struct AmongDevices(PathBuf);

impl AmongDevices {
    /// Whether a path is one, whose folder is this without links.
    pub(crate) fn is(path: &Path, folder: &Path) -> Option<AmongDevices> {
        let is_among = folder.starts_with("/dev") && !folder.starts_with("/dev/shm");
        is_among.then(|| AmongDevices(path.to_owned()))
    }
}

/// A symbolic link at whose end nothing is; a file made by its name would lie there, or take the place of the link.
#[derive(Debug, thiserror::Error)]
#[error("'{}' is a symbolic link to '{}', where nothing is; name that, or remove the link", link.display(), to.display())]
pub struct LeadsNowhere {
    link: PathBuf,
    to: PathBuf,
}

impl LeadsNowhere {
    /// Whether a path is one.
    pub(crate) fn is(link: &Path) -> Option<LeadsNowhere> {
        let to = std::fs::read_link(link).ok()?;
        let is_dangling = std::fs::metadata(link).is_err_and(|error| is_absence(&error));
        let to = link.parent().unwrap_or(Path::new("/")).join(to);
        is_dangling.then(|| LeadsNowhere { link: link.to_owned(), to })
    }
}

pub(crate) fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// What these paths lead to, of those that answer in time.
pub(crate) fn leads_in_time<'a>(paths: impl IntoIterator<Item = &'a str>) -> Vec<Lead> {
    let paths = paths.into_iter().map(str::to_owned).collect();
    let asking = Asking::begin(&paths, |path| Places::default().lead(path).ok());
    asking.answers().own.into_values().flatten().collect()
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

/// Where paths lead, links followed, asked together. `None`: nowhere; of those that do not answer nothing is said.
pub(crate) fn real_paths(paths: &BTreeSet<String>) -> BTreeMap<String, Option<String>> {
    let real_path = |path: &Path| Some(path.canonicalize().ok()?.to_string_lossy().into_owned());
    Asking::begin(paths, real_path).answers().own
}
