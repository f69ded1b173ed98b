//! What a start finds or misses: files that come with the host or with hpvm, a guest's firmware variables, room to write.

use std::io::{self, ErrorKind, Read};
use std::path::Path;

use hpvm_host::durable;
use hpvm_model::Bytes;
use hpvm_plan::facts::{Lack, Provision, Shut, ShutFolder};
use hpvm_plan::nvram;
use rustix::fs::StatVfsMountFlags;

use crate::stores::is_absence;

/// What keeps a file from being read that is there.
pub(crate) fn lack(error: &io::Error) -> Lack {
    match error.kind() {
        ErrorKind::PermissionDenied => Lack::Forbidden,
        _ => Lack::Unfit(error.to_string()),
    }
}

/// A file that comes with the host or with hpvm, and is only read.
pub(crate) fn provision(path: &Path) -> Provision {
    let missing = match durable::open_regular(path).and_then(|file| file.metadata()) {
        Ok(found) if found.len() == 0 => Some("it is empty".into()),
        Ok(_) => None,
        Err(error) if is_absence(&error) => Some("it does not exist".into()),
        Err(error) => Some(lack(&error)),
    };
    Provision { path: path.to_string_lossy().into_owned(), missing }
}

/// What a start writes: the boot record, the previous variables, the first lines of the logs. The registry's log takes half as
/// much at once.
const ROOM_NEEDED: Bytes = Bytes(1 << 20);

/// Those of these folders whose file system takes nothing.
pub(crate) fn shut(folders: impl IntoIterator<Item = impl AsRef<Path>>) -> Vec<ShutFolder> {
    let why = |folder: &Path| {
        let system = rustix::fs::statvfs(folder).ok()?;
        let room = system.f_bavail.saturating_mul(system.f_frsize);
        // One without bounds, such as a ramfs, tells no numbers.
        let is_full = system.f_blocks > 0 && room < ROOM_NEEDED.0;
        match is_full || system.f_files > 0 && system.f_favail == 0 {
            _ if system.f_flag.contains(StatVfsMountFlags::RDONLY) => Some(Shut::ReadOnly),
            true => Some(Shut::Full { needed: ROOM_NEEDED }),
            false => None,
        }
    };
    let shut = |folder: &Path| {
        let path = folder.to_string_lossy().into_owned();
        why(folder).map(|why| ShutFolder { path, why })
    };
    folders.into_iter().filter_map(|folder| shut(folder.as_ref())).collect()
}

/// A guest's firmware variables: there, as large as the pristine copy, and such as firmware takes.
pub(crate) fn variables(path: &Path, pristine: &Path) -> Provision {
    let missing = nvram_damage(path, pristine).unwrap_or_else(|error| Some(lack(&error)));
    Provision { path: path.to_string_lossy().into_owned(), missing }
}

/// QEMU takes no larger flash for firmware and variables together.
const NVRAM_BYTES_MAX: u64 = 8 << 20;

/// What is wrong with firmware variables, if anything.
fn nvram_damage(path: &Path, pristine: &Path) -> io::Result<Option<Lack>> {
    let file = match durable::open_regular(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(Some("it does not exist".into()));
        }
        other => other?,
    };
    let size = file.metadata()?.len();
    let has_other_size = std::fs::metadata(pristine).is_ok_and(|wanted| wanted.len() != size);
    if has_other_size || size > NVRAM_BYTES_MAX {
        return Ok(Some("its size is not that of firmware variables".into()));
    }
    let mut content = Vec::new();
    file.take(NVRAM_BYTES_MAX).read_to_end(&mut content)?;
    let damage = nvram::check(&content).err();
    Ok(damage.map(|damage| Lack::Unfit(format!("its content is damaged: {damage}"))))
}
