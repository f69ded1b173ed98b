//! From what an administrator asks of a clone to its configuration and to what must be copied for it. Whether the result is
//! good, and whether a target may be overwritten, is judged elsewhere.
//!
//! A device of the source is kept (and then shared), copied or linked in the clone:
//!
//! - `-b STATEMENT` copies. The statement's address names the source's device, its location the store that gets the content,
//!   and the clone has that store at this address. An `-a` of the same store gives the clone's device another address or
//!   adapter; a `-d` of the source's device is as good as said. Both are how A.03.50 wanted it and may be left out.
//! - `--linked` puts an image of its own over each disk; with `-b` of storage type qcow2 it lies where the statement says.
//! - `-a`, `-d`, `-m` then are what hpvmmodify would do to the clone.

use std::str::FromStr;

use hpvm_model::bytes::shown;
use hpvm_model::{
    Backing, DeviceKind, DiskId, GuestConfig, GuestName, GuestNumber, GuestUuid, Statement,
    StorageAddress, StorageDevice, StorageType,
};

use crate::facts::network::NetworkFacts;
use crate::request::{DeviceRequest, Request, RequestError, apply, renew};

/// What is asked of a clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloneRequest {
    pub name: GuestName,
    /// As of hpvmmodify, to be applied to the clone.
    pub request: Request,
    /// The statements of `-b`, in the order given.
    pub copies: Vec<Statement>,
    pub disks: Disks,
    pub macs: Inheritance,
    pub serial_number: Inheritance,
}

impl CloneRequest {
    /// Whether something of the source's stores is copied, or linked.
    #[must_use]
    pub fn reads_stores(&self) -> bool {
        !self.copies.is_empty() || self.disks == Disks::Linked
    }

    /// The devices that are to be copied to, by path.
    pub fn devices_written(&self) -> impl Iterator<Item = &str> {
        let written = self.copies.iter().filter_map(|statement| statement.backing.as_ref());
        written.filter(|to| to.is_device()).map(|to| to.path.as_str())
    }
}

/// Whether a clone gets something of its own, or is like its source in it: `new` or `same`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Inheritance {
    #[default]
    New,
    /// Then only one of the two should run at a time.
    Same,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is neither new nor same")]
pub struct InheritanceError(String);

impl FromStr for Inheritance {
    type Err = InheritanceError;
    fn from_str(text: &str) -> Result<Inheritance, InheritanceError> {
        match text {
            "new" => Ok(Inheritance::New),
            "same" => Ok(Inheritance::Same),
            other => Err(InheritanceError(shown(other))),
        }
    }
}

/// What becomes of the disks that no option names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disks {
    /// The clone has the source's own.
    Kept,
    /// The clone has an image over each, which is only read from then on.
    Linked,
}

/// A clone before anything was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Design {
    pub config: GuestConfig,
    /// In order of the clone's addresses.
    pub work: Vec<Work>,
}

/// A store that must be made for a device of the clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// In the clone.
    pub address: StorageAddress,
    pub from: Backing,
    pub to: Backing,
    pub how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Copy,
    /// An image that holds nothing yet over `from`.
    Overlay(Place),
}

/// Where an overlay lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the clone's folder, and goes with it.
    Own,
    Named,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloneError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("{0} has no content that could be copied; a {1} is kept, or taken away with -d")]
    NoContent(String, &'static str),
    #[error("the device at {0} is named by -b twice; name it once")]
    Twice(StorageAddress),
    #[error("-m and -b both name the device at {0}; give what -m says in the statement of -b")]
    ModifiedToo(StorageAddress),
    #[error(
        "'{from}' is of storage type {} and '{to}' of {}; a copy keeps the format, so write {} for it", .stores.0.as_str(), .stores.1.as_str(), right_type(.stores.0)
    )]
    OtherFormat { from: String, to: String, stores: (StorageType, StorageType) },
    #[error(
        "a linked disk is an image of its own, so '{0}' has to be of storage type qcow2; without --linked it gets a copy"
    )]
    NoImage(String),
    #[error("{0} cannot be linked; only disks can")]
    NoDisk(String),
    #[error("the guest has no disk that could be linked")]
    NothingToLink,
}

fn right_type(from: StorageType) -> &'static str {
    match from {
        StorageType::Qcow2 => "qcow2",
        _ => "file, lv or disk",
    }
}

