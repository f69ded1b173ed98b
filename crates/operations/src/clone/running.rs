//! Copies of what a running source writes: its QEMU makes them, since only there the disks can be had as they are at one
//! moment. The stores are made and opened here, and handed to its worker by descriptor; nothing that QEMU or the worker does
//! with them outlives this command.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hpvm_app::client;
use hpvm_app::protocol::{CopiedState, Denial, Reply, Request};
use hpvm_host::copy::{self, Progress};
use hpvm_host::lock::pause_for;
use hpvm_host::names::guest_folder;
use hpvm_host::signals;
use hpvm_model::{Backing, FileIdentity, GuestConfig, GuestName, StorageType};
use hpvm_plan::clone::Work;
use hpvm_plan::copying::{DiskCopy, Target, writer};
use hpvm_plan::facts::HostFacts;
use hpvm_plan::record::{Attached, Cache, Machine, Sharing};
use hpvm_registry::Step;
use rustix::fs::{MemfdFlags, OFlags, memfd_create};

use super::copies::{self, Copies};
use super::stage::{Silence, Stage};
use super::standstill::{Hindrance, Standstill};
use crate::presence::{self, Presence, Supervision};
use crate::refusal::Left;
use crate::{Refusal, VmHost, supervise};

/// A worker that copies is heard of ten times a second; it is silent while QEMU opens targets and the agent is waited for.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a copy of a command that was killed may take to go.
const TAKEN_BACK: Duration = Duration::from_secs(20);
const ASK_AGAIN: Duration = Duration::from_millis(50);
const SECTOR_BYTES: u64 = 512;

/// A running source, and what it writes of what is to be copied.
#[derive(Debug)]
pub(super) struct Running {
    name: GuestName,
    run_dir: PathBuf,
    control: PathBuf,
    machine: Machine,
    variables: PathBuf,
    /// What backs the source's devices, by path.
    identities: Vec<(String, FileIdentity)>,
}

/// Firmware variables and disks of one moment.
#[derive(Debug)]
pub(super) struct Moment {
    /// A file without a name.
    variables: File,
    pub(super) state: CopiedState,
}

impl Moment {
    /// Where the firmware variables can be read.
    pub(super) fn variables(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.variables.as_raw_fd()).into()
    }
}

impl Running {
    /// A worker is there for it afterwards; `facts` know the source's stores.
    pub(super) fn find(
        host: &mut VmHost,
        source: &GuestConfig,
        facts: &HostFacts,
    ) -> Result<Running, Refusal> {
        if let Presence::On { supervision: Supervision::None, .. } = host.presence(source.number) {
            supervise::adopt(host, source, supervise::TO_ASK)?;
        }
        supervise::awake(host, source)?;
        let paths = source.storage.iter().filter_map(|device| device.backing.store());
        let known = |path: &str| Some((path.to_owned(), facts.identity(path)?));
        Ok(Running {
            name: source.name.clone(),
            run_dir: host.root.run_dir(source.number.get()),
            control: host.control(source.number),
            machine: host.boot_record(source)?,
            variables: host.folder(source).file(guest_folder::NVRAM),
            identities: paths.filter_map(known).collect(),
        })
    }

    /// The device that writes a store. What nobody writes is copied as that of a guest that is off.
    pub(super) fn writer(&self, store: &Backing) -> Option<&Attached> {
        let known = self.identities.iter().find(|(path, _)| *path == store.path);
        writer(&self.machine, store, known.map(|(_, identity)| *identity))
    }

