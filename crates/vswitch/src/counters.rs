//! Counters of a port: what A.03.50's `hpvmnet -A` shows, and what became of frames that went nowhere.
//!
//! The forwarding thread alone writes them and anybody reads them, each number for itself, without stopping it. Clearing
//! moves the reader's zero, not the writer's numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Frames and bytes of one port. In and out are the guest's: in is what it receives. Bytes are those of the frame as the
/// guest sees it, without the check sequence; a long segment that passed unsegmented is one frame. The fields' names are those
/// of the switch's status file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    pub in_octets: u64,
    pub in_unicast_wire: u64,
    pub in_unicast_local: u64,
    pub in_other_wire: u64,
    pub in_other_local: u64,
    /// Frames for this guest that it did not get.
    pub in_discards: u64,
    pub out_octets: u64,
    /// Sent to one station that is, or may be, beyond the wire.
    pub out_unicast_wire: u64,
    /// Sent to one station on this switch.
    pub out_unicast_local: u64,
    /// Sent to many stations.
    pub out_other: u64,
    /// Those of them that went beyond the wire, and those that somebody on this switch was to get: most are both.
    pub out_other_wire: u64,
    pub out_other_local: u64,
    /// Frames of this guest that the switch refused.
    pub out_discards: u64,
    /// Why frames were discarded, both ways; the sum is that of the two above.
    pub discards: Discards,
}

/// Discarded frames by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Discards {
    /// In: the guest had no buffer, or none long enough.
    pub no_room: u64,
    /// In: beyond the port's rate. (Out, frames beyond it wait in the guest.)
    pub rate: u64,
    /// Out: from an address that is not the guest's.
    pub spoofed: u64,
    /// Out: a tag the port does not carry, or none where one is needed.
    pub vlan: u64,
    /// Out: no frame at all: too short, too long, or with a header that contradicts it.
    pub malformed: u64,
    /// Out: the switch was halted.
    pub halted: u64,
    /// Out: to an address that no switch forwards (IEEE 802.1D, 7.12.6), or to one that is behind the port itself.
    pub filtered: u64,
}

/// Each counter's place in [`Cells`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Counter {
    InOctets,
    InUnicastWire,
    InUnicastLocal,
    InOtherWire,
    InOtherLocal,
    OutOctets,
    OutUnicastWire,
    OutUnicastLocal,
    OutOther,
    OutOtherWire,
    OutOtherLocal,
    NoRoom,
    Rate,
    Spoofed,
    Vlan,
    Malformed,
    Halted,
    Filtered,
}

const COUNT: usize = Counter::Filtered as usize + 1;

/// The numbers of one port, written by one thread.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Cells([AtomicU64; COUNT]);

impl Cells {
    /// For the one writer: no other thread adds, so load and store need not be one step.
    pub(crate) fn add(&self, counter: Counter, count: u64) {
        let cell = &self.0[counter as usize];
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Counters {
        let cell = |counter: Counter| self.0[counter as usize].load(Ordering::Relaxed);
        let discards = Discards {
            no_room: cell(Counter::NoRoom),
            rate: cell(Counter::Rate),
            spoofed: cell(Counter::Spoofed),
            vlan: cell(Counter::Vlan),
            malformed: cell(Counter::Malformed),
            halted: cell(Counter::Halted),
            filtered: cell(Counter::Filtered),
        };
        Counters {
            in_octets: cell(Counter::InOctets),
            in_unicast_wire: cell(Counter::InUnicastWire),
            in_unicast_local: cell(Counter::InUnicastLocal),
            in_other_wire: cell(Counter::InOtherWire),
            in_other_local: cell(Counter::InOtherLocal),
            in_discards: discards.inbound(),
            out_octets: cell(Counter::OutOctets),
            out_unicast_wire: cell(Counter::OutUnicastWire),
            out_unicast_local: cell(Counter::OutUnicastLocal),
            out_other: cell(Counter::OutOther),
            out_other_wire: cell(Counter::OutOtherWire),
            out_other_local: cell(Counter::OutOtherLocal),
            out_discards: discards.outbound(),
            discards,
        }
    }
}

impl Discards {
    /// Those on the way in.
    #[must_use]
    pub fn inbound(&self) -> u64 {
        self.no_room + self.rate
    }

    /// Those on the way out.
    #[must_use]
    pub fn outbound(&self) -> u64 {
        self.spoofed + self.vlan + self.malformed + self.halted + self.filtered
    }
}

impl Counters {
    /// What was counted since `zero` was read.
    #[must_use]
    pub fn since(&self, zero: &Counters) -> Counters {
        let Discards { no_room, rate, spoofed, vlan, malformed, halted, filtered } = zero.discards;
        let discards = Discards {
            no_room: self.discards.no_room.wrapping_sub(no_room),
            rate: self.discards.rate.wrapping_sub(rate),
            spoofed: self.discards.spoofed.wrapping_sub(spoofed),
            vlan: self.discards.vlan.wrapping_sub(vlan),
            malformed: self.discards.malformed.wrapping_sub(malformed),
            halted: self.discards.halted.wrapping_sub(halted),
            filtered: self.discards.filtered.wrapping_sub(filtered),
        };
        Counters {
            in_octets: self.in_octets.wrapping_sub(zero.in_octets),
            in_unicast_wire: self.in_unicast_wire.wrapping_sub(zero.in_unicast_wire),
            in_unicast_local: self.in_unicast_local.wrapping_sub(zero.in_unicast_local),
            in_other_wire: self.in_other_wire.wrapping_sub(zero.in_other_wire),
            in_other_local: self.in_other_local.wrapping_sub(zero.in_other_local),
            in_discards: discards.inbound(),
            out_octets: self.out_octets.wrapping_sub(zero.out_octets),
            out_unicast_wire: self.out_unicast_wire.wrapping_sub(zero.out_unicast_wire),
            out_unicast_local: self.out_unicast_local.wrapping_sub(zero.out_unicast_local),
            out_other: self.out_other.wrapping_sub(zero.out_other),
            out_other_wire: self.out_other_wire.wrapping_sub(zero.out_other_wire),
            out_other_local: self.out_other_local.wrapping_sub(zero.out_other_local),
            out_discards: discards.outbound(),
            discards,
        }
    }
}
