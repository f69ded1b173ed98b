//! A VM Host opened by a command: its paths, tunables and registry, and who is at work. Facts for decisions are put together
//! here.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use hpvm_host::lock::{Busy, BusyError};
use hpvm_host::lodging::Lodging;
use hpvm_host::names::guest_folder;
use hpvm_host::{Root, accel, conf::Conf, durable, process, qemu_version};
use hpvm_model::bytes::Bytes;
use hpvm_model::{
    DeviceKind, Entitlement, GuestConfig, GuestName, GuestNumber, StorageAddress, StorageDevice,
    StorageType, StoreRole, chain, is_shared_freely,
};
use hpvm_plan::facts::network::NetworkFacts;
use hpvm_plan::facts::{
    Engine, FileFact, FileIdentity, HostFacts, Kept, Provision, Restriction, Sharer, Standing,
    StartFacts, Tenancy,
};
use hpvm_plan::record::{self, Machine, Sharing};
use hpvm_registry::{
    Access, Change, Identities, Registry, RegistryError, Selector, SwitchSelector,
};

use crate::facts::Aim;
use crate::folder::{self, Folder};
use crate::network::lan;
use crate::presence::{self, Presence};
use crate::refusal::unless_interrupted;
use crate::stores::Stores;
use crate::stores::inodes::Inodes;
use crate::{Actor, Mode, Refusal, devdb, facts, forgotten, nvram, remove};

/// How long a command waits for another one that is changing the same guest.
pub(crate) const BUSY_BOUND: Duration = Duration::from_secs(30);
/// How long a command looks at devices again and again, because others change the registry each time. One look takes a tenth
/// of a second, or some seconds where a store does not answer.
const UNDISTURBED_BOUND: Duration = Duration::from_secs(30);

pub struct VmHost {
    pub root: Root,
    pub conf: Conf,
    pub registry: Registry,
    pub boot_id: String,
}

/// A VM Host whose registry is not open yet.
pub struct Premises {
    pub(crate) root: Root,
    pub(crate) conf: Conf,
    access: Access,
}

impl Premises {
    /// Those of the environment, which are made where there are none; a dry run makes none.
    pub fn found(mode: Mode) -> Result<Premises, Refusal> {
        match mode {
            Mode::Apply => Premises::at(Root::from_environment()?, Access::ReadWrite),
            Mode::DryRun => Premises::find(Access::ReadWrite),
        }
    }

    /// Those of the environment.
    pub fn find(access: Access) -> Result<Premises, Refusal> {
        let root = Root::from_environment()?;
        root.must_be_there()?;
        Premises::at(root, access)
    }

    fn at(root: Root, access: Access) -> Result<Premises, Refusal> {
        if access == Access::ReadWrite {
            root.ensure()?;
        }
        let conf = Conf::load(&root)?;
        // An empty registry in its place would give the numbers and names of lost guests to others.
        if !root.db().exists() && folder::any(&root) {
            return Err(Refusal::RegistryLost(root.db()));
        }
        Ok(Premises { root, conf, access })
    }

    pub(crate) fn open(self) -> Result<VmHost, Refusal> {
        let host = self.open_as_it_is()?;
        if host.registry.has_empty_log() {
            forgotten::refuse(&host.root, &host.registry)?;
        }
        Ok(host)
    }

    fn open_as_it_is(self) -> Result<VmHost, Refusal> {
        let Premises { root, conf, access } = self;
        let registry = Registry::open(&root.db(), access)?;
        let boot_id =
            process::boot_id().map_err(Refusal::file("read", "/proc/sys/kernel/random/boot_id"))?;
        Ok(VmHost { root, conf, registry, boot_id })
    }
}

impl VmHost {
    /// Opens the VM Host of the environment.
    pub fn open(access: Access) -> Result<VmHost, Refusal> {
        Premises::find(access)?.open()
    }

    /// For a command that may be the first one on a VM Host.
    pub fn open_or_found(mode: Mode) -> Result<VmHost, Refusal> {
        Premises::found(mode)?.open()
    }

