//! What is known about the VM Host's networks when a decision is made.

use std::collections::{BTreeMap, BTreeSet};

use hpvm_model::{
    GuestName, MacAddress, Nic, NicKind, PciSlot, PortNumber, SwitchName, SwitchNumber, SwitchState,
};

use crate::record::{AttachedNic, Link, NicBoot};

/// The virtual switches, what others have of them, and how a NIC of this guest is joined to one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkFacts {
    pub switches: BTreeMap<SwitchName, SwitchFact>,
    /// Addresses that a new NIC cannot have, and who has each.
    pub macs: BTreeMap<MacAddress, MacHolder>,
    /// What came of asking the LANs behind the switches for addresses of this guest; one that nobody has is left out.
    pub lan: BTreeMap<(SwitchName, MacAddress), LanAnswer>,
    /// Where the guest's sockets lie while it runs.
    pub folder: String,
    /// The virtio features that an AVIO port is offered at its first connect, and then for ever.
    pub features: u64,
}

/// What a LAN tells of a MAC address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LanAnswer {
    /// A station there has it.
    InUse,
    /// Something there answers for every address, so that nothing can be found out.
    AnswersForAll,
    /// Nobody could be asked, and why.
    Unknown(String),
}

/// A virtual switch as a guest that wants a port sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchFact {
    pub number: SwitchNumber,
    pub state: SwitchState,
    /// Why its wire carries nothing now, if so.
    pub wire_missing: Option<String>,
    /// The longest packet its wire carries, in bytes; `None` without a wire that says.
    pub mtu: Option<u16>,
    /// What its process can give a port of [`NetworkFacts::features`], when one runs: it may be of another version.
    pub features: Option<u64>,
    /// Ports that other guests' NICs have.
    pub held: BTreeMap<PortNumber, Vec<PortHolder>>,
    /// Ports with rules of their own: made for somebody, so no NIC gets one without asking.
    pub ruled: BTreeSet<PortNumber>,
    /// Ports over which the firmware of their guests boots.
    pub booted_over: BTreeSet<PortNumber>,
}

/// Who has a MAC address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MacHolder {
    /// As words: `a NIC of guest web`.
    pub who: String,
    pub hold: MacHold,
}

/// Whether a guest that has the address as well can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacHold {
    /// No guest can: the VM Host itself has it, or a station on a LAN.
    Always,
    /// Not now: the guest that has it runs.
    Running,
    /// It can: the guest that has it is off, or removed.
    Resting,
}

/// A guest with a NIC on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortHolder {
    pub guest: GuestName,
    pub runs: bool,
}

impl NetworkFacts {
    /// A NIC as a guest that is started, or takes it on, gets it.
    #[must_use]
    pub fn attach(&self, nic: &Nic) -> AttachedNic {
        let switch = self.switches.get(&nic.vswitch);
        let given = switch.and_then(|switch| switch.features).unwrap_or(u64::MAX);
        AttachedNic {
            nic: nic.clone(),
            switch: switch.map_or(SwitchNumber::LOCALNET, |switch| switch.number),
            socket: format!("{}/{}", self.folder, socket_name(nic.slot)),
            features: (nic.kind == NicKind::AvioLan).then_some(self.features & given),
            mtu: switch.and_then(|switch| switch.mtu),
            link: match switch.map(|switch| switch.state) {
                Some(SwitchState::Up) => Link::Up,
                Some(SwitchState::Halted) | None => Link::Down,
            },
            boot: match switch.is_some_and(|switch| switch.booted_over.contains(&nic.port)) {
                true => NicBoot::AfterDisks,
                false => NicBoot::No,
            },
        }
    }
}

/// The socket of the NIC in a slot, within the guest's folder of them.
#[must_use]
pub fn socket_name(slot: PciSlot) -> String {
    format!("{}-{}", slot.bus(), slot.device())
}
