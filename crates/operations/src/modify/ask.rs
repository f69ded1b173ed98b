//! Asks the running guest to take a part of a change: its worker is told what to make, with a descriptor of each store that comes,
//! and answers what the guest has taken.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use hpvm_app::client::{self, ClientError};
use hpvm_app::protocol::{ChangeResult, Reply, Request as Ask};
use hpvm_engine::media::{self, Wanted};
use hpvm_host::signals;
use hpvm_host::users::Ids;
use hpvm_model::{GuestConfig, Problem, StorageAddress};
use hpvm_plan::command_line::shares_disks;
use hpvm_plan::record::{AttachedNic, DeviceChange, Due, Machine};

use crate::hanging::{self, Watch};
use crate::network::ports::Changing;
use crate::refusal::Left;
use crate::vm_host::VmHost;
use crate::{Refusal, supervise};

/// A removal waits for the guest; everything else is quick. All changes of one command together.
const CHANGE_BOUND: Duration = Duration::from_secs(120);
/// A device that the guest lets go, or does not, is told of within this; who was interrupted waits no longer.
const INTERRUPTED_BOUND: Duration = Duration::from_secs(12);

/// What of a change the running guest has not taken yet.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// It was asked to let these go.
    pub(super) pending: Vec<String>,
    /// These wait for its reset, and why.
    pub(super) waits: Vec<(DeviceChange, String)>,
    /// What it may have lost with disks that left.
    pub(super) losses: Vec<Problem>,
}

/// Asks the running guest.
pub(super) fn ask_guest(
    host: &VmHost,
    config: &GuestConfig,
    changes: &[DeviceChange],
    due: Due,
) -> Result<Taken, Refusal> {
    if changes.is_empty() {
        return Ok(Taken::default());
    }
    supervise::awake(host, config)?;
    let machine = host.machine(config);
    if changes.iter().any(brings_shared_disk) {
        supervise::provide_reservations(host, config)?;
    }
    let ports = Changing::begin(host, config, machine.as_ref(), changes)?;
    signals::lift_limits();
    let media = open_media(changes, supervise::places(host, config)?.qemu_ids)?;
    let (watched, stores): (Vec<StorageAddress>, Vec<File>) =
        open_stores(changes).into_iter().unzip();
    let descriptors: Vec<BorrowedFd<'_>> =
        media.iter().map(AsFd::as_fd).chain(stores.iter().map(AsFd::as_fd)).collect();
    let ask = match due {
        Due::Now => Ask::Change { changes: changes.to_vec(), watched },
        Due::NextReset => Ask::AtReset { changes: changes.to_vec(), watched },
    };
    let reply = match ask_worker(host, config, &ask, &descriptors) {
        Err(error @ ClientError::Closed) => {
            // What it has done, the next worker knows.
            ports.leave();
            return Err(error.into());
        }
        Err(ClientError::Interrupted(_) | ClientError::Deadline(_)) => {
            // A NIC that the guest may be taking at this moment needs its port.
            ports.leave();
            return Err(given_up(Left::Changing(config.name.clone())));
        }
        reply => reply?,
    };
    match reply {
        Reply::Changed { results } => {
            let taken = taken(changes, &results)?;
            if results.contains(&ChangeResult::Skipped) {
                return Err(given_up(Left::AsItWas));
            }
            let gone = nics_gone(machine.as_ref(), changes, &results);
            ports.keep(&gone)?;
            Ok(taken)
        }
        Reply::Denied { reason } => Err(Refusal::Denied(reason)),
        Reply::Failed { error } => Err(Refusal::NotTaken(error)),
        _ => Err(Refusal::Worker(ClientError::Malformed)),
    }
}

fn ask_worker(
    host: &VmHost,
    config: &GuestConfig,
    ask: &Ask,
    descriptors: &[BorrowedFd<'_>],
) -> Result<Reply, ClientError> {
    let control = host.control(config.number);
    let (mut patience, mut watch) = (Patience::default(), Watch::new(host, config));
    let mut goes_on = || {
        if watch.is_stopped() {
            // The answer ends with it, and its successor settles what it was at.
            hanging::end_stopped_worker(host, config);
        }
        patience.goes_on()
    };
    client::change(&control, ask, descriptors, CHANGE_BOUND, &mut goes_on)
}

/// Why a change was not waited for any longer.
fn given_up(left: Left) -> Refusal {
    match signals::interrupted() {
        Some(interruption) => Refusal::Interrupted { interruption, left },
        None => Refusal::Late { seconds: CHANGE_BOUND.as_secs(), left },
    }
}

/// Whether the guest is still at a part of a change: only when it is through can that be taken back.
pub(super) fn is_under_way(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::Interrupted { left: Left::Changing(_), .. }
            | Refusal::Late { left: Left::Changing(_), .. }
    )
}