    /// For who finds out what is wrong with it.
    pub fn open_to_examine(access: Access) -> Result<VmHost, Refusal> {
        Premises::find(access)?.open_as_it_is()
    }

    /// For a command that ends guests: it must do so too where nothing can be written any more, and where the registry does not
    /// know all of them.
    pub fn open_to_end_guests() -> Result<VmHost, Refusal> {
        match VmHost::open(Access::ReadWrite) {
            Err(Refusal::Registry(RegistryError::ReadOnlyFileSystem { .. })) => {
                VmHost::open(Access::ReadOnly)
            }
            Err(Refusal::RegistryBehind(_)) => VmHost::open_to_examine(Access::ReadWrite),
            opened => opened,
        }
    }

    /// All that is wrong in hpvmconf, line by line.
    #[must_use]
    pub fn conf_faults(&self) -> Vec<String> {
        self.conf.faults()
    }

    pub fn guest(&self, selector: &Selector) -> Result<GuestConfig, Refusal> {
        if let Some(guest) = self.registry.guest(selector)? {
            return Ok(guest);
        }
        self.unless_forgotten(self.registry.list()?.len())?;
        Err(Refusal::NoGuest(shown(selector)))
    }

    /// Refuses to show that there is no guest where there are folders of some.
    pub(crate) fn unless_forgotten(&self, guests_count: usize) -> Result<(), Refusal> {
        if guests_count == 0 { forgotten::refuse(&self.root, &self.registry) } else { Ok(()) }
    }

    pub fn guest_numbered(&self, number: GuestNumber) -> Result<GuestConfig, Refusal> {
        self.guest(&Selector::Number(number))
    }

    #[must_use]
    pub fn presence(&self, number: GuestNumber) -> Presence {
        presence::read(&self.root.run_dir(number.get()), &self.boot_id)
    }

    #[must_use]
    pub fn folder(&self, config: &GuestConfig) -> Folder {
        Folder::of(&self.root, config.uuid)
    }

    /// To be held while something is started that lives on, see [`Lodging`]. A VM Host in a folder has no units.
    pub(crate) fn lodging(&self) -> Option<Lodging> {
        if self.root.prefix() == Path::new("/") { Lodging::enter() } else { None }
    }

    /// The right to change one guest; others are told who has it.
    pub fn busy(&self, config: &GuestConfig, actor: &Actor) -> Result<Busy, Refusal> {
        let busy = self.busy_within(config, actor, BUSY_BOUND);
        let busy = busy.map_err(|error| self.not_busy(config, error))?;
        self.unless_renamed(config, actor)?;
        Ok(busy)
    }

    /// Whoever had the right to change the guest before may have given it another name.
    pub(crate) fn unless_renamed(
        &self,
        config: &GuestConfig,
        actor: &Actor,
    ) -> Result<(), Refusal> {
        if actor.called.as_ref() != Some(&config.name)
            || self.registry.number_of(&config.name)? == Some(config.number)
        {
            return Ok(());
        }
        Err(Refusal::NoGuest(config.name.to_string()))
    }

    /// A guest's lock goes with its folder: that of a guest that still exists was lost.
    pub(crate) fn not_busy(&self, config: &GuestConfig, error: BusyError) -> Refusal {
        let folder = self.folder(config);
        let exists = || matches!(self.registry.guest(&Selector::Uuid(config.uuid)), Ok(Some(_)));
        match error {
            BusyError::Gone { .. } if folder.is_missing() && exists() => {
                let path = folder.path().to_owned();
                Refusal::NoFolder { name: config.name.clone(), path }
            }
            error => error.into(),
        }
    }

    /// The same for who does not wait as long.
    pub(crate) fn busy_within(
        &self,
        config: &GuestConfig,
        actor: &Actor,
        bound: Duration,
    ) -> Result<Busy, BusyError> {
        Busy::acquire(&self.folder(config).file(guest_folder::BUSY), &actor.command, bound)
    }

