//! From what an administrator asks to the configuration that results. Nothing is judged here: whether the result is good is
//! [`crate::judge`]'s to say. Only what cannot be understood against the configuration (a device that is not there, no
//! room for a new one) ends here.

mod nics;
mod twice;

use hpvm_model::limits::STORAGE_DEVICES_MAX;
use hpvm_model::{
    AutoStart, Backing, DiskId, Entitlement, GuestConfig, GuestName, Label, Memory, OsType,
    Runnable, Statement, StorageAddress, StorageDevice, StorageType, SwitchName, Vcpus,
};

pub use self::nics::NicRequest;
use self::nics::Placed;
pub(crate) use self::nics::renew;
use crate::facts::network::NetworkFacts;
use crate::hotplug::waiting_removals;
use crate::placement::place;
use crate::record::Machine;

/// What a change asks for; `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub name: Option<GuestName>,
    pub label: Option<Label>,
    pub os: Option<OsType>,
    pub vcpus: Option<Vcpus>,
    pub entitlement: Option<Entitlement>,
    pub memory: Option<Memory>,
    pub auto_start: Option<AutoStart>,
    pub runnable: Option<Runnable>,
    /// In the order given.
    pub devices: Vec<DeviceRequest>,
    /// What lies under the one image that is added, the uppermost first.
    pub layers: Vec<Backing>,
    /// In the order given.
    pub nics: Vec<NicRequest>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceRequest {
    Add(Statement),
    Modify(Statement),
    Delete(Statement),
}

/// Why a request means nothing for this guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("the guest has no device at {0}; `hpvmstatus -P {1} -d` lists its devices")]
    NoDeviceAt(String, GuestName),
    #[error(
        "'{0}' was deleted and has not left the running guest yet; -d of it tries again, and -a of the same statement keeps it"
    )]
    Leaving(String),
    #[error("the guest has no device backed by '{0}'; `hpvmstatus -P {1} -d` lists its devices")]
    NoDeviceBacked(String, GuestName),
    #[error(
        "the guest has '{0}' there, which is not what -d says; give that statement, or its address without what backs it"
    )]
    OtherThanSaid(String),
    #[error("'{first}' and '{second}' both name {place}; name it once")]
    NamedTwice { first: String, second: String, place: String },
    #[error("'{0}' backs several devices of the guest; name the one to delete by its address")]
    Ambiguous(String),
    #[error("guest '{0}' has no dvd; `hpvmmodify -a dvd:…` adds one")]
    NoDrive(GuestName),
    #[error(
        "without an address -m means the only dvd of a guest on that adapter; give the address of one of {0}"
    )]
    WhichDrive(String),
    #[error("{0} is a {1}; it cannot be turned into a {2}. Delete it and add the other")]
    OtherKind(String, &'static str, &'static str),
    #[error(
        "--layer says what lies under an image that is added, and needs exactly one -a of storage type qcow2 beside it, such as disk:avio_stor::qcow2:/path"
    )]
    LayersOfNone,
    #[error(
        "'{0}' is no image and holds all its blocks itself, so that nothing lies under it; give it as the last --layer"
    )]
    LayersUnderStore(String),
    #[error("the guest has no such NIC; `hpvmstatus -P {0} -d` lists its devices")]
    NoNic(GuestName),
    #[error(
        "several NICs of the guest are on virtual switch '{0}'; name the one by its bus,device"
    )]
    AmbiguousNic(SwitchName),
    #[error(
        "virtual switch '{0}' has no free port; give one with portid:N to share it with a guest that does not run at the same time"
    )]
    NoPort(SwitchName),
    #[error("{0} devices are more than the {STORAGE_DEVICES_MAX} a guest can have")]
    TooMany(usize),
    #[error(transparent)]
    NoRoom(#[from] crate::placement::NoRoom),
}

