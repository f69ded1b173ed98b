//! What a switch publishes of itself, in the file `status` of its run folder, replaced by rename: before a command gets its
//! answer, else once a second at most, every four after a while without news, and only when something changed. Whether the
//! writer lives, readers see from the lock.

use hpvm_model::{
    GuestName, GuestNumber, MacAddress, NicKind, PciSlot, PortNumber, SwitchName, SwitchNumber,
    SwitchState,
};
pub use hpvm_vswitch::{Counters, Discards, PortLink};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub number: SwitchNumber,
    pub name: SwitchName,
    pub state: SwitchState,
    /// The virtio features that a port can be given by this process.
    #[serde(default)]
    pub features: Option<u64>,
    pub ports: Vec<PortNow>,
    /// What was lost at the wire. The reasons of a frame that came in by it are those of one that a guest sends.
    #[serde(default)]
    pub wire_discards: Discards,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortNow {
    pub port: PortNumber,
    pub guest: GuestName,
    pub number: GuestNumber,
    pub slot: PciSlot,
    pub kind: NicKind,
    pub mac: MacAddress,
    pub link: PortLink,
    /// The address the guest last sent from.
    pub source: Option<MacAddress>,
    pub offered: Option<u64>,
    pub acknowledged: Option<u64>,
    pub counters: Counters,
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
