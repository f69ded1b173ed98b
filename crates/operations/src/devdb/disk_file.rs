//! Makes the file of a virtual disk, or extends it: `hpvmdevmgmt -S`. The file has exactly the size that was written, and
//! never becomes smaller, whoever else is at it.

use std::cmp::Ordering;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hpvm_host::{answers, durable, identity, users};
use hpvm_model::{Bytes, DeviceKind, FileIdentity, GuestName, StorageType, quoted};
use hpvm_plan::facts::{Below, Content, FILE_BLOCK_BYTES, FileFact, Restriction};
use hpvm_registry::Step;
use rustix::fs::{FallocateFlags, OFlags, fallocate, fstatvfs};

use super::dependents::{self, Dependent, Standing, Tie};
use super::presets::Presets;
use super::registered::restriction_of;
use super::running;
use super::trail::Trail;
use crate::refusal::unless_interrupted;
use crate::stores::{AmongDevices, LeadsNowhere, Stores, is_absence, is_meant_to_be_written};
use crate::{Actor, Mode, Refusal, VmHost, claims};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub size: Bytes,
    pub room: Room,
    pub unknown: Unknown,
}

/// What a file is that begins as an image does, and of which no guest says what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Nobody can tell: a guest may have written that into its raw disk.
    Undecided,
    /// Whoever asks says so.
    Raw,
}

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
    #[error("a disk of {asked} bytes cannot be used on every file system, since {asked} is no multiple of {FILE_BLOCK_BYTES}; write {}K for the next that is", .asked.next_multiple_of(FILE_BLOCK_BYTES) >> 10)]
    Uneven { asked: u64 },
    #[error("'{}' has {have} bytes and would be cut to {asked}; a disk is never made smaller", path.display())]
    Smaller { path: PathBuf, have: u64, asked: u64 },
    #[error("'{}' is no regular file, and only files are made", .0.display())]
    NoFile(PathBuf),
    #[error(transparent)]
    LeadsNowhere(LeadsNowhere),
    #[error("there is no folder '{}' for '{}'; make it first, or name another", path.parent().unwrap_or(path).display(), path.display())]
    NoFolder { path: PathBuf },
    #[error(transparent)]
    AmongDevices(AmongDevices),
    #[error("the file system of '{}' has no files of {size}; choose a smaller size, or a folder on another file system", path.display())]
    TooLarge { path: PathBuf, size: Bytes },
    #[error("the file system of '{}' has no room for {size}; make room there, or choose a smaller size or another folder", path.display())]
    NoRoom { path: PathBuf, size: Bytes },
    #[error("'{}' is another file than a moment ago, and stays as it is; look whose it is, then try again", .0.display())]
    Exchanged(PathBuf),
    #[error("'{}' has control characters or is no text, so no statement could name the disk", .0.display())]
    NoName(PathBuf),
    #[error("'{}' lies where guests may have nothing, so a disk would be of no use there: {why}", path.display())]
    Restricted { path: PathBuf, why: String },
    #[error("'{}' is in use by this VM Host and stays as it is: {uses}", path.display())]
    Used { path: PathBuf, uses: String },
    #[error("'{}' is a qcow2 image ({user}), whose size is in its content; `{}` makes the disk in it larger while the guest is off", path.display(), image_resize(path, *size))]
    Qcow2 { path: PathBuf, user: Box<Dependent>, size: Bytes },
    #[error("'{}' is a qcow2 image ({user}) that is only read, and stays as it is{}", path.display(), giving_up(.user))]
    Qcow2OnlyRead { path: PathBuf, user: Box<Dependent> },
    #[error("'{}' begins as a qcow2 image does, whose size is in its content, and no guest says what it is; if it is an image, {}, and if a guest wrote that into its raw disk, --raw extends it all the same", path.display(), if_image(path, *size, .content))]
    PerhapsQcow2 { path: PathBuf, size: Bytes, content: Content },
    #[error("'{}' is only read, and stays as it is: {user}{}", path.display(), giving_up(.user))]
    OnlyRead { path: PathBuf, user: Box<Dependent> },
    #[error("'{}' may not be written and is not extended; `chmod u+w {}` allows that", .0.display(), quoted(&.0.to_string_lossy()))]
    Protected(PathBuf),
    #[error("'{}' is the place of a disk of guest '{guest}', which runs with the file that was there before; `hpvm why {guest}` says how to save that first", path.display())]
    OfRunning { path: PathBuf, guest: GuestName },
}

fn image_resize(path: &Path, size: Bytes) -> String {
    format!("qemu-img resize -f qcow2 {} {}K", quoted(&path.to_string_lossy()), size.0 >> 10)
}

