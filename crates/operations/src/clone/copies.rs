//! The stores of a clone that are made: copied or laid over another under a name of their own (`.NAME.PID.N.new`), put in
//! their places when the clone is about to be known, and taken away again if it never is. A block device has no other
//! name: it is written in its place.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hpvm_engine::media::MediaError;
use hpvm_host::answers;
use hpvm_host::copy::attended::{self, Seen, Silent};
use hpvm_host::copy::{self, Progress};
use hpvm_host::durable::{self, Batch};
use hpvm_host::identity;
use hpvm_host::image_lock;
use hpvm_host::qcow2::{self, Base, Format};
use hpvm_host::signals;
use hpvm_model::{Backing, FileIdentity, Problem, StorageAddress, StorageType};
use hpvm_plan::clone::{How, Place, Work};
use hpvm_plan::facts::HostFacts;
use hpvm_plan::record::AttachedLayer;
use hpvm_registry::Identities;
use rustix::fs::OFlags;

use super::running::{Moment, Running};
use super::stage::{Silence, Stage};
use super::targets;
use crate::facts::{Aim, holders, locked};
use crate::refusal::Left;
use crate::{Refusal, VmHost};

/// A store that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    pub address: StorageAddress,
    pub to: Backing,
    pub how: How,
}

/// What is read, and by no guest written until this is dropped. What a running source writes is none of it.
#[derive(Debug)]
pub(super) struct Sources(BTreeMap<String, File>);

impl Sources {
    pub(super) fn open(
        host: &VmHost,
        work: &[Work],
        running: Option<&Running>,
        facts: &HostFacts,
    ) -> Result<Sources, Refusal> {
        let mut opened = BTreeMap::new();
        for Work { from, .. } in work {
            if running.is_some_and(|running| running.writer(from).is_some()) {
                continue;
            }
            let file = open_source(from)?;
            // Where the file system has no locks, QEMU takes none either.
            let _ = image_lock::keep_writers_out(&file);
            opened.insert(from.path.clone(), file);
        }
        let written = locked(host, opened.keys().map(String::as_str), facts, Aim::Read);
        match written.is_empty() {
            true => Ok(Sources(opened)),
            false => Err(Refusal::Problems(
                written.iter().map(|(path, lock)| targets::written_elsewhere(path, lock)).collect(),
            )),
        }
    }

    fn of(&self, work: &Work) -> Result<&File, Refusal> {
        let path = &work.from.path;
        self.0.get(path).ok_or_else(|| Refusal::file("read", path)(io::ErrorKind::NotFound.into()))
    }
}

/// A server that answers nobody holds whoever closes a file of it, too.
impl Drop for Sources {
    fn drop(&mut self) {
        let files = std::mem::take(&mut self.0);
        let _ = answers::in_time(move || drop(files));
    }
}

#[derive(Debug, Default)]
pub(super) struct Copies {
    /// What lay where files are made, when that was judged.
    replaced: Identities,
    /// Block devices that get copies, by path, for us alone until the clone is known.
    devices: BTreeMap<String, File>,
    /// The paths of those of which something is written already.
    overwritten: Vec<String>,
    fresh: Vec<Fresh>,
    /// Of those what could not be taken back in time.
    left: Vec<PathBuf>,
    done: Vec<Copied>,
    /// Whether the clone is known, so that nothing goes any more.
    kept: bool,
    /// Images in the clone's folder, which goes as a whole.
    own: Identities,
    /// What came with the disks of a running source.
    moment: Option<Moment>,
}

/// A file that is to get the name `path`.
#[derive(Debug)]
struct Fresh {
    path: PathBuf,
    fresh: PathBuf,
    file: Option<File>,
    identity: FileIdentity,
    replaces: Option<FileIdentity>,
}

