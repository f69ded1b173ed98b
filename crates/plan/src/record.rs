//! The boot record: the exact machine this boot got, then a journal of what changed since.
//!
//! On disk it is one JSON value a line: a [`BootRecord`], then [`JournalLine`]s. A change is written before it is asked of
//! the engine and settled when the engine says so; a line cut off by a power failure is the last one and is passed over.
//! Nothing in it is computed again from the host behind a running guest.

mod change;
mod due;

use std::collections::BTreeMap;

use hpvm_model::{
    Accelerator, AdapterKind, AvioService, Backing, Bytes, DeviceKind, GuestName, GuestNumber,
    GuestUuid, Memory, Nic, NicKind, PciSlot, StorageAddress, StorageDevice, StorageType,
    SwitchNumber, Vcpus,
};
use serde::{Deserialize, Serialize};

use crate::facts::{Engine, FileIdentity};

pub use change::DeviceChange;
pub use due::{Due, Occasion, Pending};

/// The version of this format; a record of a newer one is refused.
pub const FORMAT: u32 = 1;

/// The base: what hpvmstart decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRecord {
    pub format: u32,
    pub uuid: GuestUuid,
    pub number: GuestNumber,
    pub name: GuestName,
    pub serial_number: String,
    /// The host boot in which this machine was made.
    pub boot_id: String,
    pub started_at: String,
    pub engine: Engine,
    pub machine_type: String,
    pub accelerator: Accelerator,
    pub vcpus: Vcpus,
    pub memory: Memory,
    pub firmware_code: String,
    /// The option ROM as QEMU opens it, and the digest of what it held; present when the guest has a VIO adapter or may get one.
    pub option_rom: Option<OptionRom>,
    /// The firmware's driver of `lan` NICs, when it is to boot over one; a record of an hpvm that booted over none says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lan_rom: Option<OptionRom>,
    pub ports: Vec<PciSlot>,
    pub storage: Vec<Attached>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<AttachedNic>,
    /// A record of an hpvm that knew no agent says nothing, and its machine has no channel.
    #[serde(default)]
    pub agent: AgentChannel,
    /// A record of an hpvm that left it to QEMU says nothing.
    #[serde(default)]
    pub avio_service: AvioService,
    /// The socket of the process that makes reservations on shared disks for the guest, as QEMU finds it; a record of an
    /// hpvm that shared none says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservations: Option<String>,
    /// User and group id of QEMU; absent when it runs as the caller.
    pub owner: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptionRom {
    pub path: String,
    pub digest: String,
}

/// Whether the machine has the port at which a guest agent is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentChannel {
    #[default]
    Absent,
    Present,
}

/// A device in the machine and the file that was opened for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    pub device: StorageDevice,
    pub identity: Option<FileIdentity>,
    /// Of an image: how long its file was. QEMU makes it longer, and never shorter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_length: Option<Bytes>,
    #[serde(default)]
    pub access: Access,
    #[serde(default)]
    pub cache: Cache,
    #[serde(default, skip_serializing_if = "Sharing::is_alone")]
    pub sharing: Sharing,
    /// What was opened for the device's layers, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<AttachedLayer>,
}

impl Attached {
    /// As it is before anything was found out about its store: a DVD is read, all else is written, through the VM Host's memory
    /// and by this guest alone.
    #[must_use]
    pub fn of(device: StorageDevice) -> Attached {
        let access = match device.kind {
            DeviceKind::Dvd => Access::ReadOnly,
            _ => Access::ReadWrite,
        };
        Attached {
            device,
            identity: None,
            image_length: None,
            access,
            cache: Cache::Page,
            sharing: Sharing::Alone,
            layers: Vec::new(),
        }
    }
}

/// A store under that of a linked clone, opened to be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedLayer {
    pub backing: Backing,
    pub identity: Option<FileIdentity>,
    /// As of the device's own store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_length: Option<Bytes>,
    #[serde(default)]
    pub cache: Cache,
}