/// Whoever opens an image that names other files opens those too, and a guest may have named them.
fn if_image(path: &Path, size: Bytes, content: &Content) -> String {
    match content {
        Content::Qcow2(Below::Nothing) => {
            format!("`{}` makes the disk in it larger", image_resize(path, size))
        }
        _ => "it is none that a guest could have by itself".to_owned(),
    }
}

fn giving_up(user: &Dependent) -> String {
    match user.standing {
        Standing::Present => String::new(),
        Standing::Removed { number } => {
            format!("; if nobody needs the guest any more, `hpvmremove -p {number} --purge`")
        }
    }
}

/// Sees to it that there is a file of the wanted size.
pub fn make(
    host: &mut VmHost,
    actor: &Actor,
    path: &Path,
    wanted: Wanted,
    mode: Mode,
) -> Result<Made, Refusal> {
    let made = attempt(host, path, wanted, mode);
    match (&made, mode) {
        (_, Mode::DryRun) | (Ok(Made::AsItWas), Mode::Apply) => made,
        (Ok(_), Mode::Apply) => {
            let change = host.registry.change()?;
            super::keep_length(&change, &path.to_string_lossy(), Some(wanted.size))?;
            change.record(&actor.done(None, None))?;
            change.commit()?;
            made
        }
        (Err(_), Mode::Apply) => host.record_failure(actor, None, made),
    }
}

fn attempt(host: &VmHost, path: &Path, wanted: Wanted, mode: Mode) -> Result<Made, Refusal> {
    let Wanted { size, room, .. } = wanted;
    if size.0 == 0 {
        return Err(DiskRefused::Zero.into());
    }
    if !size.0.is_multiple_of(FILE_BLOCK_BYTES) {
        return Err(DiskRefused::Uneven { asked: size.0 }.into());
    }
    if path.to_str().is_none_or(|text| text.chars().any(char::is_control)) {
        return Err(DiskRefused::NoName(path.to_owned()).into());
    }
    let found = regular_file(path)?;
    in_a_folder_for_disks(path)?;
    if found.is_none()
        && let Ok(Some(link)) = asked(path, |path| Ok(LeadsNowhere::is(path)))
    {
        return Err(DiskRefused::LeadsNowhere(link).into());
    }
    // Whoever gives the file to a guest, or extends it too, waits until it has its size.
    let _claims = match mode {
        Mode::Apply => Some(claims::hold(host, found.as_ref().and_then(identity::of_store))?),
        Mode::DryRun => None,
    };
    let users = dependents::of_kept_too(host, &path.to_string_lossy())?;
    unless_image(path, size, &users)?;
    let content = fit_for_guests(host, path)?;
    let is_declared = users.iter().any(|user| user.store.store().is_some());
    if !is_declared && wanted.unknown == Unknown::Undecided {
        unless_like_an_image(path, size, content.as_ref())?;
    }
    let now = regular_file(path)?;
    same_file(path, found.as_ref(), now.as_ref())?;
    let made = match &now {
        None => Made::New,
        Some(now) => extension(path, now.len(), size)?,
    };
    if made != Made::AsItWas {
        unless_only_read(path, &users)?;
        unless_protected(path, now.as_ref())?;
        unless_displaced(host, path, now.as_ref().and_then(identity::of_store))?;
    }
    if mode == Mode::Apply && (made != Made::AsItWas || room == Room::Now) {
        unless_interrupted()?;
        match &now {
            None => new(host, path, size, room)?,
            Some(now) => extended(path, now, size, room)?,
        }
        Step::DiskSized.reached();
    }
    Ok(made)
}

/// What is at the path, which is to be a file or nothing yet.
fn regular_file(path: &Path) -> Result<Option<Metadata>, Refusal> {
    match asked(path, |path| std::fs::metadata(path)) {
        Ok(found) if found.is_file() => Ok(Some(found)),
        Ok(_) => Err(DiskRefused::NoFile(path.to_owned()).into()),
        // In what is no folder nothing is either; that is told next.
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(Refusal::file("look at", path)(error)),
    }
}

fn in_a_folder_for_disks(path: &Path) -> Result<(), Refusal> {
    let folder = asked(path.parent().unwrap_or(Path::new("/")), |folder| {
        folder.canonicalize().map(|real| (real.is_dir(), real))
    });
    match folder {
        Ok((true, real)) => match AmongDevices::is(path, &real) {
            Some(among) => Err(DiskRefused::AmongDevices(among).into()),
            None => Ok(()),
        },
        Ok((false, _)) => Err(DiskRefused::NoFolder { path: path.to_owned() }.into()),
        Err(error) if is_absence(&error) => {
            Err(DiskRefused::NoFolder { path: path.to_owned() }.into())
        }
        Err(error) => Err(Refusal::file("look at", path)(error)),
    }
}