impl Copies {
    /// Makes all but the images in the clone's own folder, which is not there yet.
    pub(super) fn make(
        &mut self,
        host: &VmHost,
        work: &[Work],
        sources: &Sources,
        running: Option<&Running>,
        watch: &mut dyn FnMut(&Stage<'_>),
    ) -> Result<(), Refusal> {
        // All before the first byte is written: while one is, nobody takes another.
        for Work { to, .. } in work.iter().filter(|work| work.to.is_device()) {
            self.devices.insert(to.path.clone(), open_target(host, to)?);
        }
        let mut written = Vec::new();
        for work in work.iter().filter(|work| work.how != How::Overlay(Place::Own)) {
            if let Some(writer) = running.and_then(|running| running.writer(&work.from)) {
                written.push((work, writer));
                continue;
            }
            match work.how {
                How::Copy if work.to.is_device() => {
                    self.copy_to_device(work, sources.of(work)?, watch)?;
                }
                How::Copy => self.copy_to_file(work, sources.of(work)?, watch)?,
                How::Overlay(_) => self.lay_over(work, sources.of(work)?)?,
            }
            self.add(work);
        }
        // Last, so that what the guest goes on writing is behind the clone by as little as can be.
        if let Some(running) = running.filter(|_| !written.is_empty()) {
            self.moment = Some(running.copy(self, &written, watch)?);
        }
        // Nothing is written any more, and whether another has a lock on them is asked once more.
        work.iter().for_each(|work| self.let_others_in(&work.to));
        Ok(())
    }

    /// None yet; `replaced` is what lies in the places of files.
    pub(super) fn over(replaced: Identities) -> Copies {
        let mut copies = Copies::default();
        copies.replaced = replaced;
        copies
    }

    pub(super) fn moment(&self) -> Option<&Moment> {
        self.moment.as_ref()
    }

    pub(super) fn add(&mut self, work: &Work) {
        let Work { address, to, how, .. } = work.clone();
        self.done.push(Copied { address, to, how });
    }

    /// Something of the store may be written. A file's is its own until the clone is known.
    pub(super) fn overwrite(&mut self, to: &Backing) {
        if to.is_device() && !self.overwritten.contains(&to.path) {
            self.overwritten.push(to.path.clone());
        }
    }

    /// The devices that are not as they were, though there is no clone that has them.
    pub(super) fn overwritten_in_vain(&self) -> Vec<String> {
        let paths = self.overwritten.iter().filter(|_| !self.kept);
        paths.cloned().collect()
    }

    /// Others may open it who take locks, as QEMU does; it stays open for us alone.
    fn let_others_in(&self, to: &Backing) {
        if let Some(device) = self.devices.get(&to.path) {
            // Where it has no locks, none was taken.
            let _ = image_lock::let_others_in(device);
        }
    }

    /// Others are kept from it by another description, which is QEMU's.
    pub(super) fn hand_over(&self, to: &Backing, given: &File) {
        if let Some(device) = self.devices.get(&to.path) {
            // Where it has no locks, none was taken.
            let _ = image_lock::hand_over(device, given);
        }
    }

    fn copy_to_device(
        &mut self,
        work: &Work,
        source: &File,
        watch: &mut dyn FnMut(&Stage<'_>),
    ) -> Result<(), Refusal> {
        let target = copy::Target::new(self.device(&work.to)?);
        let copied = copy(source, &target, work, watch);
        if target.may_be_written() {
            self.overwrite(&work.to);
        }
        copied.map_err(|error| failed(work, error))
    }

    fn copy_to_file(
        &mut self,
        work: &Work,
        source: &File,
        watch: &mut dyn FnMut(&Stage<'_>),
    ) -> Result<(), Refusal> {
        let place = self.begin(&work.to)?;
        let (_, target) = self.fresh(place)?;
        copy(source, &copy::Target::new(target), work, watch).map_err(|error| failed(work, error))
    }

    fn lay_over(&mut self, work: &Work, base: &File) -> Result<(), Refusal> {
        let place = self.begin(&work.to)?;
        write_image(self.fresh(place)?.1, base, work)
    }

    pub(super) fn device(&self, to: &Backing) -> Result<&File, Refusal> {
        let not_opened = || Refusal::file("write", &to.path)(io::ErrorKind::NotFound.into());
        self.devices.get(&to.path).ok_or_else(not_opened)
    }

    /// Makes the file that is to be `to`, through links if `to` is one; gives its place among the fresh ones.
    pub(super) fn begin(&mut self, to: &Backing) -> Result<usize, Refusal> {
        let path = std::fs::canonicalize(&to.path).unwrap_or_else(|_| PathBuf::from(&to.path));
        let fresh = durable::sibling(&path);
        takes_changes(&fresh)?;
        let file = durable::create(&fresh, 0o600)?;
        let identity = identity(&file, &fresh)?;
        let replaces = self.replaced.get(&to.path).copied();
        let made = Fresh { path, fresh, file: Some(file), identity, replaces };
        self.fresh.push(made);
        Ok(self.fresh.len() - 1)
    }

    /// A fresh file that has not got its name yet.
    pub(super) fn fresh(&self, place: usize) -> Result<(&Path, &File), Refusal> {
        let made = self.fresh.get(place).and_then(|made| Some((&*made.fresh, made.file.as_ref()?)));
        made.ok_or_else(|| Refusal::file("write", "")(io::ErrorKind::NotFound.into()))
    }

    /// Makes the images that lie in the clone's folder, which is there by now.
    pub(super) fn make_own_images(
        &mut self,
        work: &[Work],
        sources: &Sources,
        batch: &mut Batch,
    ) -> Result<(), Refusal> {
        for work in work.iter().filter(|work| work.how == How::Overlay(Place::Own)) {
            let base = sources.of(work)?;
            let path = Path::new(&work.to.path);
            let image = durable::create(path, 0o600)?;
            write_image(&image, base, work)?;
            self.own.insert(work.to.path.clone(), identity(&image, path)?);
            batch.include(path, image);
            self.add(work);
        }
        Ok(())
    }

    /// Gives each file its name, where nobody has it yet, beside its own. What replaces another file waits until the clone
    /// is known.
    pub(super) fn place(&mut self, batch: &mut Batch) -> Result<(), Refusal> {
        for made in &mut self.fresh {
            takes_changes(&made.fresh)?;
            made.place()?;
            if let Some(file) = made.file.take() {
                batch.include(&made.fresh, file);
            }
            batch.names_in(made.path.parent().unwrap_or(Path::new("/")));
        }
        Ok(())
    }

    /// For the registry's index.
    pub(super) fn identities(&self) -> Identities {
        let named = self
            .fresh
            .iter()
            .filter_map(|made| Some((made.path.to_str()?.to_owned(), made.identity)));
        // The configuration has the path as it was given.
        let given = self.done.iter().filter_map(|copied| {
            let path = std::fs::canonicalize(&copied.to.path).ok()?;
            let made = self.fresh.iter().find(|made| made.path == path)?;
            Some((copied.to.path.clone(), made.identity))
        });
        named.chain(given).chain(self.own.clone()).collect()
    }

    /// Without a clone that is known nothing stays that was made for it.
    fn take_back(&mut self) {
        if self.kept {
            return;
        }
        let undone = self.fresh.drain(..).map(|made| {
            let path = made.fresh.clone();
            // What cannot be removed now is found by `hpvm doctor`; the error that led here is the one to tell.
            let undo = move || {
                takes_changes(&made.fresh).ok().map(|()| drop(undo(&made.fresh, &made.path)))
            };
            (path, undo)
        });
        let (paths, undone): (Vec<_>, Vec<_>) = undone.unzip();
        let answered = answers::all_in_time(undone).into_iter().map(Option::flatten);
        let left = paths.into_iter().zip(answered).filter(|(_, answered)| answered.is_none());
        self.left.extend(left.map(|(path, _)| path));
        let devices = std::mem::take(&mut self.devices);
        let _ = answers::in_time(move || drop(devices));
    }

    /// What stays of it, since nobody answers there.
    pub(super) fn left_after_taking_back(&mut self) -> Vec<PathBuf> {
        self.take_back();
        std::mem::take(&mut self.left)
    }

    /// The clone is known: its files keep one name each.
    pub(super) fn settle(&mut self) -> Result<Vec<Copied>, Refusal> {
        self.kept = true;
        for made in &self.fresh {
            settle(&made.fresh, &made.path)?;
        }
        Ok(std::mem::take(&mut self.done))
    }
}

impl Fresh {
    /// Who has made or exchanged the file at `path` since that was judged keeps it.
    fn place(&self) -> Result<(), Refusal> {
        let there = std::fs::metadata(&self.path).ok();
        if there.as_ref().and_then(identity::of_store) != self.replaces {
            return Err(Refusal::TargetChanged(self.path.clone()));
        }
        if self.replaces.is_some() {
            return Ok(());
        }
        match std::fs::hard_link(&self.fresh, &self.path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Refusal::TargetChanged(self.path.clone()))
            }
            // Some file systems have no second names.
            Err(error) if durable::has_no_links(&error) => Ok(()),
            Err(error) => Err(Refusal::file("make", &self.path)(error)),
        }
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        self.take_back();
    }
}

/// Copies that are being made known. If that fails they go with it, while whoever tries still has what keeps others from them.
pub(super) struct BeingKnown<'a>(pub(super) &'a mut Copies);

