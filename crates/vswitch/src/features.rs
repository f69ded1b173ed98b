//! Features of virtio-net that this switch has, and what a receiver can finish by itself (virtio 1.2, 5.1.3 and 6).

pub(crate) const CSUM: u64 = 1 << 0;
pub(crate) const GUEST_CSUM: u64 = 1 << 1;
pub(crate) const MTU: u64 = 1 << 3;
pub(crate) const GUEST_TSO4: u64 = 1 << 7;
pub(crate) const GUEST_TSO6: u64 = 1 << 8;
pub(crate) const GUEST_ECN: u64 = 1 << 9;
pub(crate) const HOST_TSO4: u64 = 1 << 11;
pub(crate) const HOST_TSO6: u64 = 1 << 12;
pub(crate) const HOST_ECN: u64 = 1 << 13;
pub(crate) const MRG_RXBUF: u64 = 1 << 15;
/// Of vhost, not of virtio: writes to the guest's memory are noted for migration.
pub(crate) const LOG_ALL: u64 = 1 << 26;
pub(crate) const ANY_LAYOUT: u64 = 1 << 27;
pub(crate) const INDIRECT_DESC: u64 = 1 << 28;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
/// Of vhost-user: there are features of the protocol to agree on.
pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;
pub(crate) const VERSION_1: u64 = 1 << 32;

/// Everything an AVIO port can be offered. Bits 26 and 30 are the protocol's own (vhost-user, "Feature bits").
pub const FEATURES: u64 = CSUM
    | GUEST_CSUM
    | MTU
    | GUEST_TSO4
    | GUEST_TSO6
    | GUEST_ECN
    | HOST_TSO4
    | HOST_TSO6
    | HOST_ECN
    | MRG_RXBUF
    | LOG_ALL
    | ANY_LAYOUT
    | INDIRECT_DESC
    | EVENT_IDX
    | PROTOCOL_FEATURES
    | VERSION_1;

/// What a receiver of frames finishes itself: the switch does the rest before it hands them over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Takes frames whose checksum is still to be filled in.
    pub checksum: bool,
    /// Takes TCP segments longer than the wire's, over IPv4.
    pub segmentation_ipv4: bool,
    /// The same over IPv6.
    pub segmentation_ipv6: bool,
    /// Takes such segments with congestion marks (ECN).
    pub segmentation_ecn: bool,
}

impl Offloads {
    /// What a guest that acknowledged these features takes.
    #[must_use]
    pub fn of_guest(features: u64) -> Offloads {
        Offloads {
            checksum: features & GUEST_CSUM != 0,
            segmentation_ipv4: features & GUEST_TSO4 != 0,
            segmentation_ipv6: features & GUEST_TSO6 != 0,
            segmentation_ecn: features & GUEST_ECN != 0,
        }
    }

    /// All of it, as Linux does for frames with a virtio-net header.
    #[must_use]
    pub fn all() -> Offloads {
        Offloads {
            checksum: true,
            segmentation_ipv4: true,
            segmentation_ipv6: true,
            segmentation_ecn: true,
        }
    }
}
