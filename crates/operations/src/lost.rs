//! A guest whose QEMU runs while `/run` says nothing of it: its run folder, or the lock in it, was removed. Nobody can reach
//! such a guest any more, so all that is left is to end it. Called by whatever must not happen to a running guest and by
//! whatever shows guests, and only where `/run` says that it is off.
//!
//! The firmware variables tell: QEMU holds a byte of them as long as it lives. So they tell of any guest which process is its
//! QEMU, whatever its worker says.

use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use hpvm_app::snapshot::Process;
use hpvm_host::durable;
use hpvm_host::engines::Marked;
use hpvm_host::image_lock;
use hpvm_host::lock::{self, ENGINE_BYTE};
use hpvm_host::names::guest_folder;
use hpvm_host::process::{PidFd, Signal};
use hpvm_model::{GuestConfig, GuestNumber, GuestUuid};

use crate::folder::Folder;
use crate::presence::Presence;
use crate::{Refusal, VmHost};

/// QEMU writes what its disks still have to get before it obeys SIGTERM.
const TERM_BOUND: Duration = Duration::from_secs(10);
const KILL_BOUND: Duration = Duration::from_secs(10);
/// A process that has closed its files is gone within milliseconds.
const EXIT_BOUND: Duration = Duration::from_secs(1);

/// By which byte of the guest's variables its QEMU is known.
const ENGINE: RangeInclusive<u64> = ENGINE_BYTE..=ENGINE_BYTE;

/// The number of the QEMU that holds the guest's variables.
pub(crate) fn qemu(host: &VmHost, config: &GuestConfig) -> Option<i32> {
    let nvram = host.folder(config).file(guest_folder::NVRAM);
    let holders = is_held(&nvram).then(|| image_lock::holders(&nvram, &ENGINE))?;
    holders.ok()?.first().map(|holder| holder.pid)
}

/// The guest whose QEMU a process is: its mark says which, and that it holds that guest's variables that it is so.
pub(crate) fn guest_of(host: &VmHost, pid: i32) -> Option<GuestConfig> {
    let marks = image_lock::held_by(pid, &host.root.engines()).ok()?;
    let marked = |mark: RangeInclusive<u64>| {
        let number = GuestNumber::new(u32::try_from(*mark.start()).ok()?)?;
        host.guest_numbered(number).ok()
    };
    let is_its = |config: &GuestConfig| {
        let nvram = host.folder(config).file(guest_folder::NVRAM);
        image_lock::is_held_by(pid, &nvram, &ENGINE).unwrap_or(false)
    };
    marks.into_iter().filter_map(marked).find(is_its)
}

/// Takes hold of the process that the guest's worker published as its QEMU. `None`: it has ended. The worker is trusted with its
/// guest alone, and could have written down any process: what is ended, or given to a keeper, is one that holds the variables.
pub(crate) fn hold(
    host: &VmHost,
    config: &GuestConfig,
    published: Process,
) -> Result<Option<PidFd>, Refusal> {
    let Process { pid, start_time } = published;
    let nvram = host.folder(config).file(guest_folder::NVRAM);
    let failed = || Refusal::file("look who holds", &nvram);
    let Some(held) = PidFd::open(pid, start_time).map_err(failed())? else { return Ok(None) };
    if image_lock::is_held_by(pid, &nvram, &ENGINE).map_err(failed())? {
        return Ok(Some(held));
    }
    match held.wait_exit(EXIT_BOUND).map_err(failed())? {
        true => Ok(None),
        false => Err(Refusal::NotItsEngine { pid, path: nvram }),
    }
}

/// The same for whoever only looks.
pub(crate) fn qemu_at_rest(host: &VmHost, config: &GuestConfig) -> Option<i32> {
    is_at_rest(host, config.number, config.uuid).then(|| qemu(host, config))?
}

/// Whether the guest runs out of everybody's reach. Asks no process; of a guest that does not run it costs one look at a file.
pub(crate) fn is_at_rest(host: &VmHost, number: GuestNumber, uuid: GuestUuid) -> bool {
    let folder = Folder::of(&host.root, uuid);
    let nvram = folder.file(guest_folder::NVRAM);
    // A start that is just under way holds the variables first, and one that has ended was over before /run said so: in this
    // order, neither is taken for a guest that is lost. Nor is one whose end its worker told: a QEMU on its way out holds the
    // variables until its memory is gone.
    is_held(&nvram)
        && matches!(lock::owner(&folder.file(guest_folder::BUSY)), Ok(None))
        && matches!(host.presence(number), Presence::Off { last: None })
        && is_held(&nvram)
}

/// The guests that may be lost, among those that `/run` shows as off: their QEMU lives. It spares who lists many guests a look
/// at each that is off.
pub(crate) fn suspects(host: &VmHost) -> Marked {
    Marked::read(&host.root.engines()).unwrap_or_default()
}

fn is_held(nvram: &Path) -> bool {
    durable::open_regular(nvram)
        .is_ok_and(|nvram| lock::is_held(&nvram, ENGINE_BYTE).unwrap_or(false))
}

/// Refuses what may not happen to a running guest.
pub(crate) fn refuse(host: &VmHost, config: &GuestConfig) -> Result<(), Refusal> {
    match qemu(host, config) {
        Some(pid) => Err(refusal(config, pid)),
        None => Ok(()),
    }
}

/// The same for a guest whose folder is gone, and its variables with it: its QEMU has the guest's mark still.
pub(crate) fn refuse_without_folder(host: &VmHost, config: &GuestConfig) -> Result<(), Refusal> {
    let number = config.number.get();
    if !suspects(host).has(number) {
        return Ok(());
    }
    let engines = host.root.engines();
    let byte = u64::from(number)..=u64::from(number);
    let holders =
        image_lock::holders(&engines, &byte).map_err(Refusal::file("look who holds", engines))?;
    match holders.first() {
        Some(holder) => Err(Refusal::RunsWithoutFolder { pid: holder.pid }),
        None => Ok(()),
    }
}

/// How it is, and what can be done about it.
pub(crate) fn refusal(config: &GuestConfig, pid: i32) -> Refusal {
    Refusal::Lost { name: config.name.clone(), pid }
}

/// Ends the process, by a request first.
pub(crate) fn end(host: &VmHost, config: &GuestConfig, pid: i32) -> Result<(), Refusal> {
    let failed = |e: std::io::Error| Refusal::StopFailed(e.to_string());
    let Some(held) = PidFd::open_number(pid).map_err(failed)? else { return Ok(()) };
    // Looked at again after taking hold: the held process is the one that has the lock.
    if qemu(host, config) != Some(pid) {
        return Ok(());
    }
    held.signal(Signal::TERM).map_err(failed)?;
    if held.wait_exit(TERM_BOUND).map_err(failed)? {
        return Ok(());
    }
    kill(&held)
}

/// Ends a process at once.
pub(crate) fn kill(held: &PidFd) -> Result<(), Refusal> {
    let failed = |e: std::io::Error| Refusal::StopFailed(e.to_string());
    held.signal(Signal::KILL).map_err(failed)?;
    match held.wait_exit(KILL_BOUND).map_err(failed)? {
        true => Ok(()),
        false => Err(Refusal::StopFailed(
            "the kernel has not ended its process yet, which waits for its I/O; `hpvm why` tells when it is gone".into(),
        )),
    }
}
