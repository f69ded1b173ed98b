//! Takes over guests whose keeper and worker are both gone, and clears what a run left in `/run`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use hpvm_app::client::{self, ClientError};
use hpvm_app::protocol::Request;
use hpvm_engine::launch::{self, Places};
use hpvm_engine::reservations;
use hpvm_host::lock::pause_for;
use hpvm_host::names::run_folder;
use hpvm_host::paths::program;
use hpvm_host::removal;
use hpvm_host::users::{self, Ids};
use hpvm_model::GuestConfig;
use hpvm_plan::command_line::shares_disks;

use crate::network::ports;
use crate::presence::{Attention, Presence, Supervision};
use crate::{Refusal, VmHost, devdb, hanging, lost, stores};

/// A worker that lives answers a ping within milliseconds, whatever QEMU does.
const AWAKE_BOUND: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);
/// For who only looks: a QEMU that is not stopped says within milliseconds how its guest is, and others do not wait for one that
/// hangs.
pub(crate) const TO_LOOK: Duration = Duration::from_secs(2);
/// For who asks something of the guest: of one that nobody knows yet nothing is to be had. A VM Host under load may need it.
pub(crate) const TO_ASK: Duration = Duration::from_secs(30);

/// Where a guest's things lie and as whom its processes run.
pub(crate) fn places(host: &VmHost, config: &GuestConfig) -> Result<Places, Refusal> {
    let (base, number) = (host.conf.uid_base()?, config.number.get());
    Ok(Places {
        run_dir: host.root.run_dir(number),
        guest_dir: host.folder(config).path().to_owned(),
        engines: host.root.engines(),
        keeper: program("hpvmkeeper")?,
        worker: program("hpvmapp")?,
        qemu_ids: users::guest_ids(base, number),
        worker_ids: users::worker_ids(base, number),
        lock_ids: lock_ids(host, users::worker_ids(base, number))?,
        reservations: reservations::Programs {
            // Only guests with shared disks need it.
            keeper: program("hpvmreserve").ok(),
            helper: host.conf.reservation_helper(),
            helper_ids: users::reservation_ids(base, number),
        },
        withheld: devdb::withheld_folders(host, config)?,
    })
}

/// Whose the lock is of a process that runs as somebody: that user's, and of the group whose members may read the registry.
pub(crate) fn lock_ids(host: &VmHost, ids: Option<Ids>) -> Result<Option<Ids>, Refusal> {
    let Some(Ids { uid, .. }) = ids else { return Ok(None) };
    let registry = host.root.db();
    let gid = fs::metadata(&registry).map_err(Refusal::file("look at", &registry))?.gid();
    Ok(Some(Ids { uid, gid }))
}

/// Gives a running guest that nobody supervises a keeper and a worker. Fine when it has them, or is off, by now. Nothing of
/// the guest's boot record is needed for it: one that cannot be used is no reason to leave the guest alone. So long is waited
/// until its QEMU tells how it is.
pub(crate) fn adopt(
    host: &VmHost,
    config: &GuestConfig,
    patience: Duration,
) -> Result<(), Refusal> {
    let Presence::On { snapshot: Some(snapshot), supervision: Supervision::None, attention } =
        host.presence(config.number)
    else {
        return Ok(());
    };
    let Some(qemu) = lost::hold(host, config, snapshot.qemu)? else { return Ok(()) };
    let patience = match attention {
        Some(Attention::Stopped { .. }) => Duration::ZERO,
        _ => patience,
    };
    let _lodging = host.lodging();
    let (pid, places) = (snapshot.qemu.pid, places(host, config)?);
    Ok(launch::adopt(&config.name, pid, qemu, patience, &places)?)
}

/// Starts the reservation helper of a running guest again that has shared disks and none that answers.
pub(crate) fn mend_reservations(host: &VmHost, config: &GuestConfig) -> Result<(), Refusal> {
    let shares = host.machine(config).is_some_and(|machine| shares_disks(machine.held()));
    if shares { provide_reservations(host, config) } else { Ok(()) }
}

/// The same before a guest gets its first shared disk.
pub(crate) fn provide_reservations(host: &VmHost, config: &GuestConfig) -> Result<(), Refusal> {
    let places = places(host, config)?;
    if hpvm_reserve::answers(&reservations::socket(&places), AWAKE_BOUND).is_ok() {
        return Ok(());
    }
    let presence = host.presence(config.number);
    let Some(snapshot) = presence.snapshot().filter(|_| presence.is_on()) else { return Ok(()) };
    let Some(qemu) = lost::hold(host, config, snapshot.qemu)? else { return Ok(()) };
    Ok(reservations::start(&places, qemu.into()).map_err(launch::LaunchError::from)?)
}

/// A worker that gave no sign of life for seconds is asked for one first, so that nobody waits minutes for it.
pub(crate) fn awake(host: &VmHost, config: &GuestConfig) -> Result<(), Refusal> {
    match host.presence(config.number).hangs() {
        true => reach(host, config),
        false => Ok(()),
    }
}

/// Until a worker of the guest answers: where a signal holds the one there is, the next one.
pub(crate) fn reach(host: &VmHost, config: &GuestConfig) -> Result<(), Refusal> {
    hanging::end_stopped_worker(host, config);
    let control = host.control(config.number);
    let deadline = Instant::now() + AWAKE_BOUND;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match client::ask(&control, &Request::Ping, &[], left, &mut |_| {}) {
            // It has yet to listen. Where its keeper died with the one before, nobody else brings it.
            Err(ClientError::Connect(_) | ClientError::Closed) if !left.is_zero() => {
                let _ = adopt(host, config, TO_LOOK);
                pause_for(LOOK);
            }
            answer => return Ok(answer.map(|_| ())?),
        }
    }
}

/// Removes the sockets of a guest that has ended; fine when there are none. What its last run left to say stays until the
/// next start: the snapshot.
pub(crate) fn clear(host: &VmHost, config: &GuestConfig) -> Result<(), Refusal> {
    let folder = host.root.run_dir(config.number.get());
    for name in run_folder::SOCKETS {
        let path = folder.join(name);
        removal::file(&path).map_err(Refusal::file("remove", path))?;
    }
    stores::free_drives(config);
    close_ports(host, config.number)
}

/// The guest's ports of virtual switches, and the sockets that led to them.
fn close_ports(host: &VmHost, number: hpvm_model::GuestNumber) -> Result<(), Refusal> {
    // A switch that does not answer keeps its port, and nothing else.
    let closed = ports::close_all(host, number);
    let folder = host.root.run_dir(number.get()).join(run_folder::NETWORK);
    removal::folder(&folder).map_err(Refusal::file("remove", folder))?;
    closed
}

/// Removes all that `/run` has of a guest that is gone.
pub(crate) fn forget(host: &VmHost, number: hpvm_model::GuestNumber) -> Result<(), Refusal> {
    close_ports(host, number)?;
    let folder = host.root.run_dir(number.get());
    removal::folder(&folder).map_err(Refusal::file("remove", folder))
}
