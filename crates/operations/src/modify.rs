//! Changes a guest. The configuration changes in one transaction; a running guest is asked first to take what it can take
//! now, and a change it fails to take leaves the configuration as it was. What it cannot take now waits for its next reset,
//! `at_reset`, or for the next start, which needs no record: it is where configuration and running machine differ.

mod at_reset;
mod settled;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use hpvm_app::client::{self, ClientError};
use hpvm_app::protocol::{ChangeResult, Reply, Request as Ask};
use hpvm_app::snapshot::Agent;
use hpvm_engine::media::{self, Wanted};
use hpvm_host::durable::Prepared;
use hpvm_host::names::run_folder;
use hpvm_host::signals;
use hpvm_host::users::Ids;
use hpvm_model::{DeviceKind, GuestConfig, Problem, Severity, StorageAddress};
use hpvm_plan::command_line::shares_disks;
use hpvm_plan::difference::{self, FieldChange};
use hpvm_plan::drives;
use hpvm_plan::facts::HostFacts;
use hpvm_plan::growth::{Growth, growth};
use hpvm_plan::hotplug::{self, Force, Live, Planned, When};
use hpvm_plan::judge::{self, Purpose};
use hpvm_plan::record::{AttachedNic, DeviceChange, Due, Machine};
use hpvm_plan::request::{DeviceRequest, Request, apply, removals_again};
use hpvm_registry::Step;

use crate::folder;
use crate::network::ports::Changing;
use crate::network::{forwards, lan, mtu};
use crate::presence::{Presence, Supervision};
use crate::refusal::{Left, unless_interrupted};
use crate::vm_host::{VmHost, identities, random};
use crate::{Actor, Mode, Refusal, claims, console_media, devdb, facts, supervise};

/// A removal waits for the guest; everything else is quick. All changes of one command together.
const CHANGE_BOUND: Duration = Duration::from_secs(120);
const IDLE_BOUND: Duration = Duration::from_secs(5);
/// A device that the guest lets go, or does not, is told of within this; who was interrupted waits no longer.
const INTERRUPTED_BOUND: Duration = Duration::from_secs(12);

/// What came of it.
#[derive(Clone, Debug)]
pub struct Modified {
    pub before: GuestConfig,
    pub after: GuestConfig,
    /// Warnings; a dry run may bring errors, with which nothing would be changed.
    pub problems: Vec<Problem>,
    /// Field by field, and when it counts.
    pub fields: Vec<FieldChange>,
    /// What the guest was asked to let go and has not let go yet.
    pub pending: Vec<String>,
}

/// Changes the guest as asked.
pub fn modify(
    host: &mut VmHost,
    actor: &Actor,
    config: &GuestConfig,
    request: &Request,
    force: Force,
    mode: Mode,
) -> Result<Modified, Refusal> {
    let _busy = host.busy(config, actor)?;
    let result = attempt(host, actor, config, request, force, mode);
    match mode {
        Mode::Apply => host.record_failure(actor, Some(config), result),
        Mode::DryRun => result,
    }
}

