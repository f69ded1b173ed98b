//! Guests as rows: the values that go in and come out, and the questions that readers ask.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use hpvm_model::cpu::TenthsPercent;
use hpvm_model::{
    AutoStart, Backing, Bytes, DeviceKind, Entitlement, FileIdentity, GuestConfig, GuestName,
    GuestNumber, GuestUuid, Label, Memory, Nic, OsFamily, OsType, PciSlot, Runnable,
    StorageAddress, StorageDevice, StorageType, StoreRole, Vcpus,
};
use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{OptionalExtension, Row, ToSql};

use crate::error::RegistryError;
use crate::open::Registry;

/// What names one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    Name(GuestName),
    Number(GuestNumber),
    Uuid(GuestUuid),
}

/// A guest as lists show it: all but its devices and ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestSummary {
    pub number: GuestNumber,
    pub uuid: GuestUuid,
    pub name: GuestName,
    pub label: Label,
    pub serial_number: String,
    pub os: OsType,
    pub vcpus: Vcpus,
    pub entitlement: Entitlement,
    pub memory: Memory,
    pub auto_start: AutoStart,
    pub runnable: Runnable,
    /// How many storage devices it has.
    pub devices: u32,
    /// How many NICs.
    pub nics: u32,
}

/// A guest that was removed and can be brought back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemovedGuest {
    pub config: GuestConfig,
    pub removed_at: Timestamp,
    pub keep_until: Timestamp,
}

/// The files behind a configuration's devices as they were seen when it was made, by path; those that were not there are
/// missing here too.
pub type Identities = BTreeMap<String, FileIdentity>;

/// A guest that has a certain file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharer {
    pub guest: GuestName,
    pub number: GuestNumber,
    pub address: StorageAddress,
    pub kind: DeviceKind,
    pub storage: StorageType,
    pub role: StoreRole,
    /// Removed and still kept.
    pub removed: bool,
}

impl Sharer {
    /// Removed guests depend on their layers still, and on their stores no more.
    fn needs_it(&self) -> bool {
        self.role == StoreRole::Layer || !self.removed
    }
}

const COLUMNS: &str = "number, uuid, name, label, serial_number, os_family, os_version, vcpus, \
     entitlement_unit, entitled, entitled_max, memory_bytes, auto_start, runnable, device_count, nic_count";

/// The same of a file without NICs.
const COLUMNS_WITHOUT_NICS: &str = "number, uuid, name, label, serial_number, os_family, os_version, vcpus, \
     entitlement_unit, entitled, entitled_max, memory_bytes, auto_start, runnable, device_count, 0";

const DEVICE_COLUMNS: &str = "guest, bus, device, target, kind, adapter, storage, path, id";

/// The table of layers came with this version; a reader takes an older file as it is.
pub(crate) const LAYERS_SINCE_VERSION: i64 = 3;

const LAYER_COLUMNS: &str = "guest, bus, device, target, storage, path";

impl Registry {
    /// All guests, in order of number. One read of one table, since every listing waits for it.
    pub fn list(&self) -> Result<Vec<GuestSummary>, RegistryError> {
        let columns = self.columns();
        let sql = format!("SELECT {columns} FROM guest WHERE removed_at IS NULL ORDER BY number");
        self.rows(&sql, [], summary).map_err(self.failed("list the guests"))
    }

    /// One guest, complete.
    pub fn guest(&self, selector: &Selector) -> Result<Option<GuestConfig>, RegistryError> {
        let (column, value): (&str, Box<dyn ToSql>) = match selector {
            Selector::Name(name) => ("name", Box::new(name.as_str().to_owned())),
            Selector::Number(number) => ("number", Box::new(number.get())),
            Selector::Uuid(uuid) => ("uuid", Box::new(uuid.0.into_bytes())),
        };
        let columns = self.columns();
        let sql = format!("SELECT {columns} FROM guest WHERE {column} = ?1 AND removed_at IS NULL");
        self.in_one_view(|| {
            let found =
                self.connection.prepare_cached(&sql)?.query_row([value], summary).optional()?;
            found.map(|guest| self.completed(guest)).transpose()
        })
        .map_err(self.failed("read a guest"))
    }

