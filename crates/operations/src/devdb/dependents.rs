//! Which guests have what: asked of the guests' devices and of what lies under them, as configured and as they run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use hpvm_model::{Backing, FileIdentity, GuestConfig, GuestName, StorageDevice, StorageType};
use hpvm_plan::drives;

use super::trail::Trail;
use crate::stores::Stores;
use crate::stores::inodes::Inodes;
use crate::{Refusal, VmHost};

/// A device of a guest, by one of the things that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependent {
    pub guest: GuestName,
    pub device: StorageDevice,
    /// The backing of the device, or a layer under that.
    pub store: Backing,
    pub tie: Tie,
    /// The guest was removed and is still kept.
    pub removed: bool,
}

/// What ties a guest's device to the thing it depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tie {
    /// It is its backing.
    Store,
    /// It lies under its backing.
    Layer,
    /// It can be put into the drive: users of the guest's console may choose it from a folder.
    Choice,
}

impl Dependent {
    fn of(guest: &GuestName, device: &StorageDevice) -> Vec<Dependent> {
        let ties = std::iter::once(Tie::Store).chain(std::iter::repeat(Tie::Layer));
        let dependent = |(store, tie): (&Backing, Tie)| Dependent {
            guest: guest.clone(),
            device: device.clone(),
            store: store.clone(),
            tie,
            removed: false,
        };
        device.backings().zip(ties).map(dependent).collect()
    }

    /// The same drive, as one whose users may choose another medium.
    fn by_choice(&self) -> Dependent {
        Dependent { tie: Tie::Choice, ..self.clone() }
    }
}

impl fmt::Display for Dependent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Dependent { guest, device, store, tie, removed } = self;
        let kept = if *removed { ", which was removed and is still kept," } else { "" };
        match tie {
            Tie::Store => write!(f, "guest '{guest}'{kept} uses '{}' ({device})", store.path),
            Tie::Layer => write!(f, "guest '{guest}'{kept} builds on '{}' ({device})", store.path),
            Tie::Choice => {
                let folder = drives::folder(device).unwrap_or(&store.path);
                write!(
                    f,
                    "the console of guest '{guest}' may choose images from folder '{folder}' ({device})"
                )
            }
        }
    }
}

