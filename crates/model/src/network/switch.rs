//! A virtual switch as the administrator wants it: its name and number, what wire it has, whether it runs, and the rules of
//! its ports. Which guest is on which port, the guests' configurations say.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Forward, PortNumber, PortRules};
use crate::bytes::shown;
use crate::name::GuestName;

/// Why a text is nothing that a virtual switch has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwitchError {
    #[error(
        "'{0}' is no name of a virtual switch; names are made of A-Z a-z 0-9 - _ . and have {max} characters at most", max = SwitchName::LENGTH_MAX
    )]
    Name(String),
    #[error("'{0}' is no number of a virtual switch; numbers are 1 to {max}", max = SwitchNumber::MAX)]
    Number(String),
    #[error(
        "'{0}' is no network interface; names have 1 to 15 characters, no blank and no '/' or ':'"
    )]
    Interface(String),
    #[error("'{0}' is no wire; write nat, tap:NAME or none, or name a network interface with -n")]
    Wire(String),
}

/// The name of a virtual switch, as resource statements give it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SwitchName(String);

impl SwitchName {
    pub const LENGTH_MAX: usize = 63;
    /// The switch that always exists, has no wire, and in which the VM Host takes no part.
    pub const LOCALNET: &str = "localnet";

    #[must_use]
    pub fn localnet() -> SwitchName {
        SwitchName(Self::LOCALNET.into())
    }

    #[must_use]
    pub fn is_localnet(&self) -> bool {
        self.0 == Self::LOCALNET
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SwitchName {
    type Err = SwitchError;
    fn from_str(text: &str) -> Result<SwitchName, SwitchError> {
        // One alphabet for all names, so that one habit of quoting serves.
        match text.parse::<GuestName>() {
            Ok(_) if text.len() <= Self::LENGTH_MAX => Ok(SwitchName(text.into())),
            _ => Err(SwitchError::Name(shown(text))),
        }
    }
}

impl TryFrom<String> for SwitchName {
    type Error = SwitchError;
    fn try_from(text: String) -> Result<SwitchName, SwitchError> {
        text.parse()
    }
}

impl From<SwitchName> for String {
    fn from(name: SwitchName) -> String {
        name.0
    }
}

impl fmt::Display for SwitchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The small number a switch is known by; it stays when the name changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SwitchNumber(u32);

impl SwitchNumber {
    pub const MAX: u32 = 99_999;
    pub const LOCALNET: SwitchNumber = SwitchNumber(1);

    #[must_use]
    pub fn new(number: u32) -> Option<SwitchNumber> {
        (1..=Self::MAX).contains(&number).then_some(SwitchNumber(number))
    }

    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for SwitchNumber {
    type Error = SwitchError;
    fn try_from(number: u32) -> Result<SwitchNumber, SwitchError> {
        SwitchNumber::new(number).ok_or_else(|| SwitchError::Number(number.to_string()))
    }
}

impl From<SwitchNumber> for u32 {
    fn from(number: SwitchNumber) -> u32 {
        number.0
    }
}

impl FromStr for SwitchNumber {
    type Err = SwitchError;
    fn from_str(text: &str) -> Result<SwitchNumber, SwitchError> {
        let number = text.parse().ok().filter(|_| text.bytes().all(|digit| digit.is_ascii_digit()));
        number.and_then(SwitchNumber::new).ok_or_else(|| SwitchError::Number(shown(text)))
    }
}

impl fmt::Display for SwitchNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

/// Whether the wire of a switch that runs is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireNow {
    /// It is, or there is to be none.
    There,
    /// Its interface is not there now.
    Missing,
}

impl WireNow {
    /// As the process of a switch writes it down for guests' workers.
    #[must_use]
    pub fn to_text(self) -> &'static str {
        match self {
            WireNow::There => "there\n",
            WireNow::Missing => "missing\n",
        }
    }

    /// Whatever is not understood is no reason to take a guest's link away.
    #[must_use]
    pub fn read(text: &str) -> WireNow {
        if text == WireNow::Missing.to_text() { WireNow::Missing } else { WireNow::There }
    }
}

/// The name of a network interface of the VM Host (Linux, IFNAMSIZ: 15 bytes).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

impl InterfaceName {
    const LENGTH_MAX: usize = 15;

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = SwitchError;
    /// A bare number N means `lanN`, as A.03.50 counted its LANs.
    fn from_str(text: &str) -> Result<InterfaceName, SwitchError> {
        let is_number = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
        let name = if is_number { format!("lan{text}") } else { text.to_owned() };
        let is_good = (1..=Self::LENGTH_MAX).contains(&name.len())
            && !matches!(name.as_str(), "." | "..")
            && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
        is_good.then_some(InterfaceName(name)).ok_or_else(|| SwitchError::Interface(shown(text)))
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = SwitchError;
    fn try_from(text: String) -> Result<InterfaceName, SwitchError> {
        text.parse()
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> String {
        name.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// How frames leave a switch, and come from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// They do not: guests talk among themselves.
    #[default]
    None,
    /// Through a network interface of the VM Host, bonds and VLAN interfaces included.
    Nic(InterfaceName),
    /// To the VM Host itself, through a tap interface.
    Tap(InterfaceName),
    /// Through the VM Host's own connections, with DHCP and DNS for the guests.
    Nat,
}

impl Wire {
    /// The interface of the VM Host that it is.
    #[must_use]
    pub fn interface(&self) -> Option<&InterfaceName> {
        match self {
            Wire::Nic(name) | Wire::Tap(name) => Some(name),
            Wire::None | Wire::Nat => None,
        }
    }
}

impl FromStr for Wire {
    type Err = SwitchError;
    /// What `--wire` takes: `nat` or `tap:NAME`.
    fn from_str(text: &str) -> Result<Wire, SwitchError> {
        match (text, text.strip_prefix("tap:")) {
            ("nat", _) => Ok(Wire::Nat),
            (_, Some(name)) => Ok(Wire::Tap(name.parse()?)),
            _ => Err(SwitchError::Wire(shown(text))),
        }
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wire::None => f.pad("none"),
            Wire::Nat => f.pad("nat"),
            Wire::Nic(name) => f.pad(name.as_str()),
            Wire::Tap(name) => f.pad(&format!("tap:{name}")),
        }
    }
}

/// Whether a switch forwards frames. Halted, its guests run on with their links down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwitchState {
    Up,
    /// As it is created.
    #[default]
    Halted,
}

impl SwitchState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            SwitchState::Up => "up",
            SwitchState::Halted => "halted",
        }
    }
}

