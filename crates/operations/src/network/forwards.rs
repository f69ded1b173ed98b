//! Port forwards that a NAT wire could not make, told to whoever starts a guest on it or gives one a NIC there: a port of the VM
//! Host that something else has is no reason not to run, but nobody reads the switch's log unasked.

use std::collections::BTreeSet;

use hpvm_host::names::switch_folder;
use hpvm_model::{GuestConfig, Problem, SwitchName, Vswitch, Wire};
use hpvm_nat::control::{self, Reply, Request};

use crate::VmHost;

/// One problem for each forward that is not there on the switches of a guest. One that can be made by now is made.
pub(crate) fn problems(host: &VmHost, config: &GuestConfig) -> Vec<Problem> {
    let named: BTreeSet<&SwitchName> = config.nics.iter().map(|nic| &nic.vswitch).collect();
    // Nobody fails to start for what cannot be looked at.
    let switches = host.registry.vswitches().unwrap_or_default();
    let with_forwards = switches.iter().filter(|switch| {
        switch.wire == Wire::Nat && !switch.forwards.is_empty() && named.contains(&switch.name)
    });
    with_forwards.flat_map(|switch| missing(host, switch)).collect()
}

fn missing(host: &VmHost, switch: &Vswitch) -> Vec<Problem> {
    let asking = host.root.switch_dir(switch.number.get()).join(switch_folder::NAT_CONTROL);
    let Ok(Reply::Status(status)) = control::ask(&asking, &Request::Status) else {
        return Vec::new();
    };
    let missing = switch.forwards.iter().filter(|forward| !status.forwards.contains(forward));
    let refused = missing.filter_map(|forward| {
        match control::ask(&asking, &Request::Add { forward: *forward }) {
            Ok(Reply::Refused { why }) => Some(Problem::warning(
                switch.name.as_str(),
                format!(
                    "port forward {forward} of virtual switch '{name}' is not there: {why}; end what has that port and run `hpvmnet -S {name} -b`, or choose another with `hpvmnet -S {name} -C --forward`",
                    name = switch.name
                ),
            )),
            _ => None,
        }
    });
    refused.collect()
}
