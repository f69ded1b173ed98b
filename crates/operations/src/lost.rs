//! A guest whose QEMU runs while `/run` says nothing of it: its run folder, or the lock in it, was removed. Nobody can reach
//! such a guest any more, so all that is left is to end it. Called by whatever must not happen to a running guest, and only
//! where `/run` says that it is off.

use std::fs::File;
use std::time::Duration;

use hpvm_host::image_lock;
use hpvm_host::lock::{self, ENGINE_BYTE};
use hpvm_host::names::guest_folder;
use hpvm_host::process::{PidFd, Signal};
use hpvm_model::GuestConfig;

use crate::{Refusal, VmHost};

/// QEMU writes what its disks still have to get before it obeys SIGTERM.
const TERM_BOUND: Duration = Duration::from_secs(10);
const KILL_BOUND: Duration = Duration::from_secs(10);

/// The number of the QEMU that holds the guest's variables.
pub(crate) fn qemu(host: &VmHost, config: &GuestConfig) -> Option<i32> {
    let nvram = host.folder(config).file(guest_folder::NVRAM);
    let is_held = lock::is_held(&File::open(&nvram).ok()?, ENGINE_BYTE).unwrap_or(false);
    is_held.then(|| image_lock::holders(&nvram).ok()?.first().map(|holder| holder.pid))?
}

/// The same for whoever only looks: a start that is just under way, which holds the variables first, is none of this.
pub(crate) fn qemu_at_rest(host: &VmHost, config: &GuestConfig) -> Option<i32> {
    let is_busy = !matches!(lock::owner(&host.folder(config).file(guest_folder::BUSY)), Ok(None));
    if is_busy || host.presence(config.number).is_on() {
        return None;
    }
    qemu(host, config)
}

/// Refuses what may not happen to a running guest.
pub(crate) fn refuse(host: &VmHost, config: &GuestConfig) -> Result<(), Refusal> {
    match qemu(host, config) {
        Some(pid) => Err(Refusal::Lost { name: config.name.clone(), pid }),
        None => Ok(()),
    }
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
    held.signal(Signal::KILL).map_err(failed)?;
    match held.wait_exit(KILL_BOUND).map_err(failed)? {
        true => Ok(()),
        false => Err(Refusal::StopFailed(format!("the kernel has not ended process {pid} yet"))),
    }
}
