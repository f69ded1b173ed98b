//! What one path leads to, as the judge is told: a file, a device of some kind, a folder, or why it is nothing that a guest could
//! have. Called by threads that may be left where nobody answers.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use hpvm_host::block::{Access, Blocks, DeviceNumber, Kind, Lead, Mapping, Places};
use hpvm_host::optical::{self, Disc};
use hpvm_host::{identity, reservations, users};
use hpvm_model::Bytes;
use hpvm_plan::facts::{
    BlockFact, BlockKind, FileFact, Listing, Peripheral, Reservations, Writable,
};

use super::{content, is_absence};
use crate::facts;

/// The same where it is no matter what the host does with block devices.
pub(super) fn of_no_device(path: &Path) -> FileFact {
    of(path, &Blocks::default())
}

/// What one path leads to, links followed.
pub(super) fn of(path: &Path, blocks: &Blocks) -> FileFact {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if is_absence(&error) => return FileFact::Missing,
        Err(error) => return FileFact::Unreadable(facts::lack(&error)),
    };
    let kind = metadata.file_type();
    match kind {
        kind if kind.is_dir() => FileFact::Folder(listing(path, &metadata)),
        kind if kind.is_fifo() => FileFact::Special("named pipe"),
        kind if kind.is_socket() => FileFact::Special("socket"),
        kind => match rustix::fs::access(path, rustix::fs::Access::READ_OK) {
            Err(error) => FileFact::Unreadable(facts::lack(&error.into())),
            Ok(()) if kind.is_block_device() => block(path, &metadata, blocks),
            Ok(()) if kind.is_char_device() => character(path),
            Ok(()) => regular(path, &metadata),
        },
    }
}

fn listing(path: &Path, metadata: &Metadata) -> Listing {
    const BY_ALL: u32 = 0o005;
    let by_us = rustix::fs::Access::READ_OK | rustix::fs::Access::EXEC_OK;
    let is_open = match users::is_root() {
        true => metadata.mode() & BY_ALL == BY_ALL,
        false => rustix::fs::access(path, by_us).is_ok(),
    };
    if is_open { Listing::Open } else { Listing::Closed }
}

fn regular(path: &Path, metadata: &Metadata) -> FileFact {
    let identity = identity::of(metadata);
    let (size, writable) = (Bytes(metadata.size()), writable(path, metadata));
    let ((cache, ending), content) = (content::reading(path, size), content::content(path));
    FileFact::Regular { identity, size, writable, cache, ending, content }
}

/// Root may write to everything, but what nobody else may write to is meant to stay as it is.
pub(crate) fn is_meant_to_be_written(metadata: &Metadata) -> bool {
    const ANY_WRITE_BIT: u32 = 0o222;
    metadata.mode() & ANY_WRITE_BIT != 0
}

fn writable(path: &Path, metadata: &Metadata) -> Writable {
    match rustix::fs::access(path, rustix::fs::Access::WRITE_OK) {
        Ok(()) if is_meant_to_be_written(metadata) => Writable::Yes,
        _ => Writable::No,
    }
}

fn block(path: &Path, metadata: &Metadata, blocks: &Blocks) -> FileFact {
    let Some(device) = blocks.device(DeviceNumber::from_raw(metadata.rdev())) else {
        return FileFact::Special("block device without a driver");
    };
    let kind = match &device.kind {
        Kind::Mapped { mapping: Mapping::Volume { .. }, .. } => BlockKind::Volume,
        Kind::Optical => match optical::disc(path) {
            Ok(Disc::Absent) => BlockKind::EmptyDrive,
            _ => BlockKind::Optical,
        },
        _ => BlockKind::Other,
    };
    let writable = match device.access {
        Access::ReadOnly => Writable::No,
        Access::ReadWrite => writable(path, metadata),
    };
    let identity = identity::of(metadata);
    let (size, reservations) = (Bytes(device.size_bytes), reservations_on(&device.kind, metadata));
    FileFact::Block(BlockFact { identity, size, writable, kind, reservations })
}

fn reservations_on(kind: &Kind, metadata: &Metadata) -> Reservations {
    let number = DeviceNumber::from_raw(metadata.rdev());
    match kind {
        Kind::Mapped { mapping: Mapping::Multipath, .. } => Reservations::HoldOnOnePath,
        Kind::Disk if reservations::is_scsi_disk(&Places::default().sysfs, number) => {
            Reservations::Hold
        }
        _ => Reservations::Never,
    }
}

fn character(path: &Path) -> FileFact {
    let Ok(Lead::Character(found)) = Places::default().lead(path) else { return FileFact::Missing };
    match found.peripheral {
        Some(peripheral) if found.is_generic() => FileFact::Generic {
            identity: identity::of_device(found.number),
            peripheral: Peripheral::of_type(peripheral),
        },
        _ => FileFact::Special("character device"),
    }
}