impl FromStr for SwitchState {
    type Err = String;
    fn from_str(text: &str) -> Result<SwitchState, String> {
        match text {
            "up" => Ok(SwitchState::Up),
            "halted" => Ok(SwitchState::Halted),
            _ => Err(format!("'{text}' is no state of a virtual switch")),
        }
    }
}

/// A virtual switch, complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vswitch {
    pub number: SwitchNumber,
    pub name: SwitchName,
    pub wire: Wire,
    pub state: SwitchState,
    /// Of a NAT wire alone, in the order given.
    #[serde(default)]
    pub forwards: Vec<Forward>,
    /// Ports with rules other than those every port has.
    #[serde(default)]
    pub ports: BTreeMap<PortNumber, PortRules>,
}

impl Vswitch {
    /// As it is created: local, halted, all ports alike.
    #[must_use]
    pub fn new(number: SwitchNumber, name: SwitchName) -> Vswitch {
        Vswitch {
            number,
            name,
            wire: Wire::None,
            state: SwitchState::Halted,
            forwards: Vec::new(),
            ports: BTreeMap::new(),
        }
    }

    #[must_use]
    pub fn rules(&self, port: PortNumber) -> PortRules {
        self.ports.get(&port).cloned().unwrap_or_default()
    }

    /// Keeps a port's rules; those every port has are not kept.
    pub fn set_rules(&mut self, port: PortNumber, rules: PortRules) {
        if rules == PortRules::default() {
            self.ports.remove(&port);
        } else {
            self.ports.insert(port, rules);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_number_means_the_lan_with_that_number() {
        assert_eq!("1".parse::<InterfaceName>().unwrap().as_str(), "lan1");
        assert_eq!("bond0.7".parse::<InterfaceName>().unwrap().as_str(), "bond0.7");
        for text in ["", "a b", "a/b", "..", "sixteen-letters-", "a:0", "1234567890123"] {
            assert!(text.parse::<InterfaceName>().is_err(), "{text}");
        }
    }

    #[test]
    fn wires_are_read_and_printed() {
        for text in ["nat", "tap:hpvm0"] {
            assert_eq!(text.parse::<Wire>().unwrap().to_string(), text);
        }
        assert!("bridge:br0".parse::<Wire>().is_err());
        assert!("tap:".parse::<Wire>().is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_a_reader_panic(text in "\\PC{0,40}") {
            let _ = text.parse::<SwitchName>();
            let _ = text.parse::<SwitchNumber>();
            let _ = text.parse::<InterfaceName>();
            let _ = text.parse::<Wire>();
        }
    }
}