    /// The registry, for a change that begins now: one that was interrupted before changes nothing.
    pub(crate) fn begin(&mut self) -> Result<Change<'_>, Refusal> {
        self.registry.change_unless(unless_interrupted)
    }

    /// Decides and writes as if nobody else were at it. Devices may take seconds to look at, and meanwhile the registry is
    /// everybody's: what others have committed since has it decided anew.
    pub(crate) fn decide_and_write<T>(
        &mut self,
        decide: impl Fn(&VmHost) -> Result<T, Refusal>,
        write: impl Fn(Change<'_>, &T) -> Result<(), Refusal>,
    ) -> Result<T, Refusal> {
        let deadline = Instant::now() + UNDISTURBED_BOUND;
        loop {
            let seen = self.registry.state()?;
            let decided = decide(self)?;
            let change = self.begin()?;
            if change.state()? == seen {
                write(change, &decided)?;
                return Ok(decided);
            }
            if Instant::now() > deadline {
                return Err(Refusal::Disturbed { seconds: UNDISTURBED_BOUND.as_secs() });
            }
        }
    }

    /// Leaves the record of a change that was refused or failed, and passes the outcome on. `config` is the guest it was
    /// about, if there is one. Where not even the record can be written, the refusal is still the thing to tell.
    pub fn record_failure<T>(
        &mut self,
        actor: &Actor,
        config: Option<&GuestConfig>,
        result: Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        if let Err(refusal) = &result {
            if matches!(refusal, Refusal::Interrupted { .. }) {
                let _ = self.registry.hurry();
            }
            let _ = self.registry.record(&actor.failed(config, refusal));
        }
        result
    }

    /// The same of what may be a dry run, which leaves no record.
    pub(crate) fn record_failure_in<T>(
        &mut self,
        mode: Mode,
        actor: &Actor,
        config: &GuestConfig,
        result: Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        match mode {
            Mode::Apply => self.record_failure(actor, Some(config), result),
            Mode::DryRun => result,
        }
    }

    /// The boot record of a guest: what it runs on, or ran on last. Its switches have the names they have now, since a rename
    /// changes nothing of the machine.
    pub fn boot_record(&self, config: &GuestConfig) -> Result<Machine, Refusal> {
        let path = self.folder(config).file(guest_folder::BOOT_RECORD);
        let text = durable::open_regular(&path).and_then(std::io::read_to_string);
        let text = text.map_err(Refusal::file("read", &path))?;
        let mut machine =
            Machine::read(&text).map_err(|source| Refusal::Record { path, source })?;
        for attached in &mut machine.nics {
            let switch = self.registry.vswitch(&SwitchSelector::Number(attached.switch));
            if let Ok(Some(switch)) = switch {
                attached.nic.vswitch = switch.name;
            }
        }
        Ok(machine)
    }

    /// The machine of a running guest.
    #[must_use]
    pub fn machine(&self, config: &GuestConfig) -> Option<Machine> {
        self.presence(config.number).is_on().then(|| self.boot_record(config).ok()).flatten()
    }

    /// What a decision about `config` may depend on; `before` brings the files of the configuration it replaces.
    pub fn facts(
        &self,
        config: &GuestConfig,
        before: Option<&GuestConfig>,
    ) -> Result<HostFacts, Refusal> {
        let stores = Stores::look(std::iter::once(config).chain(before));
        let own = || self.registry.guest(&Selector::Uuid(config.uuid));
        self.facts_of(config, before, stores, own)
    }

    /// The same about a guest that is not created yet, whose stores were looked at already.
    pub(crate) fn facts_of_new(
        &self,
        config: &GuestConfig,
        stores: Stores,
    ) -> Result<HostFacts, Refusal> {
        self.facts_of(config, None, stores, || Ok(None))
    }

    /// `own` is the guest as the registry has it.
    fn facts_of(
        &self,
        config: &GuestConfig,
        before: Option<&GuestConfig>,
        stores: Stores,
        own: impl FnOnce() -> Result<Option<GuestConfig>, RegistryError>,
    ) -> Result<HostFacts, Refusal> {
        let stores = stores.with_other_paths(&self.registry)?;
        let _view = self.registry.view()?;
        let own = own()?;
        let sharers = self.sharers(config, own.as_ref().map(|own| own.number), &stores)?;
        let mut registered = devdb::registered(self, own.as_ref(), &stores)?;
        // The image of a linked clone's disk lies in the clone's own folder, and is the guest's as that folder is.
        for path in self.own_images(config) {
            if let Some(known) = registered.get_mut(path) {
                known.restriction = Restriction::None;
            }
        }
        let processors = hpvm_host::facts::processors()
            .map_err(Refusal::file("read", "/sys/devices/system/cpu/online"))?;
        let processor_mhz = match config.entitlement {
            Entitlement::Percent { .. } => None,
            Entitlement::Mhz { .. } => {
                let mhz = hpvm_host::facts::processor_mhz();
                Some(mhz.map_err(Refusal::file("read", "/proc/cpuinfo"))?)
            }
        };
        Ok(HostFacts {
            processors,
            processor_mhz,
            memory_total: Bytes(hpvm_host::facts::memory_total()),
            limits: self.conf.limits()?,
            used_by_host: stores.used_by_host(),
            doubles: stores.doubles(),
            overlaps: stores.overlaps(),
            registered,
            files: stores.files,
            sharers,
            network: self.network_of(config, before, own.as_ref().map(|own| own.number))?,
            locked: BTreeMap::new(),
            option_rom: provision(&self.conf.scsi_rom()),
            start: None,
        })
    }

    /// The networks, where NICs are concerned: a guest without any costs no look at those of others.
    fn network_of(
        &self,
        config: &GuestConfig,
        before: Option<&GuestConfig>,
        own: Option<GuestNumber>,
    ) -> Result<NetworkFacts, Refusal> {
        let has_nics = |config: &GuestConfig| !config.nics.is_empty();
        match has_nics(config) || before.is_some_and(has_nics) {
            true => self.network(own),
            false => Ok(NetworkFacts::default()),
        }
    }

    /// Images that hpvmclone made: in the guest's own folder to be written, in any guest's to lie under one and be read.
    pub(crate) fn own_images<'a>(&self, config: &'a GuestConfig) -> impl Iterator<Item = &'a str> {
        let folder = self.folder(config).path().to_owned();
        let linked = || config.storage.iter().filter(|device| !device.layers.is_empty());
        let own = folder.clone();
        let stores = linked().filter_map(|device| device.backing.store());
        let stores = stores.filter(move |path| Path::new(path).parent() == Some(&own));
        let layers = linked().flat_map(|device| &device.layers);
        let images = layers.filter(|layer| layer.storage == StorageType::Qcow2);
        let paths = images.map(|layer| layer.path.as_str()).filter(move |path| {
            let (path, folders) = (Path::new(path), folder.parent());
            path.parent().and_then(Path::parent) == folders
        });
        stores.chain(paths)
    }

    /// The same, and what only a start depends on.
    pub fn start_facts(&self, config: &GuestConfig) -> Result<HostFacts, Refusal> {
        let mut facts = self.facts(config, None)?;
        facts.network.lan = lan::ask(self, &config.nics)?;
        facts.locked = facts::locked_elsewhere(config, &facts, Aim::Write);
        facts.start = Some(self.means_of_start(config)?);
        Ok(facts)
    }

    /// The same of a guest that runs on this machine, for a start once it has ended: what it has is free then. Which accelerator
    /// it gets is for whoever starts it to say. No LAN is asked for its addresses, since it answers itself.
    pub(crate) fn next_start_facts(
        &self,
        config: &GuestConfig,
        machine: &Machine,
    ) -> Result<HostFacts, Refusal> {
        let mut start = self.means_of_start(config)?;
        let memory = start.memory_available.0.saturating_add(machine.base.memory.bytes().0);
        start.memory_available = Bytes(memory);
        start.accelerator = Ok(machine.base.accelerator);
        start.nvram.missing = nvram::lasting_damage(self, config);
        Ok(HostFacts { start: Some(start), ..self.facts(config, None)? })
    }

    fn means_of_start(&self, config: &GuestConfig) -> Result<StartFacts, Refusal> {
        let memory = hpvm_host::facts::memory().map_err(Refusal::file("read", "/proc/meminfo"))?;
        Ok(StartFacts {
            memory_available: Bytes(memory.available),
            engine: self.engine(),
            accelerator: self.accelerator().map(|choice| choice.accelerator),
            firmware: provision(&self.conf.firmware()),
            nvram: facts::nvram(
                &self.folder(config).file(guest_folder::NVRAM),
                &self.conf.pristine_nvram(),
            ),
            lan_rom: provision(&self.conf.lan_rom()),
            reservation_helper: provision(&self.conf.reservation_helper()),
            shut: facts::shut(&[self.folder(config).path(), self.root.run()]),
        })
    }

    /// The engine of this host, or what is wrong with it.
    pub fn engine(&self) -> Result<Engine, String> {
        let program = self.conf.qemu().map_err(|e| e.to_string())?;
        let version =
            qemu_version::qemu_version(&program, self.root.run()).map_err(|e| chain(&e))?;
        Ok(Engine { program: program.to_string_lossy().into_owned(), version })
    }

    /// The accelerator new guests get, and why.
    pub fn accelerator(&self) -> Result<accel::Choice, String> {
        accel::choose(self.root.run()).map_err(|e| chain(&e))
    }

    /// Other guests that have one of these stores, or one that overlaps it, by our store. Images of dvds are shared freely, and
    /// have nobody but guests that run and write to them: who is configured with one may be every guest there is.
    fn sharers(
        &self,
        config: &GuestConfig,
        own: Option<GuestNumber>,
        stores: &Stores,
    ) -> Result<BTreeMap<FileIdentity, Vec<Sharer>>, Refusal> {
        let mut claims = BTreeMap::new();
        let (exclusive, images) = (stores.exclusive(config), stores.images(config));
        if exclusive.is_empty() && images.is_empty() {
            return Ok(claims);
        }
        let held = self.held_by_running(own)?;
        for (identity, related) in images {
            let seen = related.iter().filter_map(|store| held.get(store)).flatten();
            let writers: Vec<Sharer> =
                seen.map(|h| h.by(Way::Other)).filter(Sharer::writes).collect();
            if !writers.is_empty() {
                claims.insert(identity, writers);
            }
        }
        for (identity, related) in exclusive {
            let way =
                |store: &FileIdentity| if *store == identity { Way::Same } else { Way::Other };
            let as_seen =
                |store| held.get(store).into_iter().flatten().map(move |h| h.by(way(store)));
            let mut sharers: Vec<Sharer> = related.iter().flat_map(as_seen).collect();
            for store in &related {
                for other in self.registry.sharers(store, own)? {
                    let is_known = sharers.iter().any(|known| is_of(known, &other));
                    if !is_shared_freely(other.kind, other.storage) && !is_known {
                        let standing = self.standing(&other)?;
                        sharers.push(configured(other, standing, way(store)));
                    }
                }
            }
            if !sharers.is_empty() {
                claims.insert(identity, sharers);
            }
        }
        Ok(claims)
    }

    fn standing(&self, sharer: &hpvm_registry::Sharer) -> Result<Standing, Refusal> {
        if !sharer.removed {
            return Ok(Standing::Present);
        }
        let needed_by = match self.registry.removed_guest(sharer.number)? {
            Some(kept) => remove::needed_by(&self.registry, &self.root, &kept.config)?,
            None => Vec::new(),
        };
        let needed_by = needed_by.into_iter().map(|by| by.number).collect();
        Ok(Standing::Removed(Kept { number: sharer.number, needed_by }))
    }

    /// The stores that running guests have, whatever their configuration says by now: a disk that was taken
    /// away is theirs until the guest lets it go.
    fn held_by_running(
        &self,
        own: Option<GuestNumber>,
    ) -> Result<BTreeMap<FileIdentity, Vec<Holder>>, Refusal> {
        let mut found: BTreeMap<FileIdentity, Vec<Holder>> = BTreeMap::new();
        let numbers = self.run_folders().into_iter().filter_map(GuestNumber::new);
        for number in numbers.filter(|number| Some(*number) != own) {
            let Some(other) = self.registry.guest(&Selector::Number(number))? else { continue };
            if !self.presence(number).is_on() {
                continue;
            }
            for Held { identity, address, role, access, sharing } in self.held_by(&other) {
                let holder = Holder { guest: other.name.clone(), address, role, access, sharing };
                found.entry(identity).or_default().push(holder);
            }
        }
        Ok(found)
    }

    /// Of a guest whose boot record cannot be used, what is configured is the nearest to what it has.
    fn held_by(&self, running: &GuestConfig) -> Vec<Held> {
        match self.boot_record(running) {
            Ok(machine) => machine
                .held()
                .flat_map(|attached| {
                    let layers = attached.layers.iter().map(|l| (l.identity, StoreRole::Layer));
                    let stores = std::iter::once((attached.identity, StoreRole::Store));
                    let (address, sharing) = (attached.device.address, attached.sharing);
                    let held = move |(identity, role): (Option<FileIdentity>, StoreRole)| {
                        let access = access(role, attached.access);
                        Some(Held { identity: identity?, address, role, access, sharing })
                    };
                    stores.chain(layers).filter_map(held)
                })
                .collect(),
            Err(_) => {
                let inodes = Inodes::at(running.storage.iter().flat_map(StorageDevice::stores));
                let identity = |path: &str| inodes.of(path);
                running
                    .storage
                    .iter()
                    .flat_map(|device| {
                        let layers =
                            device.layers.iter().map(|l| (l.path.as_str(), StoreRole::Layer));
                        let store = device.backing.store().map(|path| (path, StoreRole::Store));
                        let (address, sharing) = (device.address, Sharing::Alone);
                        let own = match device.kind {
                            DeviceKind::Dvd => record::Access::ReadOnly,
                            _ => record::Access::ReadWrite,
                        };
                        let held = move |(path, role)| {
                            let (identity, access) = (identity(path)?, access(role, own));
                            Some(Held { identity, address, role, access, sharing })
                        };
                        store.into_iter().chain(layers).filter_map(held)
                    })
                    .collect()
            }
        }
    }
}

