//! Ports of a virtual switch and the rules each keeps.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{LanBoot, PortVlan};
use crate::bytes::shown;

/// Why a text is no port of a switch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    #[error("'{0}' is no port; ports are 1 to {max}", max = PortNumber::MAX)]
    Malformed(String),
}

/// A port's number on its switch, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct PortNumber(u16);

impl PortNumber {
    /// As the product's later versions had; A.03.50 had 100.
    pub const MAX: u16 = 512;

    #[must_use]
    pub fn new(number: u16) -> Option<PortNumber> {
        (1..=Self::MAX).contains(&number).then_some(PortNumber(number))
    }

    #[must_use]
    pub fn number(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for PortNumber {
    type Error = PortError;
    fn try_from(number: u16) -> Result<PortNumber, PortError> {
        PortNumber::new(number).ok_or_else(|| PortError::Malformed(number.to_string()))
    }
}

impl From<PortNumber> for u16 {
    fn from(port: PortNumber) -> u16 {
        port.0
    }
}

impl FromStr for PortNumber {
    type Err = PortError;
    fn from_str(text: &str) -> Result<PortNumber, PortError> {
        let number = text.parse().ok().filter(|_| text.bytes().all(|digit| digit.is_ascii_digit()));
        number.and_then(PortNumber::new).ok_or_else(|| PortError::Malformed(shown(text)))
    }
}

impl fmt::Display for PortNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a port is to its guest: an emulated card (VIO) or a paravirtual one (AVIO).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NicKind {
    /// e1000; frames travel over a stream socket.
    Lan,
    /// virtio-net; frames travel over vhost-user.
    AvioLan,
}

impl NicKind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            NicKind::Lan => "lan",
            NicKind::AvioLan => "avio_lan",
        }
    }
}

impl FromStr for NicKind {
    type Err = String;
    fn from_str(text: &str) -> Result<NicKind, String> {
        match text {
            "lan" => Ok(NicKind::Lan),
            "avio_lan" | "aviolan" => Ok(NicKind::AvioLan),
            _ => Err(format!("'{text}' is no network adapter; write lan or avio_lan")),
        }
    }
}

/// How much a port may carry one way: a token bucket (RFC 2697, one rate).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rate {
    pub bits_per_second: u64,
    /// How many bytes may pass at once after a silence.
    pub burst_bytes: u64,
}

/// Whether a guest may send from addresses that are not its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpoofGuard {
    /// Only the card's MAC address, and the port's IP addresses when it has some.
    #[default]
    On,
    Off,
}

/// Whether a port talks to others like it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    #[default]
    Off,
    /// Never to another isolated port of its switch: to the wire, and to ports that are not isolated.
    On,
}

/// What a port does with the frames that pass it. In and out are the guest's: out is what the guest sends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct PortRules {
    pub vlan: PortVlan,
    pub rate_in: Option<Rate>,
    pub rate_out: Option<Rate>,
    pub spoof_guard: SpoofGuard,
    /// With the guard on: the only IP addresses the guest may send from. Empty: any.
    pub addresses: Vec<IpAddr>,
    /// The port that gets a copy of each frame that passes this one.
    pub mirror: Option<PortNumber>,
    pub isolation: Isolation,
    /// How the guest's firmware boots over its NIC; `None`: not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lan_boot: Option<LanBoot>,
}
