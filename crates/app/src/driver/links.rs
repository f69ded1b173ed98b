//! Whether the guest sees its NICs' links. It does while the switch forwards, is there, and has its wire: QEMU tells when a
//! socket was connected and when it broke, and by itself takes down the links of AVIO NICs alone. The switch's state stands
//! in the boot record, since the command that halts it tells every guest; of its wire it tells itself.
//!
//! A switch that is back at once was never gone for an emulated NIC, whether it was halted, lost its wire or died: the guest
//! would lose half a second more while the card agrees with the other end on a speed (QEMU, hw/net/e1000x_common.c), and two
//! seconds more when its driver had noticed: Linux looks every other second, and the card's interrupt does not make it look
//! sooner, since the work that it asks for waits already (e1000_main.c). Neither can be had shorter from outside the guest.

use std::collections::{BTreeMap, BTreeSet};

use hpvm_model::{NicKind, PciSlot, WireNow};
use hpvm_plan::command_line::network::{nic_id, slot_of_netdev};
use hpvm_plan::record::Link as LinkState;
use hpvm_qmp::command::SetLink;

use super::Driver;

#[derive(Debug, Default)]
pub(super) struct Links {
    /// NICs whose socket broke and is not connected again. Those nothing is known of are taken for connected: a switch runs
    /// whenever a guest with a port on it does.
    broken: BTreeSet<PciSlot>,
    /// NICs that we have shown a link.
    up: BTreeSet<PciSlot>,
    /// Of these, the ones that are to lose it, with the beats since.
    leaving: BTreeMap<PciSlot, u32>,
}

/// At this beat, one to two seconds later, a link goes that does not go at once.
const GONE_BEATS: u32 = 2;

impl Links {
    /// What the guest is to be shown now; `None`: what it was shown before.
    fn judge(&mut self, slot: PciSlot, kind: NicKind, wanted: LinkState) -> Option<LinkState> {
        if wanted == LinkState::Up {
            self.leaving.remove(&slot);
            self.up.insert(slot);
            return Some(LinkState::Up);
        }
        // QEMU has taken down the link of an AVIO NIC that lost its switch, and sets it up again when it is back.
        let at_once = kind == NicKind::AvioLan && !self.broken.contains(&slot);
        if self.up.contains(&slot) && !at_once {
            self.leaving.entry(slot).or_insert(0);
            return None;
        }
        self.gone(slot);
        Some(LinkState::Down)
    }

    /// Another beat; gives those whose time has come.
    fn beat(&mut self) -> Vec<PciSlot> {
        self.leaving.values_mut().for_each(|beats| *beats += 1);
        let due = self.leaving.iter().filter(|(_, beats)| **beats >= GONE_BEATS);
        let due: Vec<PciSlot> = due.map(|(slot, _)| *slot).collect();
        due.iter().for_each(|slot| self.gone(*slot));
        due
    }

    fn gone(&mut self, slot: PciSlot) {
        self.leaving.remove(&slot);
        self.up.remove(&slot);
    }
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

    /// Takes down the links of NICs that have had nothing behind them for a while.
    pub(super) fn take_links_down(&mut self) {
        for slot in self.links.beat() {
            self.show_link(slot);
        }
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
        let is_broken = self.links.broken.contains(&slot);
        let wanted = match is_forwarding && has_wire && !is_broken {
            true => LinkState::Up,
            false => LinkState::Down,
        };
        if let Some(shown) = self.links.judge(slot, attached.nic.kind, wanted) {
            self.monitor.tell(SetLink { name: nic_id(slot), up: shown == LinkState::Up });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [NicKind; 2] = [NicKind::Lan, NicKind::AvioLan];

    fn slot() -> PciSlot {
        PciSlot::new(0, 1).expect("an address")
    }

    fn with_link(kind: NicKind) -> Links {
        let mut links = Links::default();
        assert_eq!(links.judge(slot(), kind, LinkState::Up), Some(LinkState::Up));
        links
    }

    #[test]
    fn a_switch_that_is_back_at_once_was_never_gone_for_an_emulated_nic() {
        for kind in BOTH {
            let mut links = with_link(kind);
            let shown = links.judge(slot(), kind, LinkState::Down);
            assert_eq!(shown, (kind == NicKind::AvioLan).then_some(LinkState::Down), "{kind:?}");
            assert_eq!(links.beat(), []);
            assert_eq!(links.judge(slot(), kind, LinkState::Up), Some(LinkState::Up));
            assert_eq!([links.beat(), links.beat(), links.beat()], [vec![], vec![], vec![]]);
        }
    }

    #[test]
    fn a_link_goes_when_its_time_has_come_however_often_it_is_judged() {
        let mut links = with_link(NicKind::Lan);
        assert_eq!(links.judge(slot(), NicKind::Lan, LinkState::Down), None);
        assert_eq!(links.beat(), []);
        assert_eq!(links.judge(slot(), NicKind::Lan, LinkState::Down), None);
        assert_eq!(links.beat(), [slot()]);
        let down = Some(LinkState::Down);
        assert_eq!(links.judge(slot(), NicKind::Lan, LinkState::Down), down);
        assert_eq!(links.judge(slot(), NicKind::Lan, LinkState::Down), down, "and stays");
        assert_eq!(links.beat(), []);
    }

    #[test]
    fn a_broken_socket_may_be_connected_again_at_once() {
        for kind in BOTH {
            let mut links = with_link(kind);
            links.broken.insert(slot());
            assert_eq!(links.judge(slot(), kind, LinkState::Down), None);
        }
    }

    #[test]
    fn a_guest_that_starts_and_a_worker_that_takes_over_show_what_is() {
        for kind in BOTH {
            let shown = Links::default().judge(slot(), kind, LinkState::Down);
            assert_eq!(shown, Some(LinkState::Down), "{kind:?}");
        }
    }
}
