//! What a switch publishes of itself, in the file `status` of its run folder, replaced by rename when something changed, its
//! counters once a second at most. Whether the writer lives, readers see from the lock.

use hpvm_model::{
    GuestName, GuestNumber, MacAddress, NicKind, PciSlot, PortNumber, SwitchName, SwitchNumber,
    SwitchState,
};
use hpvm_vswitch::{Counters, Discards, PortLink};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub number: SwitchNumber,
    pub name: SwitchName,
    pub state: SwitchState,
    pub ports: Vec<PortNow>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortNow {
    pub port: PortNumber,
    pub guest: GuestName,
    pub number: GuestNumber,
    pub slot: PciSlot,
    pub kind: NicKind,
    pub mac: MacAddress,
    pub link: LinkNow,
    /// The address the guest last sent from.
    pub source: Option<MacAddress>,
    pub offered: Option<u64>,
    pub acknowledged: Option<u64>,
    pub counters: Counted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkNow {
    /// QEMU is not connected.
    Absent,
    /// It is, and the guest's driver has not begun.
    Connected,
    /// Frames can pass.
    Started,
    /// The guest wrote nonsense into its rings.
    Lost,
}

impl From<PortLink> for LinkNow {
    fn from(link: PortLink) -> LinkNow {
        match link {
            PortLink::Absent => LinkNow::Absent,
            PortLink::Connected => LinkNow::Connected,
            PortLink::Started => LinkNow::Started,
            PortLink::Lost => LinkNow::Lost,
        }
    }
}

/// The counters of a port, as its guest sees them: in is what it received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counted {
    pub in_octets: u64,
    pub in_unicast_wire: u64,
    pub in_unicast_local: u64,
    pub in_other_wire: u64,
    pub in_other_local: u64,
    pub in_discards: u64,
    pub out_octets: u64,
    pub out_unicast_wire: u64,
    pub out_unicast_local: u64,
    pub out_other: u64,
    pub out_discards: u64,
    pub discards: Reasons,
}

/// Why frames were discarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reasons {
    pub no_room: u64,
    pub rate: u64,
    pub spoofed: u64,
    pub vlan: u64,
    pub malformed: u64,
    pub halted: u64,
    pub filtered: u64,
}

impl From<Counters> for Counted {
    fn from(counters: Counters) -> Counted {
        let Discards { no_room, rate, spoofed, vlan, malformed, halted, filtered } =
            counters.discards;
        Counted {
            in_octets: counters.in_octets,
            in_unicast_wire: counters.in_unicast_wire,
            in_unicast_local: counters.in_unicast_local,
            in_other_wire: counters.in_other_wire,
            in_other_local: counters.in_other_local,
            in_discards: counters.in_discards,
            out_octets: counters.out_octets,
            out_unicast_wire: counters.out_unicast_wire,
            out_unicast_local: counters.out_unicast_local,
            out_other: counters.out_other,
            out_discards: counters.out_discards,
            discards: Reasons { no_room, rate, spoofed, vlan, malformed, halted, filtered },
        }
    }
}

impl Status {
    #[must_use]
    pub fn read(text: &str) -> Option<Status> {
        serde_json::from_str(text).ok()
    }

    #[must_use]
    pub fn to_text(&self) -> String {
        // Numbers, words and addresses: there is nothing that serde could refuse.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }

    #[must_use]
    pub fn port(&self, port: PortNumber) -> Option<&PortNow> {
        self.ports.iter().find(|now| now.port == port)
    }
}