/// What a guest does with a store in this role, of a device with which it may do so much.
fn access(role: StoreRole, of_device: record::Access) -> record::Access {
    match role {
        StoreRole::Layer => record::Access::ReadOnly,
        StoreRole::Store => of_device,
    }
}

/// A store that a running guest has.
struct Held {
    identity: FileIdentity,
    address: StorageAddress,
    role: StoreRole,
    access: record::Access,
    sharing: Sharing,
}

/// The running guest that has a store.
struct Holder {
    guest: GuestName,
    address: StorageAddress,
    role: StoreRole,
    access: record::Access,
    sharing: Sharing,
}

/// Whether another guest's path to a disk is ours.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Same,
    Other,
}

impl Way {
    fn tenancy(self, sharing: Sharing) -> Tenancy {
        match (sharing, self) {
            (Sharing::Alone | Sharing::WithHost, _) => Tenancy::Alone,
            (Sharing::Reserved, Way::Same) => Tenancy::SharedBySamePath,
            (Sharing::Reserved, Way::Other) => Tenancy::SharedByOtherPath,
        }
    }
}

impl Holder {
    fn by(&self, way: Way) -> Sharer {
        Sharer {
            guest: self.guest.clone(),
            address: self.address,
            held_for: Some(self.access),
            role: self.role,
            standing: Standing::Present,
            tenancy: way.tenancy(self.sharing),
        }
    }
}

