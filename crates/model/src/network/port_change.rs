//! What `hpvmnet -u` asks of a port, in the words of A.03.50 and ours: `portid:N:KEYWORD:VALUE`.

use std::net::IpAddr;
use std::str::FromStr;

use super::{
    Isolation, LanBoot, LanBootError, PortError, PortNumber, PortRules, PortVlan, Rate, SpoofGuard,
    VlanError, VlanId, VlanSet,
};
use crate::bytes::shown;

/// Why a text asks for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortChangeError {
    #[error(
        "'{0}' is no change of a port; write portid:N:KEYWORD:VALUE with vlanid, trunk, rate, spoof, addr, mirror, isolated or lanboot"
    )]
    Malformed(String),
    #[error(transparent)]
    Port(#[from] PortError),
    #[error(transparent)]
    Vlan(#[from] VlanError),
    #[error(
        "'{0}' is no rate; write IN[/BURST],OUT[/BURST] in bits a second and bytes with K, M or G, such as 100M/64K,none; a rate is 1K at least"
    )]
    Rate(String),
    #[error("port {0} cannot have its own frames copied to it; name another port, or none")]
    OwnMirror(PortNumber),
    #[error("'{0}' is neither on nor off")]
    Switched(String),
    #[error(transparent)]
    LanBoot(#[from] LanBootError),
    #[error("'{0}' is no list of IP addresses; write such as 192.0.2.7,2001:db8::7, or none")]
    Address(String),
}

/// One change of one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortChange {
    pub port: PortNumber,
    pub rule: PortRule,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRule {
    Vlan(PortVlan),
    Rates { rate_in: Option<Rate>, rate_out: Option<Rate> },
    Spoof(SpoofGuard),
    Addresses(Vec<IpAddr>),
    Mirror(Option<PortNumber>),
    Isolation(Isolation),
    LanBoot(Option<LanBoot>),
}

impl PortChange {
    /// Changes what it is about and leaves the rest.
    pub fn apply(&self, rules: &mut PortRules) {
        match &self.rule {
            PortRule::Vlan(vlan) => rules.vlan.clone_from(vlan),
            PortRule::Rates { rate_in, rate_out } => {
                (rules.rate_in, rules.rate_out) = (*rate_in, *rate_out);
            }
            PortRule::Spoof(guard) => rules.spoof_guard = *guard,
            PortRule::Addresses(addresses) => rules.addresses.clone_from(addresses),
            PortRule::Mirror(mirror) => rules.mirror = *mirror,
            PortRule::Isolation(isolation) => rules.isolation = *isolation,
            PortRule::LanBoot(boot) => rules.lan_boot.clone_from(boot),
        }
    }
}

impl PortRule {
    /// What it sets, as it is typed. The VLANs of a port are one thing, in two words.
    #[must_use]
    pub fn what(&self) -> &'static str {
        match self {
            PortRule::Vlan(_) => "vlanid or trunk",
            PortRule::Rates { .. } => "rate",
            PortRule::Spoof(_) => "spoof",
            PortRule::Addresses(_) => "addr",
            PortRule::Mirror(_) => "mirror",
            PortRule::Isolation(_) => "isolated",
            PortRule::LanBoot(_) => "lanboot",
        }
    }
}

const NONE: &str = "none";

impl FromStr for PortChange {
    type Err = PortChangeError;
    fn from_str(text: &str) -> Result<PortChange, PortChangeError> {
        let malformed = || PortChangeError::Malformed(shown(text));
        let rest = text.strip_prefix("portid:").ok_or_else(malformed)?;
        let (port, rest) = rest.split_once(':').ok_or_else(malformed)?;
        let (keyword, value) = rest.split_once(':').ok_or_else(malformed)?;
        let rule = match (keyword, value) {
            ("vlanid" | "trunk", NONE) => PortRule::Vlan(PortVlan::None),
            ("vlanid", id) => PortRule::Vlan(PortVlan::Untagged(id.parse::<VlanId>()?)),
            ("trunk", list) => PortRule::Vlan(PortVlan::Trunk(list.parse::<VlanSet>()?)),
            ("rate", rates) => read_rates(rates)?,
            ("spoof", "on") => PortRule::Spoof(SpoofGuard::On),
            ("spoof", "off") => PortRule::Spoof(SpoofGuard::Off),
            ("isolated", "on") => PortRule::Isolation(Isolation::On),
            ("isolated", "off") => PortRule::Isolation(Isolation::Off),
            ("spoof" | "isolated", other) => {
                return Err(PortChangeError::Switched(shown(other)));
            }
            ("addr", NONE) => PortRule::Addresses(Vec::new()),
            ("addr", list) => PortRule::Addresses(read_addresses(list)?),
            ("lanboot", NONE) => PortRule::LanBoot(None),
            ("lanboot", boot) => PortRule::LanBoot(Some(boot.parse()?)),
            ("mirror", NONE) => PortRule::Mirror(None),
            ("mirror", to) => PortRule::Mirror(Some(to.parse()?)),
            _ => return Err(malformed()),
        };
        let port = port.parse()?;
        if rule == PortRule::Mirror(Some(port)) {
            return Err(PortChangeError::OwnMirror(port));
        }
        Ok(PortChange { port, rule })
    }
}