impl Drop for BeingKnown<'_> {
    fn drop(&mut self) {
        self.0.take_back();
    }
}

/// Ends a clone that is known: the file under its other name is the one there is.
pub(super) fn settle(fresh: &Path, path: &Path) -> Result<(), Refusal> {
    if are_one(fresh, path) {
        return std::fs::remove_file(fresh).map_err(Refusal::file("remove", fresh));
    }
    Ok(durable::rename(fresh, path)?)
}

/// Takes back what was made for a clone that never was.
pub(super) fn undo(fresh: &Path, path: &Path) -> Result<(), Refusal> {
    if are_one(fresh, path) {
        std::fs::remove_file(path).map_err(Refusal::file("remove", path))?;
    }
    hpvm_host::removal::file(fresh).map_err(Refusal::file("remove", fresh))
}

/// Whether the folder of a file takes changes now: whoever tried to make or remove one there would be held, and nobody could end
/// him.
pub(super) fn takes_changes(file: &Path) -> Result<(), Refusal> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    match answers::may_be_changed(folder) {
        true => Ok(()),
        false => Err(Refusal::file("change", folder)(answers::silent())),
    }
}

/// Whether two names are those of one file. A link that leads to it is another.
fn are_one(one: &Path, other: &Path) -> bool {
    let there = identity::of_named(one);
    there.is_some() && there == identity::of_named(other)
}

