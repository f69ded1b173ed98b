//! The drives of a guest as its users see them: from which folder of images a drive may be given another medium, and how
//! what was changed at the virtual console becomes part of the configuration.
//!
//! The administrator of the VM Host says what users may choose from by the statement alone: a dvd with storage type null
//! names a folder of images, and one with an image allows the other images beside it.

use std::collections::BTreeSet;
use std::path::Path;

use hpvm_model::{
    Backing, DeviceKind, GuestConfig, Problem, Statement, StorageAddress, StorageDevice,
    StorageType,
};

use crate::facts::{FileFact, FileIdentity, HostFacts};
use crate::hotplug::{Place, Planned, When};
use crate::record::{Access, Attached, ConsoleChange, Machine};

/// The folder of images that users of the console may choose from; `None` of what is no drive, and of a drive of the VM
/// Host itself, which is empty once it was ejected.
#[must_use]
pub fn folder(device: &StorageDevice) -> Option<&str> {
    match (device.kind, device.backing.storage) {
        (DeviceKind::Dvd, StorageType::Null) if is_device(&device.backing.path) => None,
        (DeviceKind::Dvd, StorageType::Null) => Some(&device.backing.path),
        (DeviceKind::Dvd, StorageType::File) => Path::new(&device.backing.path).parent()?.to_str(),
        _ => None,
    }
}

/// By the place alone: whether a drive is there now decides nothing.
fn is_device(path: &str) -> bool {
    let path = Path::new(path);
    path.starts_with("/dev") && !path.starts_with("/dev/shm")
}

/// How a guest is given back the drive of the VM Host that it has had; `None` of any other device, and of one that has it.
#[must_use]
pub fn given_back(drive: &StorageDevice) -> Option<Statement> {
    let Backing { storage, path } = &drive.backing;
    let is_emptied = drive.kind == DeviceKind::Dvd && *storage == StorageType::Null;
    (is_emptied && is_device(path)).then(|| Statement {
        kind: drive.kind,
        adapter: drive.adapter,
        address: Some(drive.address),
        backing: Some(Backing::new(StorageType::Disk, path)),
    })
}

/// All such folders of a machine, each once.
#[must_use]
pub fn folders(machine: &Machine) -> BTreeSet<String> {
    of_all(&machine.storage)
}

fn of_all(storage: &[Attached]) -> BTreeSet<String> {
    storage.iter().filter_map(|a| folder(&a.device)).map(str::to_owned).collect()
}

/// What is to be told of drives that a change gives a running guest now, or gives another folder: its worker holds the folders
/// of the machine as it was started, and can be given no other.
#[must_use]
pub fn folders_that_wait(
    before: &GuestConfig,
    after: &GuestConfig,
    running: &Machine,
    planned: &[Planned],
    facts: &HostFacts,
) -> Vec<Problem> {
    let waits = |at: StorageAddress| {
        let is_later = |planned: &&Planned| !matches!(planned.when, When::Now(_));
        planned.iter().filter(is_later).any(|planned| planned.place == Place::Storage(at))
    };
    let comes = |device: &&StorageDevice| {
        device.backing.storage == StorageType::Null
            && before.device_at(device.address) != Some(*device)
            && !waits(device.address)
    };
    let (held, drives) = (folders_at_start(running), after.storage.iter().filter(comes));
    drives
        .filter_map(|drive| Some((drive, folder(drive)?)))
        .filter(|(_, folder)| !held.contains(*folder))
        // Of what is none more is wrong, which is told.
        .filter(|(_, folder)| matches!(facts.files.get(*folder), Some(FileFact::Folder(_))))
        .map(|(drive, folder)| {
            let (adapter, address) = (drive.adapter.as_str(), drive.address);
            let text = format!(
                "users of the console choose from '{folder}' from the guest's next start on; until then put an image in with `hpvmmodify -P {} -m dvd:{adapter}:{address}:file:IMAGE`",
                after.name
            );
            Problem::warning(drive.address.to_string(), text)
        })
        .collect()
}

