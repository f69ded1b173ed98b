//! Brings a registry of an older version to this one, in the transaction of the first change: a copy is kept beside it before that
//! is committed, and one that is not leaves the old file. Readers take it as it is.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::RegistryError;
use crate::open::{Registry, open_for_reading};
use crate::schema::{
    MODE, TABLES_OF_VERSION_2, TABLES_OF_VERSION_3, TABLES_OF_VERSION_4, VERSION, named_beside,
    sync_folder_of,
};

/// Makes the tables this version's, in a change that has begun. Gives the version that the file has until the commit, if that is
/// an older one: another command may have been faster.
pub(crate) fn upgrade(registry: &Registry) -> Result<Option<i64>, RegistryError> {
    if registry.version.get() == VERSION {
        return Ok(None);
    }
    let connection = &registry.connection;
    let failed = || registry.failed("upgrade");
    let found = connection
        .pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
        .map_err(|e| failed()(e))?;
    if found < VERSION {
        if found < 2 {
            connection.execute_batch(TABLES_OF_VERSION_2).map_err(|e| failed()(e))?;
        }
        connection.execute_batch(TABLES_OF_VERSION_3).map_err(|e| failed()(e))?;
        connection.execute_batch(TABLES_OF_VERSION_4).map_err(|e| failed()(e))?;
        connection.pragma_update(None, "user_version", VERSION).map_err(|e| failed()(e))?;
    }
    registry.version.set(VERSION);
    Ok((found < VERSION).then_some(found))
}

/// `hpvm.db.version-1`: for an older hpvm, should the administrator go back. Written by a reader of its own, while our lock
/// keeps writers out.
pub(crate) fn keep_copy(path: &Path, version: i64) -> Result<(), RegistryError> {
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
