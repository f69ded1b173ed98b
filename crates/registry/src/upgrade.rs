//! Brings a registry of an older version to this one: a copy is kept beside it, then all changes happen in one transaction.
//! Called when a command opens the registry to change it; readers take the old file as it is.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rusqlite::Connection;

use crate::error::RegistryError;
use crate::open::open_for_reading;
use crate::schema::{
    MODE, TABLES_OF_VERSION_2, TABLES_OF_VERSION_3, TABLES_OF_VERSION_4, VERSION, named_beside,
    sync_folder_of,
};

/// Upgrades unless another command was faster. A crash at any point leaves the old version, and perhaps a copy of it.
pub(crate) fn upgrade(connection: &Connection, path: &Path) -> Result<(), RegistryError> {
    let failed = || RegistryError::sql("upgrade", path);
    connection.execute_batch("BEGIN IMMEDIATE").map_err(|e| failed()(e))?;
    let upgraded = upgrade_locked(connection, path);
    if upgraded.is_err() {
        // Should this fail, the connection's end does the same.
        let _ = connection.execute_batch("ROLLBACK");
    }
    upgraded
}

fn upgrade_locked(connection: &Connection, path: &Path) -> Result<(), RegistryError> {
    let failed = || RegistryError::sql("upgrade", path);
    let found = connection
        .pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
        .map_err(|e| failed()(e))?;
    if found < VERSION {
        keep_copy(path, found)?;
        if found < 2 {
            connection.execute_batch(TABLES_OF_VERSION_2).map_err(|e| failed()(e))?;
        }
        connection.execute_batch(TABLES_OF_VERSION_3).map_err(|e| failed()(e))?;
        connection.execute_batch(TABLES_OF_VERSION_4).map_err(|e| failed()(e))?;
        connection.pragma_update(None, "user_version", VERSION).map_err(|e| failed()(e))?;
    }
    connection.execute_batch("COMMIT").map_err(|e| failed()(e))
}

/// `hpvm.db.version-1`: for an older hpvm, should the administrator go back. Written by a reader of its own, while our lock
/// keeps writers out.
fn keep_copy(path: &Path, version: i64) -> Result<(), RegistryError> {
    let kept = named_beside(path, &format!(".version-{version}"));
    let fresh = named_beside(path, &format!(".version-{version}-new"));
    let file_failed = || RegistryError::file("keep a copy of the registry as", &kept);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(file_failed()(error)),
        _ => {}
    }
    let (reader, _) = open_for_reading(path, "")?;
    reader
        .execute("VACUUM INTO ?1", [fresh.to_string_lossy()])
        .map_err(RegistryError::sql("copy", path))?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(MODE))
        .and_then(|()| File::open(&fresh)?.sync_all())
        .and_then(|()| fs::rename(&fresh, &kept))
        .map_err(|e| file_failed()(e))?;
    sync_folder_of(path)
}