    /// The number of the guest with this name.
    pub fn number_of(&self, name: &GuestName) -> Result<Option<GuestNumber>, RegistryError> {
        self.connection
            .prepare_cached("SELECT number FROM guest WHERE name = ?1 AND removed_at IS NULL")
            .and_then(|mut statement| {
                statement.query_row([name.as_str()], |row| number(row, 0)).optional()
            })
            .map_err(self.failed("read a guest"))
    }

    /// All guests, complete, in order of number.
    pub fn all(&self) -> Result<Vec<GuestConfig>, RegistryError> {
        self.in_one_view(|| {
            let columns = self.columns();
            let sql =
                format!("SELECT {columns} FROM guest WHERE removed_at IS NULL ORDER BY number");
            let guests = self.rows(&sql, [], summary)?;
            let sql =
                format!("SELECT {DEVICE_COLUMNS} FROM device ORDER BY guest, bus, device, target");
            let mut storage = by_guest(self.rows(&sql, [], device)?);
            let sql = format!(
                "SELECT {LAYER_COLUMNS} FROM layer ORDER BY guest, bus, device, target, place"
            );
            for (guest, layer) in self.layers(&sql, [])? {
                layer.put_under(storage.get_mut(&guest).map_or(&mut [], Vec::as_mut_slice));
            }
            let mut nics = by_guest(self.nic_rows("ORDER BY guest, bus, device", [])?);
            let sql = "SELECT guest, bus, device FROM port ORDER BY guest, bus, device";
            let mut ports = by_guest(self.rows(sql, [], port)?);
            Ok(guests
                .into_iter()
                .map(|guest| {
                    let number = guest.number;
                    let storage = storage.remove(&number).unwrap_or_default();
                    let nics = nics.remove(&number).unwrap_or_default();
                    guest.with(storage, nics, ports.remove(&number).unwrap_or_default())
                })
                .collect())
        })
        .map_err(self.failed("read the guests"))
    }

    /// The guests that were removed and are kept, in order of removal.
    pub fn removed(&self) -> Result<Vec<RemovedGuest>, RegistryError> {
        self.kept("removed_at IS NOT NULL ORDER BY removed_at, number", [])
            .map_err(self.failed("read the removed guests"))
    }

    /// One of those, by its number.
    pub fn removed_guest(
        &self,
        number: GuestNumber,
    ) -> Result<Option<RemovedGuest>, RegistryError> {
        let found = self.kept("removed_at IS NOT NULL AND number = ?1", [number.get()]);
        Ok(found.map_err(self.failed("read a removed guest"))?.pop())
    }

    /// The removed guests whose time is over.
    pub fn due(&self, now: Timestamp) -> Result<Vec<RemovedGuest>, RegistryError> {
        let filter = "removed_at IS NOT NULL AND keep_until <= ?1 ORDER BY keep_until, number";
        self.kept(filter, [now.as_millisecond()]).map_err(self.failed("read the removed guests"))
    }

    /// The guests that have this file, whatever path leads to it, but for `except`.
    pub fn sharers(
        &self,
        file: &FileIdentity,
        except: Option<GuestNumber>,
    ) -> Result<Vec<Sharer>, RegistryError> {
        let mut sharers = self.sharers_and_kept(file, except)?;
        sharers.retain(Sharer::needs_it);
        Ok(sharers)
    }

    /// The same, and the removed guests that had it as a store when they were removed. What they had may be gone, and another file
    /// known by the same numbers.
    pub fn sharers_and_kept(
        &self,
        file: &FileIdentity,
        except: Option<GuestNumber>,
    ) -> Result<Vec<Sharer>, RegistryError> {
        let (inode, device) = stored(file);
        let of_this_file = "file_inode = ?1 AND file_device = ?2 AND guest IS NOT ?3";
        self.having(of_this_file, (inode, device, except.map(GuestNumber::get)))
    }