/// A NIC in the machine and how it is joined to its switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedNic {
    pub nic: Nic,
    /// Which switch its name meant.
    pub switch: SwitchNumber,
    /// The path of the socket to which QEMU connects, again and again.
    pub socket: String,
    /// Of an AVIO NIC: the virtio features it was offered. A back-end that came back with fewer would be its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<u64>,
    /// Of an AVIO NIC: the longest packet, in bytes, as the guest was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    pub link: Link,
    /// As the machine began: of a NIC that came later, how it will be.
    #[serde(default, skip_serializing_if = "NicBoot::is_no")]
    pub boot: NicBoot,
}

/// Whether the firmware boots over a NIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NicBoot {
    /// It gives the NIC no driver that it does not bring itself, and loses no time with it.
    #[default]
    No,
    /// When no disk and no DVD has anything to boot.
    AfterDisks,
}

impl NicBoot {
    fn is_no(&self) -> bool {
        *self == NicBoot::No
    }
}

/// What a guest takes for the longest packet, in bytes, when its card does not tell (RFC 894).
const ETHERNET_MTU: u16 = 1500;

impl AttachedNic {
    /// The longest packet, in bytes, that the guest takes its LAN to carry, unless somebody says otherwise within it.
    #[must_use]
    pub fn mtu_in_guest(&self) -> u16 {
        match self.nic.kind {
            NicKind::AvioLan => self.mtu.unwrap_or(ETHERNET_MTU),
            NicKind::Lan => ETHERNET_MTU,
        }
    }
}

/// Whether a guest is to see its NIC's link: not while its switch is halted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Link {
    Up,
    Down,
}

/// What the guest may do with a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    #[default]
    ReadWrite,
    ReadOnly,
}

/// Who may have a store while the guest has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    /// This guest.
    #[default]
    Alone,
    /// The members of a cluster, which keep each other from it by persistent reservations (SPC-4, 5.13). The guest commands
    /// the disk itself, so that it sees the disk's own identity, and conflicts.
    Reserved,
    /// The VM Host, which may have it open or mounted: an entry with ALLOW=GUEST says that this is no mistake. No other guest.
    WithHost,
}

impl Sharing {
    /// Of a device that the guest has not yet: whether a disk will be shared is decided then, and a whole disk is one that may be.
    #[must_use]
    pub fn to_come(kind: DeviceKind, storage: StorageType) -> Sharing {
        match (kind, storage) {
            (DeviceKind::Disk, StorageType::Disk) => Sharing::Reserved,
            _ => Sharing::Alone,
        }
    }

    fn is_alone(&self) -> bool {
        *self == Sharing::Alone
    }
}

/// How a store is read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cache {
    /// Through the memory of the VM Host.
    #[default]
    Page,
    /// Past it (O_DIRECT), which must be said when the descriptor is opened.
    Direct,
}

/// How it is known that the guest misses nothing when a device leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consent {
    /// Whoever planned the change made sure: the device was quiet, has nothing to lose, or is taken by force.
    #[default]
    Given,
    /// The guest is asked: its agent to write out what it holds and to let a disk go, or by a request to open the tray of a
    /// drive.
    #[serde(rename = "of_agent")]
    OfGuest,
}

/// Who changed a medium.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "from")]
pub enum ChangedBy {
    /// A command, which keeps the change in the configuration itself.
    #[default]
    Command,
    /// A user of the virtual console, whose change the next command takes into the configuration.
    Console { user: String },
}

/// Whether an adapter is in the machine already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterPresence {
    New,
    Present,
}

