//! `hpvmnet -S name --macs`: where the switch knows stations to be.

use hpvm_vswitchd::protocol::Station;

use crate::table::Table;

#[must_use]
pub fn render(stations: &[Station]) -> String {
    let mut table = Table::new(["MAC Address", "VLAN", "Port", "Heard"]);
    for station in stations {
        let vlan = station.vlan.map_or_else(|| "none".to_owned(), |vlan| vlan.to_string());
        let port = station.port.map_or_else(|| "wire".to_owned(), |port| port.to_string());
        let heard = match station.age_seconds {
            Some(seconds) => format!("{seconds} s ago"),
            None => "its own".to_owned(),
        };
        table.row([&station.mac.to_string(), &vlan, &port, &heard]);
    }
    table.render()
}