    /// The same of whatever lies at a path, as the guests have it written: what was copied there has another inode, and a file system
    /// may have another number after each boot.
    pub fn sharers_and_kept_at(
        &self,
        path: &str,
        except: Option<GuestNumber>,
    ) -> Result<Vec<Sharer>, RegistryError> {
        self.having("path = ?1 AND guest IS NOT ?2", (path, except.map(GuestNumber::get)))
    }

    fn having<P: rusqlite::Params + Copy>(
        &self,
        condition: &str,
        asked: P,
    ) -> Result<Vec<Sharer>, RegistryError> {
        let stores = format!(
            "SELECT guest, bus, device, target, kind, storage FROM device WHERE {condition}"
        );
        let layers = format!(
            "SELECT guest, bus, device, target, 'disk', storage FROM layer WHERE {condition}"
        );
        // Nearly always nobody has it, and a statement that joins or sorts takes longer to prepare than all else here.
        let mut sharers = self
            .in_one_view(|| {
                let mut sharers = self.sharers_by(StoreRole::Store, &stores, asked)?;
                if self.version.get() >= LAYERS_SINCE_VERSION {
                    sharers.extend(self.sharers_by(StoreRole::Layer, &layers, asked)?);
                }
                Ok(sharers)
            })
            .map_err(self.failed("look for sharers of a file"))?;
        sharers
            .sort_by_key(|sharer| (sharer.number, sharer.address, sharer.role == StoreRole::Layer));
        Ok(sharers)
    }

    fn sharers_by<P: rusqlite::Params>(
        &self,
        role: StoreRole,
        sql: &str,
        parameters: P,
    ) -> rusqlite::Result<Vec<Sharer>> {
        let found = self.rows(sql, parameters, |row| {
            Ok((number(row, 0)?, address(row, 1)?, parsed(row, 4)?, parsed(row, 5)?))
        })?;
        let mut sharers = Vec::new();
        for (number, address, kind, storage) in found {
            let (guest, removed): (GuestName, bool) = self
                .connection
                .prepare_cached("SELECT name, removed_at IS NOT NULL FROM guest WHERE number = ?1")?
                .query_row([number.get()], |row| Ok((parsed(row, 0)?, row.get(1)?)))?;
            sharers.push(Sharer { guest, number, address, kind, storage, role, removed });
        }
        Ok(sharers)
    }

    /// What SQLite finds wrong inside the file, a sentence each, at most a hundred; none in a sound one.
    pub fn check(&self) -> Result<Vec<String>, RegistryError> {
        self.in_one_view(|| {
            let mut findings = self.rows("PRAGMA integrity_check(100)", [], |row| row.get(0))?;
            findings.retain(|text: &String| text != "ok");
            let dangling = self.rows("PRAGMA foreign_key_check", [], |row| {
                Ok(format!("a row of {} belongs to no guest", row.get::<_, String>(0)?))
            })?;
            let sql = "SELECT name, device_count, (SELECT count(*) FROM device WHERE guest = number) AS real
                 FROM guest WHERE device_count <> real";
            let miscounted = self.rows(sql, [], |row| {
                let (name, said, real) = (row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?);
                Ok(format!("guest {name} is said to have {said} devices and has {real}"))
            })?;
            findings.extend(dangling);
            findings.extend(miscounted);
            findings.extend(self.miscounted_nics()?);
            findings.truncate(100);
            Ok(findings)
        })
        .map_err(self.failed("check"))
    }

