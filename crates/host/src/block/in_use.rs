//! What the VM Host swaps on, will use, or has attached to a loop device: of files nothing more need be known before a guest may
//! have them. Called before [`Blocks::are_plain_files`].
//!
//! [`Blocks::are_plain_files`]: super::Blocks::are_plain_files

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::device::DeviceNumber;
use super::far::Asker;
use super::lead::Store;
use super::places::Places;
use super::read::swaps;
use super::{expected, sysfs};

/// What the VM Host has for its own, as the kernel and the settings name it. Nobody was asked yet what is there, which may never
/// answer.
#[derive(Clone, Debug)]
pub struct Claims {
    /// By the kernel, which follows no links any more.
    held: Vec<PathBuf>,
    named: Vec<PathBuf>,
}

impl Claims {
    #[must_use]
    pub fn read(places: &Places) -> Claims {
        let attached = sysfs::attached(&places.sysfs).into_iter().map(|(_, path)| path);
        let named = expected::all(places).into_iter().map(|(named, _)| named.path().to_owned());
        Claims { held: attached.chain(swaps(places)).collect(), named: named.collect() }
    }

    /// Those that are there now. A file on a server is none of the files of other file systems, and is not asked about yet.
    #[must_use]
    pub fn found(self, places: &Places) -> InUse {
        let asker = Asker::new(places);
        let mut far: BTreeMap<DeviceNumber, Vec<PathBuf>> = BTreeMap::new();
        let mut asked = self.named;
        for path in self.held {
            match asker.server_of(&path) {
                Some(server) => far.entry(server).or_default().push(path),
                None => asked.push(path),
            }
        }
        InUse { found: stores(&asker, asked), far }
    }
}

/// What the VM Host has for its own.
#[derive(Clone, Debug)]
pub struct InUse {
    found: BTreeSet<Store>,
    /// Files on servers, by the file system.
    far: BTreeMap<DeviceNumber, Vec<PathBuf>>,
}

impl InUse {
    #[must_use]
    pub fn now(places: &Places) -> InUse {
        Claims::read(places).found(places)
    }

    /// Whether any of these is among it. Asks about a file on a server where one of these lies there too.
    #[must_use]
    pub fn has_any(&self, wanted: &BTreeSet<Store>, places: &Places) -> bool {
        let servers = wanted.iter().filter_map(|store| match store {
            Store::File(file) => Some(DeviceNumber::from_raw(file.device)),
            Store::Device(_) => None,
        });
        let servers: BTreeSet<DeviceNumber> = servers.collect();
        let beside = servers.iter().filter_map(|server| self.far.get(server));
        let beside = beside.flatten().cloned().collect();
        !self.found.is_disjoint(wanted) || !stores(&Asker::new(places), beside).is_disjoint(wanted)
    }
}

fn stores(asker: &Asker<'_>, paths: Vec<PathBuf>) -> BTreeSet<Store> {
    asker.prepare(paths.clone());
    paths.into_iter().filter_map(|path| asker.answer(&path).lead()?.store()).collect()
}