/// Applies a request. `random` gives each new device its identity; `network` tells which ports and MAC addresses are taken.
pub fn apply(
    config: &GuestConfig,
    running: Option<&Machine>,
    request: &Request,
    network: &NetworkFacts,
    random: &mut dyn FnMut() -> u64,
) -> Result<GuestConfig, RequestError> {
    let mut next = config.clone();
    next.label.clone_from(request.label.as_ref().unwrap_or(&config.label));
    next.os.clone_from(request.os.as_ref().unwrap_or(&config.os));
    next.vcpus = request.vcpus.unwrap_or(config.vcpus);
    next.entitlement = request.entitlement.unwrap_or(config.entitlement);
    next.memory = request.memory.unwrap_or(config.memory);
    next.auto_start = request.auto_start.unwrap_or(config.auto_start);
    next.runnable = request.runnable.unwrap_or(config.runnable);
    twice::refuse(config, request)?;
    // What leaves makes room for what comes, in whatever order the options stand.
    for device in request.devices.iter().filter_map(DeviceRequest::deleted) {
        match find(&next, device) {
            Ok(index) if device.describes(&next.storage[index]) => {
                next.storage.remove(index);
            }
            Ok(index) => return Err(RequestError::OtherThanSaid(next.storage[index].to_string())),
            Err(error) => match removed_again(config, running, device) {
                Some(leaving) if device.describes(leaving) => {}
                Some(leaving) => return Err(RequestError::OtherThanSaid(leaving.to_string())),
                None => return Err(error),
            },
        }
    }
    for device in request.devices.iter().filter_map(DeviceRequest::modified) {
        modify(&mut next, running, device)?;
    }
    nics::settle(&mut next, running, &request.nics, network)?;
    nics::add(&mut next, running, &request.nics, Placed::Yes, network, random)?;
    let added = || request.devices.iter().filter_map(DeviceRequest::added);
    if !request.layers.is_empty() && added().filter(|s| is_image(s)).count() != 1 {
        return Err(RequestError::LayersOfNone);
    }
    if let [above @ .., _] = request.layers.as_slice()
        && let Some(store) = above.iter().find(|layer| layer.storage != StorageType::Qcow2)
    {
        return Err(RequestError::LayersUnderStore(store.path.clone()));
    }
    // Before any of them is looked at: each costs the more, the more there are.
    let devices = next.storage.len() + added().count();
    if added().next().is_some() && devices > STORAGE_DEVICES_MAX {
        return Err(RequestError::TooMany(devices));
    }
    for statement in added() {
        let layers = if is_image(statement) { request.layers.as_slice() } else { &[] };
        add(&mut next, running, statement, layers, random)?;
    }
    nics::add(&mut next, running, &request.nics, Placed::No, network, random)?;
    next.sort_devices();
    // Last, since what was refused until here is told of the guest as it is called now.
    next.name.clone_from(request.name.as_ref().unwrap_or(&config.name));
    Ok(next)
}

/// The devices that the running guest still has and that are to be removed once more.
#[must_use]
pub fn removals_again(
    config: &GuestConfig,
    running: &Machine,
    request: &Request,
) -> Vec<StorageAddress> {
    let deleted = request.devices.iter().filter_map(DeviceRequest::deleted);
    deleted
        .filter(|statement| find(config, statement).is_err())
        .filter_map(|statement| removed_again(config, Some(running), statement))
        .map(|device| device.address)
        .collect()
}

/// The one device that a statement means of those whose removal waits for the next start.
fn removed_again<'a>(
    config: &'a GuestConfig,
    running: Option<&'a Machine>,
    statement: &Statement,
) -> Option<&'a StorageDevice> {
    let mut named = waiting_removals(running?, config).filter(|device| statement.names(device));
    match (named.next(), named.next()) {
        (Some(device), None) => Some(device),
        _ => None,
    }
}

impl DeviceRequest {
    fn added(&self) -> Option<&Statement> {
        match self {
            DeviceRequest::Add(statement) => Some(statement),
            _ => None,
        }
    }

    fn modified(&self) -> Option<&Statement> {
        match self {
            DeviceRequest::Modify(statement) => Some(statement),
            _ => None,
        }
    }

    fn deleted(&self) -> Option<&Statement> {
        match self {
            DeviceRequest::Delete(statement) => Some(statement),
            _ => None,
        }
    }
}