fn attempt(
    host: &mut VmHost,
    actor: &Actor,
    config: &GuestConfig,
    request: &Request,
    force: Force,
    mode: Mode,
) -> Result<Modified, Refusal> {
    // Read again under the lock: another command may have changed it since.
    let before = host.guest_numbered(config.number)?;
    let (before, refused) = console_media::take_over(host, actor, before, mode)?;
    let running = running(host, &before)?;
    let network = host.network_for(request, Some(before.number))?;
    let (after, lan) = lan::made_apart(
        host,
        &before.nics,
        running.as_ref(),
        network,
        |after| after,
        |network| Ok(apply(&before, running.as_ref(), request, network, &mut random)?),
    )?;
    let _claims = match (mode, &running) {
        (Mode::Apply, Some(machine)) => Some(claims::claim(host, &what_comes(machine, &after))?),
        _ => None,
    };
    let mut facts = host.facts(&after, Some(&before))?;
    facts.network.lan = lan;
    if let Some(machine) = &running {
        facts.locked = facts::locked_elsewhere(&what_is_new(machine, &after, &facts), &facts);
    }
    let purpose = match &running {
        Some(_) => Purpose::ChangeOfRunning { before: &before },
        None => Purpose::Change { before: Some(&before) },
    };
    let mut problems = judge::problems(&after, &facts, purpose);
    problems.extend(refused);
    if mode == Mode::Apply && problems.iter().any(|p| p.severity == Severity::Error) {
        // What was so before is told by changes that are made: here it would bury the reason.
        let old = judge::problems(&before, &facts, Purpose::Change { before: Some(&before) });
        problems.retain(|problem| !old.contains(problem));
        return Err(Refusal::Problems(problems));
    }
    if let Some(holder) = host.registry.number_of(&after.name)?
        && holder != after.number
    {
        return Err(Refusal::NameTaken { name: after.name, number: holder });
    }
    let Changes { mut planned, mut fields, growth } = match &running {
        Some(machine) => of_running(host, machine, (&before, &after), request, &facts, force)?,
        None => Changes { fields: difference::fields(&before, &after, None), ..Changes::default() },
    };
    if let Some(machine) = &running {
        problems.extend(drives::folders_that_wait(&before, &after, machine, &planned));
    }
    planned.extend(growth.planned);
    fields.extend(growth.fields);
    problems.extend(growth.problems);
    let fields = difference::with_refusals(fields, &problems);
    let fields = difference::without_drawn(fields, Some(&before), &after, request);
    let mut modified = Modified { before, after, problems, fields, pending: growth.notes };
    if mode == Mode::DryRun {
        return Ok(modified);
    }
    let is_known = !devdb::has_to_keep(&modified.after, &facts);
    if modified.before == modified.after && planned.is_empty() && is_known {
        // Nothing to do is done all the same, and by somebody.
        host.registry.record(&actor.outcome(&modified.after, &Ok(())))?;
        return Ok(modified);
    }
    unless_interrupted()?;
    let (before, after) = (modified.before.clone(), modified.after.clone());
    let mut plan_anew = |host: &VmHost, machine: &Machine| {
        let changes = of_running(host, machine, (&before, &after), request, &facts, force);
        Ok(changes?.planned)
    };
    carry_out(host, actor, &mut modified, running.as_ref(), &planned, &mut plan_anew)?;
    if running.is_some() && !request.nics.is_empty() {
        modified.problems.extend(forwards::problems(host, &modified.after));
        modified.problems.extend(mtu::of_comers(host, &modified.before.nics, &modified.after.nics));
    }
    Ok(modified)
}

/// What is to be done with the running guest, and what that comes to.
#[derive(Default)]
struct Changes {
    planned: Vec<Planned>,
    fields: Vec<FieldChange>,
    growth: Growth,
}

/// What an earlier command removed and the guest still has, stays with it unless this one names it: who changes a label does
/// not expect a disk to go.
fn of_running(
    host: &VmHost,
    machine: &Machine,
    (before, after): (&GuestConfig, &GuestConfig),
    request: &Request,
    facts: &HostFacts,
    force: Force,
) -> Result<Changes, Refusal> {
    let again = removals_again(before, machine, request);
    let named = named_disks(request);
    let mut waiting = still_waiting(machine, before, after);
    waiting.retain(|address| !again.contains(address) && !named.contains(address));
    let live = live(host, after, machine, &named)?;
    let planned = hotplug::plan_beside(&waiting, machine, after, facts, &live, force);
    let mut fields = difference::fields(before, after, Some((machine, &planned)));
    let is_told_above = |at: &StorageAddress| before.device_at(*at) != after.device_at(*at);
    let again = again.into_iter().chain(named.iter().copied()).filter(|at| !is_told_above(at));
    let again: BTreeSet<StorageAddress> = again.collect();
    fields.extend(difference::again(&again, after, machine, &planned));
    let growth = growth(machine, after, &named, facts, &live.sizes);
    Ok(Changes { planned, fields, growth })
}

/// Where the running guest has another device than both configurations, or none, and where something waits for its reset that
/// both want.
fn still_waiting(
    machine: &Machine,
    before: &GuestConfig,
    after: &GuestConfig,
) -> BTreeSet<StorageAddress> {
    let has = |at| machine.device_at(at).map(|attached| &attached.device);
    let waits = |at| has(at) != before.device_at(at) || machine.comes_at_reset(at).is_some();
    let places = machine.held().map(|attached| attached.device.address);
    places.filter(|at| waits(*at) && before.device_at(*at) == after.device_at(*at)).collect()
}