/// As the clauses of one sentence.
pub(super) fn told(dependents: &[Dependent]) -> String {
    dependents.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The devices of all existing guests, and what running ones still have beside those.
pub(super) fn all(host: &VmHost) -> Result<Vec<Dependent>, Refusal> {
    let mut all = Vec::new();
    for config in host.registry.all()? {
        let still = still_attached(host, &config);
        let devices = config.storage.iter().chain(&still);
        all.extend(devices.flat_map(|device| Dependent::of(&config.name, device)));
    }
    Ok(all)
}

fn still_attached(host: &VmHost, config: &GuestConfig) -> Vec<StorageDevice> {
    let Some(machine) = host.machine(config) else { return Vec::new() };
    let is_configured =
        |device: &StorageDevice| config.storage.iter().any(|known| known.backing == device.backing);
    let devices = machine.held().map(|attached| &attached.device);
    devices.filter(|device| !is_configured(device)).cloned().collect()
}

/// Those that a restriction of this path would concern: devices that are it, hang together with it, or lie below it, and
/// drives whose users choose from a folder above it now or at the next start.
pub(super) fn concerned(host: &VmHost, path: &str) -> Result<Vec<Dependent>, Refusal> {
    let all = all(host)?;
    let paths: BTreeSet<&str> = all.iter().map(|d| d.store.path.as_str()).collect();
    let stores = Stores::look_at(paths.iter().copied().chain([path]));
    let wanted = Trail::of(path, &stores);
    let related: BTreeSet<FileIdentity> = [&wanted.own, &wanted.under, &wanted.over]
        .into_iter()
        .flat_map(|names| names.files.iter().copied())
        .collect();
    let own = Inodes::one(path);
    let is_concerned = |path: &str| {
        let trail = Trail::of(path, &stores);
        !trail.own.files.is_disjoint(&related)
            || trail.spots().any(|spot| Some(spot.identity) == own)
    };
    let concerned: BTreeMap<&str, bool> =
        paths.iter().map(|path| (*path, is_concerned(path))).collect();
    let chooses: BTreeSet<usize> = choosing_among(host, &all, &wanted)?;
    let found = all.iter().enumerate().filter_map(|(index, dependent)| {
        match concerned[dependent.store.path.as_str()] {
            true => Some(dependent.clone()),
            false => chooses.contains(&index).then(|| dependent.by_choice()),
        }
    });
    Ok(found.collect())
}

/// The drives whose users choose from a folder above what lies at this path, now or at the next start.
pub(super) fn choosing(host: &VmHost, path: &str) -> Result<Vec<Dependent>, Refusal> {
    let all = all(host)?;
    let trail = Trail::of(path, &Stores::look_at([path]));
    let chooses = choosing_among(host, &all, &trail)?;
    Ok(chooses.into_iter().map(|index| all[index].by_choice()).collect())
}

fn choosing_among(
    host: &VmHost,
    all: &[Dependent],
    wanted: &Trail,
) -> Result<BTreeSet<usize>, Refusal> {
    let configs = host.registry.all()?;
    let runs = |guest: &GuestName| configs.iter().any(|c| c.name == *guest && host.runs(c));
    // Beside an image that was given by itself a start withholds what is not to be chosen; only who runs already may choose it.
    let folders = Inodes::at(all.iter().filter_map(|d| drives::folder(&d.device)));
    let offers = |Dependent { guest, device, .. }: &Dependent| {
        let folder = drives::folder(device).and_then(|folder| folders.of(folder));
        folder.is_some_and(|folder| wanted.spots().any(|spot| spot.identity == folder))
            && (device.backing.storage == StorageType::Null || runs(guest))
    };
    Ok((0..all.len()).filter(|index| offers(&all[*index])).collect())
}

/// Where all these and their users' folders lead, and one more path.
pub(super) fn inodes<'a>(all: &'a [Dependent], more: impl IntoIterator<Item = &'a str>) -> Inodes {
    let folders = all.iter().filter_map(|d| drives::folder(&d.device));
    Inodes::at(all.iter().map(|d| d.store.path.as_str()).chain(folders).chain(more))
}

/// Drives whose users choose from the folder at this path, whatever is in them now.
pub(super) fn of_folder<'a>(
    all: &'a [Dependent],
    path: &str,
    inodes: &Inodes,
) -> Vec<&'a Dependent> {
    let Some(own) = inodes.of(path) else { return Vec::new() };
    let chooses = |d: &&Dependent| {
        let folder = drives::folder(&d.device).filter(|folder| *folder != d.device.backing.path);
        folder.is_some_and(|folder| inodes.of(folder) == Some(own))
    };
    all.iter().filter(chooses).collect()
}

/// Those that have this very thing, by whatever path; a path that leads nowhere is compared as it is written.
pub(super) fn of(host: &VmHost, path: &str) -> Result<Vec<Dependent>, Refusal> {
    Ok(that_have(all(host)?, path))
}

/// The same, and of removed guests that are still kept what they had.
pub(super) fn of_or_kept(host: &VmHost, path: &str) -> Result<Vec<Dependent>, Refusal> {
    let mut all = all(host)?;
    for kept in host.registry.removed()? {
        let had = kept.config.storage.iter();
        let had = had.flat_map(|device| Dependent::of(&kept.config.name, device));
        all.extend(had.map(|dependent| Dependent { removed: true, ..dependent }));
    }
    Ok(that_have(all, path))
}

fn that_have(all: Vec<Dependent>, path: &str) -> Vec<Dependent> {
    let inodes = Inodes::at(all.iter().map(|d| d.store.path.as_str()).chain([path]));
    let identity = inodes.of(path);
    let is_it = |other: &str| other == path || identity.is_some() && inodes.of(other) == identity;
    all.into_iter().filter(|d| is_it(&d.store.path)).collect()
}
