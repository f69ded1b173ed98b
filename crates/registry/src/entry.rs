//! Entries of the device database as rows. Judging asks by path, identifier and file, each an index, so that its price does
//! not grow with the entries; who depends on an entry is asked of the guests' devices.

use std::collections::BTreeSet;

use hpvm_model::{
    Attributes, Bytes, Choice, DeviceKind, EntryId, EntryType, FileIdentity, Origin, StoreIdentity,
};
use rusqlite::{OptionalExtension, Row, params};

use crate::change::Change;
use crate::error::RegistryError;
use crate::guest::{LAYERS_SINCE_VERSION, parsed, stored, wrong};
use crate::open::Registry;

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: EntryId,
    /// What the name led to when the entry was made, links followed; the name itself where that is unknown.
    pub real_path: String,
    pub origin: Origin,
    /// Why hpvmhostrdev made it, a clause for people.
    pub reason: Option<String>,
    pub identity: Option<StoreIdentity>,
    pub attributes: Attributes,
    /// The file or folder as the kernel knew it then.
    pub file: Option<FileIdentity>,
}

impl Entry {
    /// One that an administrator makes.
    #[must_use]
    pub fn by_hand(id: EntryId, real_path: String) -> Entry {
        let attributes = Attributes::default();
        let (reason, identity, file) = (None, None, None);
        Entry { id, real_path, origin: Origin::Hand, reason, identity, attributes, file }
    }
}

/// By what entries of one store are found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    pub paths: BTreeSet<String>,
    pub identifiers: BTreeSet<String>,
    pub files: BTreeSet<FileIdentity>,
}

impl Keys {
    /// Takes up others, so that what they have in common is looked for once.
    pub fn merge(&mut self, mut others: Keys) {
        self.paths.append(&mut others.paths);
        self.identifiers.append(&mut others.identifiers);
        self.files.append(&mut others.files);
    }
}

const COLUMNS: &str = "type, name, real_path, origin, reason, identifier, size_bytes, share, \
     preserve, read_only, usage, allow, file_device, file_inode";

const HAS_NAME: &str = "type = ?1 AND name = ?2";
const LEADS_TO: &str = "type = ?1 AND real_path = ?2";

/// Of an entry that nobody made by hand, says nothing of its own, and is of no device and under none.
const UNUSED: &str = "type = 'gdev' AND origin = 'guest'
     AND share = 'NO' AND preserve = 'NO' AND read_only = 'NO' AND usage IS NULL
     AND NOT EXISTS (SELECT 1 FROM device WHERE path = entry.name)
     AND NOT EXISTS (SELECT 1 FROM layer WHERE path = entry.name)";

/// The tables that hold entries came with this version.
const SINCE_VERSION: i64 = 2;

impl Registry {
    /// All entries, in order of type and name.
    pub fn entries(&self) -> Result<Vec<Entry>, RegistryError> {
        self.entries_where("1 ORDER BY type, name", [])
    }

    /// The entry of this name, or of its type for what the name leads to.
    pub fn entry(&self, id: &EntryId, real_path: &str) -> Result<Option<Entry>, RegistryError> {
        let of = id.entry.as_str();
        let mut names = self.names_where(HAS_NAME, [of, id.name()])?;
        if names.is_empty() {
            names = self.names_where(LEADS_TO, [of, real_path])?;
        }
        names.first().map_or(Ok(None), |name| self.named(of, name))
    }

    /// The entries of guests' devices that may not be written.
    pub fn read_only_entries(&self) -> Result<Vec<Entry>, RegistryError> {
        self.entries_where("read_only = 'YES' AND type = ?1", [EntryType::Guest.as_str()])
    }

    /// The entries of a type that any of these keys finds, in order of name.
    pub fn entries_by(&self, of: EntryType, keys: &Keys) -> Result<Vec<Entry>, RegistryError> {
        let of = of.as_str();
        let mut names = BTreeSet::new();
        for path in &keys.paths {
            names.extend(self.names_where(LEADS_TO, [of, path])?);
            names.extend(self.names_where(HAS_NAME, [of, path])?);
        }
        for identifier in &keys.identifiers {
            names.extend(self.names_where("type = ?1 AND identifier = ?2", [of, identifier])?);
        }
        for file in &keys.files {
            let (inode, device) = stored(file);
            let filter = "type = ?1 AND file_inode = ?2 AND file_device = ?3";
            names.extend(self.names_where(filter, params![of, inode, device])?);
        }
        names.iter().filter_map(|name| self.named(of, name).transpose()).collect()
    }

    /// The entries of a type whose device is a disk with this identifier, or a partition of one.
    pub fn entries_of_disk(&self, of: EntryType, disk: &str) -> Result<Vec<Entry>, RegistryError> {
        let mut found = self.entries_where("identifier = ?2 AND type = ?1", [of.as_str(), disk])?;
        // Partitions are `DISK-partNUMBER`, and no digit comes after '9' but what follows it in ASCII.
        let filter = "identifier >= ?2 AND identifier < ?3 AND type = ?1";
        let part = format!("{disk}-part");
        let bounds = [of.as_str(), &format!("{part}0"), &format!("{part}:")];
        found.extend(self.entries_where(filter, bounds)?);
        Ok(found)
    }