fn carry_out(
    host: &mut VmHost,
    actor: &Actor,
    modified: &mut Modified,
    running: Option<&Machine>,
    planned: &[Planned],
    plan_anew: &mut settled::Plan<'_>,
) -> Result<(), Refusal> {
    let (before, after) = (&modified.before.clone(), &modified.after.clone());
    let now = changes_now(planned);
    // Without room for it the guest is not asked.
    let identity = host.folder(after).prepare_identity(after)?;
    let taken = match ask_guest(host, after, &now, Due::Now) {
        Err(refusal) if settled::is_unsettled(&refusal) => {
            settled::make_the_rest(host, after, (running, &now), refusal, plan_anew)
        }
        asked => asked,
    };
    let stored = taken.and_then(|taken| {
        Step::ModifyApplied.reached();
        store(host, actor, (before, after), identity)?;
        Ok(taken)
    });
    match stored {
        Ok(taken) => {
            modified.pending.extend(taken.pending);
            at_reset::note(host, modified, running, planned, taken.waits);
        }
        Err(refusal) => {
            if let Some(running) = running
                && !now.is_empty()
                && !is_under_way(&refusal)
            {
                go_back(host, running, before);
            }
            return Err(refusal);
        }
    }
    if before.name != after.name {
        folder::unlink(&host.root, &before.name, before.uuid).map_err(Refusal::file(
            "remove the link",
            host.root.guest_link(before.name.as_str()),
        ))?;
        Step::RenameUnlinked.reached();
    }
    // The texts are for people; the next change writes them again.
    let _ = host.folder(after).write_texts(after, host.machine(after).as_ref());
    Ok(())
}

/// Makes the change the configuration: in the folder and in the registry, or in neither.
fn store(
    host: &mut VmHost,
    actor: &Actor,
    (before, after): (&GuestConfig, &GuestConfig),
    identity: Prepared,
) -> Result<(), Refusal> {
    let facts = host.facts(after, None)?;
    let root = host.root.clone();
    // From here on nobody else can take the new name.
    let change = host.registry.change()?;
    match change.number_of(&after.name)? {
        Some(number) if number != after.number => {
            return Err(Refusal::NameTaken { name: after.name.clone(), number });
        }
        _ => {}
    }
    let mut link = Named { root: &root, after, named: false };
    if before.name != after.name {
        link.named = true;
        folder::link(&root, &after.name, after.uuid)?;
        Step::RenameLinked.reached();
    }
    // Goes back to what it was unless it is kept.
    let identity = identity.put()?;
    change.update(after, &identities(&facts))?;
    devdb::keep_identities(&change, after, &facts, devdb::Keeping::FilesToo)?;
    devdb::forget_unused(&change, before)?;
    change.record(&actor.done(Some(before), Some(after)))?;
    change.commit()?;
    identity.keep();
    link.named = false;
    Step::ModifyCommitted.reached();
    Ok(())
}

/// The link that a guest may have under a name that is not yet its own.
struct Named<'a> {
    root: &'a hpvm_host::Root,
    after: &'a GuestConfig,
    named: bool,
}

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if self.named {
            // What cannot be taken back now is found by `hpvm doctor`; the error that led here is the one to tell.
            let _ = folder::unlink(self.root, &self.after.name, self.after.uuid);
        }
    }
}

/// Takes back what of a change was made before a part of it failed: the way from the machine as it is now to the
/// configuration as it stays, beside what waited already, which waits again. What cannot be taken back now waits for the next
/// start and is shown so.
fn go_back(host: &VmHost, running: &Machine, before: &GuestConfig) {
    let Some(machine) = host.machine(before) else { return };
    let Ok(facts) = host.facts(before, None) else { return };
    let waiting = still_waiting(running, before, before);
    let (live, force) = (Live::default(), Force::Yes);
    let planned = hotplug::plan_beside(&waiting, &machine, before, &facts, &live, force);
    // The refusal that led here is the one to tell.
    let _ = ask_guest(host, before, &changes_now(&planned), Due::Now);
    at_reset::note_again(host, before, running);
}

fn changes_now(planned: &[Planned]) -> Vec<DeviceChange> {
    let now = planned.iter().filter_map(|p| match &p.when {
        When::Now(change) => Some(change.clone()),
        When::NextReset { .. } | When::NextStart(_) => None,
    });
    now.collect()
}

/// A configuration with the devices alone that the running guest has not yet. A guest that is slow to let others go delays
/// nobody else.
fn what_comes(machine: &Machine, after: &GuestConfig) -> GuestConfig {
    let comes = after.storage.iter().filter(|device| {
        machine.device_at(device.address).is_none_or(|has| has.device.backing != device.backing)
    });
    GuestConfig { storage: comes.cloned().collect(), ..after.clone() }
}