    /// Copies all at once, and the firmware variables with them.
    pub(super) fn copy(
        &self,
        copies: &mut Copies,
        work: &[(&Work, &Attached)],
        watch: &mut dyn FnMut(&Stage<'_>),
    ) -> Result<Moment, Refusal> {
        if let Some((_, shared)) = work.iter().find(|(_, a)| a.sharing == Sharing::Reserved) {
            let path = shared.device.backing.path.clone();
            return Err(Refusal::SharedDisk { path, guest: self.name.clone() });
        }
        let mut opened = Vec::new();
        for (work, source) in work {
            opened.push(Opened::make(copies, work, source, watch)?);
        }
        let variables = self.variables()?;
        // QEMU reads and writes them through the memory of the VM Host.
        let given =
            again(&variables, OFlags::empty()).map_err(Refusal::file("open", &self.variables))?;
        let descriptors: Vec<BorrowedFd<'_>> =
            opened.iter().map(|opened| opened.given.as_fd()).chain([given.as_fd()]).collect();
        let disks = opened.iter().map(|opened| opened.copy).collect();
        let targets = work.iter().map(|(work, _)| work.to.path.clone()).collect();
        opened.iter().for_each(|opened| opened.hand_over(copies));
        let reply = self.ask((disks, targets), &descriptors, &what(work), watch);
        drop(descriptors);
        if may_be_written(&reply) {
            work.iter().for_each(|(work, _)| copies.overwrite(&work.to));
        }
        let state = self.judge(reply)?;
        for opened in opened {
            opened.finish(copies)?;
        }
        Ok(Moment { variables, state })
    }

    fn variables(&self) -> Result<File, Refusal> {
        let failed = || Refusal::file("copy", &self.variables);
        let metadata = std::fs::metadata(&self.variables).map_err(failed())?;
        let copy = memfd_create("firmware variables", MemfdFlags::CLOEXEC)
            .map_err(|error| failed()(error.into()))?;
        let copy = File::from(copy);
        copy.set_len(metadata.len()).map_err(failed())?;
        Ok(copy)
    }

    fn ask(
        &self,
        (disks, targets): (Vec<DiskCopy>, Vec<String>),
        descriptors: &[BorrowedFd<'_>],
        what: &str,
        watch: &mut dyn FnMut(&Stage<'_>),
    ) -> Result<Reply, client::ClientError> {
        let mut standstill = Standstill::none(Instant::now());
        let mut look = |heard: Option<(u64, u64)>| {
            let heard = heard.map(|(done, whole)| Progress { done, whole });
            if let Some(progress) = heard {
                Step::CloneCopying.reached();
                watch(&Stage { from: what, progress, silence: None });
            }
            let hindrance = presence::snapshot(&self.run_dir).and_then(Hindrance::shown);
            if let Some(why) = standstill.untold(heard, hindrance, Instant::now()) {
                let silence = Silence::of_running(&why, &targets, |target| {
                    copies::takes_changes(Path::new(target)).is_ok()
                });
                watch(&Stage {
                    from: what,
                    progress: standstill.progress(),
                    silence: Some(&silence),
                });
            }
            match signals::interrupted() {
                Some(_) => ControlFlow::Break(()),
                None => ControlFlow::Continue(()),
            }
        };
        let request = Request::Copy { disks, targets: targets.clone() };
        let until = Instant::now() + TAKEN_BACK;
        loop {
            let reply = client::copy(&self.control, &request, descriptors, SILENCE, &mut look);
            match reply {
                Ok(Reply::Denied { reason: Denial::Copying })
                    if Instant::now() < until && signals::interrupted().is_none() =>
                {
                    pause_for(ASK_AGAIN);
                }
                reply => return reply,
            }
        }
    }

    fn judge(&self, reply: Result<Reply, client::ClientError>) -> Result<CopiedState, Refusal> {
        let failed = |error: String| match signals::interrupted() {
            Some(interruption) => Refusal::Interrupted { interruption, left: Left::AsItWas },
            None => Refusal::CopyOfRunning { name: self.name.clone(), error },
        };
        match reply {
            Ok(Reply::Copied { state }) => Ok(state),
            Ok(Reply::Denied { reason }) => Err(failed(reason.to_string())),
            Ok(Reply::Failed { error } | Reply::NotBegun { error }) => Err(failed(error)),
            Ok(_) => Err(Refusal::Worker(client::ClientError::Malformed)),
            Err(error) => Err(failed(hpvm_model::chain(&error))),
        }
    }
}

/// Whether QEMU may have begun to write what it was given, by what came of that.
fn may_be_written(reply: &Result<Reply, client::ClientError>) -> bool {
    let was_not = matches!(
        reply,
        Ok(Reply::Denied { .. } | Reply::NotBegun { .. }) | Err(client::ClientError::Connect(_))
    );
    !was_not
}

/// For who watches.
fn what(work: &[(&Work, &Attached)]) -> String {
    match work {
        [(work, _)] => work.from.path.clone(),
        several => format!("{} disks", several.len()),
    }
}

/// A store that QEMU writes.
struct Opened {
    path: PathBuf,
    copy: DiskCopy,
    /// A description of its own, for QEMU.
    given: File,
    target: Kept,
    /// Of the source, in bytes.
    size: u64,
}

/// What keeps a target until its copy is complete.
enum Kept {
    /// The file's place among the fresh ones.
    Fresh(usize),
    Device(Backing),
}

impl Opened {
    fn make(
        copies: &mut Copies,
        work: &Work,
        source: &Attached,
        watch: &mut dyn FnMut(&Stage<'_>),
    ) -> Result<Opened, Refusal> {
        let from = copies::open_source(&work.from)?;
        let size = copy::size(&from).map_err(Refusal::file("look at", &work.from.path))?;
        let (target, path, given) = if work.to.is_device() {
            zero_behind(copies, work, size, watch)?;
            let given = given(copies.device(&work.to)?, Path::new(&work.to.path))?;
            (Kept::Device(work.to.clone()), PathBuf::from(&work.to.path), given)
        } else {
            let place = copies.begin(&work.to)?;
            let (path, file) = copies.fresh(place)?;
            match work.to.storage {
                StorageType::Qcow2 => {
                    copies::write_copied_image(file, &from, work, &source.layers)?;
                }
                _ => file.set_len(size).map_err(Refusal::file("make", path))?,
            }
            (Kept::Fresh(place), path.to_owned(), given(file, path)?)
        };
        let (given, cache) = given;
        let target_kind = Target { storage: work.to.storage, cache };
        let copy = DiskCopy { address: source.device.address, target: target_kind };
        copies.add(work);
        Ok(Opened { path, copy, given, target, size })
    }

    /// From here on what QEMU gets keeps others from a device, QEMU excepted; for how long it may still have to wait for its
    /// turn, nobody knows.
    fn hand_over(&self, copies: &Copies) {
        if let Kept::Device(to) = &self.target {
            copies.hand_over(to, &self.given);
        }
    }

    /// QEMU is through with it.
    fn finish(self, copies: &Copies) -> Result<(), Refusal> {
        drop(self.given);
        match self.target {
            Kept::Device(to) => {
                copies.device(&to)?.sync_all().map_err(Refusal::file("sync", &self.path))
            }
            // QEMU writes whole sectors.
            Kept::Fresh(place) if self.copy.target.storage != StorageType::Qcow2 => {
                let (path, file) = copies.fresh(place)?;
                file.set_len(self.size).map_err(Refusal::file("cut", path))
            }
            Kept::Fresh(_) => Ok(()),
        }
    }
}

/// Zeroes of a device what lies behind the source's end.
fn zero_behind(
    copies: &mut Copies,
    work: &Work,
    size: u64,
    watch: &mut dyn FnMut(&Stage<'_>),
) -> Result<(), Refusal> {
    let failed = |error| copies::failed(work, error);
    let end = size.next_multiple_of(SECTOR_BYTES);
    if copy::size(copies.device(&work.to)?).map_err(failed)? <= end {
        return Ok(());
    }
    let target = copy::Target::new(copies.device(&work.to)?);
    let mut look = |progress| copies::look(work, progress, watch);
    let zeroed = copy::zero_from(&target, end, &mut look);
    if target.may_be_written() {
        copies.overwrite(&work.to);
    }
    zeroed.map_err(failed)
}

/// A file opened for QEMU, past the memory of the VM Host where that can be.
fn given(file: &File, path: &Path) -> Result<(File, Cache), Refusal> {
    if let Ok(file) = again(file, OFlags::DIRECT) {
        return Ok((file, Cache::Direct));
    }
    let file = again(file, OFlags::empty()).map_err(Refusal::file("open", path))?;
    Ok((file, Cache::Page))
}

/// An open description beside ours: image locks, and the way of writing, are a description's.
fn again(file: &File, flags: OFlags) -> io::Result<File> {
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}