/// The folders of the machine as it was started.
#[must_use]
pub fn folders_at_start(machine: &Machine) -> BTreeSet<String> {
    of_all(&machine.base.storage)
}

/// What is put into a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its name within the drive's folder.
    pub name: String,
    pub identity: FileIdentity,
}

/// The drive with this image of its folder, or empty. An empty drive remembers the folder, so that the next medium is chosen
/// from where the last one came from.
#[must_use]
pub fn with_medium(device: &StorageDevice, image: Option<&Image>) -> Attached {
    let backing = match (folder(device), image) {
        (Some(folder), Some(image)) => Backing::new(
            StorageType::File,
            Path::new(folder).join(&image.name).to_string_lossy().into_owned(),
        ),
        (Some(folder), None) => Backing::new(StorageType::Null, folder),
        (None, _) => Backing::new(StorageType::Null, &device.backing.path),
    };
    Attached {
        identity: image.map(|image| image.identity),
        access: Access::ReadOnly,
        ..Attached::of(StorageDevice { backing, ..device.clone() })
    }
}

/// What the console changed, as part of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenOver {
    pub config: GuestConfig,
    /// The last change that is in it.
    pub through_seq: u64,
    /// What was changed by whom, for the record of the operation; empty when the configuration has it all already.
    pub reasons: Vec<String>,
    /// What nobody can have chosen at the console, and is not taken over.
    pub refused: Vec<Problem>,
}

/// Takes over what users of the console changed in the guest's last run, or this one; `None` when there is nothing new. A
/// drive that the configuration has no more, or has otherwise, stays as the configuration says. The guest's worker wrote down
/// what was chosen, and is trusted with no other file than its guest's.
#[must_use]
pub fn take_over(config: &GuestConfig, machine: &Machine) -> Option<TakenOver> {
    let through_seq = machine.console_changes.iter().map(|change| change.seq).max()?;
    let mut taken =
        TakenOver { config: config.clone(), through_seq, reasons: Vec::new(), refused: Vec::new() };
    for change in &machine.console_changes {
        let Some(now) = machine.device_at(change.address).map(|attached| &attached.device) else {
            continue;
        };
        let same = |device: &&mut StorageDevice| {
            (device.kind, device.adapter, device.address, device.id)
                == (now.kind, now.adapter, now.address, now.id)
        };
        let Some(device) = taken.config.storage.iter_mut().find(same) else { continue };
        if device.backing == now.backing {
            continue;
        }
        match is_choice(device, &now.backing) {
            true => {
                device.backing.clone_from(&now.backing);
                taken.reasons.push(reason(change, now));
            }
            false => taken.refused.push(refusal(change, now)),
        }
    }
    Some(taken)
}

/// Whether the console lets a user choose this for the drive: nothing, or an image of the drive's folder.
fn is_choice(drive: &StorageDevice, chosen: &Backing) -> bool {
    let (folder, path) = (folder(drive), Path::new(&chosen.path));
    match chosen.storage {
        StorageType::Null => chosen.path == folder.unwrap_or(&drive.backing.path),
        StorageType::File => {
            folder.is_some() && path.parent() == folder.map(Path::new) && path.file_name().is_some()
        }
        _ => false,
    }
}

fn refusal(change: &ConsoleChange, now: &StorageDevice) -> Problem {
    let ConsoleChange { address, user, at, .. } = change;
    let text = format!(
        "the guest's worker wrote down that {user} put '{}' into the drive at {address} at the console, {at}, which is no image of the drive's folder; the drive stays as it is configured",
        now.backing.path
    );
    Problem::warning(address.to_string(), text)
}

fn reason(change: &ConsoleChange, now: &StorageDevice) -> String {
    let ConsoleChange { address, user, at, .. } = change;
    match now.backing.store() {
        Some(path) => {
            format!("{user} put '{path}' into the drive at {address} at the console, {at}")
        }
        None => format!("{user} emptied the drive at {address} at the console, {at}"),
    }
}
