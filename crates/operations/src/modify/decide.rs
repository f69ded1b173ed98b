//! What a change of a guest comes to: the configuration it asks for, what is wrong with that, and what the running guest can take
//! now. Nothing is made here, and a dry run goes no further; what comes to a running guest is claimed for it.

use std::collections::BTreeSet;
use std::time::Duration;

use hpvm_app::client::{self, ClientError};
use hpvm_app::protocol::{BEGINS_WITHIN, Denial, Reply, Request as Ask};
use hpvm_app::snapshot::Agent;
use hpvm_host::signals;
use hpvm_model::{DeviceKind, GuestConfig, Occupant, Problem, RunState, Severity, StorageAddress};
use hpvm_plan::difference::{self, FieldChange};
use hpvm_plan::drives;
use hpvm_plan::facts::HostFacts;
use hpvm_plan::growth::{Growth, growth};
use hpvm_plan::hotplug::{self, Force, Live, Planned};
use hpvm_plan::judge::{self, Purpose};
use hpvm_plan::record::{Attached, Machine};
use hpvm_plan::request::{DeviceRequest, Request, apply, removals_again};

use super::Modified;
use crate::claims::{self, Claims};
use crate::network::{forwards, lan, mtu, wire};
use crate::refusal::Left;
use crate::vm_host::VmHost;
use crate::{Mode, Refusal, devdb, facts, random, supervise};

/// Until the worker has begun or said why not, and QEMU has looked at its disks.
const IDLE_BOUND: Duration = BEGINS_WITHIN.saturating_add(Duration::from_secs(10));

/// Ends what is told of a guest that a change has not made worse: who reads on knows which of it he caused.
const STANDING: &str = " (it was so before this change)";

/// A change as it is asked for, and the facts it is decided upon.
pub(super) struct Change<'a> {
    pub(super) before: GuestConfig,
    pub(super) after: GuestConfig,
    /// The machine that the guest runs on.
    pub(super) running: Option<Machine>,
    request: &'a Request,
    force: Force,
    facts: HostFacts,
    /// What comes to a running guest is nobody else's until the guest is seen to have it.
    _claims: Option<Claims>,
}

/// What is to be done, and what there is to tell once it is.
pub(super) struct Decision {
    pub(super) modified: Modified,
    pub(super) planned: Vec<Planned>,
}

/// What is to be done with the running guest, and what that comes to.
#[derive(Default)]
struct Steps {
    planned: Vec<Planned>,
    fields: Vec<FieldChange>,
    growth: Growth,
    problems: Vec<Problem>,
}

