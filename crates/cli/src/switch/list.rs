//! `hpvmnet`: one line a switch; with `-S` that of one, and a line for each of its ports.
//!
//! The columns are those of A.03.50 as long as all values fit, since scripts cut them there. A longer value is never cut: its
//! column grows for all lines.

use std::fmt::Write as _;

use hpvm_operations::network::view::SwitchView;

use super::{MODE, Ports, ip, mac, vlan_short, wire};

const HEAD: [&str; 7] = ["Name", "Number", "State", "Mode", "NamePPA", "MAC Address", "IP Address"];
const WIDTHS: [usize; 7] = [8, 6, 7, 9, 8, 14, 15];
/// Numbers stand at the right.
const NUMBER: usize = 1;
const PORTS_HEAD: &str = "
[Port Configuration Details]
Port    Port         Port     Untagged Number of    Active VM
Number  State        Adaptor  VLANID   Reserved VMs
======= ============ ======== ======== ============ ============
";

#[must_use]
pub fn render(switches: &[SwitchView]) -> String {
    let cells = |view: &SwitchView| {
        [
            view.switch.name.to_string(),
            view.switch.number.to_string(),
            view.state.as_str().to_owned(),
            MODE.to_owned(),
            wire(view),
            mac(view),
            ip(view),
        ]
    };
    let rows: Vec<[String; 7]> = switches.iter().map(cells).collect();
    let mut widths = WIDTHS;
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = line(&HEAD, &widths, None);
    text.push_str(&line(&widths.map(|width| "=".repeat(width)), &widths, None));
    rows.iter().for_each(|row| text.push_str(&line(row, &widths, Some(NUMBER))));
    text
}

fn line(cells: &[impl AsRef<str>; 7], widths: &[usize; 7], right: Option<usize>) -> String {
    let mut line = String::new();
    for (place, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let cell = cell.as_ref();
        // Writing to a string cannot fail.
        let _ = match right == Some(place) {
            true => write!(line, "{cell:>width$} "),
            false => write!(line, "{cell:<width$} "),
        };
    }
    format!("{}\n", line.trim_end())
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
