//! Which running guests have a disk, and as what it was opened for them: what its entry, or its length, says by now counts for
//! them later. Asked by hpvmdevmgmt, to tell it.

use std::collections::BTreeSet;

use hpvm_model::{Choice, DeviceKind, GuestName};
use hpvm_plan::record::{Access, Attached};

use crate::stores::inodes::Inodes;
use crate::{Refusal, VmHost};

/// The disks of running guests that are what a path leads to, those that come at a reset among them: they are open already.
pub fn disks(host: &VmHost, path: &str) -> Result<Vec<(GuestName, Attached)>, Refusal> {
    let identity = Inodes::one(path);
    let is_it = |attached: &Attached| {
        attached.device.kind == DeviceKind::Disk
            && (attached.device.backing.path == path
                || identity.is_some() && attached.identity == identity)
    };
    let mut disks = Vec::new();
    for config in host.registry.all()? {
        let Some(machine) = host.machine(&config) else { continue };
        let found = machine.held().filter(|attached| is_it(attached));
        disks.extend(found.map(|attached| (config.name.clone(), attached.clone())));
    }
    Ok(disks)
}

/// The running guests for which READONLY counts from their next start: they have the disk otherwise.
pub fn started_otherwise(
    host: &VmHost,
    path: &str,
    read_only: Choice,
) -> Result<BTreeSet<GuestName>, Refusal> {
    let disks = disks(host, path)?.into_iter();
    let is_otherwise = |attached: &Attached| attached.access != access(read_only);
    Ok(disks.filter(|(_, disk)| is_otherwise(disk)).map(|(guest, _)| guest).collect())
}

fn access(read_only: Choice) -> Access {
    match read_only {
        Choice::Yes => Access::ReadOnly,
        Choice::No => Access::ReadWrite,
    }
}