fn is_image(statement: &Statement) -> bool {
    statement.backing.as_ref().is_some_and(|backing| backing.storage == StorageType::Qcow2)
}

fn find(config: &GuestConfig, statement: &Statement) -> Result<usize, RequestError> {
    let mut named = config.storage.iter().enumerate().filter(|(_, device)| statement.names(device));
    match (named.next(), named.next()) {
        (Some((index, _)), None) => Ok(index),
        (Some((_, device)), Some(_)) => Err(RequestError::Ambiguous(device.backing.path.clone())),
        (None, _) => Err(match statement.address {
            Some(address) => RequestError::NoDeviceAt(address.to_string(), config.name.clone()),
            None => RequestError::NoDeviceBacked(
                statement.backing.as_ref().map_or_else(String::new, |b| b.path.clone()),
                config.name.clone(),
            ),
        }),
    }
}

/// The drive that is meant without its address: the only one the guest has.
fn only_drive(config: &GuestConfig, statement: &Statement) -> Result<usize, RequestError> {
    let is_drive = |device: &StorageDevice| device.kind == statement.kind;
    let drives: Vec<usize> =
        (0..config.storage.len()).filter(|index| is_drive(&config.storage[*index])).collect();
    match drives[..] {
        [index] if config.storage[index].adapter == statement.adapter => Ok(index),
        [] => Err(RequestError::NoDrive(config.name.clone())),
        _ => {
            let shown = drives.iter().map(|index| config.storage[*index].to_string());
            Err(RequestError::WhichDrive(shown.collect::<Vec<_>>().join(", ")))
        }
    }
}

fn modify(
    config: &mut GuestConfig,
    running: Option<&Machine>,
    statement: &Statement,
) -> Result<(), RequestError> {
    let index = match statement.address {
        Some(address) => {
            let leaves = || waiting_removals(running?, config).find(|d| d.address == address);
            match (find(config, statement), leaves()) {
                (Err(_), Some(device)) => return Err(RequestError::Leaving(device.to_string())),
                (found, _) => found?,
            }
        }
        None => only_drive(config, statement)?,
    };
    let device = &mut config.storage[index];
    if device.kind != statement.kind {
        return Err(RequestError::OtherKind(
            device.to_string(),
            device.kind.as_str(),
            statement.kind.as_str(),
        ));
    }
    device.adapter = statement.adapter;
    if let Some(backing) = &statement.backing
        && device.backing != *backing
    {
        device.backing = backing.clone();
        // They belonged to the store that went.
        device.layers.clear();
    }
    Ok(())
}

fn add(
    config: &mut GuestConfig,
    running: Option<&Machine>,
    statement: &Statement,
    layers: &[Backing],
    random: &mut dyn FnMut() -> u64,
) -> Result<(), RequestError> {
    let Some(backing) = statement.backing.clone() else { return Ok(()) };
    let still = still_attached(config, running, statement);
    if let Some(device) = still.filter(|still| layers.is_empty() || still.layers == layers) {
        config.storage.push(device);
        return Ok(());
    }
    let address = match statement.address {
        Some(address) => address,
        None => place(config, running, statement.adapter, statement.kind)?,
    };
    config.storage.push(StorageDevice {
        kind: statement.kind,
        adapter: statement.adapter,
        address,
        backing,
        layers: layers.to_vec(),
        id: DiskId::from_random(random()),
    });
    Ok(())
}

/// The very device that is asked for, if the running guest has it and the configuration does not: it was removed and has not
/// left yet, or it was added by a command that died before it could keep it. It stays where it is.
fn still_attached(
    config: &GuestConfig,
    running: Option<&Machine>,
    statement: &Statement,
) -> Option<StorageDevice> {
    let devices = running?.storage.iter().map(|attached| &attached.device);
    let asked = |device: &&StorageDevice| {
        (device.kind, device.adapter) == (statement.kind, statement.adapter)
            && statement.backing.as_ref() == Some(&device.backing)
            && statement.address.is_none_or(|address| address == device.address)
            && config.device_at(device.address).is_none()
    };
    devices.into_iter().find(asked).cloned()
}
