//! Resets LUNs of a running guest (`gvsdmgr bdr`): the SCSI devices of the VM Host that back them. QEMU has no command that
//! resets one of its own.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use hpvm_host::block::DeviceNumber;
use hpvm_host::{answers, generic, identity};
use hpvm_model::{GuestConfig, GuestName, StorageAddress};
use hpvm_plan::record::Attached;
use rustix::fs::OFlags;

use crate::{Actor, Mode, Refusal, VmHost};

/// The kernel ends a reset by itself; a command waits no longer for it.
const RESET_BOUND: Duration = Duration::from_secs(60);

/// Why a LUN is not reset.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    #[error("the running guest has none of these LUNs yet; its next reset or start brings them")]
    NoneThere,
    #[error("the running guest has no LUN at {0}")]
    NotThere(StorageAddress),
    #[error(
        "{address} is emulated, and QEMU has no command that resets one LUN: in a Linux guest `sg_reset --device DEVICE` resets \
         it; what backs it and is silent is shown by `hpvm gvsdmgr get_info -P {guest} -q lun=all`; and \
         `hpvmmodify -P {guest} -d STATEMENT`, then -a, takes it away and brings it again as a new one"
    )]
    Emulated { address: StorageAddress, guest: GuestName },
    #[error("'{}' leads to another device than the guest has at {address}", path.display())]
    Moved { path: PathBuf, address: StorageAddress },
    #[error("'{}' was not reset", path.display())]
    Failed { path: PathBuf, source: io::Error },
    #[error("the reset of '{}' has not ended after {} s; the kernel goes on with it", path.display(), RESET_BOUND.as_secs())]
    Pending { path: PathBuf },
}

/// Resets these LUNs of a running guest; nothing is reset where one of them cannot be.
pub fn reset(
    host: &mut VmHost,
    actor: &Actor,
    config: &GuestConfig,
    luns: &[StorageAddress],
    mode: Mode,
) -> Result<(), Refusal> {
    if mode == Mode::DryRun {
        return nodes(host, config, luns).map(drop);
    }
    let done = attempt(host, config, luns);
    host.registry.record(&actor.outcome(config, &done))?;
    done
}

fn attempt(host: &VmHost, config: &GuestConfig, luns: &[StorageAddress]) -> Result<(), Refusal> {
    for (path, node) in nodes(host, config, luns)? {
        within_bound(path, node)?;
    }
    Ok(())
}

/// What backs these LUNs, each opened and seen to be what the guest has.
fn nodes(
    host: &VmHost,
    config: &GuestConfig,
    luns: &[StorageAddress],
) -> Result<Vec<(PathBuf, File)>, Refusal> {
    let Some(machine) = host.machine(config) else {
        return Err(Refusal::NotRunning(config.name.clone()));
    };
    if luns.is_empty() {
        return Err(ResetError::NoneThere.into());
    }
    let opened = luns.iter().map(|&address| {
        let attached = machine.storage.iter().find(|a| a.device.address == address);
        open(attached.ok_or(ResetError::NotThere(address))?, &config.name)
    });
    Ok(opened.collect::<Result<_, ResetError>>()?)
}

/// Opens what backs a LUN, if that is a SCSI device as a whole.
fn open(attached: &Attached, guest: &GuestName) -> Result<(PathBuf, File), ResetError> {
    let address = attached.device.address;
    let emulated = || ResetError::Emulated { address, guest: guest.clone() };
    let path = PathBuf::from(attached.device.backing.store().ok_or_else(emulated)?);
    // A file whose file system does not answer is no device.
    let is_scsi =
        |path: &Path| std::fs::metadata(path).is_ok_and(|metadata| leads_to_scsi(&metadata));
    if !answers::about(&path, is_scsi).unwrap_or(false) {
        return Err(emulated());
    }
    let at_once = OFlags::NONBLOCK.bits().cast_signed();
    let node = OpenOptions::new().read(true).write(true).custom_flags(at_once).open(&path);
    let identity = |node: File| Ok((identity::of_store(&node.metadata()?), node));
    match node.and_then(identity) {
        Ok((found, node)) if found.is_some() && found == attached.identity => Ok((path, node)),
        Ok(_) => Err(ResetError::Moved { path, address }),
        Err(source) => Err(ResetError::Failed { path, source }),
    }
}

fn leads_to_scsi(metadata: &Metadata) -> bool {
    let kind = metadata.file_type();
    let number = DeviceNumber::from_raw(metadata.rdev());
    let is = |kind| generic::is_scsi(Path::new("/sys"), kind, number);
    kind.is_block_device() && is("block") || kind.is_char_device() && is("char")
}

fn within_bound(path: PathBuf, node: File) -> Result<(), ResetError> {
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || ended.send(generic::reset(&node)));
    match end.recv_timeout(RESET_BOUND) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(source)) => Err(ResetError::Failed { path, source }),
        Err(_) => Err(ResetError::Pending { path }),
    }
}
