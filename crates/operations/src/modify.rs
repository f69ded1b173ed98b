//! Changes a guest. The configuration changes in one transaction; a running guest is asked first to take what it can take
//! now, and a change it fails to take leaves the configuration as it was. What it cannot take now waits for its next reset,
//! `at_reset`, or for the next start, which needs no record: it is where configuration and running machine differ.

mod ask;
mod at_reset;
mod decide;
mod settled;

use hpvm_host::durable::Prepared;
use hpvm_model::{GuestConfig, Occupant, Problem, RunState, Severity};
use hpvm_plan::difference::{self, FieldChange};
use hpvm_plan::hotplug::{self, Force, Live, Planned, When};
use hpvm_plan::record::{DeviceChange, Due, Machine};
use hpvm_plan::request::Request;
use hpvm_registry::Step;

use self::ask::{Taken, ask_guest, is_under_way};
use self::decide::{Change, Decision, still_waiting};
use crate::facts::identities;
use crate::presence::{Presence, Supervision};
use crate::refusal::unless_interrupted;
use crate::vm_host::VmHost;
use crate::{Actor, Mode, Refusal, console_media, devdb, folder, supervise};

/// What came of it.
#[derive(Clone, Debug)]
pub struct Modified {
    pub before: GuestConfig,
    pub after: GuestConfig,
    /// Warnings; a dry run may bring errors, with which nothing would be changed.
    pub problems: Vec<Problem>,
    /// Field by field, and when it counts.
    pub fields: Vec<FieldChange>,
    /// Those of them that are disks of a running guest, which is shown more of their stores.
    pub grown: Vec<FieldChange>,
    /// What the guest was asked to let go and has not let go yet.
    pub pending: Vec<String>,
}

impl Modified {
    /// Whether the guest is as it was, and nothing waits.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.before == self.after && self.fields.is_empty() && self.pending.is_empty()
    }
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
    let result = attempt(host, actor, config, request, force, mode);
    host.record_failure_in(mode, actor, config, result)
}

fn attempt(
    host: &mut VmHost,
    actor: &Actor,
    config: &GuestConfig,
    request: &Request,
    force: Force,
    mode: Mode,
) -> Result<Modified, Refusal> {
    let (_busy, before) = host.held_in(mode, config, actor)?;
    let (before, refused) = console_media::take_over(host, actor, before, mode)?;
    let running = running(host, &before)?;
    let change = Change::asked_for(host, (before, running), request, force, mode)?;
    let problems = change.judge(host, refused, mode)?;
    let Decision { mut modified, planned } = change.decide(host, problems)?;
    if mode == Mode::DryRun {
        let state = host.presence(modified.before.number).state();
        if let (Some(machine), RunState::On(Occupant::Firmware)) = (&change.running, state) {
            modified.fields = difference::in_firmware(modified.fields, machine, &planned);
        }
        return Ok(modified);
    }
    if modified.problems.iter().any(|problem| problem.severity == Severity::Error) {
        return Err(Refusal::Problems(modified.problems));
    }
    if planned.is_empty() && change.keeps_all() {
        // Nothing to do is done all the same, and by somebody.
        host.registry.record(&actor.outcome(&modified.after, &Ok(())))?;
        return Ok(modified);
    }
    unless_interrupted()?;
    make(host, actor, &change, &planned, &mut modified)?;
    modified.problems.extend(change.problems_of_comers(host));
    Ok(modified)
}

/// The machine the guest runs on, supervised; `None` when it is off.
fn running(host: &mut VmHost, config: &GuestConfig) -> Result<Option<Machine>, Refusal> {
    match host.presence(config.number) {
        Presence::Off { .. } => Ok(None),
        Presence::On { supervision, .. } => {
            if supervision == Supervision::None {
                supervise::adopt(host, config, supervise::TO_ASK)?;
            }
            host.boot_record(config).map(Some)
        }
    }
}

/// Has the running guest take its part, and keeps the change. What of it was made before it failed is taken back.
fn make(
    host: &mut VmHost,
    actor: &Actor,
    change: &Change<'_>,
    planned: &[Planned],
    modified: &mut Modified,
) -> Result<(), Refusal> {
    let Change { before, after, running, .. } = change;
    let now = changes_now(planned);
    // Without room for it the guest is not asked.
    let identity = host.folder(after).prepare_identity(after)?;
    let kept = taken_by_guest(host, change, &now).and_then(|taken| {
        Step::ModifyApplied.reached();
        store(host, actor, (before, after), identity)?;
        Ok(taken)
    });
    let taken = kept.inspect_err(|refusal| {
        if let Some(running) = running
            && !now.is_empty()
            && !is_under_way(refusal)
        {
            go_back(host, running, before);
        }
    })?;
    modified.pending.extend(taken.pending);
    modified.problems.extend(taken.losses);
    at_reset::note(host, modified, running.as_ref(), planned, taken.waits);
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

/// Whichever worker of the guest answers in the end.
fn taken_by_guest(
    host: &VmHost,
    change: &Change<'_>,
    now: &[DeviceChange],
) -> Result<Taken, Refusal> {
    match ask_guest(host, &change.after, now, Due::Now) {
        Err(refusal) if settled::is_unsettled(&refusal) => {
            settled::make_the_rest(host, change, now, refusal)
        }
        asked => asked,
    }
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
    let planned = hotplug::plan(&waiting, &machine, before, &facts, &live, force);
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
