//! `hpvmnet -X`: XML, in the shape of hpvmstatus's.

use std::fmt::Write as _;

use hpvm_operations::network::view::SwitchView;

use super::{MODE, ip, mac, vlan, wire};
use crate::status::xml::escaped;

#[must_use]
pub fn render(switches: &[SwitchView]) -> String {
    let mut text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<hpvm>\n  <pman>\n".to_owned();
    for switch in switches {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "    <virtual_switch name=\"{}\" local_id=\"{}\">\n      \
             <vswitch_state>{}</vswitch_state>\n      <mode>{MODE}</mode>\n      \
             <wire>{}</wire>\n      <mac_address>{}</mac_address>\n      \
             <ip_address>{}</ip_address>",
            switch.switch.name,
            switch.switch.number,
            switch.state.as_str(),
            escaped(&wire(switch)),
            mac(switch),
            ip(switch),
        );
        for port in &switch.ports {
            let _ = writeln!(
                text,
                "      <port number=\"{}\" state=\"{}\" adaptor=\"{}\" vlan=\"{}\" active=\"{}\"/>",
                port.port,
                port.state.as_str(),
                port.adaptor.map_or("", |kind| kind.as_str()),
                vlan(port),
                port.active.as_ref().map_or("", |guest| guest.as_str()),
            );
        }
        text.push_str("    </virtual_switch>\n");
    }
    text.push_str("  </pman>\n</hpvm>\n");
    text
}
