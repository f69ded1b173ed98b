//! How virtual switches look now: what the registry says, what the machines of running guests have, and what the switches'
//! processes published. Nobody is asked, but where counters are wanted a process is asked to publish them first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hpvm_host::nic::{self, Carrier};
use hpvm_model::{
    Forward, GuestConfig, GuestName, GuestNumber, MacAddress, NicKind, PortNumber, PortRules,
    SwitchState, Vswitch, Wire,
};
use hpvm_plan::record::Machine;
use hpvm_registry::{NicRow, Selector};
use hpvm_vswitchd::protocol::Request;
use hpvm_vswitchd::status::{Discards, PortLink, PortNow, Status};

use super::nat::{self, Lease, NatView};
use super::runner::{self, Runner, status};
use super::wire;
use crate::{Refusal, VmHost};

/// One switch, complete.
#[derive(Clone, Debug)]
pub struct SwitchView {
    pub switch: Vswitch,
    pub state: ShownState,
    /// Of the interface that is its wire.
    pub mac: Option<MacAddress>,
    pub ip: Option<IpAddr>,
    /// What is behind the wire as it is at this moment.
    pub wire: WireView,
    /// What its process has lost there.
    pub wire_discards: Option<Discards>,
    /// Ports that a guest has or reserves, or that have rules, in order.
    pub ports: Vec<PortView>,
}

/// What is behind a wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireView {
    /// The wire is none.
    None,
    Nat(NatView),
    /// It has no interface.
    Missing,
    Here {
        carrier: Carrier,
        mtu_bytes: u32,
        /// `None` without a link, and of interfaces that have no speed.
        speed_mbit: Option<u32>,
    },
}

/// What a list says of a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShownState {
    Up,
    Down,
    /// Guests run on it, and its process does not.
    Unknown,
    /// Guests run on it, and whoever asks cannot see whether its process does.
    Unseen,
}

impl ShownState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ShownState::Up => "Up",
            ShownState::Down => "Down",
            ShownState::Unknown | ShownState::Unseen => "Unknown",
        }
    }
}

#[derive(Clone, Debug)]
pub struct PortView {
    pub port: PortNumber,
    pub state: PortState,
    /// Of the card that runs, else of the one that is configured; `None` of a port with rules alone.
    pub adaptor: Option<NicKind>,
    pub rules: PortRules,
    /// Guests that have the port in their configuration.
    pub reserved: Vec<GuestName>,
    pub active: Option<GuestName>,
    /// What the switch's process says of it.
    pub now: Option<PortNow>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// A running guest has it and frames can pass, or will when its driver is up.
    Active,
    /// A running guest has it, and the switch is halted or not there.
    Down,
    /// Guests that do not run have it.
    Reserved,
    /// Nobody has it.
    Free,
}

impl PortState {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            PortState::Active => "Active",
            PortState::Down => "Down",
            PortState::Reserved => "Reserved",
            PortState::Free => "Free",
        }
    }
}

impl SwitchView {
    /// What of it whoever asks cannot see, as a sentence.
    #[must_use]
    pub fn unseen(&self) -> Option<String> {
        (self.state == ShownState::Unseen).then(|| unseen(&self.switch))
    }

    /// The port forwards that are known not to work.
    pub fn forwards_missing(&self) -> impl Iterator<Item = &Forward> {
        let now = match &self.wire {
            WireView::Nat(now) => Some(now),
            _ => None,
        };
        let forwards = self.switch.forwards.iter();
        forwards.filter(move |forward| now.is_some_and(|now| now.lacks(forward)))
    }

    /// The address that NAT gave the guest at a port by DHCP.
    #[must_use]
    pub fn leased(&self, port: &PortView) -> Option<IpAddr> {
        let WireView::Nat(NatView::There { leases, .. }) = &self.wire else { return None };
        let now = port.now.as_ref()?;
        let is_its = |lease: &&Lease| lease.mac == now.mac;
        leases.iter().find(is_its).map(|lease| lease.address.into())
    }
}

impl VmHost {
    /// The machines of all guests that run.
    pub(crate) fn machines(&self) -> Result<Vec<(GuestConfig, Machine)>, Refusal> {
        self.machines_of(self.run_folders().into_iter().filter_map(GuestNumber::new))
    }

    /// Those of these guests that run.
    pub(super) fn machines_of(
        &self,
        guests: impl IntoIterator<Item = GuestNumber>,
    ) -> Result<Vec<(GuestConfig, Machine)>, Refusal> {
        let mut machines = Vec::new();
        for number in guests {
            if !self.presence(number).is_on() {
                continue;
            }
            let Some(config) = self.registry.guest(&Selector::Number(number))? else { continue };
            if let Ok(machine) = self.boot_record(&config) {
                machines.push((config, machine));
            }
        }
        Ok(machines)
    }

    /// All switches, in order of number.
    pub fn switches(&self) -> Result<Vec<SwitchView>, Refusal> {
        let (rows, machines) = (self.registry.nics()?, self.machines()?);
        let switches = self.registry.vswitches()?.into_iter();
        Ok(switches.map(|switch| self.switch_view(switch, &rows, &machines)).collect())
    }

