//! Disks that other programs have locked, and who they are.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hpvm_host::answers;
use hpvm_host::image_lock::{self, ALL_BYTES, Holder};
use hpvm_host::lock::pause_for;
use hpvm_model::{Backing, DeviceKind, GuestConfig, StorageDevice};
use hpvm_plan::facts::{FileFact, HostFacts, Lock, Sharer};

use crate::{VmHost, lost};

/// Engines that are just ending keep their locks so long.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// Stores that another program has locked in a way that keeps this guest from them, and which. What guests of this VM Host have
/// is known without locks.
pub(crate) fn locked_elsewhere(
    host: &VmHost,
    config: &GuestConfig,
    facts: &HostFacts,
) -> BTreeMap<String, Lock> {
    let is_written = |device: &StorageDevice| device.kind == DeviceKind::Disk;
    let disks = config.storage.iter().filter(|device| is_written(device));
    let images = config.storage.iter().filter(|device| device.is_shared_freely());
    let layers = config.storage.iter().flat_map(|device| &device.layers);
    let written = disks.map(|device| &device.backing);
    let read = images.map(|device| &device.backing).chain(layers);
    let mut locked = locked_of(host, written, facts, Aim::Write);
    locked.extend(locked_of(host, read, facts, Aim::Read));
    locked
}

/// The same of the disks of a guest that are only to be copied.
pub(crate) fn written_elsewhere(
    host: &VmHost,
    config: &GuestConfig,
    facts: &HostFacts,
) -> BTreeMap<String, Lock> {
    let disks = config.storage.iter().filter(|device| device.kind == DeviceKind::Disk);
    locked_of(host, disks.map(|device| &device.backing), facts, Aim::Read)
}

fn locked_of<'a>(
    host: &VmHost,
    backings: impl Iterator<Item = &'a Backing>,
    facts: &HostFacts,
    aim: Aim,
) -> BTreeMap<String, Lock> {
    let is_ours = |path: &str| {
        let sharers = facts.identity(path).and_then(|identity| facts.sharers.get(&identity));
        sharers.is_some_and(|sharers| sharers.iter().any(Sharer::holds_it))
    };
    let stores = backings.filter_map(Backing::store);
    locked(host, stores.filter(|path| !is_ours(path)), facts, aim)
}

/// What is to be done with a disk.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Aim {
    Write,
    /// Beside others who read it.
    Read,
}

/// Those of these disks that a program has locked, and which program. It is seen by the path that the program uses alone, so
/// every path to a disk's bytes is looked at.
pub(crate) fn locked<'a>(
    host: &VmHost,
    disks: impl IntoIterator<Item = &'a str>,
    facts: &HostFacts,
    aim: Aim,
) -> BTreeMap<String, Lock> {
    let stays_locked: fn(&Path) -> bool = match aim {
        Aim::Write => |image| stays(image, image_lock::is_locked),
        Aim::Read => |image| stays(image, image_lock::is_written),
    };
    // Nothing else can be asked, nor answers.
    let can_be_asked = |path: &&str| {
        matches!(facts.files.get(*path), Some(FileFact::Regular { .. } | FileFact::Block(_)))
    };
    let disks: Vec<&str> = disks.into_iter().filter(can_be_asked).collect();
    let doubles = |disk: &str| facts.doubles.get(disk).into_iter().flatten();
    // A double may lie anywhere; the disks themselves answered a moment ago.
    let asked: BTreeSet<&String> = disks.iter().flat_map(|disk| doubles(disk)).collect();
    let questions = asked.iter().map(|path| (PathBuf::from(path), stays_locked));
    let answers = answers::all_about(questions).into_iter().zip(asked);
    let locked: BTreeSet<&String> =
        answers.filter(|(answer, _)| *answer == Some(true)).map(|(_, path)| path).collect();
    let lock_on = |disk: &'a str| {
        let double = || doubles(disk).find(|double| locked.contains(double)).map(Path::new);
        let own = Some(Path::new(disk)).filter(|own| stays_locked(own));
        Some((disk.to_owned(), holders(host, own.or_else(double)?)))
    };
    disks.into_iter().filter_map(lock_on).collect()
}

fn stays(image: &Path, locked: fn(&Path) -> io::Result<bool>) -> bool {
    let deadline = Instant::now() + LOCK_PATIENCE;
    while locked(image).unwrap_or(false) {
        if Instant::now() >= deadline {
            return true;
        }
        pause_for(Duration::from_millis(5));
    }
    false
}

/// Who has locked it, as far as that can be seen.
pub(crate) fn holders(host: &VmHost, image: &Path) -> Lock {
    let named = |holders: &[Holder], name: &dyn Fn(&Holder) -> String| {
        holders.iter().map(name).collect::<Vec<_>>().join(", ")
    };
    let clones = |clones: &[Holder]| named(clones, &|h| format!("hpvmclone (process {})", h.pid));
    let is_clone = |holder: &Holder| CLONES.contains(&holder.program.as_str());
    // Nobody writes beside it but the QEMU of a running source, and for it.
    let mut writers = image_lock::writers(image).unwrap_or_default();
    writers.retain(is_clone);
    if !writers.is_empty() {
        return Lock::Overwriting { who: clones(&writers) };
    }
    let holders = image_lock::holders(image, &ALL_BYTES).unwrap_or_default();
    if holders.is_empty() {
        return Lock::Program { who: "another user's process".into() };
    }
    let guest_of = |h: &Holder| Some((lost::guest_of(host, h.pid)?.name, h.pid));
    if let Some((guest, pid)) = holders.iter().find_map(guest_of) {
        return Lock::Guest { guest, who: format!("process {pid}") };
    }
    if !holders.iter().all(is_clone) {
        let who = named(&holders, &|h| format!("process {} ({})", h.pid, h.program));
        return Lock::Program { who };
    }
    let who = clones(&holders);
    match image_lock::is_copied(image) {
        Ok(true) => Lock::Copying { who },
        _ => Lock::Overwriting { who },
    }
}

/// The program of hpvmclone, by its names.
const CLONES: [&str; 2] = ["hpvm", "hpvmclone"];