    /// The file this was opened from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn kept<P: rusqlite::Params>(
        &self,
        filter: &str,
        parameters: P,
    ) -> rusqlite::Result<Vec<RemovedGuest>> {
        let columns = self.columns();
        let sql = format!("SELECT {columns}, removed_at, keep_until FROM guest WHERE {filter}");
        self.in_one_view(|| {
            let rows = self.rows(&sql, parameters, |row| {
                Ok((summary(row)?, timestamp(row, 16)?, timestamp(row, 17)?))
            })?;
            rows.into_iter()
                .map(|(guest, removed_at, keep_until)| {
                    Ok(RemovedGuest { config: self.completed(guest)?, removed_at, keep_until })
                })
                .collect()
        })
    }

    fn completed(&self, guest: GuestSummary) -> rusqlite::Result<GuestConfig> {
        let key = [guest.number.get()];
        let sql = format!(
            "SELECT {DEVICE_COLUMNS} FROM device WHERE guest = ?1 ORDER BY bus, device, target"
        );
        let mut storage: Vec<StorageDevice> =
            self.rows(&sql, key, device)?.into_iter().map(|(_, device)| device).collect();
        let sql = format!(
            "SELECT {LAYER_COLUMNS} FROM layer WHERE guest = ?1 ORDER BY bus, device, target, place"
        );
        for (_, layer) in self.layers(&sql, key)? {
            layer.put_under(&mut storage);
        }
        let nics = self.nic_rows("WHERE guest = ?1 ORDER BY bus, device", key)?;
        let nics = nics.into_iter().map(|(_, nic)| nic).collect();
        let sql = "SELECT guest, bus, device FROM port WHERE guest = ?1 ORDER BY bus, device";
        let ports = self.rows(sql, key, port)?.into_iter().map(|(_, slot)| slot).collect();
        Ok(guest.with(storage, nics, ports))
    }

    /// NICs came with a version; a reader takes an older file as it is.
    fn columns(&self) -> &'static str {
        if self.has_networks() { COLUMNS } else { COLUMNS_WITHOUT_NICS }
    }

    fn layers<P: rusqlite::Params>(
        &self,
        sql: &str,
        parameters: P,
    ) -> rusqlite::Result<Vec<(GuestNumber, Layer)>> {
        match self.version.get() < LAYERS_SINCE_VERSION {
            true => Ok(Vec::new()),
            false => self.rows(sql, parameters, layer),
        }
    }

    pub(crate) fn rows<T, P: rusqlite::Params>(
        &self,
        sql: &str,
        parameters: P,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<Vec<T>> {
        self.connection.prepare_cached(sql)?.query_map(parameters, read)?.collect()
    }
}

impl GuestSummary {
    fn with(self, storage: Vec<StorageDevice>, nics: Vec<Nic>, ports: Vec<PciSlot>) -> GuestConfig {
        GuestConfig {
            uuid: self.uuid,
            number: self.number,
            name: self.name,
            serial_number: self.serial_number,
            label: self.label,
            os: self.os,
            vcpus: self.vcpus,
            entitlement: self.entitlement,
            memory: self.memory,
            auto_start: self.auto_start,
            runnable: self.runnable,
            storage,
            nics,
            ports,
        }
    }
}

/// Inode and device as SQLite keeps them: the same 64 bits, signed.
pub(crate) fn stored(file: &FileIdentity) -> (i64, i64) {
    (file.inode.cast_signed(), file.device.cast_signed())
}

fn by_guest<T>(rows: Vec<(GuestNumber, T)>) -> HashMap<GuestNumber, Vec<T>> {
    let mut guests: HashMap<GuestNumber, Vec<T>> = HashMap::new();
    for (guest, value) in rows {
        guests.entry(guest).or_default().push(value);
    }
    guests
}

fn summary(row: &Row<'_>) -> rusqlite::Result<GuestSummary> {
    Ok(GuestSummary {
        number: number(row, 0)?,
        uuid: uuid(row, 1)?,
        name: parsed(row, 2)?,
        label: parsed(row, 3)?,
        serial_number: row.get(4)?,
        os: OsType { family: os_family(row, 5)?, version: row.get(6)? },
        vcpus: Vcpus::try_from(row.get::<_, u32>(7)?).map_err(|e| wrong(7, e))?,
        entitlement: entitlement(row, 8)?,
        memory: memory(row, 11)?,
        auto_start: parsed(row, 12)?,
        runnable: parsed(row, 13)?,
        devices: row.get(14)?,
        nics: row.get(15)?,
    })
}

fn device(row: &Row<'_>) -> rusqlite::Result<(GuestNumber, StorageDevice)> {
    let device = StorageDevice {
        address: address(row, 1)?,
        kind: parsed(row, 4)?,
        adapter: parsed(row, 5)?,
        backing: backing(row, 6)?,
        layers: Vec::new(),
        id: parsed(row, 8)?,
    };
    Ok((number(row, 0)?, device))
}

