//! Makes the file of a virtual disk, or extends it: `hpvmdevmgmt -S`. The file has exactly the size that was written, and
//! never becomes smaller.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hpvm_host::durable;
use hpvm_model::{Bytes, StorageType};
use hpvm_plan::facts::Restriction;
use hpvm_registry::Step;
use rustix::fs::{FallocateFlags, OFlags, fallocate};

use super::dependents;
use super::presets::Presets;
use super::registered::restriction_of;
use super::trail::Trail;
use crate::refusal::unless_interrupted;
use crate::stores::Stores;
use crate::{Actor, Mode, Refusal, VmHost};

/// Whether room on the file system is taken now or when the guest writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    WhenWritten,
    Now,
}

/// What became of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    New,
    Extended {
        from: Bytes,
    },
    /// It had the size already.
    AsItWas,
}

#[derive(Debug, thiserror::Error)]
pub enum DiskRefused {
    #[error("a disk of no bytes is none")]
    Zero,
    #[error("'{}' has {have} bytes and would be cut to {asked}; a disk is never made smaller", path.display())]
    Smaller { path: PathBuf, have: u64, asked: u64 },
    #[error("'{}' is no regular file, and only files are made", .0.display())]
    NoFile(PathBuf),
    #[error("'{}' has control characters or is no text, so no statement could name the disk", .0.display())]
    NoName(PathBuf),
    #[error("'{}' lies where guests may have nothing, so a disk would be of no use there: {why}", path.display())]
    Restricted { path: PathBuf, why: String },
    #[error("'{}' is a qcow2 image ({user}), whose size is in its content", path.display())]
    Qcow2 { path: PathBuf, user: String },
}

/// Sees to it that there is a file of this size.
pub fn make(
    host: &mut VmHost,
    actor: &Actor,
    path: &Path,
    size: Bytes,
    room: Room,
    mode: Mode,
) -> Result<Made, Refusal> {
    let made = attempt(host, path, size, room, mode);
    match (&made, mode) {
        (_, Mode::DryRun) | (Ok(Made::AsItWas), Mode::Apply) => made,
        (Ok(_), Mode::Apply) => {
            host.registry.record(&actor.done(None, None))?;
            made
        }
        (Err(_), Mode::Apply) => host.record_failure(actor, None, made),
    }
}

fn attempt(
    host: &VmHost,
    path: &Path,
    size: Bytes,
    room: Room,
    mode: Mode,
) -> Result<Made, Refusal> {
    if size.0 == 0 {
        return Err(DiskRefused::Zero.into());
    }
    if path.to_str().is_none_or(|text| text.chars().any(char::is_control)) {
        return Err(DiskRefused::NoName(path.to_owned()).into());
    }
    fit_for_guests(host, path)?;
    let have = match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => return Err(DiskRefused::NoFile(path.to_owned()).into()),
        Ok(found) => Some(found.len()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(Refusal::file("look at", path)(error)),
    };
    let made = match have {
        None => Made::New,
        Some(have) if have > size.0 => {
            let path = path.to_owned();
            return Err(DiskRefused::Smaller { path, have, asked: size.0 }.into());
        }
        Some(have) if have == size.0 => Made::AsItWas,
        Some(have) => Made::Extended { from: Bytes(have) },
    };
    if mode == Mode::Apply && (made != Made::AsItWas || room == Room::Now) {
        unless_interrupted()?;
        match have {
            None => new(path, size, room)?,
            Some(_) => extended(path, size, room)?,
        }
        Step::DiskSized.reached();
    }
    Ok(made)
}

/// What is restricted is not made, nor is the inside of an image touched.
fn fit_for_guests(host: &VmHost, path: &Path) -> Result<(), Refusal> {
    let shown = path.to_string_lossy();
    let there = if path.exists() { path } else { path.parent().unwrap_or(Path::new("/")) };
    let there = there.to_string_lossy();
    let trail = Trail::of(&there, &Stores::look_at([&*there]));
    let presets = Presets::of(&host.root);
    let why = match restriction_of(&host.registry, &trail, &presets)? {
        Restriction::None | Restriction::Lifted { .. } => None,
        Restriction::HostFolder { folder } => {
            Some(format!("{folder} is a folder of this VM Host itself"))
        }
        Restriction::Entry { name: by }
        | Restriction::Below { folder: by }
        | Restriction::Signature { name: by, .. } => Some(format!("rdev:{by} restricts it")),
    };
    if let Some(why) = why {
        return Err(DiskRefused::Restricted { path: path.to_owned(), why }.into());
    }
    let users = dependents::of(host, &shown)?;
    let image = users.iter().find(|user| user.device.backing.storage == StorageType::Qcow2);
    match image {
        Some(user) => {
            Err(DiskRefused::Qcow2 { path: path.to_owned(), user: user.to_string() }.into())
        }
        None => Ok(()),
    }
}

fn new(path: &Path, size: Bytes, room: Room) -> Result<(), Refusal> {
    let failed = || Refusal::file("make", path);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| failed()(e))?;
    let made = sized(&file, 0, size, room).map_err(|e| failed()(e));
    let made =
        made.and_then(|()| Ok(durable::sync_folder(path.parent().unwrap_or(Path::new("/")))?));
    if made.is_err() {
        // The error that led here is the one to tell.
        let _ = std::fs::remove_file(path);
    }
    made
}

fn extended(path: &Path, size: Bytes, room: Room) -> Result<(), Refusal> {
    let failed = || Refusal::file("extend", path);
    // A pipe put in the file's place must not hold us up.
    let at_once = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file =
        OpenOptions::new().write(true).custom_flags(at_once).open(path).map_err(|e| failed()(e))?;
    // Looked at again on the file itself: it may have grown since.
    let metadata = file.metadata().map_err(|e| failed()(e))?;
    if !metadata.is_file() {
        return Err(DiskRefused::NoFile(path.to_owned()).into());
    }
    if metadata.len() > size.0 {
        let (have, asked) = (metadata.len(), size.0);
        return Err(DiskRefused::Smaller { path: path.to_owned(), have, asked }.into());
    }
    sized(&file, metadata.len(), size, room).map_err(|e| failed()(e))
}

/// Grows a file from `have`, or leaves it as it was.
fn sized(file: &File, have: u64, size: Bytes, room: Room) -> std::io::Result<()> {
    let grown = match room {
        Room::WhenWritten => file.set_len(size.0),
        Room::Now => {
            fallocate(file, FallocateFlags::empty(), 0, size.0).map_err(std::io::Error::from)
        }
    };
    let synced = grown.and_then(|()| file.sync_all());
    if synced.is_err() {
        // What was added a moment ago goes again. The error that led here is the one to tell.
        let _ = file.set_len(have);
    }
    synced
}
