//! The tables, and how a registry file comes into being: complete and synced under another name, then renamed into place,
//! so that no power cut leaves half a registry.
//!
//! ```text
//! guest ──< device      what it has; file_device and file_inode: the file behind it when it was configured
//!       ──< layer       what lies under its devices
//!       ──< port        root ports made for it at some start
//!       ──< nic         its NICs; a switch is named, and may be none that is here
//! entry                 the device database: restrictions, and what is known of devices beside the guests that have them
//! entry_backup          hpvmhostrdev's entries as they were before its last change
//! hostrdev              whether hpvmhostrdev runs when the VM Host starts: one row
//! vswitch ─< forward    port forwards of a NAT wire
//!         ─< switch_port  ports with rules of their own
//! operation             who did what when, and how it ended; no reference to guest, since it outlives guests
//! ```
//!
//! A removed guest stays a row of `guest` with `removed_at` and `keep_until` until it is purged: its number and UUID stay
//! taken, its name is free.
//!
//! An entry says nothing that devices say: which guests depend on it is asked of `device`.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::error::RegistryError;
use crate::open::Registry;

/// The version of the tables below, kept as `user_version`.
pub(crate) const VERSION: i64 = 4;
/// `hpvm` in ASCII, kept as `application_id`: tells our file from another program's.
pub(crate) const APPLICATION_ID: i64 = 0x6870_766d;

/// Its owner writes, its group reads: who is neither reads no registry.
pub(crate) const MODE: u32 = 0o640;

const TABLES: &str = "
CREATE TABLE guest (
    number           INTEGER PRIMARY KEY,
    uuid             BLOB    NOT NULL UNIQUE CHECK (length(uuid) = 16),
    name             TEXT    NOT NULL,
    label            TEXT    NOT NULL,
    serial_number    TEXT    NOT NULL,
    os_family        TEXT    NOT NULL,
    os_version       TEXT,
    vcpus            INTEGER NOT NULL,
    entitlement_unit TEXT    NOT NULL CHECK (entitlement_unit IN ('percent', 'mhz')),
    entitled         INTEGER NOT NULL,
    entitled_max     INTEGER,
    memory_bytes     INTEGER NOT NULL,
    auto_start       TEXT    NOT NULL CHECK (auto_start IN ('auto', 'manual')),
    runnable         TEXT    NOT NULL CHECK (runnable IN ('enabled', 'disabled')),
    device_count     INTEGER NOT NULL,
    created_at       INTEGER NOT NULL,
    removed_at       INTEGER,
    keep_until       INTEGER,
    CHECK ((removed_at IS NULL) = (keep_until IS NULL))
) STRICT;
CREATE UNIQUE INDEX guest_name ON guest (name) WHERE removed_at IS NULL;
CREATE INDEX guest_kept ON guest (keep_until) WHERE removed_at IS NOT NULL;