    /// The name of the first entry for something below a folder, given as its real path, that keeps guests from it. What the VM Host was
    /// only seen to use keeps nobody from an image, which is read and no more.
    pub fn restricting_below(&self, folder: &str) -> Result<Option<String>, RegistryError> {
        let [after, before] = bounds_of_folder(folder);
        let filter = "real_path > ?1 AND real_path < ?2 AND type = 'rdev'
                          AND origin <> 'host' AND allow = 'NO' ORDER BY real_path LIMIT 1";
        Ok(self.names_where(filter, [&after, &before])?.pop())
    }

    /// What an administrator restricts.
    pub fn restricted_by_hand(&self) -> Result<Vec<Entry>, RegistryError> {
        self.entries_where("type = 'rdev' AND origin = 'hand' AND allow = 'NO' ORDER BY name", [])
    }

    /// The name and use of the first of those of guests' devices below a folder that are kept for something else than a drive.
    pub fn kept_for_another_below(
        &self,
        folder: &str,
    ) -> Result<Option<(String, DeviceKind)>, RegistryError> {
        if self.version.get() < SINCE_VERSION {
            return Ok(None);
        }
        let [after, before] = bounds_of_folder(folder);
        let sql = "SELECT name, usage FROM entry
             WHERE real_path > ?1 AND real_path < ?2 AND type = 'gdev' AND usage <> ?3
             ORDER BY real_path LIMIT 1";
        let drive = DeviceKind::Dvd.as_str();
        self.rows(sql, [&after, &before, drive], |row| Ok((row.get(0)?, parsed(row, 1)?)))
            .map(|mut found| found.pop())
            .map_err(self.failed("read the device database"))
    }

    /// Whether an existing guest other than `except` has a device by this name, or one that builds on it.
    pub fn is_used_by_others(
        &self,
        path: &str,
        except: Option<hpvm_model::GuestNumber>,
    ) -> Result<bool, RegistryError> {
        let layers = match self.version.get() < LAYERS_SINCE_VERSION {
            true => "",
            false => "UNION ALL SELECT guest FROM layer WHERE path = ?1",
        };
        let sql = format!(
            "SELECT EXISTS (SELECT 1 FROM guest
                 WHERE number IN (SELECT guest FROM device WHERE path = ?1 {layers})
                     AND number IS NOT ?2 AND removed_at IS NULL)"
        );
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut statement| {
                let except = except.map(hpvm_model::GuestNumber::get);
                statement.query_row(params![path, except], |row| row.get(0))
            })
            .map_err(self.failed("look for guests of a device"))
    }

    /// The entries hpvmhostrdev had before its last change.
    pub fn entries_before(&self) -> Result<Vec<Entry>, RegistryError> {
        if self.version.get() < SINCE_VERSION {
            return Ok(Vec::new());
        }
        let sql = format!("SELECT {COLUMNS} FROM entry_backup ORDER BY type, name");
        self.rows(&sql, [], entry).map_err(self.failed("read the device database"))
    }

    /// Whether hpvmhostrdev runs when the VM Host starts.
    pub fn hostrdev_at_start(&self) -> Result<Choice, RegistryError> {
        if self.version.get() < SINCE_VERSION {
            return Ok(Choice::Yes);
        }
        let asked = self
            .connection
            .query_row("SELECT at_start FROM hostrdev", [], |row| choice(row, 0))
            .optional();
        asked.map(|at_start| at_start.unwrap_or(Choice::Yes)).map_err(self.failed("read a setting"))
    }

    fn named(&self, of: &str, name: &str) -> Result<Option<Entry>, RegistryError> {
        Ok(self.entries_where(HAS_NAME, [of, name])?.pop())
    }

    /// Of entries alone what names them: mostly there are none, and to prepare a statement for all columns takes longer than
    /// to find that out.
    fn names_where<P: rusqlite::Params>(
        &self,
        filter: &str,
        parameters: P,
    ) -> Result<Vec<String>, RegistryError> {
        if self.version.get() < SINCE_VERSION {
            return Ok(Vec::new());
        }
        let sql = format!("SELECT name FROM entry WHERE {filter}");
        self.rows(&sql, parameters, |row| row.get(0))
            .map_err(self.failed("read the device database"))
    }

    fn entries_where<P: rusqlite::Params>(
        &self,
        filter: &str,
        parameters: P,
    ) -> Result<Vec<Entry>, RegistryError> {
        if self.version.get() < SINCE_VERSION {
            return Ok(Vec::new());
        }
        let sql = format!("SELECT {COLUMNS} FROM entry WHERE {filter}");
        self.rows(&sql, parameters, entry).map_err(self.failed("read the device database"))
    }
}

