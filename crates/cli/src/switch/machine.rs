//! `hpvmnet -M`: one line a switch for programs. Fields stand between colons; programs count them, so a new field goes to
//! the end, before the address, which may have colons of its own.

use std::fmt::Write as _;

use hpvm_operations::network::view::SwitchView;

use super::{MODE, ip, mac, wire};

#[must_use]
pub fn render(switches: &[SwitchView]) -> String {
    let mut text = String::new();
    for switch in switches {
        let active = switch.ports.iter().filter(|port| port.active.is_some()).count();
        let fields = [
            switch.switch.name.to_string(),
            switch.switch.number.to_string(),
            switch.state.as_str().to_owned(),
            MODE.to_owned(),
            wire(switch).replace(':', ";"),
            mac(switch),
            switch.ports.len().to_string(),
            active.to_string(),
            ip(switch),
        ];
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", fields.join(":"));
    }
    text
}