fn identity(file: &File, path: &Path) -> Result<FileIdentity, Refusal> {
    Ok(identity::of(&file.metadata().map_err(Refusal::file("look at", path))?))
}

/// The source is read alone; a pipe in its place must not hold us up.
pub(super) fn open_source(from: &Backing) -> Result<File, Refusal> {
    open(OpenOptions::new().read(true), OFlags::NONBLOCK, &from.path)
}

fn open(options: &mut OpenOptions, flags: OFlags, path: &str) -> Result<File, Refusal> {
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let file = options.custom_flags(flags).open(path).map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => MediaError::busy(path).into(),
        _ => Refusal::file("open", path)(error),
    })?;
    let metadata = file.metadata().map_err(Refusal::file("look at", path))?;
    match identity::of_store(&metadata) {
        Some(_) => Ok(file),
        None => Err(Refusal::file("open", path)(io::Error::other("it is no file and no device"))),
    }
}

/// A device is opened for us alone, as for a guest. Who only reads it does not meet that, but locks.
fn open_target(host: &VmHost, to: &Backing) -> Result<File, Refusal> {
    let flags = OFlags::NONBLOCK | OFlags::EXCL;
    let device = open(OpenOptions::new().read(true).write(true), flags, &to.path)?;
    // Where it has no locks, QEMU takes none either.
    match image_lock::keep_others_out(&device).unwrap_or(true) {
        true => Ok(device),
        false => {
            let lock = holders(host, Path::new(&to.path));
            Err(Refusal::Problems(vec![Problem::error(to.path.clone(), lock.on(&to.path))]))
        }
    }
}

