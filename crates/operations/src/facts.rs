//! What decisions depend on: the host, the stores of a guest and who else has them, the networks, and for a start what it takes.

mod locks;
mod provisions;
mod sharers;

use std::collections::BTreeMap;
use std::path::Path;

use hpvm_host::names::guest_folder;
use hpvm_host::{accel, qemu_version};
use hpvm_model::bytes::Bytes;
use hpvm_model::{Entitlement, GuestConfig, GuestNumber, StorageType, chain};
use hpvm_plan::facts::network::NetworkFacts;
use hpvm_plan::facts::{Engine, FileFact, HostFacts, Registered, Restriction, StartFacts};
use hpvm_plan::record::Machine;
use hpvm_registry::{Identities, RegistryError, Selector};

pub(crate) use locks::{Aim, holders, locked, locked_elsewhere, written_elsewhere};
pub(crate) use provisions::{lack, provision, shut, variables};

use crate::network::lan;
use crate::stores::Stores;
use crate::{Refusal, VmHost, devdb, nvram};

impl VmHost {
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

    /// The same about a guest that was removed, once it is back.
    pub(crate) fn facts_of_kept(&self, config: &GuestConfig) -> Result<HostFacts, Refusal> {
        let stores = Stores::look(std::iter::once(config));
        self.facts_of(config, None, stores, || Ok(Some(config.clone())))
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
        for path in self.bare_images(config) {
            if let Some(Registered { restriction, .. }) = registered.get_mut(path)
                && matches!(restriction, Restriction::HostFolder { .. })
            {
                *restriction = Restriction::OwnFolder;
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

    /// What lies where such images do and is given without what it lies over.
    fn bare_images<'a>(&self, config: &'a GuestConfig) -> impl Iterator<Item = &'a str> {
        let folder = self.folder(config).path().to_owned();
        let bare = config.storage.iter().filter(|device| device.layers.is_empty());
        let images = bare.filter(|device| device.backing.storage == StorageType::Qcow2);
        let paths = images.map(|device| device.backing.path.as_str());
        paths.filter(move |path| Path::new(path).parent() == Some(&folder))
    }

    /// The same, and what only a start depends on.
    pub fn start_facts(&self, config: &GuestConfig) -> Result<HostFacts, Refusal> {
        let mut facts = self.facts(config, None)?;
        facts.network.lan = lan::ask(self, &config.nics)?;
        facts.locked = locked_elsewhere(self, config, &facts);
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
            avio_service: self.conf.avio_service()?,
            firmware: provision(&self.conf.firmware()),
            nvram: provisions::variables(
                &self.folder(config).file(guest_folder::NVRAM),
                &self.conf.pristine_nvram(),
            ),
            lan_rom: provision(&self.conf.lan_rom()),
            reservation_helper: provision(&self.conf.reservation_helper()),
            shut: shut([self.folder(config).path(), self.root.run()]),
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
}

/// The identities of the files that were looked at, for the registry's index.
pub(crate) fn identities(facts: &HostFacts) -> Identities {
    identities_of(&facts.files)
}

pub(crate) fn identities_of(files: &BTreeMap<String, FileFact>) -> Identities {
    let identity = |(path, fact): (&String, &FileFact)| Some((path.clone(), fact.identity()?));
    files.iter().filter_map(identity).collect()
}
