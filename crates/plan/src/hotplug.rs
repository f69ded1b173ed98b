//! Changes to the devices of a running guest: which can be made now, in what order, which wait for its next reset, and which
//! for its next start.
//!
//! The rules come from what QEMU really does. A new disk is seen on a live AVIO adapter and on a VIO adapter that comes
//! with it; on a live VIO adapter it is seen only when the guest boots, so it comes at the next reset. A SCSI device leaves
//! without the guest being asked by the engine, so a disk leaves when the agent in the guest lets it go or, without an agent, when
//! it was quiet, else at the next reset; the last one takes its adapter along, for which the guest is asked, but not for what it
//! has not written. A disk that takes another one's place comes when that has left, and what is to be on an adapter that leaves,
//! with the next one.

mod at_reset;
mod held;
mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use hpvm_model::{
    AdapterKind, DeviceKind, GuestConfig, PciSlot, Problem, StorageAddress, StorageDevice,
    StorageType, with_article,
};

use crate::facts::HostFacts;
use crate::guest_path::{self, Function};
use crate::record::{AdapterPresence, Attached, ChangedBy, Consent, DeviceChange, Machine};

pub use held::held_elsewhere;

/// How long a disk must have had no I/O before it leaves alone.
pub const QUIET: Duration = Duration::from_secs(10);

/// What is known about the running guest beyond its boot record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Time since the last I/O of each disk, as the engine says.
    pub idle: BTreeMap<StorageAddress, Duration>,
    /// The size of each disk as the guest sees it, in bytes.
    pub sizes: BTreeMap<StorageAddress, u64>,
    pub agent: Agent,
    /// No operating system runs, so nobody holds anything back from a disk.
    pub in_firmware: bool,
}

/// Whether an agent in the guest answers, as far as is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Agent {
    Answers,
    #[default]
    Silent,
}

/// Whether the administrator said -F.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    Yes,
    No,
}

/// One difference between machine and configuration, and when it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    pub place: Place,
    pub when: When,
}

/// What a difference is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Storage(StorageAddress),
    Nic(PciSlot),
}

/// The name of the field that is what has that place.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Storage(address) => write!(f, "storage {address}"),
            Place::Nic(slot) => write!(f, "network {slot}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    Now(DeviceChange),
    /// At the guest's next reset, when no operating system has the disk, and why not now. What the worker is told, unless it
    /// waits for that already.
    NextReset {
        told: Option<DeviceChange>,
        why: String,
    },
    /// Why it has to wait.
    NextStart(String),
}

/// Everything in which the running machine differs from the configuration, beside devices of the machine that are `waiting` for a
/// reset or the next start and of which this change says nothing: they stay. Removals come before additions, since an address
/// must be free before it is taken.
#[must_use]
pub fn plan(
    waiting: &BTreeSet<StorageAddress>,
    machine: &Machine,
    config: &GuestConfig,
    facts: &HostFacts,
    live: &Live,
    force: Force,
) -> Vec<Planned> {
    let mut difference = Difference::between(machine, config, live, force);
    let asked_again = difference.adapters_asked_again(waiting);
    difference.leaving.retain(|attached| {
        let address = attached.device.address;
        !waiting.contains(&address) || asked_again.contains(&address.slot)
    });
    difference.coming.retain(|device| !waiting.contains(&device.address));
    let mut planned = difference.media(facts);
    planned.extend(difference.removals());
    let additions = difference.additions(facts, &planned);
    let made: Vec<Planned> = planned.iter().chain(&additions).cloned().collect();
    planned.extend(difference.take_backs(waiting, &made));
    planned.extend(additions);
    planned.extend(network::plan(machine, config, facts));
    planned
}

/// Where the machine has a device that is wanted no more: its removal waits for the next start, unless it is asked for again.
pub fn waiting_removals<'a>(
    machine: &'a Machine,
    config: &'a GuestConfig,
) -> impl Iterator<Item = &'a StorageDevice> {
    let devices = machine.storage.iter().map(|attached| &attached.device);
    devices.filter(|device| config.device_at(device.address).is_none())
}