/// The clone of `source`, with NICs of its own on the same switches, and no serial number yet when it gets a new one. `own_image` says where the image of a linked disk lies when no statement does.
pub fn design(
    source: &GuestConfig,
    asked: &CloneRequest,
    uuid: GuestUuid,
    own_image: &dyn Fn(StorageAddress) -> String,
    network: &NetworkFacts,
    random: &mut dyn FnMut() -> u64,
) -> Result<Design, CloneError> {
    let mut request = asked.request.clone();
    request.name = Some(asked.name.clone());
    let mut named = Vec::new();
    for copy in &asked.copies {
        named.push(replace(source, copy, asked.disks, &mut request.devices, &named)?);
    }
    let mut fresh = GuestConfig {
        uuid,
        // The number is given when the registry is ours to write, and a serial number of its own with it.
        number: GuestNumber::FIRST,
        serial_number: match asked.serial_number {
            Inheritance::New => String::new(),
            Inheritance::Same => source.serial_number.clone(),
        },
        ..source.clone()
    };
    renew(&mut fresh, asked.macs, network, random)?;
    let mut config = apply(&fresh, None, &request, network, random)?;
    let mut work = Vec::new();
    for device in &mut config.storage {
        let copied = named.iter().find(|(_, to)| *to == device.backing).map(|(from, _)| from);
        let kept = source.storage.iter().find(|d| d.backing == device.backing);
        match (copied, kept, asked.disks) {
            (Some(from), _, Disks::Kept) => work.push(copy(device, from)),
            (Some(from), _, Disks::Linked) => work.push(link(device, from, Place::Named)),
            (None, Some(from), Disks::Linked) if can_be_linked(from) => {
                device.backing = Backing::new(StorageType::Qcow2, own_image(device.address));
                work.push(link(device, from, Place::Own));
            }
            _ => {}
        }
        device.id = DiskId::from_random(random());
    }
    if asked.disks == Disks::Linked && work.is_empty() {
        return Err(CloneError::NothingToLink);
    }
    Ok(Design { config, work })
}

/// Turns a statement of `-b` into what hpvmmodify would be asked; gives the source's device and the store it goes to.
fn replace(
    source: &GuestConfig,
    copy: &Statement,
    disks: Disks,
    devices: &mut Vec<DeviceRequest>,
    earlier: &[(StorageDevice, Backing)],
) -> Result<(StorageDevice, Backing), CloneError> {
    let missing = |address: Option<StorageAddress>| {
        let shown = address.map_or_else(String::new, |address| address.to_string());
        CloneError::Request(RequestError::NoDeviceAt(shown, source.name.clone()))
    };
    let device = copy.address.and_then(|address| source.device_at(address));
    let device = device.ok_or_else(|| missing(copy.address))?;
    let to = copy.backing.clone().ok_or_else(|| missing(copy.address))?;
    if earlier.iter().any(|(from, _)| from.address == device.address) {
        return Err(CloneError::Twice(device.address));
    }
    fits(device, &to, disks)?;
    let names_it = |statement: &Statement| statement.names(device);
    if devices.iter().any(|d| matches!(d, DeviceRequest::Modify(s) if names_it(s))) {
        return Err(CloneError::ModifiedToo(device.address));
    }
    devices.retain(|d| !matches!(d, DeviceRequest::Delete(s) if names_it(s)));
    let is_added = devices
        .iter()
        .any(|d| matches!(d, DeviceRequest::Add(s) if s.backing.as_ref() == Some(&to)));
    devices.push(match is_added {
        true => DeviceRequest::Delete(Statement {
            kind: device.kind,
            adapter: device.adapter,
            address: Some(device.address),
            backing: None,
        }),
        false => DeviceRequest::Modify(copy.clone()),
    });
    Ok((device.clone(), to))
}

fn fits(device: &StorageDevice, to: &Backing, disks: Disks) -> Result<(), CloneError> {
    use StorageType::{Attach, Null, Qcow2};
    let from = &device.backing;
    if [from.storage, to.storage].iter().any(|storage| matches!(storage, Null | Attach)) {
        return Err(CloneError::NoContent(device.to_string(), device.kind.as_str()));
    }
    match disks {
        Disks::Linked if device.kind != DeviceKind::Disk => {
            Err(CloneError::NoDisk(device.to_string()))
        }
        Disks::Linked if to.storage != Qcow2 => Err(CloneError::NoImage(to.path.clone())),
        Disks::Kept if (from.storage == Qcow2) != (to.storage == Qcow2) => {
            Err(CloneError::OtherFormat {
                from: from.path.clone(),
                to: to.path.clone(),
                stores: (from.storage, to.storage),
            })
        }
        _ => Ok(()),
    }
}

fn can_be_linked(device: &StorageDevice) -> bool {
    use StorageType::{Disk, File, Lv, Qcow2};
    device.kind == DeviceKind::Disk && matches!(device.backing.storage, Disk | File | Lv | Qcow2)
}

/// A copy of an image has under it what the image has.
fn copy(device: &mut StorageDevice, from: &StorageDevice) -> Work {
    device.layers.clone_from(&from.layers);
    work(device, from, How::Copy)
}

fn link(device: &mut StorageDevice, from: &StorageDevice, place: Place) -> Work {
    device.layers = std::iter::once(&from.backing).chain(&from.layers).cloned().collect();
    work(device, from, How::Overlay(place))
}

fn work(device: &StorageDevice, from: &StorageDevice, how: How) -> Work {
    Work { address: device.address, from: from.backing.clone(), to: device.backing.clone(), how }
}