/// A line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "line")]
pub enum JournalLine {
    Asked {
        seq: u64,
        at: String,
        change: DeviceChange,
        #[serde(default, skip_serializing_if = "Due::is_now")]
        due: Due,
    },
    Settled {
        seq: u64,
        at: String,
        outcome: Outcome,
    },
    /// A command has taken what users of the console changed, up to this change, into the configuration.
    TakenOver {
        through_seq: u64,
        at: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome", content = "reason")]
pub enum Outcome {
    Done,
    Failed(String),
}

/// A drive whose medium a user of the console changed last, and no command has taken that over yet. The medium itself is
/// the machine's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleChange {
    pub seq: u64,
    pub address: StorageAddress,
    pub user: String,
    pub at: String,
}

/// Base and journal read together: the machine as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    pub base: BootRecord,
    pub storage: Vec<Attached>,
    pub nics: Vec<AttachedNic>,
    pub console_changes: Vec<ConsoleChange>,
    pub pending: Vec<Pending>,
    pub next_seq: u64,
    /// Adapters that devices left one by one: they are there still, also when all have left.
    kept_adapters: BTreeMap<PciSlot, AdapterKind>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("the boot record is empty")]
    Empty,
    #[error("line {line} of the boot record is damaged: {reason}")]
    Damaged { line: usize, reason: String },
    #[error("the boot record has format {0}; this hpvm reads up to {FORMAT}")]
    Newer(u32),
}

impl BootRecord {
    #[must_use]
    pub fn to_line(&self) -> String {
        to_line(self)
    }
}

impl JournalLine {
    #[must_use]
    pub fn to_line(&self) -> String {
        to_line(self)
    }
}

fn to_line<T: Serialize>(value: &T) -> String {
    // Maps have string keys and no value fails to serialise, so the only error would be a bug in this file's types.
    let mut line = serde_json::to_string(value).unwrap_or_default();
    line.push('\n');
    line
}

impl Machine {
    /// Reads a whole boot record. A last line without its newline was being written when the power failed: it was not
    /// acted on yet, so it is passed over.
    pub fn read(text: &str) -> Result<Machine, RecordError> {
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut lines = whole.lines().enumerate();
        let (_, first) = lines.next().filter(|(_, l)| !l.is_empty()).ok_or(RecordError::Empty)?;
        let base: BootRecord = parse(1, first)?;
        if base.format > FORMAT {
            return Err(RecordError::Newer(base.format));
        }
        let mut machine = Machine::new(base);
        for (index, line) in lines {
            machine.replay(parse(index + 1, line)?);
        }
        Ok(machine)
    }

    #[must_use]
    pub fn new(base: BootRecord) -> Machine {
        Machine {
            storage: base.storage.clone(),
            nics: base.nics.clone(),
            base,
            console_changes: Vec::new(),
            pending: Vec::new(),
            next_seq: 1,
            kept_adapters: BTreeMap::new(),
        }
    }

    /// Takes one journal line into account.
    pub fn replay(&mut self, line: JournalLine) {
        match line {
            JournalLine::Asked { seq, at, change, due } => {
                self.next_seq = self.next_seq.max(seq + 1);
                if due == Due::Now || !self.lacks_what_leaves(&change) {
                    self.pending.push(Pending { seq, since: at, change, due });
                }
            }
            JournalLine::Settled { seq, outcome, .. } => {
                let Some(index) = self.pending.iter().position(|p| p.seq == seq) else { return };
                let pending = self.pending.remove(index);
                if outcome == Outcome::Done {
                    self.apply(&pending);
                }
            }
            JournalLine::TakenOver { through_seq, .. } => {
                self.console_changes.retain(|change| change.seq > through_seq);
            }
        }
    }

