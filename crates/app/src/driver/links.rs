//! Whether the guest sees its NICs' links. It does while the switch forwards, is there, and has its wire: QEMU tells when a
//! socket was connected and when it broke, and by itself takes down the links of AVIO NICs alone. The switch's state stands
//! in the boot record, since the command that halts it tells every guest; of its wire it tells itself.
//!
//! A switch that is back at once was never gone for an emulated NIC, whether it was halted, lost its wire or died: the guest
//! would lose half a second more while the card agrees with the other end on a speed (QEMU, hw/net/e1000x_common.c), and two
//! seconds more when its driver had noticed: Linux looks every other second, and the card's interrupt does not make it look
//! sooner, since the work that it asks for waits already (e1000_main.c). Neither can be had shorter from outside the guest.
//!
//! Nor was a switch gone for an AVIO NIC that was halted and is back at once: with its link a guest forgets who has which
//! address, and where it asks while nobody forwards, it asks again a second later (Linux, net/core/neighbour.c). A wire that
//! is lost it is shown at once, so that a guest with another way takes that.

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

/// What there is behind a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    Network,
    /// A switch whose wire carries nothing.
    Switch,
    /// A halted switch, or none. Of an AVIO NIC that lost its switch QEMU has taken the link down, and sets it up again.
    Nothing,
}

/// At this beat, one to two seconds later, a link goes that does not go at once.
const GONE_BEATS: u32 = 2;

impl Links {
    /// What the guest is to be shown now; `None`: what it was shown before.
    fn judge(&mut self, slot: PciSlot, kind: NicKind, behind: Behind) -> Option<LinkState> {
        if behind == Behind::Network {
            self.leaving.remove(&slot);
            self.up.insert(slot);
            return Some(LinkState::Up);
        }
        let at_once = kind == NicKind::AvioLan && behind == Behind::Switch;
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
        let is_forwarding = attached.link == LinkState::Up && !self.links.broken.contains(&slot);
        let has_wire = self.wires.of(attached.switch) == WireNow::There;
        let behind = match (is_forwarding, has_wire) {
            (true, true) => Behind::Network,
            (true, false) => Behind::Switch,
            (false, _) => Behind::Nothing,
        };
        if let Some(shown) = self.links.judge(slot, attached.nic.kind, behind) {
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
        assert_eq!(links.judge(slot(), kind, Behind::Network), Some(LinkState::Up));
        links
    }

    #[test]
    fn a_switch_that_is_back_at_once_was_never_gone() {
        for kind in BOTH {
            let mut links = with_link(kind);
            assert_eq!(links.judge(slot(), kind, Behind::Nothing), None, "{kind:?}");
            assert_eq!(links.beat(), []);
            assert_eq!(links.judge(slot(), kind, Behind::Network), Some(LinkState::Up));
            assert_eq!([links.beat(), links.beat(), links.beat()], [vec![], vec![], vec![]]);
        }
    }

    #[test]
    fn a_lost_wire_is_shown_to_an_avio_nic_at_once() {
        for kind in BOTH {
            let shown = with_link(kind).judge(slot(), kind, Behind::Switch);
            assert_eq!(shown, (kind == NicKind::AvioLan).then_some(LinkState::Down), "{kind:?}");
        }
    }

    #[test]
    fn a_link_goes_when_its_time_has_come_however_often_it_is_judged() {
        for kind in BOTH {
            let mut links = with_link(kind);
            assert_eq!(links.judge(slot(), kind, Behind::Nothing), None);
            assert_eq!(links.beat(), []);
            assert_eq!(links.judge(slot(), kind, Behind::Nothing), None);
            assert_eq!(links.beat(), [slot()]);
            let down = Some(LinkState::Down);
            assert_eq!(links.judge(slot(), kind, Behind::Nothing), down);
            assert_eq!(links.judge(slot(), kind, Behind::Nothing), down, "and stays");
            assert_eq!(links.beat(), []);
        }
    }

    #[test]
    fn a_guest_that_starts_and_a_worker_that_takes_over_show_what_is() {
        for kind in BOTH {
            for behind in [Behind::Switch, Behind::Nothing] {
                let shown = Links::default().judge(slot(), kind, behind);
                assert_eq!(shown, Some(LinkState::Down), "{kind:?}");
            }
        }
    }
}