struct Difference<'a> {
    machine: &'a Machine,
    live: &'a Live,
    force: Force,
    /// In the machine and no longer wanted as it is.
    leaving: Vec<&'a Attached>,
    /// Wanted and not in the machine.
    coming: Vec<&'a StorageDevice>,
    /// The same drive with another medium.
    changing: Vec<&'a StorageDevice>,
}

impl<'a> Difference<'a> {
    fn between(
        machine: &'a Machine,
        config: &'a GuestConfig,
        live: &'a Live,
        force: Force,
    ) -> Difference<'a> {
        let is_medium_change = |now: &StorageDevice, wanted: &StorageDevice| {
            // The drive goes with its adapter, and comes again with what it is to have.
            now.kind == DeviceKind::Dvd
                && (now.kind, now.adapter, now.id) == (wanted.kind, wanted.adapter, wanted.id)
                && !machine.is_leaving(now.address.slot)
        };
        let (leaving, coming, changing) = (Vec::new(), Vec::new(), Vec::new());
        let mut difference = Difference { machine, live, force, leaving, coming, changing };
        for attached in &machine.storage {
            match config.device_at(attached.device.address) {
                Some(wanted) if *wanted == attached.device => {}
                Some(wanted) if is_medium_change(&attached.device, wanted) => {
                    difference.changing.push(wanted);
                }
                _ => difference.leaving.push(attached),
            }
        }
        for wanted in &config.storage {
            let same = machine
                .device_at(wanted.address)
                .is_some_and(|a| a.device == *wanted || is_medium_change(&a.device, wanted));
            if !same {
                difference.coming.push(wanted);
            }
        }
        difference
    }

    fn media(&self, facts: &HostFacts) -> Vec<Planned> {
        let change = |device: &&StorageDevice| Planned {
            place: Place::Storage(device.address),
            when: When::Now(DeviceChange::Medium {
                attached: facts.attach(device),
                by: ChangedBy::Command,
            }),
        };
        self.changing.iter().map(change).collect()
    }

    fn waits_for_adapter(&self, slot: PciSlot) -> Option<String> {
        self.machine.is_leaving(slot).then(|| {
            format!("the guest was asked to let the adapter at {slot} go and has not done so yet")
        })
    }

    /// Adapters that leave already and are named once more. All that nobody wants there was asked for with them.
    fn adapters_asked_again(&self, waiting: &BTreeSet<StorageAddress>) -> BTreeSet<PciSlot> {
        let leaving = self.leaving.iter().map(|attached| attached.device.address);
        let named = leaving.filter(|address| !waiting.contains(address));
        let slots: BTreeSet<PciSlot> = named.map(|address| address.slot).collect();
        slots
            .into_iter()
            .filter(|slot| self.machine.is_leaving(*slot) && self.is_emptied(*slot))
            .collect()
    }

    /// Whether all leaves that an adapter has, and nothing takes its place.
    fn is_emptied(&self, slot: PciSlot) -> bool {
        let is_replaced = |at: StorageAddress| self.coming.iter().any(|comes| comes.address == at);
        self.machine
            .devices_in(slot)
            .all(|has| self.leaving.contains(&has) && !is_replaced(has.device.address))
    }

    fn removals(&self) -> Vec<Planned> {
        let mut planned = Vec::new();
        let mut adapters = BTreeMap::new();
        for attached in &self.leaving {
            let address = attached.device.address;
            let place = Place::Storage(address);
            if attached.device.is_place_holder() {
                let change = DeviceChange::PlaceHolder { address, now: None };
                planned.push(Planned { place, when: When::Now(change) });
                continue;
            }
            if let Some(waits) = self.why_it_stays(attached) {
                planned.push(waits);
                continue;
            }
            let goes_with_adapter = self.whole_adapter_leaves(address.slot);
            if goes_with_adapter {
                adapters.entry(address.slot).or_insert(place);
            }
            let leaves = self.alone(attached);
            if goes_with_adapter && !leaves.as_ref().is_ok_and(|c| is_written_out(attached, c)) {
                continue;
            }
            match leaves {
                Ok(change) => planned.push(Planned { place, when: When::Now(change) }),
                Err(why) => planned.push(self.leaves_at_reset(address, why)),
            }
        }
        planned.extend(adapters.into_iter().map(|(slot, place)| Planned {
            place,
            when: When::Now(DeviceChange::DetachAdapter { slot }),
        }));
        planned
    }

    /// Why a device cannot leave now, whoever consents.
    fn why_it_stays(&self, attached: &Attached) -> Option<Planned> {
        let address = attached.device.address;
        let place = Place::Storage(address);
        let waits = |reason| Planned { place, when: When::NextStart(reason) };
        if let Some(reason) = self.waits_for_replacement(address) {
            return Some(waits(reason));
        }
        let is_exchange = self.is_exchange(address);
        if let Some(reason) = self.waits_for_adapter(address.slot)
            && !(self.is_emptied(address.slot) && self.whole_adapter_leaves(address.slot))
        {
            return Some(self.leaves_at_reset(address, reason));
        }
        let is_vio = self.machine.adapter_in(address.slot) == Some(AdapterKind::Scsi);
        (is_exchange && is_vio && !self.whole_adapter_leaves(address.slot)).then(|| {
            // A disk that has become quiet would be of no help where the adapter stays all the same.
            let all_leave =
                self.machine.devices_in(address.slot).all(|has| self.leaving.contains(&has));
            let is_busy = all_leave.then(|| self.alone(attached).err()).flatten();
            self.leaves_at_reset(address, is_busy.unwrap_or_else(|| never_sees(address.slot)))
        })
    }

    /// Linux lets an adapter go at once, and with it what it has not written to a disk there: so each disk is one that may leave.
    fn whole_adapter_leaves(&self, slot: PciSlot) -> bool {
        let nothing_stays = self.machine.devices_in(slot).all(|attached| {
            let address = attached.device.address;
            self.leaving.contains(&attached)
                && self.waits_for_replacement(address).is_none()
                && (self.live.in_firmware || self.alone(attached).is_ok())
        });
        nothing_stays && !self.is_joined(slot)
    }

    /// One device of several leaves when -F was given. The guest is asked for a dvd, which it may have locked in, and for a disk if
    /// an agent answers; otherwise the disk must have been quiet. The error is why it stays.
    fn alone(&self, attached: &Attached) -> Result<DeviceChange, String> {
        let StorageDevice { kind, address, backing, .. } = &attached.device;
        let now = |consent| Ok(DeviceChange::Detach { address: *address, consent });
        if self.force == Force::Yes {
            return now(Consent::Given);
        }
        if *kind == DeviceKind::Dvd {
            return now(Consent::OfGuest);
        }
        if *kind != DeviceKind::Disk || backing.storage == StorageType::Null {
            return now(Consent::Given);
        }
        if self.live.agent == Agent::Answers {
            name_for_agent(attached)?;
            return now(Consent::OfGuest);
        }
        match why_not_quiet(self.live.idle.get(address).copied()) {
            None => now(Consent::Given),
            Some(reason) => Err(reason),
        }
    }

    /// Whether a device comes now to the adapter that the guest has there: it would leave with that. To an emulated one none
    /// comes.
    fn is_joined(&self, slot: PciSlot) -> bool {
        self.coming.iter().any(|device| {
            device.address.slot == slot
                && device.adapter == AdapterKind::AvioStor
                && !device.is_place_holder()
                && self.why_at_start(device).is_none()
                && self.why_at_reset(device).is_none()
        })
    }

    /// What takes a disk's address and cannot be exchanged for it comes at the next start; were the disk gone before, the guest
    /// would have none there.
    fn waits_for_replacement(&self, address: StorageAddress) -> Option<String> {
        let is_replaced = self.coming.iter().any(|device| device.address == address);
        (is_replaced && !self.is_exchange(address))
            .then(|| format!("what replaces the device at {address} comes with it"))
    }

    fn additions(&self, facts: &HostFacts, removals: &[Planned]) -> Vec<Planned> {
        let mut planned: Vec<Planned> = Vec::new();
        for device in &self.coming {
            let attached = facts.attach(device);
            if let Some(why) = why_it_waits(removals, device.address) {
                self.comes_at_reset(&mut planned, attached, why);
                continue;
            }
            if device.is_place_holder() && self.machine.device_at(device.address).is_none() {
                let change =
                    DeviceChange::PlaceHolder { address: device.address, now: Some(attached) };
                planned.push(Planned {
                    place: Place::Storage(device.address),
                    when: When::Now(change),
                });
                continue;
            }
            if let Some(reason) = self.why_at_start(device) {
                planned.push(Planned {
                    place: Place::Storage(device.address),
                    when: When::NextStart(reason),
                });
                continue;
            }
            if let Some(why) = self.why_at_reset(device) {
                self.comes_at_reset(&mut planned, attached, why);
                continue;
            }
            add_to(&mut planned, self.presence(device.address.slot), attached);
        }
        planned
    }

    fn presence(&self, slot: PciSlot) -> AdapterPresence {
        match self.machine.adapter_in(slot) {
            Some(AdapterKind::Scsi) if self.adapter_goes(slot) => AdapterPresence::New,
            Some(_) => AdapterPresence::Present,
            None => AdapterPresence::New,
        }
    }

    /// Why a device comes at the next start and not before.
    fn why_at_start(&self, device: &StorageDevice) -> Option<String> {
        let slot = device.address.slot;
        if self.machine.device_at(device.address).is_some() && !self.is_exchange(device.address) {
            return Some(format!("{} is in use by the running guest", device.address));
        }
        if !self.machine.base.ports.contains(&slot) {
            return Some(format!("the running guest has no port at {slot}"));
        }
        if device.adapter == AdapterKind::Scsi && self.machine.base.option_rom.is_none() {
            return Some(
                "the running guest was started without the firmware driver of scsi adapters".into(),
            );
        }
        if self.machine.nic_in(slot).is_some() {
            return Some(format!("{slot} has a NIC now"));
        }
        match self.machine.adapter_in(slot) {
            Some(other) if other != device.adapter => {
                Some(format!("{slot} has {} adapter now", with_article(other.as_str())))
            }
            _ => self.lacks_half_for(device).then(|| {
                format!("the second half of the scsi adapter at {slot}, for targets from 8 on, comes only with the first")
            }),
        }
    }

    /// Whether a device needs a function that the adapter in its slot has not, and that stays.
    fn lacks_half_for(&self, device: &StorageDevice) -> bool {
        let StorageAddress { slot, target } = device.address;
        let half = |target| guest_path::place(device.adapter, target).0;
        self.machine.adapter_in(slot).is_some()
            && half(target) == Function::Second
            && !self.machine.is_leaving(slot)
            && !self.adapter_goes(slot)
            && !self
                .machine
                .devices_in(slot)
                .any(|has| half(has.device.address.target) == half(target))
    }

    /// Why a device that needs no start comes at the next reset at the latest.
    fn why_at_reset(&self, device: &StorageDevice) -> Option<String> {
        let slot = device.address.slot;
        let joins_vio = self.machine.adapter_in(slot) == Some(AdapterKind::Scsi);
        self.waits_for_adapter(slot)
            .or_else(|| (joins_vio && !self.adapter_goes(slot)).then(|| never_sees(slot)))
    }
}

