//! Tells guests that run whether the switch of their NICs forwards, so that each sees its link go and come.

use std::time::Duration;

use hpvm_app::client;
use hpvm_app::protocol::{ChangeResult, Reply, Request};
use hpvm_host::names::run_folder;
use hpvm_model::{GuestConfig, PciSlot, Problem, Vswitch, chain};
use hpvm_plan::record::{DeviceChange, Link};

use crate::{Refusal, VmHost};

/// A worker notes it and tells QEMU; both are quick.
const LINK_BOUND: Duration = Duration::from_secs(5);

/// Shows a link to every NIC of running guests on a switch. A guest that could not be told is a warning.
pub(super) fn show(host: &VmHost, switch: &Vswitch, link: Link) -> Result<Vec<Problem>, Refusal> {
    let mut problems = Vec::new();
    for (config, machine) in host.machines()? {
        let nics = machine.nics.iter().filter(|a| a.switch == switch.number && a.link != link);
        let slots: Vec<PciSlot> = nics.map(|attached| attached.nic.slot).collect();
        if slots.is_empty() {
            continue;
        }
        if let Err(reason) = tell(host, &config, slots, link) {
            let text = format!(
                "guest '{}' could not be told that the links of its NICs on '{}' are {}: {reason}",
                config.name,
                switch.name,
                match link {
                    Link::Up => "up",
                    Link::Down => "down",
                }
            );
            problems.push(Problem::warning(config.name.as_str(), text));
        }
    }
    Ok(problems)
}

fn tell(
    host: &VmHost,
    config: &GuestConfig,
    slots: Vec<PciSlot>,
    link: Link,
) -> Result<(), String> {
    let control = host.root.run_dir(config.number.get()).join(run_folder::CONTROL);
    let changes = vec![DeviceChange::LinkNics { slots, link }];
    let request = Request::Change { changes, watched: Vec::new() };
    let reply = client::ask(&control, &request, &[], LINK_BOUND, &mut |_| {});
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
