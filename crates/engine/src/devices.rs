//! Changes of a running guest's devices, as sequences of QMP commands. Called by the worker, which writes the journal
//! around them; what is wanted was decided by the plan.
//!
//! | change | sequence |
//! | --- | --- |
//! | attach | `add-fd`, `blockdev-add` for each medium, what lies under an image before it; then `device_add` of adapter and devices. A new VIO adapter is scanned by the guest once, when it comes: the guest is held meanwhile |
//! | detach one | `device_del`, which a SCSI device obeys at once, so the caller has the guest's consent; the guest is held for a moment if QEMU does not get to the rest; then its node and descriptor |
//! | detach an adapter | `device_del`, which asks the guest; `DEVICE_DELETED` may come much later, see [`Performed::Asked`] |
//! | a longer store | its length read from our own descriptor, `block_resize`, never down; see [`grow`] |
//! | the first shared disk | `object-add` of the reservation manager before all that; it stays |
//! | NICs | see `nics`; what moves to another port, or has its link shown otherwise, changes nothing that is plugged in |
//! | what waits for a reset | its nodes now; `device_del` and `device_add` at the reset, see [`due`] |
//! | another medium | new node; tray open (a locked one is asked for), medium out, medium in, tray shut; then the old node |
//!
//! What fails half-way is undone: nodes and descriptors added for it are removed again. Properties come from the plan's
//! list, which also prints QEMU's command line, so a device plugged in is the one a start would have made.

pub mod counted;
pub mod due;
pub mod grow;
mod media;
mod nics;
pub mod present;
pub mod requests;

pub(crate) use media::names;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;

use hpvm_model::{AdapterKind, Bytes, PciSlot, StorageAddress};
use hpvm_plan::command_line::{
    Property, RESERVATION_MANAGER, adapter_at, adapter_id, adapters_of, device_id,
    device_properties, json, reservation_manager, shares_disks,
};
use hpvm_plan::guest_path::Function;
use hpvm_plan::record::{AdapterPresence, Attached, DeviceChange, Machine};
use hpvm_qmp::client::Client;
use hpvm_qmp::command::{
    Cont, DeviceAdd, DeviceDel, ObjectAdd, Properties, QueryBlockstats, QueryPrManagers,
    QueryStatus, Stop,
};
use hpvm_qmp::{Class, Error as QmpError, Happening, RunState, deadline};
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep, timeout_at};

use present::Present;

/// How long an administrator waits for a guest to let an adapter go; a guest that listens takes 0.2 s.
const LET_GO: Duration = Duration::from_secs(3);

/// How long QEMU takes to take a device apart if nothing keeps it: it waits 50 ms for more such work.
const TAKEN_APART: Duration = Duration::from_millis(200);

/// Between two looks at a device on its way out.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What became of a change that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Performed {
    Done,
    /// The same, and the guest stood still for so long, from before QEMU was told to hold it until it was heard to go on.
    DoneWhileHeld(Duration),
    /// The guest was asked to let go and has not yet.
    Asked,
    /// What it needs is taken; it is made at the guest's next reset.
    Prepared,
}

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error(transparent)]
    Engine(#[from] QmpError),
    #[error(
        "the guest was started by an hpvm that shared no disks, and can have a shared one from its next start on"
    )]
    NoReservations,
    #[error("the descriptor of {0} did not come with the request")]
    NoDescriptor(StorageAddress),
    #[error("there is no device at {0} in the running guest")]
    NoDevice(StorageAddress),
    #[error(
        "the guest keeps the tray of {0} locked; unmount or eject the medium in the guest and try again"
    )]
    TrayLocked(StorageAddress),
    #[error(
        "the guest keeps the tray of {0} locked; unmount or eject the medium in the guest and try again, or force it with -F"
    )]
    DriveInUse(StorageAddress),
    #[error("the guest refuses to let the adapter at {0} go")]
    Refused(PciSlot),
    #[error(
        "the guest does not let the disk at {address} go: {words}; stop using it in the guest and try again, or force it with -F"
    )]
    InUse { address: StorageAddress, words: String },
    /// Nothing was done, and nothing is wrong: the disk leaves later.
    #[error("{0}")]
    Waits(String),
    #[error("the length of what backs the disk at {address} cannot be read")]
    Size { address: StorageAddress, source: std::io::Error },
    #[error(
        "what backs the disk at {address} has {store}, less than the {shown} that the guest has; a disk never becomes smaller under a guest"
    )]
    Shorter { address: StorageAddress, store: Bytes, shown: Bytes },
    #[error("the engine has not taken the device at {0} out of the guest in time")]
    StillThere(StorageAddress),
}

