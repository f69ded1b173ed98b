//! Drives of the VM Host that guests have, asked and told beside the guest: one that does not answer is not waited for.

use std::path::Path;

use hpvm_host::answers;
use hpvm_host::optical::{self, Disc};
use hpvm_model::{DeviceKind, GuestConfig, StorageDevice, StorageType};

/// Of the drives of the VM Host that a guest has, those without a medium, a sentence each.
pub(crate) fn empty_drives(config: &GuestConfig) -> Vec<String> {
    let sentence = |device: &StorageDevice| {
        let (path, address) = (&device.backing.path, device.address);
        let is_empty = asked(path, |path| matches!(optical::disc(path), Ok(Disc::Absent)));
        is_empty.then(|| format!("'{path}', the drive behind the dvd at {address}, has no medium"))
    };
    drives_of_host(config).filter_map(sentence).collect()
}

/// Lets the trays be opened that a guest locked which is gone. One that does not answer, or is no drive any more, stays.
pub(crate) fn free_drives(config: &GuestConfig) {
    for device in drives_of_host(config) {
        asked(&device.backing.path, |path| optical::free(path).is_ok());
    }
}

fn drives_of_host(config: &GuestConfig) -> impl Iterator<Item = &StorageDevice> {
    config.storage.iter().filter(|device| {
        (device.kind, device.backing.storage) == (DeviceKind::Dvd, StorageType::Disk)
    })
}

/// What a drive answers; no when it does not answer in time.
fn asked(path: &str, question: impl FnOnce(&Path) -> bool + Send + 'static) -> bool {
    answers::about(Path::new(path), question).unwrap_or(false)
}
