//! VLANs (IEEE 802.1Q): identifiers, sets of them, and what a port makes of tags.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::bytes::shown;

/// Why a text is no VLAN or list of VLANs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VlanError {
    #[error("'{0}' is no VLAN; VLANs are 0 to {max}, or none", max = VlanId::MAX)]
    Malformed(String),
    #[error("'{0}' is no list of VLANs; write such as 10,20-29 with VLANs 0 to {max}", max = VlanId::MAX)]
    List(String),
}

/// A VLAN identifier, 0 to 4094.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct VlanId(u16);

impl VlanId {
    pub const MAX: u16 = 4094;

    #[must_use]
    pub fn new(number: u16) -> Option<VlanId> {
        (number <= Self::MAX).then_some(VlanId(number))
    }

    #[must_use]
    pub fn number(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for VlanId {
    type Error = VlanError;
    fn try_from(number: u16) -> Result<VlanId, VlanError> {
        VlanId::new(number).ok_or_else(|| VlanError::Malformed(number.to_string()))
    }
}

impl From<VlanId> for u16 {
    fn from(vlan: VlanId) -> u16 {
        vlan.0
    }
}

impl FromStr for VlanId {
    type Err = VlanError;
    fn from_str(text: &str) -> Result<VlanId, VlanError> {
        let malformed = || VlanError::Malformed(shown(text));
        if text.is_empty() || !text.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(malformed());
        }
        text.parse().ok().and_then(VlanId::new).ok_or_else(malformed)
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Which VLANs a trunk carries: ranges in ascending order that neither touch nor overlap, at least one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VlanSet(Vec<(VlanId, VlanId)>);

impl VlanSet {
    #[must_use]
    pub fn contains(&self, vlan: VlanId) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&vlan))
    }

    pub fn iter(&self) -> impl Iterator<Item = VlanId> {
        self.0.iter().flat_map(|(first, last)| (first.0..=last.0).map(VlanId))
    }
}

impl FromStr for VlanSet {
    type Err = VlanError;
    /// `10,20-29`: numbers and ranges in any order.
    fn from_str(text: &str) -> Result<VlanSet, VlanError> {
        let malformed = || VlanError::List(shown(text));
        let mut ranges = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: VlanId = first.parse().map_err(|_| malformed())?;
            let last: VlanId = last.parse().map_err(|_| malformed())?;
            if first > last {
                return Err(malformed());
            }
            ranges.push((first, last));
        }
        ranges.sort_unstable();
        let mut set: Vec<(VlanId, VlanId)> = Vec::new();
        for (first, last) in ranges {
            match set.last_mut() {
                Some((_, end)) if first.0 <= end.0 + 1 => *end = last.max(*end),
                _ => set.push((first, last)),
            }
        }
        Ok(VlanSet(set))
    }
}

impl TryFrom<String> for VlanSet {
    type Error = VlanError;
    fn try_from(text: String) -> Result<VlanSet, VlanError> {
        text.parse()
    }
}

impl From<VlanSet> for String {
    fn from(set: VlanSet) -> String {
        set.to_string()
    }
}

impl fmt::Display for VlanSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// What a port makes of tags. Ports of different VLANs never hear each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortVlan {
    /// Carries untagged frames alone, and talks to other such ports.
    #[default]
    None,
    /// The port's guest knows of no tags; its frames belong to this VLAN and are tagged towards wire and trunks.
    Untagged(VlanId),
    /// The port's guest sends and receives tagged frames of these VLANs.
    Trunk(VlanSet),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_list_is_kept_in_order_and_joined() {
        let set: VlanSet = "30,10-12,12-15,16,4094".parse().expect("a list");
        assert_eq!(set.to_string(), "10-16,30,4094");
        for text in ["", "10,", "12-10", "4095", "a", "1-2-3", "+1"] {
            assert!(text.parse::<VlanSet>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_set_holds_what_its_list_names(
            ranges in prop::collection::vec((0u16..=4094, 0u16..40), 1..8),
            asked in 0u16..=4094,
        ) {
            let text = ranges
                .iter()
                .map(|(first, more)| format!("{first}-{}", (first + more).min(VlanId::MAX)))
                .collect::<Vec<_>>()
                .join(",");
            let set: VlanSet = text.parse().expect("a list");
            let named = ranges
                .iter()
                .any(|(first, more)| (*first..=(first + more).min(VlanId::MAX)).contains(&asked));
            prop_assert_eq!(set.contains(VlanId::new(asked).expect("in range")), named);
            prop_assert_eq!(set.to_string().parse::<VlanSet>(), Ok(set));
        }
    }
}
