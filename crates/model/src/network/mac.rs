//! MAC addresses of guests: locally administered, for one station.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bytes::shown;

/// Why a text is no MAC address of a guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    #[error("'{0}' is no MAC address; write 12 hexadecimal digits such as 0x56a1b2c3d4e5")]
    Malformed(String),
    #[error("{0} is an address of many stations; the lowest bit of its first byte must be 0")]
    Group(MacAddress),
    #[error("{0} is not locally administered; the second lowest bit of its first byte must be 1")]
    Universal(MacAddress),
}

/// The address of one Ethernet station, 6 bytes in the order of the wire (IEEE 802, clause 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    const GROUP: u8 = 0b01;
    const LOCALLY_ADMINISTERED: u8 = 0b10;

    #[must_use]
    pub fn new(bytes: [u8; 6]) -> MacAddress {
        MacAddress(bytes)
    }

    /// Makes 6 random bytes an address that a guest may have.
    #[must_use]
    pub fn for_a_guest(random: [u8; 6]) -> MacAddress {
        let mut bytes = random;
        bytes[0] = (bytes[0] | Self::LOCALLY_ADMINISTERED) & !Self::GROUP;
        MacAddress(bytes)
    }

    /// Reads an address that an administrator gives a guest.
    pub fn parse_for_a_guest(text: &str) -> Result<MacAddress, MacError> {
        let address: MacAddress = text.parse()?;
        if address.is_group() {
            return Err(MacError::Group(address));
        }
        if address.0[0] & Self::LOCALLY_ADMINISTERED == 0 {
            return Err(MacError::Universal(address));
        }
        Ok(address)
    }

    #[must_use]
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// As A.03.50's hpvmstatus prints it: `56-a1-b2-c3-d4-e5`.
    #[must_use]
    pub fn with_dashes(self) -> String {
        self.0.map(|byte| format!("{byte:02x}")).join("-")
    }

    /// Whether frames to this address are for many stations: multicast or broadcast.
    #[must_use]
    pub fn is_group(self) -> bool {
        self.0[0] & Self::GROUP != 0
    }
}

impl FromStr for MacAddress {
    type Err = MacError;
    /// `0x` and 12 hexadecimal digits, 12 digits alone, or six pairs parted by `:` or `-`.
    fn from_str(text: &str) -> Result<MacAddress, MacError> {
        let malformed = || MacError::Malformed(shown(text));
        let bare = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
        let pairs: Vec<&str> = match bare.find([':', '-']) {
            Some(at) => bare.split(&bare[at..=at]).collect(),
            None if bare.len() == 12 && bare.is_ascii() => {
                (0..6).map(|pair| &bare[2 * pair..2 * pair + 2]).collect()
            }
            None => return Err(malformed()),
        };
        let mut bytes = [0; 6];
        if pairs.len() != bytes.len() {
            return Err(malformed());
        }
        for (byte, pair) in bytes.iter_mut().zip(pairs) {
            if pair.len() != 2 || !pair.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| malformed())?;
        }
        Ok(MacAddress(bytes))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacError;
    fn try_from(text: String) -> Result<MacAddress, MacError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> String {
        address.to_string()
    }
}

/// As A.03.50 prints it: `0x56a1b2c3d4e5`.
impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_spelling_of_an_address_is_read() {
        let address = MacAddress::new([0x56, 0xa1, 0xb2, 0xc3, 0xd4, 0xe5]);
        for text in ["0x56a1b2c3d4e5", "56A1B2C3D4E5", "56:a1:b2:c3:d4:e5", "56-A1-B2-C3-D4-E5"] {
            assert_eq!(text.parse(), Ok(address), "{text}");
        }
        for text in ["", "0x", "56a1b2c3d4e", "56:a1:b2:c3:d4", "56:a1-b2:c3:d4:e5", "5+a1b2c3d4e5"]
        {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_guest_has_no_group_address_and_none_of_a_manufacturer() {
        let given = MacAddress::parse_for_a_guest;
        assert!(matches!(given("0x57a1b2c3d4e5"), Err(MacError::Group(_))));
        assert!(matches!(given("0x0017a4112233"), Err(MacError::Universal(_))));
    }

    proptest! {
        #[test]
        fn what_is_made_for_a_guest_may_be_given_to_one(random: [u8; 6]) {
            let address = MacAddress::for_a_guest(random);
            prop_assert_eq!(MacAddress::parse_for_a_guest(&address.to_string()), Ok(address));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in any::<String>()) {
            let _ = text.parse::<MacAddress>();
        }
    }
}