/// The same without what the guest's own engine has already, at another address or by another name.
fn what_is_new(machine: &Machine, after: &GuestConfig, facts: &HostFacts) -> GuestConfig {
    let mut comes = what_comes(machine, after);
    comes.storage.retain(|device| {
        let identity = device.backing.store().and_then(|path| facts.identity(path));
        !machine.held().any(|has| has.identity.is_some() && has.identity == identity)
    });
    comes
}

/// The machine the guest runs on, supervised; `None` when it is off.
fn running(host: &mut VmHost, config: &GuestConfig) -> Result<Option<Machine>, Refusal> {
    match host.presence(config.number) {
        Presence::Off { .. } => Ok(None),
        Presence::On { supervision, .. } => {
            if supervision == Supervision::None {
                supervise::adopt(host, config)?;
            }
            host.boot_record(config).map(Some)
        }
    }
}

/// The disks that a request names for a change; one that is named as it is, may have grown.
fn named_disks(request: &Request) -> Vec<StorageAddress> {
    let named = |device: &DeviceRequest| match device {
        DeviceRequest::Modify(statement) if statement.kind == DeviceKind::Disk => statement.address,
        _ => None,
    };
    request.devices.iter().filter_map(named).collect()
}

/// How long the disks that are to leave have been quiet, whether the guest's agent can be asked, and how large disks are;
/// only a removal of one of several, and a disk that may have grown, need to know.
fn live(
    host: &VmHost,
    after: &GuestConfig,
    machine: &Machine,
    named: &[StorageAddress],
) -> Result<Live, Refusal> {
    let leaves = |address: StorageAddress| {
        let has = machine.device_at(address).map(|attached| &attached.device);
        after.device_at(address) != has
    };
    if named.is_empty() && !machine.storage.iter().any(|a| leaves(a.device.address)) {
        return Ok(Live::default());
    }
    let control = host.root.run_dir(after.number.get()).join(run_folder::CONTROL);
    match client::ask(&control, &Ask::Idle, &[], IDLE_BOUND, &mut |_| {})? {
        Reply::Idle { idle_ms, size_bytes } => Ok(Live {
            sizes: size_bytes.into_iter().collect(),
            idle: idle_ms.into_iter().map(|(a, ms)| (a, Duration::from_millis(ms))).collect(),
            agent: agent(host, machine),
        }),
        // Without an answer nothing is known to be quiet, and what is not quiet waits.
        _ => Ok(Live::default()),
    }
}

/// As the worker published it: an agent that has fallen silent since costs its deadline and no more.
fn agent(host: &VmHost, machine: &Machine) -> hotplug::Agent {
    let presence = host.presence(machine.base.number);
    match presence.snapshot().map(|snapshot| &snapshot.agent) {
        Some(Agent::Answers { .. }) => hotplug::Agent::Answers,
        _ => hotplug::Agent::Silent,
    }
}

/// What of a change the running guest has not taken yet.
#[derive(Debug, Default)]
struct Taken {
    /// It was asked to let these go.
    pending: Vec<String>,
    /// These wait for its reset, and why.
    waits: Vec<(DeviceChange, String)>,
}

/// Asks the running guest.
fn ask_guest(
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
    let control = host.root.run_dir(config.number.get()).join(run_folder::CONTROL);
    let ask = match due {
        Due::Now => Ask::Change { changes: changes.to_vec(), watched },
        Due::NextReset => Ask::AtReset { changes: changes.to_vec(), watched },
    };
    let mut patience = Patience::default();
    let mut goes_on = || patience.goes_on();
    let reply = match client::change(&control, &ask, &descriptors, CHANGE_BOUND, &mut goes_on) {
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

/// Why a change was not waited for any longer.
fn given_up(left: Left) -> Refusal {
    match signals::interrupted() {
        Some(interruption) => Refusal::Interrupted { interruption, left },
        None => Refusal::Late { seconds: CHANGE_BOUND.as_secs(), left },
    }
}

/// Whether the guest is still at a part of a change: only when it is through can that be taken back.
fn is_under_way(refusal: &Refusal) -> bool {
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
        "the guest was asked to let {what} go and has not done so yet; it goes when the guest lets it, at its next start at the latest"
    )
}
