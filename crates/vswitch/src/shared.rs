//! What of a port is read by other threads than the one that forwards: its counters and its state.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use hpvm_model::MacAddress;

use crate::counters::Cells;
use crate::switch::{PortLink, PortStatus};

/// No set of features and no address has all bits.
const NONE: u64 = u64::MAX;

#[derive(Debug)]
pub(crate) struct PortShared {
    pub(crate) cells: Cells,
    link: AtomicU8,
    offered: AtomicU64,
    acknowledged: AtomicU64,
    source: AtomicU64,
}

impl Default for PortShared {
    fn default() -> PortShared {
        PortShared {
            cells: Cells::default(),
            link: AtomicU8::new(PortLink::Absent as u8),
            offered: AtomicU64::new(NONE),
            acknowledged: AtomicU64::new(NONE),
            source: AtomicU64::new(NONE),
        }
    }
}

impl PortShared {
    pub(crate) fn set_link(&self, link: PortLink) {
        self.link.store(link as u8, Ordering::Relaxed);
    }

    pub(crate) fn set_features(&self, offered: u64, acknowledged: Option<u64>) {
        self.offered.store(offered, Ordering::Relaxed);
        self.acknowledged.store(acknowledged.unwrap_or(NONE), Ordering::Relaxed);
    }

    /// `source`: an address as the lower 48 bits.
    pub(crate) fn set_source(&self, source: u64) {
        self.source.store(source, Ordering::Relaxed);
    }

    pub(crate) fn status(&self) -> PortStatus {
        let some = |cell: &AtomicU64| Some(cell.load(Ordering::Relaxed)).filter(|v| *v != NONE);
        let link = match self.link.load(Ordering::Relaxed) {
            link if link == PortLink::Connected as u8 => PortLink::Connected,
            link if link == PortLink::Started as u8 => PortLink::Started,
            link if link == PortLink::Lost as u8 => PortLink::Lost,
            _ => PortLink::Absent,
        };
        PortStatus {
            link,
            offered: some(&self.offered),
            acknowledged: some(&self.acknowledged),
            source: some(&self.source).map(address),
        }
    }
}

/// The address that the lower 48 bits hold, in the order a frame's bytes have when they are loaded as a number.
pub(crate) fn address(bits: u64) -> MacAddress {
    let [bytes @ .., _, _] = bits.to_le_bytes();
    MacAddress::new(bytes)
}

/// An address as the lower 48 bits of a number, in the order a frame's bytes have when they are loaded as one.
pub(crate) fn bits(address: MacAddress) -> u64 {
    let [a, b, c, d, e, f] = address.bytes();
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}