    fn apply(&mut self, done: &Pending) {
        self.note_console_change(done);
        match &done.change {
            DeviceChange::Attach { devices, .. } => {
                // Whatever was there before has left, noted or not.
                let comes = |at| devices.iter().any(|attached| attached.device.address == at);
                self.storage.retain(|a| !comes(a.device.address));
                self.storage.extend(devices.iter().cloned());
                self.have_left(comes);
            }
            DeviceChange::Detach { address, .. } => {
                self.kept_adapters
                    .extend(self.adapter_in(address.slot).map(|kind| (address.slot, kind)));
                self.storage.retain(|a| a.device.address != *address);
                self.have_left(|left| left == *address);
            }
            DeviceChange::DetachAdapter { slot } => {
                self.have_left(|left| left.slot == *slot);
                self.kept_adapters.remove(slot);
                self.storage
                    .retain(|a| a.device.address.slot != *slot || a.device.is_place_holder());
            }
            DeviceChange::Medium { attached, .. } => {
                self.storage.retain(|a| a.device.address != attached.device.address);
                self.storage.push(attached.clone());
            }
            // How long a store is, the engine tells.
            DeviceChange::Grow { .. } => {}
            DeviceChange::PlaceHolder { address, now } => {
                self.storage.retain(|a| a.device.address != *address);
                self.storage.extend(now.clone());
            }
            DeviceChange::TakeBack { address } => self.take_back(*address),
            DeviceChange::PlugNic { attached } | DeviceChange::MoveNic { attached } => {
                self.nics.retain(|a| a.nic.slot != attached.nic.slot);
                self.nics.push(attached.clone());
            }
            DeviceChange::UnplugNic { slot } => self.nics.retain(|a| a.nic.slot != *slot),
            DeviceChange::LinkNics { slots, link } => {
                let meant = self.nics.iter_mut().filter(|a| slots.contains(&a.nic.slot));
                meant.for_each(|attached| attached.link = *link);
            }
        }
        self.storage.sort_by_key(|a| a.device.address);
        self.nics.sort_by_key(|a| a.nic.slot);
    }

    /// The last who changed a drive's medium counts; a drive that left takes its change along.
    fn note_console_change(&mut self, done: &Pending) {
        match &done.change {
            DeviceChange::Medium { attached, by } => {
                let address = attached.device.address;
                self.console_changes.retain(|change| change.address != address);
                if let ChangedBy::Console { user } = by {
                    let (seq, user, at) = (done.seq, user.clone(), done.since.clone());
                    self.console_changes.push(ConsoleChange { seq, address, user, at });
                }
            }
            DeviceChange::Detach { address, .. } => {
                self.console_changes.retain(|change| change.address != *address);
            }
            DeviceChange::DetachAdapter { slot } => {
                self.console_changes.retain(|change| change.address.slot != *slot);
            }
            _ => {}
        }
    }

    #[must_use]
    pub fn device_at(&self, address: StorageAddress) -> Option<&Attached> {
        self.storage.iter().find(|a| a.device.address == address)
    }

    /// The kind of the adapter really in a slot.
    #[must_use]
    pub fn adapter_in(&self, slot: PciSlot) -> Option<AdapterKind> {
        let device = self.devices_in(slot).next();
        device.map(|a| a.device.adapter).or_else(|| self.kept_adapters.get(&slot).copied())
    }

    /// What sits on the adapter in a slot; place holders do not.
    pub fn devices_in(&self, slot: PciSlot) -> impl Iterator<Item = &Attached> {
        self.storage
            .iter()
            .filter(move |a| a.device.address.slot == slot && !a.device.is_place_holder())
    }

    #[must_use]
    pub fn nic_in(&self, slot: PciSlot) -> Option<&AttachedNic> {
        self.nics.iter().find(|a| a.nic.slot == slot)
    }

    #[must_use]
    pub fn is_nic_leaving(&self, slot: PciSlot) -> bool {
        self.pending
            .iter()
            .any(|p| matches!(p.change, DeviceChange::UnplugNic { slot: s } if s == slot))
    }

    #[must_use]
    pub fn is_leaving(&self, slot: PciSlot) -> bool {
        self.asked_before(&DeviceChange::DetachAdapter { slot }).is_some()
    }

    /// The number under which the guest was asked already to let this adapter go, and has not done so.
    #[must_use]
    pub fn asked_before(&self, change: &DeviceChange) -> Option<u64> {
        let is_adapter = matches!(change, DeviceChange::DetachAdapter { .. });
        let asked = self.pending.iter().find(|pending| pending.change == *change)?;
        is_adapter.then_some(asked.seq)
    }
}

fn parse<T: for<'a> Deserialize<'a>>(line: usize, text: &str) -> Result<T, RecordError> {
    serde_json::from_str(text)
        .map_err(|error| RecordError::Damaged { line, reason: error.to_string() })
}
