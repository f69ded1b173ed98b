//! What the backing stores of guests are on this host: what each path leads to, what the VM Host itself does with it, and
//! what hangs together with what. Collected once for each decision. Who looks at a store elsewhere, to write it or to find what
//! was left beside it, asks through `hpvm_host::answers` too.

mod asked;
mod content;
mod drives;
mod fact;
pub(crate) mod inodes;
mod looking;
pub(crate) mod way;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use hpvm_host::block::{Blocks, Lead, Places, Store, Use};
use hpvm_host::{answers, generic, identity};
use hpvm_model::{EntryType, GuestConfig, StorageDevice, StoreIdentity};
use hpvm_plan::facts::{BlockFact, BlockKind, FileFact, FileIdentity, HostUse};
use hpvm_registry::Registry;

use self::asked::Asking;
pub(crate) use self::drives::{empty_drives, free_drives};
pub(crate) use self::fact::is_meant_to_be_written;
pub(crate) use self::looking::{Beside, HostsOwn, Looking};
use self::way::{Namesakes, Ways};
use crate::Refusal;
use crate::devdb::Presets;

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
        Looking::through_no_folder(paths).stores()
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

/// Where paths lead, links followed, asked together. `None`: nowhere; of those that do not answer nothing is said.
pub(crate) fn real_paths(paths: &BTreeSet<String>) -> BTreeMap<String, Option<String>> {
    let real_path = |path: &Path| Some(path.canonicalize().ok()?.to_string_lossy().into_owned());
    Asking::begin(paths, real_path).answers().own
}
