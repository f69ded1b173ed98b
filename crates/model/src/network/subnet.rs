//! The IPv4 network that a NAT wire gives the guests of its switch.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bytes::shown;

/// Why a text is no network for guests behind NAT.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    #[error("'{0}' is no network; write such as 10.0.2.0/24")]
    Malformed(String),
    #[error(
        "a network of /{0} does not fit; write /{min} to /{max}",
        min = NatSubnet::PREFIX_MIN, max = NatSubnet::PREFIX_MAX
    )]
    Prefix(u8),
    #[error("{0} is an address within the network and not its first; write {1}")]
    NotFirst(Ipv4Addr, NatSubnet),
    #[error(
        "{0} is for no private network; take one of 10.0.0.0/8, 172.16.0.0/12 and 192.168.0.0/16"
    )]
    NotPrivate(NatSubnet),
}

/// The guests' network, which nobody outside sees. Its places are those that users of QEMU know:
///
/// | address | who |
/// | --- | --- |
/// | first + 2 | gateway, and the VM Host where it may be reached |
/// | first + 3 | name server |
/// | first + 15 to last − 1 | guests, by DHCP |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NatSubnet {
    first: Ipv4Addr,
    prefix: u8,
}

impl NatSubnet {
    pub const PREFIX_MIN: u8 = 8;
    pub const PREFIX_MAX: u8 = 27;
    const GATEWAY: u32 = 2;
    const NAME_SERVER: u32 = 3;
    const GUESTS: u32 = 15;

    #[must_use]
    pub fn first(self) -> Ipv4Addr {
        self.first
    }

    #[must_use]
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX << (32 - self.prefix))
    }

    #[must_use]
    pub fn gateway(self) -> Ipv4Addr {
        self.at(Self::GATEWAY)
    }

    #[must_use]
    pub fn name_server(self) -> Ipv4Addr {
        self.at(Self::NAME_SERVER)
    }

    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits() | !self.mask().to_bits())
    }

    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask().to_bits() == self.first.to_bits()
    }

    /// How many guests can have an address by DHCP.
    #[must_use]
    pub fn guests_max(self) -> u32 {
        !self.mask().to_bits() - Self::GUESTS
    }

    /// The address of a place among the guests, from 0.
    #[must_use]
    pub fn guest(self, place: u32) -> Option<Ipv4Addr> {
        (place < self.guests_max()).then(|| self.at(Self::GUESTS + place))
    }

    /// Whether DHCP may give this address.
    #[must_use]
    pub fn is_for_guests(self, address: Ipv4Addr) -> bool {
        self.contains(address)
            && address.to_bits() >= self.at(Self::GUESTS).to_bits()
            && address != self.broadcast()
    }

    /// Whether a guest may have this address: by DHCP, or set within the guest.
    #[must_use]
    pub fn may_be_guest(self, address: Ipv4Addr) -> bool {
        let others = [self.first, self.gateway(), self.name_server(), self.broadcast()];
        self.contains(address) && !others.contains(&address)
    }

    fn at(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits() + offset)
    }
}

impl Default for NatSubnet {
    fn default() -> NatSubnet {
        NatSubnet { first: Ipv4Addr::new(10, 0, 2, 0), prefix: 24 }
    }
}

impl FromStr for NatSubnet {
    type Err = SubnetError;
    fn from_str(text: &str) -> Result<NatSubnet, SubnetError> {
        let malformed = || SubnetError::Malformed(shown(text));
        let (address, prefix) = text.split_once('/').ok_or_else(malformed)?;
        let address: Ipv4Addr = address.parse().map_err(|_| malformed())?;
        if prefix.is_empty() || !prefix.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(malformed());
        }
        let prefix: u8 = prefix.parse().map_err(|_| malformed())?;
        if !(Self::PREFIX_MIN..=Self::PREFIX_MAX).contains(&prefix) {
            return Err(SubnetError::Prefix(prefix));
        }
        let mask = u32::MAX << (32 - prefix);
        let subnet = NatSubnet { first: Ipv4Addr::from_bits(address.to_bits() & mask), prefix };
        if subnet.first != address {
            return Err(SubnetError::NotFirst(address, subnet));
        }
        match address.is_private() && subnet.broadcast().is_private() {
            true => Ok(subnet),
            false => Err(SubnetError::NotPrivate(subnet)),
        }
    }
}

impl TryFrom<String> for NatSubnet {
    type Error = SubnetError;
    fn try_from(text: String) -> Result<NatSubnet, SubnetError> {
        text.parse()
    }
}

impl From<NatSubnet> for String {
    fn from(subnet: NatSubnet) -> String {
        subnet.to_string()
    }
}

impl fmt::Display for NatSubnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn its_places_are_those_of_qemu() {
        let subnet = NatSubnet::default();
        assert_eq!(subnet.to_string().parse(), Ok(subnet));
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 0, 2, 2));
        assert_eq!(subnet.name_server(), Ipv4Addr::new(10, 0, 2, 3));
        assert_eq!(subnet.guest(0), Some(Ipv4Addr::new(10, 0, 2, 15)));
        assert_eq!(subnet.guest(subnet.guests_max() - 1), Some(Ipv4Addr::new(10, 0, 2, 254)));
        assert_eq!(subnet.guest(subnet.guests_max()), None);
        let may_be = |last| subnet.may_be_guest(Ipv4Addr::new(10, 0, 2, last));
        assert!([1, 4, 15, 254].into_iter().all(may_be));
        assert!(![0, 2, 3, 255].into_iter().any(may_be));
        assert!(!subnet.may_be_guest(Ipv4Addr::new(192, 168, 1, 1)));
    }

    #[test]
    fn only_a_whole_private_network_is_taken() {
        let refused = |text: &str| text.parse::<NatSubnet>().expect_err(text);
        assert!(matches!(refused("10.0.2.0"), SubnetError::Malformed(_)));
        assert!(matches!(refused("10.0.2.0/+24"), SubnetError::Malformed(_)));
        assert!(matches!(refused("10.0.2.0/28"), SubnetError::Prefix(28)));
        assert!(matches!(refused("10.0.2.1/24"), SubnetError::NotFirst(..)));
        assert!(matches!(refused("192.0.0.0/8"), SubnetError::NotPrivate(_)));
        assert!(matches!(refused("127.0.0.0/8"), SubnetError::NotPrivate(_)));
    }

    proptest! {
        #[test]
        fn every_guests_address_is_for_guests_and_nobody_elses(
            prefix in NatSubnet::PREFIX_MIN..=NatSubnet::PREFIX_MAX,
            place: u32,
        ) {
            let subnet: NatSubnet = format!("10.0.0.0/{prefix}").parse().expect("a network");
            let address = subnet.guest(place % subnet.guests_max()).expect("a place");
            prop_assert!(subnet.is_for_guests(address));
            for other in [subnet.first(), subnet.gateway(), subnet.name_server(), subnet.broadcast()] {
                prop_assert!(!subnet.is_for_guests(other) && subnet.contains(other));
            }
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in any::<String>()) {
            let _ = text.parse::<NatSubnet>();
        }
    }
}