/// A guest of that name may be there beside others that had it and were removed.
fn is_of(known: &Sharer, other: &hpvm_registry::Sharer) -> bool {
    let is_the_guest = match &known.standing {
        Standing::Removed(kept) => kept.number == other.number,
        Standing::Present => known.guest == other.guest && !other.removed,
    };
    is_the_guest && known.role == other.role
}

fn configured(other: hpvm_registry::Sharer, standing: Standing, way: Way) -> Sharer {
    let sharing = Sharing::to_come(other.kind, other.storage);
    Sharer {
        guest: other.guest,
        address: other.address,
        held_for: None,
        role: other.role,
        standing,
        tenancy: way.tenancy(sharing),
    }
}

/// The identities of the files that were looked at, for the registry's index.
pub(crate) fn identities(facts: &HostFacts) -> Identities {
    identities_of(&facts.files)
}

pub(crate) fn identities_of(files: &BTreeMap<String, FileFact>) -> Identities {
    let identity = |(path, fact): (&String, &FileFact)| Some((path.clone(), fact.identity()?));
    files.iter().filter_map(identity).collect()
}

fn shown(selector: &Selector) -> String {
    match selector {
        Selector::Name(name) => name.to_string(),
        Selector::Number(number) => number.to_string(),
        Selector::Uuid(uuid) => uuid.to_string(),
    }
}

