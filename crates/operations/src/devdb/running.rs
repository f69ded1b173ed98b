//! Which running guests have a disk, and as what it was opened for them: what its entry, or its length, says by now counts for
//! them later. Asked by hpvmdevmgmt, to tell it.

use std::collections::BTreeSet;

use hpvm_model::{Choice, DeviceKind, GuestConfig, GuestName, StorageDevice};
use hpvm_plan::record::{Access, Attached, Machine};

use crate::stores::inodes::Inodes;
use crate::{Refusal, VmHost};

/// The disks of running guests that are what a path leads to, those that come at a reset among them: they are open already.
pub fn disks(host: &VmHost, path: &str) -> Result<Vec<(GuestName, Attached)>, Refusal> {
    let disks = machines_with(host, path)?.into_iter().flat_map(|running| {
        running.disks.into_iter().map(move |disk| (running.config.name.clone(), disk))
    });
    Ok(disks.collect())
}

/// A running guest, and its disks that are what a path leads to.
struct Running {
    config: GuestConfig,
    machine: Machine,
    disks: Vec<Attached>,
}

fn machines_with(host: &VmHost, path: &str) -> Result<Vec<Running>, Refusal> {
    let identity = Inodes::one(path);
    let is_it = |attached: &&Attached| {
        attached.device.kind == DeviceKind::Disk
            && (attached.device.backing.path == path
                || identity.is_some() && attached.identity == identity)
    };
    let running = |config| {
        let machine: Machine = host.machine(&config)?;
        let disks = machine.held().filter(is_it).cloned().collect();
        Some(Running { config, machine, disks })
    };
    Ok(host.registry.all()?.into_iter().filter_map(running).collect())
}

/// When a running guest sees how long a disk's file is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// When hpvmmodify tells it.
    Told,
    /// It gets the disk at its next reset, as long as that was when it was opened, and can be told then.
    ToldAfterReset,
    /// It gets the disk with its next start.
    WithStart,
    /// It is to lose the disk before that.
    Never,
}

/// The disks of running guests that are what a path leads to, and those that will be, which are known by the path alone.
pub fn sights(
    host: &VmHost,
    path: &str,
) -> Result<Vec<(GuestName, StorageDevice, Sight)>, Refusal> {
    let mut sights = Vec::new();
    for Running { config, machine, disks } in machines_with(host, path)? {
        let is_one = |one: &StorageDevice, other: &StorageDevice| {
            (one.address, &one.backing) == (other.address, &other.backing)
        };
        let mut see = |device, sight| sights.push((config.name.clone(), device, sight));
        let comes = config.storage.iter().filter(|device| {
            let is_disk = device.kind == DeviceKind::Disk && device.backing.path == path;
            is_disk && !disks.iter().any(|disk| is_one(&disk.device, device))
        });
        comes.for_each(|device| see(device.clone(), Sight::WithStart));
        for Attached { device, .. } in disks {
            let is_there = machine.storage.iter().any(|there| is_one(&there.device, &device));
            let stays = config.storage.iter().any(|configured| is_one(configured, &device));
            let sight = match (is_there, stays) {
                (_, false) => Sight::Never,
                (true, true) => Sight::Told,
                (false, true) => Sight::ToldAfterReset,
            };
            see(device, sight);
        }
    }
    Ok(sights)
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