/// What the file system answers, if it does so in time.
fn asked<T: Send + 'static>(
    path: &Path,
    question: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    answers::about(path, question).unwrap_or_else(|| Err(answers::silent()))
}

/// What was judged is what is changed.
fn same_file(
    path: &Path,
    judged: Option<&Metadata>,
    found: Option<&Metadata>,
) -> Result<(), DiskRefused> {
    match judged.map(identity::of_store) == found.map(identity::of_store) {
        true => Ok(()),
        false => Err(DiskRefused::Exchanged(path.to_owned())),
    }
}

fn extension(path: &Path, have: u64, size: Bytes) -> Result<Made, DiskRefused> {
    match have.cmp(&size.0) {
        Ordering::Less => Ok(Made::Extended { from: Bytes(have) }),
        Ordering::Equal => Ok(Made::AsItWas),
        Ordering::Greater => {
            Err(DiskRefused::Smaller { path: path.to_owned(), have, asked: size.0 })
        }
    }
}

/// The end of an image's file is nothing to its disk.
fn unless_image(path: &Path, size: Bytes, users: &[Dependent]) -> Result<(), DiskRefused> {
    let mut images = users.iter().filter(|user| user.store.storage == StorageType::Qcow2);
    let Some(first) = images.clone().next() else { return Ok(()) };
    let (path, reader) = (path.to_owned(), images.find(|user| only_reads(user)));
    let user = |user: &Dependent| Box::new(user.clone());
    Err(match reader {
        Some(reader) => DiskRefused::Qcow2OnlyRead { path, user: user(reader) },
        None => DiskRefused::Qcow2 { path, user: user(first), size },
    })
}

/// Content that a guest could have written decides nothing but that somebody is asked.
fn unless_like_an_image(
    path: &Path,
    size: Bytes,
    content: Option<&Content>,
) -> Result<(), DiskRefused> {
    match content {
        Some(content @ (Content::Qcow2(_) | Content::Unusable(_))) => {
            let (path, content) = (path.to_owned(), content.clone());
            Err(DiskRefused::PerhapsQcow2 { path, size, content })
        }
        Some(Content::Other | Content::Unread) | None => Ok(()),
    }
}

/// What is restricted is not made, nor is what the host uses touched. Gives what the file has in it, if there is one.
fn fit_for_guests(host: &VmHost, path: &Path) -> Result<Option<Content>, Refusal> {
    let is_there = asked(path, |path| path.try_exists()).unwrap_or(false);
    let there = if is_there { path } else { path.parent().unwrap_or(Path::new("/")) };
    let there = there.to_string_lossy();
    let stores = Stores::look_at([&*there]);
    let trail = Trail::of(&there, &stores);
    let presets = Presets::of(&host.root);
    let restriction = restriction_of(&host.registry, &trail, &presets)?;
    if let Some(why) = restriction.why() {
        return Err(DiskRefused::Restricted { path: path.to_owned(), why }.into());
    }
    let is_lifted = matches!(restriction, Restriction::Lifted { .. });
    if let Some(uses) = stores.used_for(&there).filter(|_| is_there && !is_lifted) {
        return Err(DiskRefused::Used { path: path.to_owned(), uses }.into());
    }
    Ok(match stores.files.get(&*there) {
        Some(FileFact::Regular { content, .. }) => Some(content.clone()),
        _ => None,
    })
}

/// What lies under a linked clone's disk does not make that longer, nor an image of a dvd.
fn unless_only_read(path: &Path, users: &[Dependent]) -> Result<(), DiskRefused> {
    users.iter().find(|user| only_reads(user)).map_or(Ok(()), |user| {
        Err(DiskRefused::OnlyRead { path: path.to_owned(), user: Box::new(user.clone()) })
    })
}

fn only_reads(user: &Dependent) -> bool {
    user.tie == Tie::Layer || user.device.kind == DeviceKind::Dvd
}

fn unless_protected(path: &Path, now: Option<&Metadata>) -> Result<(), DiskRefused> {
    match now.is_none_or(is_meant_to_be_written) {
        true => Ok(()),
        false => Err(DiskRefused::Protected(path.to_owned())),
    }
}