/// Devices of one new adapter go in together, so that the guest is paused once.
fn add_to(planned: &mut Vec<Planned>, presence: AdapterPresence, attached: Attached) {
    let StorageDevice { address, adapter: kind, .. } = attached.device;
    for earlier in planned.iter_mut() {
        if let When::Now(DeviceChange::Attach {
            slot, adapter: AdapterPresence::New, devices, ..
        }) = &mut earlier.when
            && *slot == address.slot
        {
            devices.push(attached);
            return;
        }
    }
    let devices = vec![attached];
    let change = DeviceChange::Attach { slot: address.slot, kind, adapter: presence, devices };
    planned.push(Planned { place: Place::Storage(address), when: When::Now(change) });
}

fn never_sees(slot: PciSlot) -> String {
    format!("a running guest never sees a new target on the scsi adapter at {slot}")
}

/// Of disks that leave, those of which nobody has the guest write out what it holds. That they were quiet says little: Linux keeps
/// what is written for half a minute and more.
#[must_use]
pub fn not_written_out(
    machine: &Machine,
    planned: &[Planned],
    live: &Live,
    force: Force,
) -> Vec<Problem> {
    if live.in_firmware || force == Force::Yes {
        return Vec::new();
    }
    let now = || {
        planned.iter().filter_map(|planned| match &planned.when {
            When::Now(change) => Some(change),
            When::NextReset { .. } | When::NextStart(_) => None,
        })
    };
    let leaves = |at: StorageAddress| {
        now().any(|change| match change {
            DeviceChange::Detach { address, .. } => *address == at,
            DeviceChange::DetachAdapter { slot } => *slot == at.slot,
            _ => false,
        })
    };
    let is_asked_for = |at: StorageAddress| {
        now().any(|change| {
            matches!(change, DeviceChange::Detach { address, consent: Consent::OfGuest } if *address == at)
        })
    };
    let disks = machine.storage.iter().map(|attached| &attached.device).filter(|device| {
        device.kind == DeviceKind::Disk && device.backing.storage != StorageType::Null
    });
    disks
        .filter(|disk| leaves(disk.address) && !is_asked_for(disk.address))
        .map(|disk| {
            let at = disk.address;
            Problem::warning(at.to_string(), loss(NO_AGENT, at))
        })
        .collect()
}