    fn switch_view(
        &self,
        switch: Vswitch,
        rows: &[NicRow],
        machines: &[(GuestConfig, Machine)],
    ) -> SwitchView {
        let status = status(self, switch.number.get());
        let ports = ports(&switch, rows, machines, status.as_ref());
        let is_used = ports.iter().any(|port| port.active.is_some());
        let is_refused = match status {
            Some(_) => runner::was_refused_wire(self, &switch),
            None => wire::forbidden(self, &switch).is_some(),
        };
        let nic = match is_refused {
            true => None,
            false => switch.wire.interface().and_then(wire::interface),
        };
        let has_wire = match switch.wire {
            Wire::Nic(_) | Wire::Tap(_) => nic.is_some(),
            Wire::None | Wire::Nat => true,
        };
        let state = match switch.state {
            SwitchState::Halted => ShownState::Down,
            SwitchState::Up if is_used && status.is_none() => ShownState::Unknown,
            SwitchState::Up if is_used && runner::is_unseen(self, &switch) => ShownState::Unseen,
            SwitchState::Up if has_wire => ShownState::Up,
            SwitchState::Up => ShownState::Down,
        };
        SwitchView {
            mac: switch
                .wire
                .interface()
                .map(|_| nic.as_ref().and_then(|nic| nic.mac).unwrap_or(MacAddress::new([0; 6]))),
            wire: match (&switch.wire, &nic) {
                (Wire::None, _) => WireView::None,
                // Asked by those who tell of it, since it may be slow.
                (Wire::Nat, _) => WireView::Nat(NatView::Unknown),
                (Wire::Nic(_) | Wire::Tap(_), None) => WireView::Missing,
                (Wire::Nic(_) | Wire::Tap(_), Some(nic)) => WireView::Here {
                    carrier: nic.carrier,
                    mtu_bytes: nic.mtu_bytes,
                    speed_mbit: nic::speed_mbit(&nic.name),
                },
            },
            ip: nic.as_ref().and_then(|nic| nic.addresses.first()).map(|(ip, _)| *ip),
            wire_discards: status.map(|status| status.wire_discards),
            switch,
            state,
            ports,
        }
    }

    /// Asks the processes that do NAT for these switches how they are.
    pub fn ask_nat(&self, views: &mut [SwitchView]) {
        for view in views {
            if let Some(now) = nat::of(self, &view.switch) {
                view.wire = WireView::Nat(now);
            }
        }
    }

    /// Has the process of a switch publish its counters as they are now. One that does not answer shows older ones.
    pub fn refresh(&self, switch: &Vswitch) {
        if let Ok(runner) = Runner::claim(self, switch.number) {
            let _ = runner.tell(&Request::Publish);
        }
    }
}

pub(crate) fn unseen(switch: &Vswitch) -> String {
    format!(
        "whether the process of virtual switch '{}' runs cannot be seen by this user",
        switch.name
    )
}

fn ports(
    switch: &Vswitch,
    rows: &[NicRow],
    machines: &[(GuestConfig, Machine)],
    status: Option<&Status>,
) -> Vec<PortView> {
    let configured = || rows.iter().filter(|r| !r.removed && r.nic.vswitch == switch.name);
    let running: BTreeMap<PortNumber, (&GuestName, NicKind)> = machines
        .iter()
        .flat_map(|(config, machine)| machine.nics.iter().map(move |attached| (config, attached)))
        .filter(|(_, attached)| attached.switch == switch.number)
        .map(|(config, attached)| (attached.nic.port, (&config.name, attached.nic.kind)))
        .collect();
    let mut numbers: BTreeSet<PortNumber> = configured().map(|row| row.nic.port).collect();
    numbers.extend(running.keys());
    numbers.extend(switch.ports.keys());
    let view = |port: PortNumber| {
        let mut reserving = configured().filter(|row| row.nic.port == port).peekable();
        let kind = reserving.peek().map(|row| row.nic.kind);
        let active = running.get(&port);
        let now = status.and_then(|status| status.port(port)).cloned();
        PortView {
            port,
            state: match (active, kind) {
                (Some(_), _) => running_state(switch, now.as_ref()),
                (None, Some(_)) => PortState::Reserved,
                (None, None) => PortState::Free,
            },
            adaptor: active.map(|(_, kind)| *kind).or(kind),
            rules: switch.rules(port),
            reserved: reserving.map(|row| row.guest.clone()).collect(),
            active: active.map(|(guest, _)| (*guest).clone()),
            now,
        }
    };
    numbers.into_iter().map(view).collect()
}

fn running_state(switch: &Vswitch, now: Option<&PortNow>) -> PortState {
    match now.map(|now| now.link) {
        Some(PortLink::Connected | PortLink::Started) if switch.state == SwitchState::Up => {
            PortState::Active
        }
        _ => PortState::Down,
    }
}
