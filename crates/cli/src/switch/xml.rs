//! `hpvmnet -X`: XML, in the shape of hpvmstatus's.

use std::fmt::Write as _;

use hpvm_model::network::Rate;
use hpvm_model::{Isolation, PortRules, SpoofGuard};
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
        for forward in &switch.switch.forwards {
            let _ = writeln!(text, "      <port_forward>{forward}</port_forward>");
        }
        for port in &switch.ports {
            let _ = writeln!(
                text,
                "      <port number=\"{}\" state=\"{}\" adaptor=\"{}\" vlan=\"{}\" active=\"{}\"{}/>",
                port.port,
                port.state.as_str(),
                port.adaptor.map_or("", |kind| kind.as_str()),
                vlan(port),
                port.active.as_ref().map_or("", |guest| guest.as_str()),
                rules(&port.rules),
            );
        }
        text.push_str("    </virtual_switch>\n");
    }
    text.push_str("  </pman>\n</hpvm>\n");
    text
}

/// Those that differ from what every port has, by the words of `hpvmnet -u`.
fn rules(rules: &PortRules) -> String {
    let mut text = String::new();
    let mut attribute = |name: &str, value: String| {
        let _ = write!(text, " {name}=\"{}\"", escaped(&value));
    };
    let mut rate = |name: &str, rate: Option<Rate>| {
        if let Some(Rate { bits_per_second, burst_bytes }) = rate {
            attribute(&format!("rate_{name}_bits_per_second"), bits_per_second.to_string());
            attribute(&format!("burst_{name}_bytes"), burst_bytes.to_string());
        }
    };
    rate("in", rules.rate_in);
    rate("out", rules.rate_out);
    if rules.spoof_guard == SpoofGuard::Off {
        attribute("spoof", "off".to_owned());
    }
    if !rules.addresses.is_empty() {
        let addresses: Vec<String> = rules.addresses.iter().map(ToString::to_string).collect();
        attribute("addr", addresses.join(","));
    }
    if let Some(mirror) = rules.mirror {
        attribute("mirror", mirror.to_string());
    }
    if rules.isolation == Isolation::On {
        attribute("isolated", "on".to_owned());
    }
    if let Some(boot) = &rules.lan_boot {
        attribute("lanboot", boot.to_string());
    }
    text
}