fn brings_shared_disk(change: &DeviceChange) -> bool {
    matches!(change, DeviceChange::Attach { devices, .. } if shares_disks(devices))
}

/// The NICs that the guest let go.
fn nics_gone(
    machine: Option<&Machine>,
    changes: &[DeviceChange],
    results: &[ChangeResult],
) -> Vec<AttachedNic> {
    let gone = changes.iter().zip(results).filter_map(|(change, result)| match (change, result) {
        (DeviceChange::UnplugNic { slot }, ChangeResult::Done) => machine?.nic_in(*slot).cloned(),
        _ => None,
    });
    gone.collect()
}

/// What the guest is taking at this moment is not left in its middle: whoever interrupts the command waits for a little more.
#[derive(Default)]
struct Patience {
    interrupted_at: Option<Instant>,
}

impl Patience {
    fn goes_on(&mut self) -> Result<(), ClientError> {
        let Some(interruption) = signals::interrupted() else { return Ok(()) };
        let since = *self.interrupted_at.get_or_insert_with(Instant::now);
        match since.elapsed() < INTERRUPTED_BOUND {
            true => Ok(()),
            false => Err(ClientError::Interrupted(interruption)),
        }
    }
}

fn open_media(changes: &[DeviceChange], ids: Option<Ids>) -> Result<Vec<OwnedFd>, Refusal> {
    let wanted = changes.iter().flat_map(|change| {
        change.media().flat_map(move |attached| match change {
            // QEMU has the disk already; the worker looks how long its store is now.
            DeviceChange::Grow { .. } => vec![Wanted::Beside(attached.clone())],
            _ => {
                let layers = change.layers_of(attached).iter().cloned().map(Wanted::Layer);
                std::iter::once(Wanted::Store(attached.clone())).chain(layers).collect()
            }
        })
    });
    Ok(media::open_all(wanted.collect(), ids)?)
}

/// What comes to the guest, opened for its worker to see whether it answers.
fn open_stores(changes: &[DeviceChange]) -> Vec<(StorageAddress, File)> {
    media::open_to_watch(changes.iter().flat_map(|change| match change {
        DeviceChange::Attach { devices, .. } => devices.as_slice(),
        DeviceChange::Medium { attached, .. } => std::slice::from_ref(attached),
        _ => &[],
    }))
}

fn taken(changes: &[DeviceChange], results: &[ChangeResult]) -> Result<Taken, Refusal> {
    let mut taken = Taken::default();
    for (change, result) in changes.iter().zip(results) {
        match result {
            ChangeResult::Failed { error } => return Err(Refusal::NotTaken(error.clone())),
            ChangeResult::Pending => taken.pending.push(waiting_text(change)),
            ChangeResult::Waits { reason } => taken.waits.push((change.clone(), reason.clone())),
            ChangeResult::DoneUnasked { loss } => {
                let item = change.address().map_or_else(String::new, |at| at.to_string());
                taken.losses.push(Problem::warning(item, loss));
            }
            ChangeResult::Done | ChangeResult::Skipped => {}
        }
    }
    Ok(taken)
}

fn waiting_text(change: &DeviceChange) -> String {
    let what = match change {
        DeviceChange::DetachAdapter { slot } => format!("the adapter at {slot}"),
        DeviceChange::Detach { address, .. }
        | DeviceChange::PlaceHolder { address, .. }
        | DeviceChange::TakeBack { address } => format!("the device at {address}"),
        DeviceChange::Grow { attached, .. } => {
            format!("the disk at {}", attached.device.address)
        }
        DeviceChange::Medium { attached, .. } => {
            format!("the medium of the dvd at {}", attached.device.address)
        }
        DeviceChange::Attach { slot, .. } => format!("the adapter at {slot}"),
        DeviceChange::UnplugNic { slot } => format!("the NIC at {slot}"),
        DeviceChange::PlugNic { attached } | DeviceChange::MoveNic { attached } => {
            format!("the NIC at {}", attached.nic.slot)
        }
        DeviceChange::LinkNics { .. } => "the links of its NICs".into(),
    };
    format!(
        "the guest was asked to let {what} go and has not done so yet; it goes when the guest lets it, at its next reset at the latest"
    )
}
