//! Where devices go. A guest address `bus,device` is a root port; automatic placement and the check of a given address
//! follow one rule, and addresses never move.

use std::collections::BTreeSet;

use hpvm_model::{AdapterKind, DeviceKind, GuestConfig, PciSlot, StorageAddress};

use crate::record::Machine;

/// Root ports kept free at every start, so that hotplug has room.
pub const SPARE_PORTS: usize = 8;

/// Why no address could be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "every bus,device of this guest is taken; remove a device or name an adapter with a free target"
)]
pub struct NoRoom;

/// Finds an address for a new device: the next target of an adapter of its kind that is there already, else target 0 of
/// the lowest free slot. Attached devices keep to themselves, since a guest that resets their adapter would reset its disks
/// with them. On a running guest only places that can be reached now are better than the others, so that a new device need
/// not wait for the next start.
pub fn place(
    config: &GuestConfig,
    running: Option<&Machine>,
    kind: AdapterKind,
    device: DeviceKind,
) -> Result<StorageAddress, NoRoom> {
    let on_adapter = || {
        adapters_of(config, kind, device)
            .filter(|slot| running.is_none_or(|m| joins_running(m, *slot, kind)))
            .find_map(|slot| free_target(config, running, slot, kind))
    };
    let first = |slot| StorageAddress { slot, target: 0 };
    let in_port =
        || running.and_then(|m| new_slot(config, Some(m), |slot| m.base.ports.contains(&slot)));
    let anywhere = || new_slot(config, running, |_| true);
    let later = || {
        adapters_of(config, kind, device).find_map(|slot| free_target(config, running, slot, kind))
    };
    on_adapter().or_else(|| in_port().or_else(anywhere).map(first)).or_else(later).ok_or(NoRoom)
}

/// A disk joins a live AVIO adapter at once; on a live VIO adapter no guest ever sees it.
fn joins_running(machine: &Machine, slot: PciSlot, kind: AdapterKind) -> bool {
    kind == AdapterKind::AvioStor
        && machine.adapter_in(slot) == Some(kind)
        && !machine.is_leaving(slot)
}

/// The adapters of a kind that have devices such as this one, and no others.
fn adapters_of(
    config: &GuestConfig,
    kind: AdapterKind,
    device: DeviceKind,
) -> impl Iterator<Item = PciSlot> {
    let mut slots: BTreeSet<PciSlot> =
        config.storage.iter().filter(|d| d.adapter == kind).map(|d| d.address.slot).collect();
    let others = config.storage.iter().filter(|d| d.kind.is_attached() != device.is_attached());
    others.for_each(|other| {
        slots.remove(&other.address.slot);
    });
    slots.into_iter()
}

fn free_target(
    config: &GuestConfig,
    running: Option<&Machine>,
    slot: PciSlot,
    kind: AdapterKind,
) -> Option<StorageAddress> {
    let configured = config.storage.iter().map(|device| device.address);
    let attached = running.into_iter().flat_map(|m| m.storage.iter().map(|a| a.device.address));
    let here = configured.chain(attached).filter(|address| address.slot == slot);
    let taken: BTreeSet<u8> = here.map(|address| address.target).collect();
    let target = (0..=kind.target_max()).find(|target| !taken.contains(target))?;
    Some(StorageAddress { slot, target })
}

/// The lowest slot nobody has, neither in the configuration nor in the running machine, and that is wanted.
fn new_slot(
    config: &GuestConfig,
    running: Option<&Machine>,
    wanted: impl Fn(PciSlot) -> bool,
) -> Option<PciSlot> {
    PciSlot::all().filter(|slot| wanted(*slot)).find(|slot| {
        config.adapter_in(*slot).is_none()
            && config.nic_in(*slot).is_none()
            && running.is_none_or(|m| {
                m.nic_in(*slot).is_none()
                    && m.storage.iter().all(|a| a.device.address.slot != *slot)
            })
    })
}

/// Finds a slot for a new NIC, which shares none: the lowest free one, on a running guest the lowest that has a port now.
pub fn place_nic(config: &GuestConfig, running: Option<&Machine>) -> Result<PciSlot, NoRoom> {
    let in_port =
        || running.and_then(|m| new_slot(config, Some(m), |slot| m.base.ports.contains(&slot)));
    in_port().or_else(|| new_slot(config, running, |_| true)).ok_or(NoRoom)
}

/// The root ports of the next start: those in use, those ever made, and spares up to [`SPARE_PORTS`] that are free. A
/// bus with any port has its device 0, since functions of a PCI device are found through function 0.
#[must_use]
pub fn ports(config: &GuestConfig) -> Vec<PciSlot> {
    let disks = config.storage.iter().map(|d| d.address.slot);
    let in_use: BTreeSet<PciSlot> = disks.chain(config.nics.iter().map(|n| n.slot)).collect();
    let mut ports: BTreeSet<PciSlot> = config.ports.iter().copied().collect();
    ports.extend(&in_use);
    for slot in PciSlot::all() {
        if ports.difference(&in_use).count() >= SPARE_PORTS {
            break;
        }
        ports.insert(slot);
    }
    let firsts: Vec<PciSlot> =
        ports.iter().filter_map(|slot| PciSlot::new(slot.bus(), 0).ok()).collect();
    ports.extend(firsts);
    ports.into_iter().collect()
}