fn copy(
    source: &File,
    target: &copy::Target<'_>,
    work: &Work,
    watch: &mut dyn FnMut(&Stage<'_>),
) -> io::Result<()> {
    let mut seen = Progress { done: 0, whole: 0 };
    attended::copy(source, target, &mut |sight| match sight {
        Seen::Progress(progress) => {
            seen = progress;
            look(work, progress, watch)
        }
        Seen::Silent(silent) => {
            let (from, to) = (work.from.path.as_str(), work.to.path.as_str());
            let stores: &[&str] = match silent {
                Silent::Source => &[from],
                Silent::Target => &[to],
                Silent::Both => &[from, to],
            };
            let silence = Silence::holding_us(stores);
            watch(&Stage { from, progress: seen, silence: Some(&silence) });
            ControlFlow::Continue(())
        }
    })
}

pub(super) fn look(
    work: &Work,
    progress: Progress,
    watch: &mut dyn FnMut(&Stage<'_>),
) -> ControlFlow<()> {
    watch(&Stage { from: &work.from.path, progress, silence: None });
    match signals::interrupted() {
        Some(_) => ControlFlow::Break(()),
        None => ControlFlow::Continue(()),
    }
}

pub(super) fn failed(work: &Work, error: io::Error) -> Refusal {
    match signals::interrupted() {
        Some(interruption) if error.kind() == io::ErrorKind::Interrupted => {
            Refusal::Interrupted { interruption, left: Left::AsItWas }
        }
        _ => {
            Refusal::Copy { from: work.from.path.clone(), to: work.to.path.clone(), source: error }
        }
    }
}

/// An empty image that QEMU is to fill with what the image `from` has itself; under it lies what lies under that.
pub(super) fn write_copied_image(
    image: &File,
    from: &File,
    work: &Work,
    layers: &[AttachedLayer],
) -> Result<(), Refusal> {
    let failed =
        |source| Refusal::Copy { from: work.from.path.clone(), to: work.to.path.clone(), source };
    let size = qcow2::disk_size(from).map_err(failed)?;
    let size = size.ok_or_else(|| failed(io::Error::other("it is no qcow2 image")))?;
    let Some(AttachedLayer { backing: Backing { storage, path, .. }, .. }) = layers.first() else {
        return qcow2::write_empty(image, size).map_err(failed);
    };
    let format = if *storage == StorageType::Qcow2 { Format::Qcow2 } else { Format::Raw };
    let base = Base { path: Path::new(path), format, size };
    qcow2::write_overlay(image, &base).map_err(failed)
}

fn write_image(image: &File, base: &File, work: &Work) -> Result<(), Refusal> {
    let failed =
        |source| Refusal::Copy { from: work.from.path.clone(), to: work.to.path.clone(), source };
    let (format, size) = match work.from.storage {
        StorageType::Qcow2 => (Format::Qcow2, qcow2::disk_size(base).map_err(failed)?),
        _ => (Format::Raw, Some(copy::size(base).map_err(failed)?)),
    };
    let size = size.ok_or_else(|| failed(io::Error::other("what lies below is no qcow2 image")))?;
    let base = Base { path: Path::new(&work.from.path), format, size };
    qcow2::write_overlay(image, &base).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_made_known_goes_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        let mut copies = Copies::over(Identities::new());
        let being_known = BeingKnown(&mut copies);
        being_known.0.begin(&Backing::new(StorageType::File, path.to_str().unwrap())).unwrap();
        being_known.0.place(&mut Batch::default()).unwrap();
        assert!(path.exists());
        drop(being_known);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        // What has the name after that is another's.
        std::fs::write(&path, "another's").unwrap();
        drop(copies);
        assert!(path.exists());
    }

    /// The file would be gone, and the link lead nowhere.
    #[test]
    fn a_link_to_a_copy_is_no_second_name_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let (fresh, path) = (folder.path().join("fresh"), folder.path().join("disk.img"));
        std::fs::write(&fresh, "copied").unwrap();
        std::os::unix::fs::symlink(&fresh, &path).unwrap();
        settle(&fresh, &path).unwrap();
        assert!(std::fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "copied");
        assert!(!fresh.exists());
    }

    /// Another clone's disk, or a guest's.
    #[test]
    fn what_came_to_the_place_of_a_copy_stays() {
        for before in [None, Some("old")] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("disk.img");
            let mut replaced = Identities::new();
            if let Some(content) = before {
                std::fs::write(&path, content).unwrap();
                let found = identity::of_store(&std::fs::metadata(&path).unwrap()).unwrap();
                replaced.insert(path.to_str().unwrap().to_owned(), found);
            }
            let mut copies = Copies::over(replaced);
            let to = Backing::new(StorageType::File, path.to_str().unwrap());
            copies.begin(&to).unwrap();
            let another = folder.path().join("another.img");
            std::fs::write(&another, "another's").unwrap();
            std::fs::rename(&another, &path).unwrap();
            let refusal = copies.place(&mut Batch::default()).unwrap_err();
            assert!(matches!(refusal, Refusal::TargetChanged(_)), "{refusal}");
            drop(copies);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "another's");
            assert_eq!(
                std::fs::read_dir(folder.path()).unwrap().count(),
                1,
                "nothing else is left"
            );
        }
    }
}
