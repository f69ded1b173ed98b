//! Network interfaces of this machine, as /sys shows them.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use hpvm_model::{InterfaceName, MacAddress};
use nix::ifaddrs::getifaddrs;

const FOLDER: &str = "/sys/class/net";

/// Every interface there is, and its address where it has one.
#[must_use]
pub fn all() -> Vec<(String, MacAddress)> {
    let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    let interface = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let address = fs::read_to_string(entry.path().join("address")).ok()?;
        let mac: MacAddress = address.trim().parse().ok()?;
        (mac.bytes() != [0; 6]).then_some((name, mac))
    };
    entries.filter_map(interface).collect()
}

#[must_use]
pub fn exists(name: &InterfaceName) -> bool {
    folder(name).exists()
}

#[must_use]
pub fn mac(name: &InterfaceName) -> Option<MacAddress> {
    fs::read_to_string(folder(name).join("address")).ok()?.trim().parse().ok()
}

/// The longest packet it carries, in bytes.
#[must_use]
pub fn mtu(name: &InterfaceName) -> Option<u16> {
    fs::read_to_string(folder(name).join("mtu")).ok()?.trim().parse().ok()
}

/// The VM Host's own address on it, IPv4 before IPv6.
#[must_use]
pub fn ip(name: &InterfaceName) -> Option<IpAddr> {
    let addresses = getifaddrs().ok()?.filter(|one| one.interface_name == name.as_str());
    let (mut v4, mut v6) = (None, None);
    for address in addresses.filter_map(|one| one.address) {
        v4 = v4.or_else(|| address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip())));
        v6 = v6.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())));
    }
    v4.or(v6)
}

fn folder(name: &InterfaceName) -> PathBuf {
    PathBuf::from(FOLDER).join(name.as_str())
}
