//! Whether the guest sees its NICs' links. It does while the switch forwards, is there, and has its wire: QEMU tells when a
//! socket was connected and when it broke, and by itself takes down the links of AVIO NICs alone. The switch's state stands
//! in the boot record, since the command that halts it tells every guest; of its wire it tells itself.
//!
//! A switch that is back at once was never gone for an emulated NIC: its guest would lose half a second more while the card
//! agrees with the other end on a speed (QEMU, hw/net/e1000x_common.c).

use std::collections::BTreeMap;

use hpvm_model::{PciSlot, WireNow};
use hpvm_plan::command_line::network::{nic_id, slot_of_netdev};
use hpvm_plan::record::Link as LinkState;
use hpvm_qmp::command::SetLink;

use super::Driver;

/// NICs whose socket broke and is not connected again. Those nothing is known of are taken for connected: a switch runs
/// whenever a guest with a port on it does.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// With the beats since.
    broken: BTreeMap<PciSlot, u32>,
}

/// At this beat after its socket broke, one to two seconds later, a NIC's link goes.
const GONE_BEATS: u32 = 2;

impl Driver {
    pub(super) fn socket_connected(&mut self, netdev: &str) {
        let Some(slot) = slot_of_netdev(netdev) else { return };
        if self.links.broken.remove(&slot).is_some() {
            self.log.say(&format!("the virtual switch of the NIC at {slot} is back"));
        }
        self.show_link(slot);
    }

    pub(super) fn socket_broken(&mut self, netdev: &str) {
        let Some(slot) = slot_of_netdev(netdev) else { return };
        if self.links.broken.insert(slot, 0).is_none() {
            self.log.say(&format!("the virtual switch of the NIC at {slot} is gone"));
        }
    }

    /// Takes down the links of NICs whose switch has been gone for a while.
    pub(super) fn take_links_down(&mut self) {
        let mut due = Vec::new();
        for (slot, beats) in &mut self.links.broken {
            *beats = beats.saturating_add(1);
            due.extend((*beats == GONE_BEATS).then_some(*slot));
        }
        due.into_iter().for_each(|slot| self.show_link(slot));
    }

    /// Shows all links as they are, when nobody knows what QEMU shows.
    pub(super) fn show_links(&mut self) {
        let Ok(known) = &self.recorded.machine else { return };
        let nics = &known.file.machine().nics;
        nics.iter().for_each(|attached| self.wires.watch(attached.switch));
        let slots: Vec<PciSlot> = nics.iter().map(|attached| attached.nic.slot).collect();
        slots.into_iter().for_each(|slot| self.show_link(slot));
    }

    fn show_link(&mut self, slot: PciSlot) {
        let Ok(known) = &self.recorded.machine else { return };
        let Some(attached) = known.file.machine().nic_in(slot) else { return };
        let is_forwarding = attached.link == LinkState::Up;
        let has_wire = self.wires.of(attached.switch) == WireNow::There;
        let is_gone = self.links.broken.get(&slot).is_some_and(|beats| *beats >= GONE_BEATS);
        let up = is_forwarding && has_wire && !is_gone;
        self.monitor.tell(SetLink { name: nic_id(slot), up });
    }
}