CREATE TABLE device (
    guest       INTEGER NOT NULL REFERENCES guest (number) ON DELETE CASCADE,
    bus         INTEGER NOT NULL,
    device      INTEGER NOT NULL,
    target      INTEGER NOT NULL,
    kind        TEXT    NOT NULL,
    adapter     TEXT    NOT NULL,
    storage     TEXT    NOT NULL,
    path        TEXT    NOT NULL,
    id          TEXT    NOT NULL,
    file_device INTEGER,
    file_inode  INTEGER,
    PRIMARY KEY (guest, bus, device, target),
    CHECK ((file_device IS NULL) = (file_inode IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX device_file ON device (file_inode, file_device) WHERE file_inode IS NOT NULL;

CREATE TABLE port (
    guest  INTEGER NOT NULL REFERENCES guest (number) ON DELETE CASCADE,
    bus    INTEGER NOT NULL,
    device INTEGER NOT NULL,
    PRIMARY KEY (guest, bus, device)
) STRICT, WITHOUT ROWID;

CREATE TABLE operation (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    at               INTEGER NOT NULL,
    uid              INTEGER NOT NULL,
    user             TEXT    NOT NULL,
    from_where       TEXT    NOT NULL,
    command_line     TEXT    NOT NULL,
    reason           TEXT,
    guest_uuid       BLOB,
    guest_name       TEXT,
    before           TEXT,
    after            TEXT,
    result           TEXT    NOT NULL CHECK (result IN ('running', 'done', 'failed')),
    error            TEXT,
    duration_ms      INTEGER NOT NULL,
    step             TEXT,
    owner_pid        INTEGER,
    owner_start_time INTEGER,
    owner_boot_id    TEXT
) STRICT;
CREATE INDEX operation_guest ON operation (guest_uuid);
CREATE INDEX operation_running ON operation (id) WHERE result = 'running';
";

/// What version 2 added; executed on a registry of version 1 too. The name comes first in the key: by the type, which three
/// values share, SQLite would read all entries.
pub(crate) const TABLES_OF_VERSION_2: &str = "
CREATE TABLE entry (
    type        TEXT NOT NULL CHECK (type IN ('gdev', 'rdev', 'server')),
    name        TEXT NOT NULL,
    real_path   TEXT NOT NULL,
    origin      TEXT NOT NULL CHECK (origin IN ('hand', 'guest', 'host', 'signature')),
    reason      TEXT,
    identifier  TEXT,
    size_bytes  INTEGER,
    share       TEXT NOT NULL CHECK (share IN ('YES', 'NO')),
    preserve    TEXT NOT NULL CHECK (preserve IN ('YES', 'NO')),
    read_only   TEXT NOT NULL CHECK (read_only IN ('YES', 'NO')),
    usage       TEXT,
    allow       TEXT NOT NULL CHECK (allow IN ('YES', 'NO')),
    file_device INTEGER,
    file_inode  INTEGER,
    PRIMARY KEY (name, type),
    CHECK ((file_device IS NULL) = (file_inode IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX entry_real_path ON entry (real_path);
CREATE INDEX entry_identifier ON entry (identifier) WHERE identifier IS NOT NULL;
CREATE INDEX entry_file ON entry (file_inode, file_device) WHERE file_inode IS NOT NULL;
CREATE INDEX entry_origin ON entry (origin);
CREATE INDEX entry_usage ON entry (real_path) WHERE usage IS NOT NULL;
CREATE INDEX entry_restricting ON entry (real_path)
    WHERE type = 'rdev' AND origin <> 'host' AND allow = 'NO';
CREATE INDEX device_path ON device (path);

CREATE TABLE entry_backup AS SELECT * FROM entry;

CREATE TABLE hostrdev (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    at_start TEXT NOT NULL CHECK (at_start IN ('YES', 'NO'))
) STRICT;
INSERT INTO hostrdev VALUES (1, 'YES');
";

/// What version 3 added: the layers under disks of linked clones.
pub(crate) const TABLES_OF_VERSION_3: &str = "
CREATE TABLE IF NOT EXISTS layer (
    guest       INTEGER NOT NULL REFERENCES guest (number) ON DELETE CASCADE,
    bus         INTEGER NOT NULL,
    device      INTEGER NOT NULL,
    target      INTEGER NOT NULL,
    place       INTEGER NOT NULL,
    storage     TEXT    NOT NULL,
    path        TEXT    NOT NULL,
    file_device INTEGER,
    file_inode  INTEGER,
    PRIMARY KEY (guest, bus, device, target, place),
    CHECK ((file_device IS NULL) = (file_inode IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS layer_file ON layer (file_inode, file_device) WHERE file_inode IS NOT NULL;
CREATE INDEX IF NOT EXISTS layer_path ON layer (path);
";

/// What version 4 added: virtual switches and NICs. The switch that always exists is made with the tables.
pub(crate) const TABLES_OF_VERSION_4: &str = "
CREATE TABLE vswitch (
    number    INTEGER PRIMARY KEY,
    name      TEXT    NOT NULL UNIQUE,
    wire      TEXT    NOT NULL CHECK (wire IN ('none', 'nic', 'tap', 'nat')),
    interface TEXT,
    state     TEXT    NOT NULL CHECK (state IN ('up', 'halted')),
    CHECK ((interface IS NULL) = (wire IN ('none', 'nat')))
) STRICT;
INSERT INTO vswitch VALUES (1, 'localnet', 'none', NULL, 'up');

CREATE TABLE forward (
    vswitch INTEGER NOT NULL REFERENCES vswitch (number) ON DELETE CASCADE,
    place   INTEGER NOT NULL,
    forward TEXT    NOT NULL,
    PRIMARY KEY (vswitch, place)
) STRICT, WITHOUT ROWID;

CREATE TABLE switch_port (
    vswitch INTEGER NOT NULL REFERENCES vswitch (number) ON DELETE CASCADE,
    port    INTEGER NOT NULL,
    rules   TEXT    NOT NULL,
    PRIMARY KEY (vswitch, port)
) STRICT, WITHOUT ROWID;

ALTER TABLE guest ADD COLUMN nic_count INTEGER NOT NULL DEFAULT 0;

CREATE TABLE nic (
    guest   INTEGER NOT NULL REFERENCES guest (number) ON DELETE CASCADE,
    bus     INTEGER NOT NULL,
    device  INTEGER NOT NULL,
    kind    TEXT    NOT NULL CHECK (kind IN ('lan', 'avio_lan')),
    mac     TEXT    NOT NULL,
    vswitch TEXT    NOT NULL,
    port    INTEGER NOT NULL,
    PRIMARY KEY (guest, bus, device)
) STRICT, WITHOUT ROWID;
CREATE INDEX nic_mac ON nic (mac);
CREATE INDEX nic_port ON nic (vswitch, port);
";

/// Makes an empty registry at `path`; fine when another process was faster.
pub(crate) fn create(path: &Path) -> Result<(), RegistryError> {
    let fresh = Fresh::write(path, |_| Ok(()))?;
    match renameat_with(CWD, &fresh.path, CWD, path, RenameFlags::NOREPLACE) {
        Ok(()) => {
            fresh.renamed();
            sync_folder_of(path)
        }
        Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(RegistryError::file("create the registry", path)(error.into())),
    }
}

/// A complete, synced registry under a name of its own, removed on drop unless it was renamed.
pub(crate) struct Fresh {
    pub(crate) path: PathBuf,
    /// Its name may be another's by now.
    is_renamed: bool,
}

impl Fresh {
    /// Writes one that is to become `target`, with what `fill` puts in.
    pub(crate) fn write(
        target: &Path,
        fill: impl FnOnce(&Registry) -> Result<(), RegistryError>,
    ) -> Result<Fresh, RegistryError> {
        let fresh = Fresh::claim(target)?;
        let registry = Registry::of_fresh_file(&fresh.path, target)?;
        fill(&registry)?;
        // The last to close a file takes its log away, so that one name moves all of it.
        registry.close()?;
        File::open(&fresh.path)
            .and_then(|file| file.sync_all())
            .map_err(RegistryError::file("sync the registry", target))?;
        Ok(fresh)
    }

    /// It has its place, and nothing of it is left under the name of its own.
    pub(crate) fn renamed(mut self) {
        self.is_renamed = true;
    }

    fn claim(target: &Path) -> Result<Fresh, RegistryError> {
        const TRIES: u32 = 100;
        let mut left_over = None;
        for attempt in 0..TRIES {
            let path = named_beside(target, &format!(".new-{}-{attempt}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).mode(MODE).open(&path) {
                Ok(_) => return Ok(Fresh { path, is_renamed: false }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => left_over = Some(error),
                Err(error) => {
                    return Err(RegistryError::file("create the registry", target)(error));
                }
            }
        }
        let error = left_over.unwrap_or_else(|| ErrorKind::AlreadyExists.into());
        Err(RegistryError::file("create the registry", target)(error))
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if self.is_renamed {
            return;
        }
        for suffix in ["", "-wal", "-shm"] {
            // What stays after an error is found by its name.
            let _ = fs::remove_file(named_beside(&self.path, suffix));
        }
    }
}

/// Tables for a connection to an empty file, or to none; whoever wants the file to last syncs it when it is complete.
pub(crate) fn make_tables(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "off")?;
    connection.execute_batch(&format!(
        "BEGIN;
         {TABLES}
         {TABLES_OF_VERSION_2}
         {TABLES_OF_VERSION_3}
         {TABLES_OF_VERSION_4}
         PRAGMA application_id = {APPLICATION_ID};
         PRAGMA user_version = {VERSION};
         COMMIT;"
    ))
}

/// `hpvm.db` and `-wal` give `hpvm.db-wal`.
pub(crate) fn named_beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub(crate) fn sync_folder_of(path: &Path) -> Result<(), RegistryError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(RegistryError::file("sync the folder of the registry", path))
}
