//! `hpvmnet`: one line a switch; with `-S` that of one, and a line for each of its ports.
//!
//! A value that is longer than its column of A.03.50 is never cut and never runs into the next: it moves the rest of its line,
//! as in hpvmstatus. No value has a blank, so who counts words and not columns reads every line.

use std::fmt::Write as _;

use hpvm_operations::network::view::SwitchView;

use super::{MODE, Ports, ip, mac, vlan_short, wire};

const HEAD: &str = "\
Name     Number State   Mode      NamePPA  MAC Address    IP Address
======== ====== ======= ========= ======== ============== ===============
";
const PORTS_HEAD: &str = "
[Port Configuration Details]
Port    Port         Port     Untagged Number of    Active VM
Number  State        Adaptor  VLANID   Reserved VMs
======= ============ ======== ======== ============ ============
";

#[must_use]
pub fn render(switches: &[SwitchView]) -> String {
    let mut text = HEAD.to_owned();
    for switch in switches {
        let line = format!(
            "{:<8} {:>6} {:<7} {MODE:<9} {:<8} {:<14} {:<15}",
            switch.switch.name,
            switch.switch.number,
            switch.state.as_str(),
            wire(switch),
            mac(switch),
            ip(switch),
        );
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[must_use]
pub fn one(switch: &SwitchView, ports: Ports) -> String {
    let mut text = render(std::slice::from_ref(switch));
    text.push_str(PORTS_HEAD);
    for port in ports.of(switch) {
        let line = format!(
            "{:<7} {:<12} {:<8} {:<8} {:<12} {:<12}",
            port.port.number(),
            port.state.as_str(),
            port.adaptor.map_or("", |kind| kind.as_str()),
            vlan_short(port),
            port.reserved.len(),
            port.active.as_ref().map_or("", |guest| guest.as_str()),
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}
