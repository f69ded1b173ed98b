//! What a folder tells of the guest it belongs to, where the registry tells nothing.

use hpvm_host::durable;
use hpvm_host::names::guest_folder;
use hpvm_model::GuestConfig;
use hpvm_plan::record::Machine;
use hpvm_registry::{Found, RemovedGuest};

use crate::folder::{self, Folder};
use crate::stores::Stores;

/// A guest without a link is kept a week from the rebuild on when nobody knows any more when it was removed.
const KEEP_FOUND: jiff::SignedDuration = jiff::SignedDuration::from_hours(7 * 24);

/// The guest as the registry will know it.
pub(super) fn found(root: &hpvm_host::Root, config: GuestConfig) -> Found {
    let config = with_ports(root, config);
    let stores = Stores::look(std::iter::once(&config));
    let identities = crate::facts::identities_of(&stores.files);
    if folder::leads_to(&root.guest_link(config.name.as_str()), config.uuid) {
        return Found::Guest(config, identities);
    }
    let now = jiff::Timestamp::now();
    let removed = RemovedGuest { config, removed_at: now, keep_until: now + KEEP_FOUND };
    Found::Removed(removed, identities)
}

/// A start makes ports for a guest and tells the boot record of them, not the text.
fn with_ports(root: &hpvm_host::Root, config: GuestConfig) -> GuestConfig {
    let path = Folder::of(root, config.uuid).file(guest_folder::BOOT_RECORD);
    let text = durable::open_regular(&path).and_then(std::io::read_to_string);
    let machine = text.ok().and_then(|text| Machine::read(&text).ok());
    match machine {
        Some(machine) if machine.base.uuid == config.uuid => {
            GuestConfig { ports: machine.base.ports, ..config }
        }
        _ => config,
    }
}