impl<'a> Change<'a> {
    pub(super) fn asked_for(
        host: &VmHost,
        (before, running): (GuestConfig, Option<Machine>),
        request: &'a Request,
        force: Force,
        mode: Mode,
    ) -> Result<Change<'a>, Refusal> {
        let network = host.network_for(request, Some(before.number))?;
        let (after, lan) = lan::made_apart(
            host,
            &before.nics,
            running.as_ref(),
            network,
            |after| after,
            |network| Ok(apply(&before, running.as_ref(), request, network, &mut random::bits)?),
        )?;
        let claims = match (mode, &running) {
            (Mode::Apply, Some(machine)) => {
                Some(claims::claim(host, &what_comes(machine, &after))?)
            }
            _ => None,
        };
        let mut facts = host.facts(&after, Some(&before))?;
        facts.network.lan = lan;
        if let Some(machine) = &running {
            let new = what_is_new(machine, &after, &facts);
            facts.locked = facts::locked_elsewhere(host, &new, &facts);
        }
        Ok(Change { before, after, running, request, force, facts, _claims: claims })
    }

    /// What is wrong with it, beside what was found `already`; a dry run alone goes on with errors.
    pub(super) fn judge(
        &self,
        host: &VmHost,
        already: Vec<Problem>,
        mode: Mode,
    ) -> Result<Vec<Problem>, Refusal> {
        let Change { before, after, facts, .. } = self;
        let purpose = match self.running {
            Some(_) => Purpose::ChangeOfRunning { before },
            None => Purpose::Change { before: Some(before) },
        };
        // By the name that the guest is to have, which commands in their texts name.
        let old = &GuestConfig { name: after.name.clone(), ..before.clone() };
        let old = judge::problems(old, facts, Purpose::Change { before: Some(old) });
        // The way out may be another one by now.
        let is_standing = |problem: &Problem| {
            let Problem { severity, item, text, .. } = problem;
            old.iter().any(|o| (o.severity, &o.item, &o.text) == (*severity, item, text))
        };
        let mut problems = judge::problems(after, facts, purpose);
        problems.extend(already);
        if mode == Mode::Apply && problems.iter().any(|p| p.severity == Severity::Error) {
            // What was so before is told by changes that are made: here it would bury the reason.
            problems.retain(|problem| !is_standing(problem));
            return Err(Refusal::Problems(problems));
        }
        let (mut standing, mut problems): (Vec<Problem>, Vec<Problem>) =
            problems.into_iter().partition(is_standing);
        for problem in &mut standing {
            problem.text.push_str(STANDING);
        }
        problems.extend(standing);
        match host.registry.number_of(&after.name)? {
            Some(number) if number != after.number => {
                Err(Refusal::NameTaken { name: after.name.clone(), number })
            }
            _ => Ok(problems),
        }
    }

    pub(super) fn decide(
        &self,
        host: &VmHost,
        mut problems: Vec<Problem>,
    ) -> Result<Decision, Refusal> {
        let Change { before, after, running, .. } = self;
        let Steps { mut planned, mut fields, growth, problems: of_steps } = match running {
            Some(machine) => self.steps_of(host, machine)?,
            None => Steps { fields: difference::fields(before, after, None), ..Steps::default() },
        };
        problems.extend(of_steps);
        if let Some(machine) = running {
            problems.extend(drives::folders_that_wait(
                before,
                after,
                machine,
                &planned,
                &self.facts,
            ));
            problems.extend(hotplug::held_elsewhere(&after.name, machine, &planned, &self.facts));
        }
        planned.extend(growth.planned);
        fields.extend(growth.fields.iter().cloned());
        problems.extend(growth.problems);
        let fields = difference::with_refusals(fields, &problems);
        let fields = difference::without_drawn(fields, Some(before), after, self.request);
        let (before, after) = (before.clone(), after.clone());
        let (grown, pending) = (growth.fields, growth.notes);
        let modified = Modified { before, after, problems, fields, grown, pending };
        Ok(Decision { modified, planned })
    }

    /// Whether the configuration stays as it is, and all is known that is to be known of it.
    pub(super) fn keeps_all(&self) -> bool {
        self.before == self.after && !devdb::has_to_keep(&self.after, &self.facts)
    }

    /// What is to be done with a machine as it is now. Which disks have grown was seen before.
    pub(super) fn planned_on(
        &self,
        host: &VmHost,
        machine: &Machine,
    ) -> Result<Vec<Planned>, Refusal> {
        Ok(self.steps_of(host, machine)?.planned)
    }

    /// What is seen of NICs only when the running guest has them.
    pub(super) fn problems_of_comers(&self, host: &VmHost) -> Vec<Problem> {
        if self.running.is_none() || self.request.nics.is_empty() {
            return Vec::new();
        }
        let mut problems = forwards::problems(host, &self.after);
        problems.extend(mtu::of_comers(host, &self.before.nics, &self.after.nics));
        problems.extend(wire::missing_taps(host, &self.before.nics, &self.after.nics));
        problems
    }

    /// What an earlier command removed and the guest still has, stays with it unless this one names it: who changes a label does
    /// not expect a disk to go.
    fn steps_of(&self, host: &VmHost, machine: &Machine) -> Result<Steps, Refusal> {
        let Change { before, after, request, facts, .. } = self;
        let again = removals_again(before, machine, request);
        let named = named_disks(request);
        let mut waiting = still_waiting(machine, before, after);
        waiting.retain(|address| !again.contains(address) && !named.contains(address));
        let live = live(host, after, machine, &named)?;
        let planned = hotplug::plan(&waiting, machine, after, facts, &live, self.force);
        let mut fields = difference::fields(before, after, Some((machine, &planned)));
        let is_told_above = |at: &StorageAddress| before.device_at(*at) != after.device_at(*at);
        let again = again.into_iter().chain(named.iter().copied()).filter(|at| !is_told_above(at));
        let again: BTreeSet<StorageAddress> = again.collect();
        fields.extend(difference::again(&again, after, machine, &planned));
        let growth = growth(machine, after, &named, facts, &live.sizes);
        let problems = hotplug::not_written_out(machine, &planned, &live, self.force);
        Ok(Steps { planned, fields, growth, problems })
    }
}

/// Where the running guest has another device than both configurations, or none, and where something waits for its reset that
/// both want.
pub(super) fn still_waiting(
    machine: &Machine,
    before: &GuestConfig,
    after: &GuestConfig,
) -> BTreeSet<StorageAddress> {
    let has = |at| machine.device_at(at).map(|attached| &attached.device);
    let waits = |at| has(at) != before.device_at(at) || machine.comes_at_reset(at).is_some();
    let places = machine.held().map(|attached| attached.device.address);
    places.filter(|at| waits(*at) && before.device_at(*at) == after.device_at(*at)).collect()
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
        let stores = |has: &Attached| has.identity.zip(identity);
        !machine.held().filter_map(stores).any(|(has, comes)| facts.overlap(has, comes))
    });
    comes
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
    supervise::awake(host, after)?;
    let control = host.control(after.number);
    let mut goes_on =
        || signals::interrupted().map_or(Ok(()), |i| Err(ClientError::Interrupted(i)));
    let idle = client::ask_while(&control, &Ask::Idle, &[], IDLE_BOUND, &mut |_| {}, &mut goes_on);
    match idle.map_err(|error| Refusal::from(error).leaving(|| Left::AsItWas))? {
        Reply::Idle { idle_ms, size_bytes } => Ok(Live {
            sizes: size_bytes.into_iter().collect(),
            idle: idle_ms.into_iter().map(|(a, ms)| (a, Duration::from_millis(ms))).collect(),
            agent: agent(host, machine),
            in_firmware: host.presence(after.number).state() == RunState::On(Occupant::Firmware),
        }),
        Reply::Denied { reason } => Err(reason.into()),
        // Its QEMU has not answered the worker: nothing could be told to such a guest either.
        _ => Err(Denial::Unresponsive.into()),
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