fn read_addresses(list: &str) -> Result<Vec<IpAddr>, PortChangeError> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for one in list.split(',') {
        let address = one.parse().map_err(|_| PortChangeError::Address(shown(list)))?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

fn read_rates(text: &str) -> Result<PortRule, PortChangeError> {
    let malformed = || PortChangeError::Rate(shown(text));
    if text == NONE {
        return Ok(PortRule::Rates { rate_in: None, rate_out: None });
    }
    let (rate_in, rate_out) = text.split_once(',').ok_or_else(malformed)?;
    let read = |one| read_rate(one).ok_or_else(malformed);
    Ok(PortRule::Rates { rate_in: read(rate_in)?, rate_out: read(rate_out)? })
}

/// Who writes a smaller number forgot its letter, and his guest would hear a frame in minutes.
const BITS_PER_SECOND_MIN: u64 = 1000;

/// What a rate lets pass at once when nobody says: what passes in this part of a second, and a long frame at least.
const BURST_PART_OF_SECOND: u64 = 100;
const BURST_BYTES_MIN: u64 = 64 << 10;

/// `None`: it is no rate; `Some(None)`: without bound.
#[allow(clippy::option_option, reason = "the outer one says whether the text was understood")]
fn read_rate(text: &str) -> Option<Option<Rate>> {
    if text == NONE {
        return Some(None);
    }
    let (bits, burst) = match text.split_once('/') {
        Some((bits, burst)) => (bits, Some(amount(burst, 1 << 10)?)),
        None => (text, None),
    };
    let bits_per_second = amount(bits, 1000).filter(|bits| *bits >= BITS_PER_SECOND_MIN)?;
    let usual = (bits_per_second / 8 / BURST_PART_OF_SECOND).max(BURST_BYTES_MIN);
    Some(Some(Rate { bits_per_second, burst_bytes: burst.unwrap_or(usual) }))
}

/// A number above 0 with K, M or G, each a `step` more.
fn amount(text: &str, step: u64) -> Option<u64> {
    let (digits, factor) = match text.char_indices().next_back()? {
        (at, 'K' | 'k') => (&text[..at], step),
        (at, 'M' | 'm') => (&text[..at], step * step),
        (at, 'G' | 'g') => (&text[..at], step * step * step),
        _ => (text, 1),
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    let number: u64 = digits.parse().ok().filter(|_| is_number)?;
    number.checked_mul(factor).filter(|amount| *amount > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules(texts: &[&str]) -> PortRules {
        let mut rules = PortRules::default();
        for text in texts {
            let change: PortChange = text.parse().unwrap();
            assert_eq!(change.port, PortNumber::new(7).unwrap());
            change.apply(&mut rules);
        }
        rules
    }

    #[test]
    fn every_change_is_read_and_leaves_the_others() {
        let changed = rules(&[
            "portid:7:vlanid:20",
            "portid:7:rate:100M/64K,1G",
            "portid:7:spoof:off",
            "portid:7:addr:192.0.2.7,2001:db8::7,192.0.2.7",
            "portid:7:mirror:9",
            "portid:7:isolated:on",
            "portid:7:lanboot:dhcp",
        ]);
        assert_eq!(changed.lan_boot, Some(LanBoot::Dhcp));
        assert_eq!(changed.isolation, Isolation::On);
        assert_eq!(changed.vlan, PortVlan::Untagged(VlanId::new(20).unwrap()));
        let (into, out) = (changed.rate_in.unwrap(), changed.rate_out.unwrap());
        assert_eq!((into.bits_per_second, into.burst_bytes), (100_000_000, 65_536));
        assert_eq!((out.bits_per_second, out.burst_bytes), (1_000_000_000, 1_250_000));
        assert_eq!(changed.spoof_guard, SpoofGuard::Off);
        assert_eq!(changed.addresses.len(), 2, "each once");
        assert_eq!(changed.mirror, PortNumber::new(9));
        let trunk = rules(&["portid:7:trunk:10,20-29"]).vlan;
        assert_eq!(trunk, PortVlan::Trunk("10,20-29".parse().unwrap()));
        let none = rules(&[
            "portid:7:vlanid:20",
            "portid:7:vlanid:none",
            "portid:7:rate:1M,none",
            "portid:7:rate:none",
            "portid:7:addr:192.0.2.7",
            "portid:7:addr:none",
            "portid:7:mirror:9",
            "portid:7:mirror:none",
            "portid:7:isolated:on",
            "portid:7:isolated:off",
            "portid:7:lanboot:192.0.2.7/24,server=192.0.2.1,file=a:b",
            "portid:7:lanboot:none",
        ]);
        assert_eq!(none, PortRules::default());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, word) in [
            ("", "no change of a port"),
            ("portid:7", "no change of a port"),
            ("portid:7:vlanid", "no change of a port"),
            ("portid:7:speed:1", "no change of a port"),
            ("portid:0:vlanid:1", "ports are 1 to"),
            ("portid:7:vlanid:4095", "no VLAN"),
            ("portid:7:trunk:a", "no list of VLANs"),
            ("portid:7:rate:1M", "no rate"),
            ("portid:7:rate:0,1M", "no rate"),
            ("portid:7:rate:1T,1M", "no rate"),
            ("portid:7:rate:10,none", "1K at least"),
            ("portid:7:spoof:yes", "neither on nor off"),
            ("portid:7:isolated:1", "neither on nor off"),
            ("portid:7:addr:host", "no list of IP addresses"),
            ("portid:7:lanboot:yes", "does not say how to boot"),
            ("portid:7:mirror:x", "ports are 1 to"),
        ] {
            let error = text.parse::<PortChange>().unwrap_err().to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "portid:\\PC{0,40}") {
            let _ = text.parse::<PortChange>();
        }
    }
}
