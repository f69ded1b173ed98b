//! Shared disks as QEMU is told of them: who makes their reservations. The helper's socket is a path, since QEMU connects to it
//! again when the helper was replaced.

use super::{Property, Value};
use crate::record::{Attached, Sharing};

/// Whether any of these is a disk of several guests.
#[must_use]
pub fn shares_disks<'a>(storage: impl IntoIterator<Item = &'a Attached>) -> bool {
    storage.into_iter().any(|attached| attached.sharing == Sharing::Reserved)
}

/// QEMU's part of reserving: it hands what a guest asks for to the helper at a socket.
pub const RESERVATION_MANAGER: &str = "reservations";

/// Properties of the `object-add` of the reservation manager.
#[must_use]
pub fn reservation_manager(socket: &str) -> Vec<Property> {
    vec![
        ("qom-type", Value::text("pr-manager-helper")),
        ("id", Value::text(RESERVATION_MANAGER)),
        ("path", Value::text(socket)),
    ]
}