/// A file that comes with the host or with hpvm, and is only read.
pub(crate) fn provision(path: &Path) -> Provision {
    let missing = match durable::open_regular(path).and_then(|file| file.metadata()) {
        Ok(found) if found.len() == 0 => Some("it is empty".into()),
        Ok(_) => None,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Some("it does not exist".into())
        }
        Err(error) => Some(error.to_string()),
    };
    Provision { path: path.to_string_lossy().into_owned(), missing }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use hpvm_model::{EntryId, EntryType, GuestUuid};
    use hpvm_registry::Entry;

    use super::*;
    use crate::create::blank;

    fn empty_host(folder: &Path) -> VmHost {
        let root = Root::at(folder).unwrap();
        let conf = Conf::load(&root).unwrap();
        let registry = Registry::open(&root.db(), Access::ReadWrite).unwrap();
        VmHost { root, conf, registry, boot_id: String::new() }
    }

    #[test]
    fn a_guest_that_got_another_name_is_not_meant_by_the_one_it_had() {
        let folder = tempfile::tempdir().unwrap();
        let mut host = empty_host(folder.path());
        let [web, site]: [GuestName; 2] = ["web", "site"].map(|name| name.parse().unwrap());
        let had = blank(&web, GuestUuid(uuid::Uuid::nil()));
        let has = GuestConfig { name: site.clone(), ..had.clone() };
        let change = host.registry.change().unwrap();
        change.insert(&has, &Identities::default()).unwrap();
        change.commit().unwrap();
        let actor = || Actor::new("hpvmmodify", String::new(), None);
        let check = |config: &GuestConfig, name| {
            host.unless_renamed(config, &actor().calling(name)).map_err(|e| e.to_string())
        };
        let none = "No Guest by that name or number: 'web'".to_owned();
        assert_eq!(check(&had, Some(&web)), Err(none));
        assert_eq!(check(&had, None), Ok(()), "who calls it by its number means it still");
        assert_eq!(check(&has, Some(&site)), Ok(()));
    }

    #[test]
    fn what_others_change_meanwhile_is_decided_upon_too() {
        let folder = tempfile::tempdir().unwrap();
        let mut host = empty_host(folder.path());
        let entry = |name: &str| {
            Entry::by_hand(EntryId::new(EntryType::Restricted, name).unwrap(), name.into())
        };
        let looks = Cell::new(0);
        let decide = |host: &VmHost| {
            let known = host.registry.entries()?.len();
            looks.set(looks.get() + 1);
            if looks.get() == 1 {
                let mut other = Registry::open(&host.root.db(), Access::ReadWrite)?;
                let change = other.change()?;
                change.put_entry(&entry("/other"))?;
                change.commit()?;
            }
            Ok(known)
        };
        let write = |change: Change<'_>, known: &usize| {
            assert_eq!(change.entries()?.len(), *known, "what was decided upon holds");
            change.put_entry(&entry("/ours"))?;
            Ok(change.commit()?)
        };
        assert_eq!(host.decide_and_write(decide, write).unwrap(), 1);
        assert_eq!(looks.get(), 2);
        assert_eq!(host.decide_and_write(decide, write).unwrap(), 2, "one's own change is none");
        assert_eq!(looks.get(), 3);
    }
}