impl Change<'_> {
    /// Adds an entry, or replaces the one of that name.
    pub fn put_entry(&self, entry: &Entry) -> Result<(), RegistryError> {
        self.store_entry("entry", entry).map_err(self.failed("change the device database"))
    }

    /// Adds an entry to those that hpvmhostrdev goes back to.
    pub(crate) fn put_entry_before(&self, entry: &Entry) -> Result<(), RegistryError> {
        self.store_entry("entry_backup", entry).map_err(self.failed("change the device database"))
    }

    pub fn delete_entry(&self, id: &EntryId) -> Result<(), RegistryError> {
        self.connection
            .prepare_cached("DELETE FROM entry WHERE type = ?1 AND name = ?2")
            .and_then(|mut statement| statement.execute([id.entry.as_str(), id.name()]))
            .map(drop)
            .map_err(self.failed("change the device database"))
    }

    /// Forgets what came with guests' devices of this name, once no device has it any more, existing or kept.
    pub fn delete_unused_entry(&self, path: &str) -> Result<(), RegistryError> {
        let sql = format!("DELETE FROM entry WHERE name = ?1 AND {UNUSED}");
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut statement| statement.execute([path]))
            .map(drop)
            .map_err(self.failed("change the device database"))
    }

    /// The same for all devices; tells how many entries went.
    pub fn delete_unused_entries(&self) -> Result<usize, RegistryError> {
        let sql = format!("DELETE FROM entry WHERE {UNUSED}");
        self.connection.execute(&sql, []).map_err(self.failed("change the device database"))
    }

    /// Keeps what hpvmhostrdev has now, so that it can go back.
    pub fn back_entries_up(&self) -> Result<(), RegistryError> {
        let sql = "DELETE FROM entry_backup;
             INSERT INTO entry_backup
                 SELECT * FROM entry WHERE origin IN ('host', 'signature');";
        self.connection.execute_batch(sql).map_err(self.failed("change the device database"))
    }

    pub fn set_hostrdev_at_start(&self, at_start: Choice) -> Result<(), RegistryError> {
        self.connection
            .execute("UPDATE hostrdev SET at_start = ?1", [at_start.as_str()])
            .map(drop)
            .map_err(self.failed("change a setting"))
    }

    fn store_entry(&self, table: &str, entry: &Entry) -> rusqlite::Result<()> {
        let sql = format!(
            "INSERT OR REPLACE INTO {table} ({COLUMNS})
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)"
        );
        let file = entry.file.as_ref().map(stored);
        let identity = entry.identity.as_ref();
        let attributes = &entry.attributes;
        self.connection.prepare_cached(&sql)?.execute(params![
            entry.id.entry.as_str(),
            entry.id.name(),
            entry.real_path,
            entry.origin.as_str(),
            entry.reason,
            identity.and_then(|identity| identity.identifier.as_deref()),
            identity.map(|identity| identity.size.0.cast_signed()),
            attributes.share.as_str(),
            attributes.preserve.as_str(),
            attributes.read_only.as_str(),
            attributes.usage.map(DeviceKind::as_str),
            attributes.allow_guests.as_str(),
            file.map(|(_, device)| device),
            file.map(|(inode, _)| inode),
        ])?;
        Ok(())
    }
}

/// What begins with `FOLDER/` comes after that and before `FOLDER0`: '0' follows '/' in ASCII.
fn bounds_of_folder(folder: &str) -> [String; 2] {
    let folder = folder.trim_end_matches('/');
    [format!("{folder}/"), format!("{folder}0")]
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let of: EntryType = row.get::<_, String>(0)?.parse().map_err(|e| wrong(0, e))?;
    let id = EntryId::new(of, &row.get::<_, String>(1)?).map_err(|e| wrong(1, e))?;
    let usage: Option<String> = row.get(10)?;
    let attributes = Attributes {
        share: choice(row, 7)?,
        preserve: choice(row, 8)?,
        read_only: choice(row, 9)?,
        usage: usage.map(|text| text.parse().map_err(|e: String| wrong(10, e))).transpose()?,
        allow_guests: choice(row, 11)?,
    };
    let size: Option<i64> = row.get(6)?;
    let identifier = row.get(5)?;
    let device: Option<i64> = row.get(12)?;
    let inode: Option<i64> = row.get(13)?;
    Ok(Entry {
        id,
        real_path: row.get(2)?,
        origin: parsed(row, 3)?,
        reason: row.get(4)?,
        identity: size.map(|size| StoreIdentity { identifier, size: Bytes(size.cast_unsigned()) }),
        attributes,
        file: device.zip(inode).map(|(device, inode)| FileIdentity {
            device: device.cast_unsigned(),
            inode: inode.cast_unsigned(),
        }),
    })
}

fn choice(row: &Row<'_>, column: usize) -> rusqlite::Result<Choice> {
    parsed(row, column)
}
