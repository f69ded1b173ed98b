//! Whether the guest sees its NICs' links. It does while the switch forwards, is there, and has its wire: QEMU tells when a
//! socket was connected and when it broke, and by itself takes down the links of AVIO NICs alone. The switch's state stands
//! in the boot record, since the command that halts it tells every guest; of its wire it tells itself.

use std::collections::BTreeSet;

use hpvm_model::{PciSlot, WireNow};
use hpvm_plan::command_line::network::{nic_id, slot_of_netdev};
use hpvm_plan::record::Link as LinkState;
use hpvm_qmp::command::SetLink;

use super::Driver;

/// NICs whose socket broke and is not connected again. Those nothing is known of are taken for connected: a switch runs
/// whenever a guest with a port on it does.
#[derive(Debug, Default)]
pub(super) struct Links {
    broken: BTreeSet<PciSlot>,
}

impl Driver {
    pub(super) fn socket_connected(&mut self, netdev: &str) {
        let Some(slot) = slot_of_netdev(netdev) else { return };
        if self.links.broken.remove(&slot) {
            self.log.say(&format!("the virtual switch of the NIC at {slot} is back"));
        }
        self.show_link(slot);
    }

    pub(super) fn socket_broken(&mut self, netdev: &str) {
        let Some(slot) = slot_of_netdev(netdev) else { return };
        if self.links.broken.insert(slot) {
            self.log.say(&format!("the virtual switch of the NIC at {slot} is gone"));
        }
        self.show_link(slot);
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
        let up = is_forwarding && has_wire && !self.links.broken.contains(&slot);
        self.monitor.tell(SetLink { name: nic_id(slot), up });
    }
}
