//! A change: everything in it happens at its commit, or nothing does. It holds the one write lock of the registry, so what
//! it reads stays true until then.

use std::collections::BTreeSet;
use std::ops::Deref;

use hpvm_model::{Entitlement, GuestConfig, GuestName, GuestNumber, StorageDevice};
use jiff::Timestamp;
use rusqlite::ffi::{SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE};
use rusqlite::{OptionalExtension, named_params, params};

use crate::error::RegistryError;
use crate::guest::{Identities, number, parsed, stored};
use crate::open::{Registry, Written};
use crate::upgrade;

/// A change under way. All reading functions of [`Registry`] see it; dropping it undoes it.
#[derive(Debug)]
pub struct Change<'a> {
    registry: &'a Registry,
    /// The version that the file has until this is committed, where that is an older one.
    upgrades: Option<i64>,
}

impl Deref for Change<'_> {
    type Target = Registry;
    fn deref(&self) -> &Registry {
        self.registry
    }
}

impl Change<'_> {
    /// The caller has begun the transaction. In it the tables are this version's, whatever the file has.
    pub(crate) fn begun(registry: &Registry) -> Result<Change<'_>, RegistryError> {
        let mut change = Change::as_it_is(registry);
        change.upgrades = upgrade::upgrade(registry)?;
        Ok(change)
    }

    /// The same with the tables that the file has.
    pub(crate) fn as_it_is(registry: &Registry) -> Change<'_> {
        Change { registry, upgrades: None }
    }

    /// The highest number that an existing or kept guest has; `None` without any.
    pub fn highest_number(&self) -> Result<Option<GuestNumber>, RegistryError> {
        let highest = self
            .connection
            .query_row("SELECT max(number) FROM guest", [], |row| row.get::<_, Option<u32>>(0));
        Ok(highest.map_err(self.failed("find a number"))?.and_then(GuestNumber::new))
    }

    /// The number for a new guest: one more than the highest, so that a number means one guest for as long as possible; when that
    /// would be too high, the lowest free one. One that something still holds is nobody's, whatever the registry knows.
    pub fn next_number(
        &self,
        highest: Option<GuestNumber>,
        is_held: impl Fn(GuestNumber) -> bool,
    ) -> Result<GuestNumber, RegistryError> {
        let from = |first: u32| (first..).map_while(GuestNumber::new);
        let next = highest.map_or(1, |highest| highest.get().saturating_add(1));
        if let Some(number) = from(next).find(|number| !is_held(*number)) {
            return Ok(number);
        }
        let taken: BTreeSet<GuestNumber> = self
            .rows("SELECT number FROM guest", [], |row| number(row, 0))
            .map_err(self.failed("find a number"))?
            .into_iter()
            .collect();
        let is_free = |number: &GuestNumber| !taken.contains(number) && !is_held(*number);
        from(1).find(is_free).ok_or(RegistryError::NoNumber)
    }

    /// Adds a guest.
    pub fn insert(&self, guest: &GuestConfig, files: &Identities) -> Result<(), RegistryError> {
        self.require_free_macs(guest, None)?;
        self.insert_as_it_is(guest, files)
    }

    /// Adds a guest that may have the MAC addresses of another one.
    pub fn insert_like(
        &self,
        other: GuestNumber,
        guest: &GuestConfig,
        files: &Identities,
    ) -> Result<(), RegistryError> {
        self.require_free_macs(guest, Some(other))?;
        self.insert_as_it_is(guest, files)
    }

    /// Adds a guest of a lost registry, whoever has its MAC addresses as well.
    pub(crate) fn insert_as_it_is(
        &self,
        guest: &GuestConfig,
        files: &Identities,
    ) -> Result<(), RegistryError> {
        self.require_free_name(&guest.name, guest.number)?;
        let sql =
            "INSERT INTO guest (number, uuid, name, label, serial_number, os_family, os_version,
                 vcpus, entitlement_unit, entitled, entitled_max, memory_bytes, auto_start,
                 runnable, device_count, nic_count, created_at)
             VALUES (:number, :uuid, :name, :label, :serial_number, :os_family, :os_version,
                 :vcpus, :unit, :entitled, :maximum, :memory, :auto_start,
                 :runnable, :devices, :nics, :now)";
        let failed = |error: rusqlite::Error| match error.sqlite_extended_error_code() {
            Some(SQLITE_CONSTRAINT_PRIMARYKEY | SQLITE_CONSTRAINT_UNIQUE) => {
                RegistryError::IdentityTaken { number: guest.number, uuid: guest.uuid }
            }
            _ => self.failed("add a guest")(error),
        };
        self.store(sql, guest).map_err(failed)?;
        self.store_parts(guest, files).map_err(self.failed("add a guest"))
    }

    /// Replaces the configuration of the guest with the same number and UUID.
    pub fn update(&self, guest: &GuestConfig, files: &Identities) -> Result<(), RegistryError> {
        self.require_free_name(&guest.name, guest.number)?;
        self.require_free_macs(guest, None)?;
        let sql = "UPDATE guest SET name = :name, label = :label, serial_number = :serial_number,
                 os_family = :os_family, os_version = :os_version, vcpus = :vcpus,
                 entitlement_unit = :unit, entitled = :entitled, entitled_max = :maximum,
                 memory_bytes = :memory, auto_start = :auto_start, runnable = :runnable,
                 device_count = :devices, nic_count = :nics
             WHERE number = :number AND uuid = :uuid AND removed_at IS NULL";
        let changed = self.store(sql, guest).map_err(self.failed("change a guest"))?;
        if changed == 0 {
            return Err(RegistryError::NoGuest(guest.number));
        }
        self.forget_parts(guest.number)
            .and_then(|()| self.store_parts(guest, files))
            .map_err(self.failed("change a guest"))
    }

    /// Replaces the devices of a guest that was removed and is kept.
    pub fn update_removed(
        &self,
        guest: &GuestConfig,
        files: &Identities,
    ) -> Result<(), RegistryError> {
        self.removed_name(guest.number)?;
        self.forget_parts(guest.number)
            .and_then(|()| self.store_parts(guest, files))
            .map_err(self.failed("change a removed guest"))
    }

    /// Removes a guest. It is kept until then, or until it is purged: number and UUID stay taken, the name is free.
    pub fn remove(&self, number: GuestNumber, keep_until: Timestamp) -> Result<(), RegistryError> {
        self.remove_as_of(number, Timestamp::now(), keep_until)
    }

    pub(crate) fn remove_as_of(
        &self,
        number: GuestNumber,
        removed_at: Timestamp,
        keep_until: Timestamp,
    ) -> Result<(), RegistryError> {
        let sql = "UPDATE guest SET removed_at = ?2, keep_until = ?3
             WHERE number = ?1 AND removed_at IS NULL";
        let (at, until) = (removed_at.as_millisecond(), keep_until.as_millisecond());
        match self.connection.execute(sql, params![number.get(), at, until]) {
            Ok(0) => Err(RegistryError::NoGuest(number)),
            Ok(_) => Ok(()),
            Err(error) => Err(self.failed("remove a guest")(error)),
        }
    }

    /// Brings a removed guest back, under another name when one is given.
    pub fn undelete(
        &self,
        number: GuestNumber,
        new_name: Option<&GuestName>,
    ) -> Result<(), RegistryError> {
        let old_name = self.removed_name(number)?;
        let name = new_name.unwrap_or(&old_name);
        self.require_free_name(name, number)?;
        let sql =
            "UPDATE guest SET name = ?2, removed_at = NULL, keep_until = NULL WHERE number = ?1";
        self.connection
            .execute(sql, params![number.get(), name.as_str()])
            .map(drop)
            .map_err(self.failed("bring a guest back"))
    }

    /// Forgets a removed guest: nothing of it is taken any more.
    pub fn purge(&self, number: GuestNumber) -> Result<(), RegistryError> {
        let sql = "DELETE FROM guest WHERE number = ?1 AND removed_at IS NOT NULL";
        match self.connection.execute(sql, [number.get()]) {
            Ok(0) => Err(RegistryError::NotRemoved(number)),
            Ok(_) => Ok(()),
            Err(error) => Err(self.failed("purge a guest")(error)),
        }
    }

    /// Makes it so, on the disk.
    pub fn commit(self) -> Result<(), RegistryError> {
        self.commit_as(Written::Change)
    }

    pub(crate) fn commit_as(mut self, written: Written) -> Result<(), RegistryError> {
        if let Some(version) = self.upgrades {
            upgrade::keep_copy(&self.path, version)?;
        }
        // When it fails the transaction is still open, and the drop ends it.
        self.connection.execute_batch("COMMIT").map_err(self.failed("commit a change"))?;
        self.upgrades = None;
        self.tidy_log(written);
        Ok(())
    }

    fn removed_name(&self, guest: GuestNumber) -> Result<GuestName, RegistryError> {
        let sql = "SELECT name FROM guest WHERE number = ?1 AND removed_at IS NOT NULL";
        self.connection
            .query_row(sql, [guest.get()], |row| parsed(row, 0))
            .optional()
            .map_err(self.failed("read a removed guest"))?
            .ok_or(RegistryError::NotRemoved(guest))
    }

    fn require_free_name(
        &self,
        name: &GuestName,
        besides: GuestNumber,
    ) -> Result<(), RegistryError> {
        match self.number_of(name)? {
            Some(number) if number != besides => {
                Err(RegistryError::NameTaken { name: name.clone(), number })
            }
            _ => Ok(()),
        }
    }

    /// Runs an insert or an update; each takes the parameters that it names.
    fn store(&self, sql: &str, guest: &GuestConfig) -> rusqlite::Result<usize> {
        let (unit, entitled, maximum) = match guest.entitlement {
            Entitlement::Percent { entitled, maximum } => ("percent", entitled.0, Some(maximum.0)),
            Entitlement::Mhz { entitled, maximum } => ("mhz", entitled, maximum),
        };
        let uuid = guest.uuid.0.into_bytes();
        let memory = guest.memory.bytes().0.cast_signed();
        let auto_start = guest.auto_start.to_string().to_ascii_lowercase();
        let runnable = guest.runnable.to_string().to_ascii_lowercase();
        let devices = i64::try_from(guest.storage.len()).unwrap_or(i64::MAX);
        let nics = i64::try_from(guest.nics.len()).unwrap_or(i64::MAX);
        let now = Timestamp::now().as_millisecond();
        let columns = named_params! {
            ":number": guest.number.get(), ":uuid": uuid, ":name": guest.name.as_str(),
            ":label": guest.label.as_str(), ":serial_number": guest.serial_number,
            ":os_family": guest.os.family.as_str(), ":os_version": guest.os.version,
            ":vcpus": guest.vcpus.get(), ":unit": unit, ":entitled": entitled,
            ":maximum": maximum, ":memory": memory, ":auto_start": auto_start,
            ":runnable": runnable, ":devices": devices, ":nics": nics, ":now": now,
        };
        let mut statement = self.connection.prepare_cached(sql)?;
        for (name, value) in columns {
            if let Some(column) = statement.parameter_index(name)? {
                statement.raw_bind_parameter(column, value)?;
            }
        }
        statement.raw_execute()
    }

    fn store_parts(&self, guest: &GuestConfig, files: &Identities) -> rusqlite::Result<()> {
        for device in &guest.storage {
            self.store_device(guest.number, device, files)?;
        }
        for nic in &guest.nics {
            self.store_nic(guest.number, nic)?;
        }
        let mut statement = self
            .connection
            .prepare_cached("INSERT INTO port (guest, bus, device) VALUES (?, ?, ?)")?;
        for slot in &guest.ports {
            statement.execute(params![guest.number.get(), slot.bus(), slot.device()])?;
        }
        Ok(())
    }

    fn store_device(
        &self,
        guest: GuestNumber,
        device: &StorageDevice,
        files: &Identities,
    ) -> rusqlite::Result<()> {
        let sql =
            "INSERT INTO device (guest, bus, device, target, kind, adapter, storage, path, id,
                 file_inode, file_device)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)";
        let file = device.backing.store().and_then(|path| files.get(path)).map(stored);
        self.connection.prepare_cached(sql)?.execute(params![
            guest.get(),
            device.address.slot.bus(),
            device.address.slot.device(),
            device.address.target,
            device.kind.as_str(),
            device.adapter.as_str(),
            device.backing.storage.as_str(),
            device.backing.path,
            device.id.to_string(),
            file.map(|(inode, _)| inode),
            file.map(|(_, device)| device),
        ])?;
        self.store_layers(guest, device, files)
    }

    fn store_layers(
        &self,
        guest: GuestNumber,
        device: &StorageDevice,
        files: &Identities,
    ) -> rusqlite::Result<()> {
        let sql = "INSERT INTO layer (guest, bus, device, target, place, storage, path,
                 file_inode, file_device)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
        for (place, layer) in device.layers.iter().enumerate() {
            let file = files.get(&layer.path).map(stored);
            self.connection.prepare_cached(sql)?.execute(params![
                guest.get(),
                device.address.slot.bus(),
                device.address.slot.device(),
                device.address.target,
                i64::try_from(place).unwrap_or(i64::MAX),
                layer.storage.as_str(),
                layer.path,
                file.map(|(inode, _)| inode),
                file.map(|(_, device)| device),
            ])?;
        }
        Ok(())
    }

    fn forget_parts(&self, guest: GuestNumber) -> rusqlite::Result<()> {
        for sql in [
            "DELETE FROM device WHERE guest = ?1",
            "DELETE FROM layer WHERE guest = ?1",
            "DELETE FROM nic WHERE guest = ?1",
            "DELETE FROM port WHERE guest = ?1",
        ] {
            self.connection.prepare_cached(sql)?.execute([guest.get()])?;
        }
        Ok(())
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if !self.registry.connection.is_autocommit() {
            // Should this fail, the connection's end does the same.
            let _ = self.registry.connection.execute_batch("ROLLBACK");
        }
        if let Some(version) = self.upgrades {
            self.registry.version.set(version);
        }
    }
}
