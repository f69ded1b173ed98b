//! What a switch is to be: written by the command that starts hpvmnetd, then by hpvmnetd alone at every change, so that the
//! next one goes on with the same ports. The listening sockets stay with the keeper, by the numbers of their ports.

use hpvm_model::{
    GuestName, GuestNumber, InterfaceName, MacAddress, NicKind, PciSlot, PortNumber, PortRules,
    SwitchName, SwitchNumber, SwitchState,
};
use serde::{Deserialize, Serialize};

/// Grows when an older hpvmnetd would misread the text. Fields may be added without: whoever does not know them keeps them.
const FORMAT: u32 = 1;

/// Why a text does not say what a switch is to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("the file that says what this switch is cannot be understood")]
    Malformed,
    #[error(
        "a newer hpvmnetd wrote what this switch is to be: format {}, and this one knows {FORMAT}", .0.format
    )]
    Newer(Box<Head>),
}

/// What every format says of a switch.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Head {
    #[serde(default)]
    pub format: u32,
    pub number: SwitchNumber,
    pub name: SwitchName,
}

/// The whole switch, as one JSON value in its run folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    #[serde(default)]
    format: u32,
    pub number: SwitchNumber,
    pub name: SwitchName,
    pub state: SwitchState,
    #[serde(default)]
    pub wire: WireKind,
    /// The network interface that the wire follows wherever it goes; `None` of a wire that has none, and of one that a version
    /// gave which followed nothing.
    #[serde(default)]
    pub interface: Option<InterfaceName>,
    /// In order of port.
    pub ports: Vec<Plug>,
}

/// What is behind the wire. A descriptor is kept by the keeper under [`WIRE_TAG`]; the process that does NAT is connected to at
/// its socket in the run folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WireKind {
    #[default]
    None,
    /// A packet socket of a network interface, which need not be there.
    Packets,
    Tap,
    Nat,
}

/// No port has this number.
pub const WIRE_TAG: u32 = 100_000;
/// The socket at which the kernel tells what becomes of network interfaces: a process that a confined keeper started may open
/// none.
pub const WATCH_TAG: u32 = 100_001;

/// A guest's NIC on a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plug {
    pub port: PortNumber,
    pub guest: GuestName,
    pub number: GuestNumber,
    pub slot: PciSlot,
    pub kind: NicKind,
    pub mac: MacAddress,
    /// Of an AVIO port: what it was offered at its first connect, and is offered at every later one.
    pub features: Option<u64>,
    pub rules: PortRules,
}

impl Wanted {
    /// A switch without wire and ports.
    #[must_use]
    pub fn new(number: SwitchNumber, name: SwitchName, state: SwitchState) -> Wanted {
        let (wire, interface, ports) = (WireKind::None, None, Vec::new());
        Wanted { format: FORMAT, number, name, state, wire, interface, ports }
    }

    pub fn read(text: &str) -> Result<Wanted, Unreadable> {
        let head: Head = serde_json::from_str(text).map_err(|_| Unreadable::Malformed)?;
        if head.format > FORMAT {
            return Err(Unreadable::Newer(Box::new(head)));
        }
        let wanted: Wanted = serde_json::from_str(text).map_err(|_| Unreadable::Malformed)?;
        Ok(Wanted { format: FORMAT, ..wanted })
    }

    #[must_use]
    pub fn to_text(&self) -> String {
        self.value().to_string() + "\n"
    }

    pub(crate) fn value(&self) -> serde_json::Value {
        // Numbers, words and addresses: there is nothing that serde could refuse.
        serde_json::to_value(self).unwrap_or_default()
    }

    /// Puts a plug in its place, instead of one that was on the port.
    pub fn put(&mut self, plug: Plug) {
        self.ports.retain(|other| other.port != plug.port);
        self.ports.push(plug);
        self.ports.sort_by_key(|plug| plug.port);
    }

    #[must_use]
    pub fn plug(&self, port: PortNumber) -> Option<&Plug> {
        self.ports.iter().find(|plug| plug.port == port)
    }
}
