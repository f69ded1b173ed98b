//! `hpvmstatus -d`: devices as resource statements, ready for -a, -m and -d.

use super::{SERIAL_STATEMENT, Shown};
use crate::messages::printable;

#[must_use]
pub fn render(guest: &Shown<'_>) -> String {
    let storage: String = guest
        .storage
        .iter()
        .map(|device| format!("{}\n", printable(&device.to_string())))
        .collect();
    let networks: String = guest.nics.iter().map(|nic| format!("{nic}\n")).collect();
    format!(
        "[Virtual Machine Devices]\n\n\
         [Storage Interface Details]\n{storage}\n\
         [Network Interface Details]\n{networks}\n\
         [Misc Interface Details]\n{SERIAL_STATEMENT}\n"
    )
}
