//! Port forwards that a NAT wire could not make, told to whoever starts a guest on it or gives one a NIC there: a port of the VM
//! Host that something else has is no reason not to run, but nobody reads the switch's log unasked.

use std::collections::BTreeSet;

use hpvm_host::names::switch_folder;
use hpvm_model::{Forward, GuestConfig, Problem, SwitchName, Vswitch, Wire};
use hpvm_nat::Settings;
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
            Ok(Reply::Refused { why }) => {
                Some(Problem::warning(switch.name.as_str(), refused_text(switch, forward, &why)))
            }
            _ => None,
        }
    });
    refused.collect()
}

fn refused_text(switch: &Vswitch, forward: &Forward, why: &str) -> String {
    let (name, subnet) = (&switch.name, Settings::default().subnet);
    let other = format!("choose another with `hpvmnet -S {name} -C --forward`");
    let way_out = match subnet.may_be_guest(*forward.guest.ip()) {
        true => format!("end what has that port and run `hpvmnet -S {name} -b`, or {other}"),
        false => format!("{} is no guest's address in {subnet}; {other}", forward.guest.ip()),
    };
    format!("port forward {forward} of virtual switch '{name}' is not there: {why}; {way_out}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpvm_model::SwitchNumber;

    #[test]
    fn nobody_is_to_free_a_port_for_a_forward_that_leads_nowhere() {
        let number = SwitchNumber::new(3).expect("a number");
        let switch = Vswitch::new(number, "nat1".parse().expect("a name"));
        let told =
            |forward: &str| refused_text(&switch, &forward.parse().expect("one"), "it is so");
        let taken = told("tcp:2224:10.0.2.15:22");
        assert!(taken.contains("end what has that port and run `hpvmnet -S nat1 -b`"), "{taken}");
        let nowhere = told("tcp:2224:192.168.1.1:22");
        let words = "192.168.1.1 is no guest's address in 10.0.2.0/24; choose another";
        assert!(nowhere.contains(words) && !nowhere.contains("end what"), "{nowhere}");
    }
}