impl DeviceError {
    /// Whether QEMU may still perform what it was asked for.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        matches!(self, DeviceError::Engine(QmpError::Deadline { .. }))
    }
}

/// The connection to one guest's engine, and what the engine tells unasked while a change is made.
#[derive(Debug)]
pub struct Bench<'a> {
    client: &'a Client,
    machine: &'a Machine,
    happenings: &'a mut Receiver<Happening>,
    /// Nodes that no device has and that stay all the same.
    spared: BTreeSet<String>,
}

impl<'a> Bench<'a> {
    /// For changes of this machine.
    #[must_use]
    pub fn of(
        client: &'a Client,
        machine: &'a Machine,
        happenings: &'a mut Receiver<Happening>,
    ) -> Bench<'a> {
        Bench { client, machine, happenings, spared: due::spared(machine) }
    }
}

impl Bench<'_> {
    /// Performs one change. `seq` is its number in the journal; `descriptors` those of its media, in order.
    pub async fn perform(
        &mut self,
        seq: u64,
        change: &DeviceChange,
        descriptors: &mut dyn Iterator<Item = OwnedFd>,
    ) -> Result<Performed, DeviceError> {
        match change {
            DeviceChange::PlaceHolder { .. }
            | DeviceChange::MoveNic { .. }
            | DeviceChange::LinkNics { .. } => Ok(Performed::Done),
            DeviceChange::TakeBack { address } => {
                self.take_back(*address).await;
                Ok(Performed::Done)
            }
            DeviceChange::PlugNic { attached } => self.plug_nic(attached).await,
            DeviceChange::UnplugNic { slot } => self.unplug_nic(*slot).await,
            DeviceChange::Attach { slot, kind, adapter, devices } => {
                let attach = Attach { seq, slot: *slot, kind: *kind, adapter: *adapter, devices };
                self.attach(&attach, descriptors).await
            }
            DeviceChange::Detach { address, .. } => self.detach(*address).await,
            DeviceChange::DetachAdapter { slot } => self.detach_adapter(*slot).await,
            DeviceChange::Grow { attached, .. } => {
                self.grow(attached.device.address, descriptors.next()).await
            }
            DeviceChange::Medium { attached, .. } => {
                self.change_medium(seq, attached, descriptors.next()).await
            }
        }
    }

    async fn attach(
        &mut self,
        attach: &Attach<'_>,
        descriptors: &mut dyn Iterator<Item = OwnedFd>,
    ) -> Result<Performed, DeviceError> {
        // Everything slow comes before the guest is held.
        let outcome = match self.add_media(attach, descriptors).await {
            Ok(()) => self.plug_as_needed(attach, &Present::default()).await,
            // What QEMU takes in late is a stray, which is closed when it answers again.
            Err(error) if error.is_unanswered() => return Err(error),
            Err(error) => Err(error),
        };
        if outcome.is_err() {
            self.undo_attach(attach.slot, attach.adapter, attach.devices).await;
        }
        outcome
    }

    /// Adds what is not there yet.
    async fn plug_as_needed(
        &mut self,
        attach: &Attach<'_>,
        present: &Present,
    ) -> Result<Performed, DeviceError> {
        match attach.needs_pause() {
            true => self.plug_while_held(attach, present).await,
            false => self.plug(attach, present).await.map(|()| Performed::Done),
        }
    }

    async fn add_media(
        &mut self,
        attach: &Attach<'_>,
        descriptors: &mut dyn Iterator<Item = OwnedFd>,
    ) -> Result<(), DeviceError> {
        if shares_disks(attach.devices) {
            self.provide_reservations().await?;
        }
        for attached in attach.devices.iter().filter(|a| a.device.backing.store().is_some()) {
            let medium = descriptors.next();
            let below: Vec<OwnedFd> = descriptors.take(attached.layers.len()).collect();
            self.add_layers(attached, below).await?;
            self.add_medium(attach.seq, attached, medium).await?;
        }
        Ok(())
    }

    /// The first shared disk of a guest brings QEMU's part of reserving along, which stays: other disks may follow.
    async fn provide_reservations(&mut self) -> Result<(), DeviceError> {
        let managers = self.client.execute(&QueryPrManagers {}).await?;
        if managers.iter().any(|manager| manager.id == RESERVATION_MANAGER) {
            return Ok(());
        }
        let socket =
            self.machine.base.reservations.as_deref().ok_or(DeviceError::NoReservations)?;
        self.client.execute(&ObjectAdd(properties(&reservation_manager(socket)))).await?;
        Ok(())
    }

    /// The guest stands still for as long as the devices take to come, some milliseconds.
    async fn plug_while_held(
        &mut self,
        attach: &Attach<'_>,
        present: &Present,
    ) -> Result<Performed, DeviceError> {
        if !self.runs().await? {
            return self.plug(attach, present).await.map(|()| Performed::Done);
        }
        let held_at = Instant::now();
        self.client.execute(&Stop {}).await?;
        let plugged = self.plug(attach, present).await;
        self.client.execute(&Cont {}).await?;
        plugged.map(|()| Performed::DoneWhileHeld(held_at.elapsed()))
    }

    async fn plug(&mut self, attach: &Attach<'_>, present: &Present) -> Result<(), DeviceError> {
        if attach.adapter == AdapterPresence::New {
            let devices = attach.devices.iter().map(|attached| &attached.device);
            let adapters = adapters_of(attach.slot, attach.kind, devices, &self.machine.base);
            for wanted in adapters.iter().rev() {
                self.add_missing(present, wanted).await?;
            }
        }
        for attached in attach.devices.iter().filter(|a| !a.device.is_place_holder()) {
            let node = attach.node_of(attached);
            let wanted = device_properties(attached, node.as_deref());
            self.add_missing(present, &wanted).await?;
        }
        Ok(())
    }

    async fn add_missing(
        &mut self,
        present: &Present,
        wanted: &[Property],
    ) -> Result<(), DeviceError> {
        let wanted = properties(wanted);
        let id = wanted.get("id").and_then(|id| id.as_str());
        if !id.is_some_and(|id| present.devices.contains(id)) {
            self.client.execute(&DeviceAdd(wanted)).await?;
        }
        Ok(())
    }

    /// Takes out what a failed or interrupted attach left. Nobody was told that it is there, so nobody misses it. A guest
    /// that does not let an empty adapter go now loses it at its next reset.
    pub async fn undo_attach(
        &mut self,
        slot: PciSlot,
        adapter: AdapterPresence,
        devices: &[Attached],
    ) {
        let disks = devices.iter().map(|a| (device_id(a.device.address), deadline::DEVICE_DELETED));
        let adapters = [Function::First, Function::Second].map(|f| (adapter_at(slot, f), LET_GO));
        let adapters = adapters.into_iter().filter(|_| adapter == AdapterPresence::New);
        for (id, bound) in disks.chain(adapters) {
            if self.client.execute(&DeviceDel { id: id.clone() }).await.is_ok() {
                self.until_absent(&id, bound).await;
            }
        }
        for attached in devices {
            self.discard_unused_media(attached.device.address).await;
        }
    }

    /// Looks for a device until it is gone: its event may have come while nobody listened. `false`: it stays.
    async fn until_absent(&mut self, id: &str, bound: Duration) -> bool {
        let until = Instant::now() + bound;
        while Instant::now() < until {
            match present::ask(self.client).await {
                Ok(present) if present.devices.contains(id) => sleep(LOOK_AGAIN).await,
                _ => return true,
            }
        }
        false
    }

    /// Waits until an adapter that leaves has left with each of its functions: the slot is free only then. `false`: it stays.
    pub async fn until_adapter_left(&mut self, slot: PciSlot) -> bool {
        for function in [Function::First, Function::Second] {
            if !self.until_absent(&adapter_at(slot, function), deadline::DEVICE_DELETED).await {
                return false;
            }
        }
        true
    }

    async fn detach(&mut self, address: StorageAddress) -> Result<Performed, DeviceError> {
        let id = device_id(address);
        self.client.execute(&DeviceDel { id: id.clone() }).await?;
        if !self.until_taken_apart(&id).await? {
            return Err(DeviceError::StillThere(address));
        }
        self.discard_unused_media(address).await;
        Ok(Performed::Done)
    }

    /// Waits until QEMU has taken a SCSI device apart, which the guest has lost already. It does so when each emulated processor
    /// has come out of the guest's code; one that takes no interruption, as in early firmware or in a kernel that hangs, only
    /// comes out when the guest is held, which takes well under a millisecond. `false`: it has not.
    async fn until_taken_apart(&mut self, id: &str) -> Result<bool, DeviceError> {
        let until = Instant::now() + deadline::DEVICE_DELETED;
        while self.until_deleted(id, TAKEN_APART).await != Deletion::Done {
            if Instant::now() >= until {
                return Ok(false);
            }
            if self.runs().await? {
                self.client.execute(&Stop {}).await?;
                self.client.execute(&Cont {}).await?;
            }
        }
        Ok(true)
    }

    async fn runs(&self) -> Result<bool, DeviceError> {
        Ok(self.client.execute(&QueryStatus {}).await?.status == RunState::Running)
    }

    async fn detach_adapter(&mut self, slot: PciSlot) -> Result<Performed, DeviceError> {
        let id = adapter_id(slot);
        match self.client.execute(&DeviceDel { id: id.clone() }).await {
            Ok(_) => {}
            // Asked before, it has left meanwhile, or QEMU does not ask again so soon: what it asked holds.
            Err(error) if self.machine.is_leaving(slot) => match error.refusal() {
                Some(refusal) if refusal.class == Class::DeviceNotFound => {
                    return Ok(self.adapter_has_left(slot).await);
                }
                Some(_) => {}
                None => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
        }
        match self.until_deleted(&id, LET_GO).await {
            Deletion::Done => Ok(self.adapter_has_left(slot).await),
            Deletion::Refused => Err(DeviceError::Refused(slot)),
            Deletion::NotYet => Ok(Performed::Asked),
        }
    }

    async fn adapter_has_left(&mut self, slot: PciSlot) -> Performed {
        self.until_adapter_left(slot).await;
        self.discard_media_in(slot).await;
        Performed::Done
    }

    async fn until_deleted(&mut self, id: &str, bound: Duration) -> Deletion {
        let until = Instant::now() + bound;
        loop {
            match timeout_at(until, self.happenings.recv()).await {
                Ok(Some(Happening::DeviceDeleted(gone))) if gone.device.as_deref() == Some(id) => {
                    return Deletion::Done;
                }
                Ok(Some(Happening::UnplugRefused(told))) if told.device.as_deref() == Some(id) => {
                    return Deletion::Refused;
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Deletion::NotYet,
            }
        }
    }
}

/// How long each device has been without I/O, in milliseconds; `uptime` stands for one that never had any.
pub async fn idle(
    client: &Client,
    machine: &Machine,
    uptime: Duration,
) -> Result<Vec<(StorageAddress, u64)>, QmpError> {
    let addresses: Vec<StorageAddress> =
        machine.storage.iter().map(|attached| attached.device.address).collect();
    let stats = client.execute(&QueryBlockstats {}).await?;
    let idle = addresses.into_iter().filter_map(|address| {
        let id = device_id(address);
        let device = stats.iter().find(|stats| media::names(stats.qdev.as_deref(), &id))?;
        let idle = device.stats.idle_time_ns.map_or(uptime, Duration::from_nanos);
        Some((address, u64::try_from(idle.as_millis()).unwrap_or(u64::MAX)))
    });
    Ok(idle.collect())
}

/// New devices behind one adapter.
struct Attach<'a> {
    seq: u64,
    slot: PciSlot,
    kind: AdapterKind,
    adapter: AdapterPresence,
    devices: &'a [Attached],
}

impl Attach<'_> {
    /// The node of a device that has a medium.
    fn node_of(&self, attached: &Attached) -> Option<String> {
        let store = attached.device.backing.store();
        store.map(|_| media::node(attached.device.address, self.seq))
    }

    /// A guest looks at the targets of an mptsas1068 once, when the adapter appears.
    fn needs_pause(&self) -> bool {
        self.kind == AdapterKind::Scsi && self.adapter == AdapterPresence::New
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deletion {
    Done,
    Refused,
    NotYet,
}

pub(crate) fn properties(wanted: &[Property]) -> Properties {
    wanted.iter().map(|(name, value)| (*name, json(value))).collect()
}