/// Why what a guest holds for its disks is not written out, where nothing more is known.
pub const NO_AGENT: &str = "no agent answers in the guest";

/// What is lost with a disk that leaves, in words that begin with why nobody writes it out.
#[must_use]
pub fn loss(why: &str, at: StorageAddress) -> String {
    format!(
        "{why} to write out what it still holds for the disk at {at}: that is lost, unless nothing there uses the disk any more (a file system is unmounted first)"
    )
}

/// Whether the guest's agent is asked for a disk before the guest is asked for the adapter.
fn is_written_out(attached: &Attached, change: &DeviceChange) -> bool {
    let is_asked = matches!(change, DeviceChange::Detach { consent: Consent::OfGuest, .. });
    is_asked && attached.device.kind == DeviceKind::Disk
}

/// Why what is at an address stays until the next reset, and what takes its place with it.
fn why_it_waits(removals: &[Planned], address: StorageAddress) -> Option<String> {
    removals.iter().find_map(|planned| match &planned.when {
        When::NextReset { why, .. } if planned.place == Place::Storage(address) => {
            Some(why.clone())
        }
        _ => None,
    })
}

/// The number by which the agent in the guest is asked to let a disk go, or why it cannot be asked: such a disk may be mounted,
/// however quiet it is.
pub fn name_for_agent(attached: &Attached) -> Result<u64, String> {
    guest_path::naa(&attached.device, attached.sharing).ok_or_else(|| {
        format!(
            "the guest knows the shared disk at {} by the disk's own name, so its agent cannot be asked whether it is in use; stop using it in the guest and force it with -F",
            attached.device.address
        )
    })
}

/// Why a disk may not leave although nobody in the guest can be asked; `None` when it was quiet for long enough. `idle` is
/// the time since its last I/O.
#[must_use]
pub fn why_not_quiet(idle: Option<Duration>) -> Option<String> {
    match idle {
        Some(idle) if idle >= QUIET => None,
        Some(idle) => Some(format!(
            "the disk had I/O {} s ago, and the guest might lose what it has not written yet; stop using it and try again after {} s, or force it with -F",
            idle.as_secs(),
            QUIET.as_secs()
        )),
        None => Some("the engine does not say whether the disk is in use".into()),
    }
}
