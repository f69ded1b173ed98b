//! What one command says twice of one place: that what stands later counts is nothing that anybody would expect. A device that
//! is taken away may leave its place to another.

use std::fmt::Display;

use hpvm_model::{GuestConfig, PciSlot, StorageAddress};

use super::{DeviceRequest, NicRequest, Request, RequestError, find, nics, only_drive};

pub(super) fn refuse(config: &GuestConfig, request: &Request) -> Result<(), RequestError> {
    once_each(request.devices.iter().map(|device| device_place(config, device)))?;
    once_each(request.nics.iter().map(|nic| nic_place(config, nic)))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Deed {
    Add,
    Modify,
    Delete,
}

/// What an option says, and the place that it is about, if that is known.
struct Named<Place> {
    deed: Deed,
    statement: String,
    place: Option<Place>,
}

/// What cannot be found is left to whoever needs it.
fn device_place(config: &GuestConfig, device: &DeviceRequest) -> Named<StorageAddress> {
    let (deed, statement, found) = match device {
        DeviceRequest::Add(statement) => (Deed::Add, statement, None),
        DeviceRequest::Modify(statement) => {
            (Deed::Modify, statement, only_drive(config, statement).ok())
        }
        DeviceRequest::Delete(statement) => (Deed::Delete, statement, find(config, statement).ok()),
    };
    let found = found.map(|index| config.storage[index].address);
    Named { deed, statement: statement.to_string(), place: statement.address.or(found) }
}

fn nic_place(config: &GuestConfig, nic: &NicRequest) -> Named<PciSlot> {
    let (deed, statement, found) = match nic {
        NicRequest::Add(statement) => (Deed::Add, statement, None),
        NicRequest::Modify(statement) => {
            (Deed::Modify, statement, nics::find(config, statement).ok())
        }
        NicRequest::Delete(statement) => {
            (Deed::Delete, statement, nics::find(config, statement).ok())
        }
    };
    let found = found.map(|index| config.nics[index].slot);
    Named { deed, statement: statement.to_string(), place: statement.slot.or(found) }
}

fn once_each<Place: Copy + Display + PartialEq>(
    named: impl Iterator<Item = Named<Place>>,
) -> Result<(), RequestError> {
    let mut earlier: Vec<Named<Place>> = Vec::new();
    for second in named {
        let is_same = |first: &&Named<Place>| {
            first.place == second.place && contradict(first.deed, second.deed)
        };
        if let (Some(place), Some(first)) = (second.place, earlier.iter().find(is_same)) {
            let shown =
                |named: &Named<Place>| format!("{} {}", named.deed.option(), named.statement);
            let (first, second) = (shown(first), shown(&second));
            return Err(RequestError::NamedTwice { first, second, place: place.to_string() });
        }
        earlier.push(second);
    }
    Ok(())
}

/// What is added where a device is, or comes, is judged as two devices at one address, also where the other was there before.
fn contradict(first: Deed, second: Deed) -> bool {
    first == second || first != Deed::Add && second != Deed::Add
}

impl Deed {
    fn option(self) -> &'static str {
        match self {
            Deed::Add => "-a",
            Deed::Modify => "-m",
            Deed::Delete => "-d",
        }
    }
}