/// The disk that a running guest has is not the file that is made in its place.
fn unless_displaced(host: &VmHost, path: &Path, now: Option<FileIdentity>) -> Result<(), Refusal> {
    let shown = path.to_string_lossy();
    let disks = running::disks(host, &shown)?.into_iter();
    let mut displaced = disks
        .filter(|(_, disk)| disk.device.backing.path == *shown)
        .filter(|(_, disk)| disk.identity.is_some() && disk.identity != now);
    displaced.next().map_or(Ok(()), |(guest, _)| {
        Err(DiskRefused::OfRunning { path: path.to_owned(), guest }.into())
    })
}

fn new(host: &VmHost, path: &Path, size: Bytes, room: Room) -> Result<(), Refusal> {
    let failed = || Refusal::file("make", path);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = asked(path, move |path| options.open(path)).map_err(|e| failed()(e))?;
    let _claims = claims::hold(host, file.metadata().ok().as_ref().and_then(identity::of_store))?;
    let made = grown(&file, path, size, room, "make");
    if made.is_err() && file.metadata().is_ok_and(|made| made.len() == 0) {
        // The error that led here is the one to tell.
        let _ = std::fs::remove_file(path);
    }
    made?;
    Ok(durable::sync_folder(path.parent().unwrap_or(Path::new("/")))?)
}

fn extended(path: &Path, judged: &Metadata, size: Bytes, room: Room) -> Result<(), Refusal> {
    // A pipe put in the file's place must not hold us up.
    let at_once = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(at_once);
    let file = asked(path, move |path| match answers::may_be_written(path) {
        true => options.open(path),
        false => Err(answers::silent()),
    });
    let file = file.map_err(Refusal::file("extend", path))?;
    let opened = file.metadata().map_err(Refusal::file("extend", path))?;
    same_file(path, Some(judged), Some(&opened))?;
    grown(&file, path, size, room, "extend")
}

/// Looks at the length of the file itself: it may have grown since.
fn grown(
    file: &File,
    path: &Path,
    size: Bytes,
    room: Room,
    action: &'static str,
) -> Result<(), Refusal> {
    let failed = |error: io::Error| match error.kind() {
        ErrorKind::FileTooLarge => DiskRefused::TooLarge { path: path.to_owned(), size }.into(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            DiskRefused::NoRoom { path: path.to_owned(), size }.into()
        }
        _ => Refusal::file(action, path)(error),
    };
    let have = file.metadata().map_err(failed)?.len();
    extension(path, have, size)?;
    if room == Room::Now {
        fits(file, size).and_then(|()| Ok(reserved(file, have, size)?)).map_err(failed)?;
    }
    file.set_len(size.0).and_then(|()| file.sync_all()).map_err(failed)
}

/// Before any of the room is taken: what filled a hole of the file before there was no more is not given back, since a guest may
/// have written there meanwhile.
fn fits(file: &File, size: Bytes) -> io::Result<()> {
    let taken = file.metadata()?.blocks() * 512;
    let room = fstatvfs(file)?;
    let free = if users::is_root() { room.f_bfree } else { room.f_bavail };
    match size.0.saturating_sub(taken) > free.saturating_mul(room.f_frsize) {
        true => Err(ErrorKind::StorageFull.into()),
        false => Ok(()),
    }
}

/// Takes the room behind the end too, or none of it. The length, which says what a guest may have, stays.
fn reserved(file: &File, have: u64, size: Bytes) -> rustix::io::Result<()> {
    let reserved = fallocate(file, FallocateFlags::KEEP_SIZE, 0, size.0);
    if reserved.is_err() && file.metadata().is_ok_and(|now| now.len() == have) {
        // What lies behind the end goes. The error that led here is the one to tell.
        let _ = file.set_len(have);
    }
    reserved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_judged_is_extended() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("disk.img"), folder.path().join("other.img"));
        std::fs::write(&path, "judged").unwrap();
        std::fs::write(&other, "another").unwrap();
        let judged = std::fs::metadata(&path).unwrap();
        let extend = || extended(&path, &judged, Bytes(8), Room::Now);
        std::fs::rename(&path, folder.path().join("kept.img")).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        let refusal = extend().unwrap_err();
        assert!(matches!(refusal, Refusal::Disk(DiskRefused::Exchanged(_))), "{refusal}");
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "another");

        std::fs::rename(folder.path().join("kept.img"), &path).unwrap();
        extend().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"judged\0\0");
        std::fs::write(&path, "grown since").unwrap();
        let refusal = extend().unwrap_err();
        assert!(matches!(refusal, Refusal::Disk(DiskRefused::Smaller { .. })), "{refusal}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "grown since");
    }
}
