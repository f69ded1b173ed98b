//! A change whose worker died in the middle of its answer. Nobody knows then what the guest has taken; the next worker compares
//! machine and record and settles that. What is not done yet it is asked for.

use std::time::{Duration, Instant};

use hpvm_app::client::{self, ClientError};
use hpvm_app::protocol::{Reply, Request as Ask};
use hpvm_host::lock::pause_for;
use hpvm_host::signals;
use hpvm_model::GuestConfig;
use hpvm_plan::record::{DeviceChange, Due, Machine};

use super::ask::{Taken, ask_guest};
use super::changes_now;
use super::decide::Change;
use crate::network::ports::Changing;
use crate::vm_host::VmHost;
use crate::{Refusal, supervise};

/// A keeper starts the next worker at once, and that looks at the machine within some hundred milliseconds. What was half made
/// it takes back, which takes as long as any step. What a guest was asked to let go may never be settled.
const SETTLED_BOUND: Duration = Duration::from_secs(12);
const LOOK: Duration = Duration::from_millis(20);

/// Whether the worker died while it made a change.
pub(super) fn is_unsettled(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Worker(ClientError::Closed))
}

/// Has the rest made: what the change wants of the machine as the next worker knows it. Without such a worker the refusal is what
/// there is to tell.
pub(super) fn make_the_rest(
    host: &VmHost,
    change: &Change<'_>,
    asked: &[DeviceChange],
    refusal: Refusal,
) -> Result<Taken, Refusal> {
    let Change { after, running, .. } = change;
    let Some(machine) = settled(host, after, asked) else { return Err(refusal) };
    let rest = changes_now(&change.planned_on(host, &machine)?);
    let taken = ask_guest(host, after, &rest, Due::Now)?;
    let gone = asked.iter().filter_map(|change| match change {
        DeviceChange::UnplugNic { slot } if machine.nic_in(*slot).is_none() => {
            running.as_ref()?.nic_in(*slot).cloned()
        }
        _ => None,
    });
    // Those whose port is told of nowhere else: the worker that let them go did not live to say so.
    Changing::begin(host, after, Some(&machine), &[])?.keep(&gone.collect::<Vec<_>>())?;
    Ok(taken)
}

/// The machine, once a worker answers and has settled these changes, or has not in time. `None`: none answers.
fn settled(host: &VmHost, config: &GuestConfig, changes: &[DeviceChange]) -> Option<Machine> {
    let control = host.control(config.number);
    let deadline = Instant::now() + SETTLED_BOUND;
    let mut known = None;
    while Instant::now() < deadline && signals::interrupted().is_none() {
        let left = deadline.saturating_duration_since(Instant::now());
        // Its keeper may have died with it: then nobody else brings the next one.
        let _ = supervise::adopt(host, config, supervise::TO_ASK);
        // A worker that only begins denies it.
        if let Ok(Reply::Idle { .. }) = client::ask(&control, &Ask::Idle, &[], left, &mut |_| {}) {
            known = host.machine(config);
        }
        let is_open = |machine: &Machine| {
            machine.pending.iter().any(|p| p.due == Due::Now && changes.contains(&p.change))
        };
        if known.as_ref().is_some_and(|machine| !is_open(machine)) {
            break;
        }
        pause_for(LOOK);
    }
    known
}
