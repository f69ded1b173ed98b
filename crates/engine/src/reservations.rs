//! Starts what makes reservations on shared disks for a guest, beside its QEMU; called when a guest starts with such a disk, is
//! given its first, or has lost the process.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hpvm_host::listen::{ListenError, listen};
use hpvm_host::names::{guest_folder, run_folder};
use hpvm_host::users::Ids;
use hpvm_reserve::{Settings, StartError};

use crate::launch::Places;

/// Until the helper speaks; it needs some tens of milliseconds on a host without load.
const READY_BOUND: Duration = Duration::from_secs(10);

/// What is started, and as whom.
#[derive(Clone, Debug)]
pub struct Programs {
    /// hpvmreserve, if it is installed.
    pub keeper: Option<PathBuf>,
    /// qemu-pr-helper
    pub helper: PathBuf,
    pub helper_ids: Option<Ids>,
}

/// Why a guest has nobody to make reservations for it.
#[derive(Debug, thiserror::Error)]
pub enum ReservationsError {
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("the log '{}' cannot be opened for the reservation helper", path.display())]
    Log { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("the reservation helper of the guest does not answer; the guest's log tells more")]
    Silent(#[source] io::Error),
    #[error(
        "hpvmreserve, which makes reservations on shared disks, stands beside no other program of hpvm; reinstall hpvm"
    )]
    NotInstalled,
    #[error("only root may make reservations on disks, and the guest has a shared one")]
    NotRoot,
}

/// Starts it and returns when it answers. It ends when `lifeline` can be read or is closed at its other end.
pub fn start(places: &Places, lifeline: OwnedFd) -> Result<(), ReservationsError> {
    let Programs { keeper, helper, helper_ids } = &places.reservations;
    let (Some(helper_ids), Some(qemu), Some(worker)) =
        (helper_ids, places.qemu_ids, places.worker_ids)
    else {
        return Err(ReservationsError::NotRoot);
    };
    let path = socket(places);
    let keeper = keeper.as_ref().ok_or(ReservationsError::NotInstalled)?;
    // The worker looks whether the helper answers, and QEMU has it reserve.
    let owner = Ids { uid: worker.uid, gid: qemu.gid };
    let socket = listen(&path, 0o660, Some(owner))?;
    let settings = Settings { helper: helper.clone(), ids: Some(*helper_ids) };
    let log = log(&places.guest_dir)?;
    let started = hpvm_reserve::Places { socket, lifeline, log };
    hpvm_reserve::start(keeper, &settings, started)?;
    hpvm_reserve::answers(&path, READY_BOUND).map_err(ReservationsError::Silent)
}

/// Where QEMU finds it.
#[must_use]
pub fn socket(places: &Places) -> PathBuf {
    places.run_dir.join(run_folder::RESERVATIONS)
}

fn log(guest_dir: &Path) -> Result<File, ReservationsError> {
    let path = guest_dir.join(guest_folder::LOG);
    let opened = OpenOptions::new().append(true).create(true).mode(0o644).open(&path);
    opened.map_err(|source| ReservationsError::Log { path, source })
}