/// A layer of the device at an address; they come the uppermost first.
struct Layer {
    address: StorageAddress,
    backing: Backing,
}

impl Layer {
    fn put_under(self, storage: &mut [StorageDevice]) {
        if let Some(device) = storage.iter_mut().find(|device| device.address == self.address) {
            device.layers.push(self.backing);
        }
    }
}

fn layer(row: &Row<'_>) -> rusqlite::Result<(GuestNumber, Layer)> {
    Ok((number(row, 0)?, Layer { address: address(row, 1)?, backing: backing(row, 4)? }))
}

fn port(row: &Row<'_>) -> rusqlite::Result<(GuestNumber, PciSlot)> {
    Ok((number(row, 0)?, slot(row, 1)?))
}

pub(crate) fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<GuestNumber> {
    let number = row.get(column)?;
    GuestNumber::new(number).ok_or_else(|| wrong(column, format!("{number} is no guest number")))
}

pub(crate) fn uuid(row: &Row<'_>, column: usize) -> rusqlite::Result<GuestUuid> {
    let bytes: [u8; 16] = row.get(column)?;
    Ok(GuestUuid(uuid::Uuid::from_bytes(bytes)))
}

/// The last second there is has milliseconds that can be written and not be read: a guest kept for ever is kept until
/// that second begins.
pub(crate) fn timestamp(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    let last = Timestamp::MAX.as_second() * 1000;
    let time = row.get::<_, i64>(column)?.min(last);
    Timestamp::from_millisecond(time).map_err(|e| wrong(column, e))
}

/// A value whose type reads itself from text.
pub(crate) fn parsed<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr,
    T::Err: Into<Wrong>,
{
    text(row, column)?.parse().map_err(|e| wrong(column, e))
}

fn text<'row>(row: &'row Row<'_>, column: usize) -> rusqlite::Result<&'row str> {
    row.get_ref(column)?.as_str().map_err(|e| wrong(column, e))
}

fn os_family(row: &Row<'_>, column: usize) -> rusqlite::Result<OsFamily> {
    let text = text(row, column)?;
    OsFamily::ALL
        .into_iter()
        .find(|family| family.as_str() == text)
        .ok_or_else(|| wrong(column, format!("'{text}' is no guest OS type")))
}

/// Three columns: unit, promise, maximum.
fn entitlement(row: &Row<'_>, column: usize) -> rusqlite::Result<Entitlement> {
    let (entitled, maximum) = (row.get(column + 1)?, row.get::<_, Option<u32>>(column + 2)?);
    match (text(row, column)?, maximum) {
        ("percent", Some(maximum)) => Ok(Entitlement::Percent {
            entitled: TenthsPercent(entitled),
            maximum: TenthsPercent(maximum),
        }),
        ("mhz", maximum) => Ok(Entitlement::Mhz { entitled, maximum }),
        (unit, _) => Err(wrong(column, format!("'{unit}' is no complete entitlement"))),
    }
}

fn memory(row: &Row<'_>, column: usize) -> rusqlite::Result<Memory> {
    let bytes = u64::try_from(row.get::<_, i64>(column)?).map_err(|e| wrong(column, e))?;
    Memory::at_least(Bytes(bytes)).map_err(|e| wrong(column, e))
}

pub(crate) fn slot(row: &Row<'_>, column: usize) -> rusqlite::Result<PciSlot> {
    PciSlot::new(row.get(column)?, row.get(column + 1)?).map_err(|e| wrong(column, e))
}

/// Three columns: bus, device, target.
fn address(row: &Row<'_>, column: usize) -> rusqlite::Result<StorageAddress> {
    Ok(StorageAddress { slot: slot(row, column)?, target: row.get(column + 2)? })
}

/// Two columns: storage type and location.
fn backing(row: &Row<'_>, column: usize) -> rusqlite::Result<Backing> {
    Ok(Backing { storage: parsed(row, column)?, path: row.get(column + 1)? })
}

type Wrong = Box<dyn std::error::Error + Send + Sync>;

/// A stored value that its type refuses: the file was changed by somebody else.
pub(crate) fn wrong(column: usize, why: impl Into<Wrong>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, why.into())
}
