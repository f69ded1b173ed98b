//! Tells guests that run whether the switch of their NICs forwards, so that each sees its link go and come.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use hpvm_app::client;
use hpvm_app::protocol::{ChangeResult, Reply, Request};
use hpvm_host::lock::pause_for;
use hpvm_model::{GuestConfig, PciSlot, Problem, Vswitch, chain};
use hpvm_plan::record::{DeviceChange, Link};

use crate::{Refusal, VmHost};

/// A worker notes it and tells QEMU; both are quick.
const LINK_BOUND: Duration = Duration::from_secs(5);
/// A guest takes so long to see that it has a link, emulated on a busy machine. What it sends before is lost, and a question for
/// somebody's address is asked again after a second only (Linux, net/core/neighbour.c).
const SEEN_WITHIN: Duration = Duration::from_millis(100);
/// So many guests are told at a time: one after the other the last of many would see its link late.
const TOLD_AT_ONCE: usize = 64;

/// What a guest is to be told, and where.
struct Told {
    config: GuestConfig,
    slots: Vec<PciSlot>,
    control: PathBuf,
}

/// Shows a link to every NIC of running guests on a switch, and gives them time to see one that came. A guest that could not be
/// told is a warning.
pub(super) fn show(host: &VmHost, switch: &Vswitch, link: Link) -> Result<Vec<Problem>, Refusal> {
    let machines = host.machines()?.into_iter();
    let concerned = machines.filter_map(|(config, machine)| {
        let nics = machine.nics.iter().filter(|a| a.switch == switch.number && a.link != link);
        let slots: Vec<PciSlot> = nics.map(|attached| attached.nic.slot).collect();
        let control = host.control(config.number);
        (!slots.is_empty()).then_some(Told { config, slots, control })
    });
    let concerned: Vec<Told> = concerned.collect();
    let mut problems = Vec::new();
    for some in concerned.chunks(TOLD_AT_ONCE) {
        thread::scope(|scope| {
            let ask = |told| scope.spawn(move || tell(told, link).err());
            let asked: Vec<_> = some.iter().map(ask).collect();
            for (told, asked) in some.iter().zip(asked) {
                let failed = asked.join().unwrap_or_else(|_| Some("it was not asked".into()));
                problems.extend(failed.map(|reason| untold(&told.config, switch, link, &reason)));
            }
        });
    }
    if link == Link::Up && !concerned.is_empty() {
        pause_for(SEEN_WITHIN);
    }
    Ok(problems)
}

fn untold(config: &GuestConfig, switch: &Vswitch, link: Link, reason: &str) -> Problem {
    let text = format!(
        "guest '{}' could not be told that the links of its NICs on '{}' are {}: {reason}",
        config.name,
        switch.name,
        match link {
            Link::Up => "up",
            Link::Down => "down",
        }
    );
    Problem::warning(config.name.as_str(), text)
}

fn tell(told: &Told, link: Link) -> Result<(), String> {
    let changes = vec![DeviceChange::LinkNics { slots: told.slots.clone(), link }];
    let request = Request::Change { changes, watched: Vec::new() };
    let reply = client::ask(&told.control, &request, &[], LINK_BOUND, &mut |_| {});
    match reply.map_err(|error| chain(&error))? {
        Reply::Changed { results } => match results.into_iter().next() {
            Some(ChangeResult::Done) => Ok(()),
            Some(ChangeResult::Failed { error }) => Err(error),
            _ => Err("it was not done".into()),
        },
        Reply::Denied { reason } => Err(reason.to_string()),
        Reply::Failed { error } => Err(error),
        _ => Err("its answer is not understood".into()),
    }
}
