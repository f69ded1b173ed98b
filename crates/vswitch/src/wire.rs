//! The boundary to a network interface: what a wire is to the switch.
//!
//! A frame crosses it with the first ten bytes of a virtio-net header before it, in which the sender of the frame says
//! what is still to be done with it, so that the kernel behind a tap (IFF_VNET_HDR) or a packet socket (PACKET_VNET_HDR)
//! fills in checksums and cuts segments, and tells the same of what it received.

mod packet;
mod tap;

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

use crate::FRAME_BYTES_MAX;
use crate::features::Offloads;
use crate::vlan::TAG_BYTES;

pub use packet::PacketWire;
pub use tap::TapWire;

/// A network interface as the forwarding thread sees it. That thread alone calls these functions, and none may block.
pub trait Wire: Send {
    /// Becomes readable (epoll(7)) when frames wait.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// What it finishes of the frames it is sent.
    fn offloads(&self) -> Offloads;

    /// Fills slots from the first on with frames that wait, and returns how many; 0 when none waits. An error means that
    /// the interface is gone for good.
    fn receive(&mut self, slots: &mut [WireSlot]) -> io::Result<usize>;

    /// Sends frames in order and returns how many it took; what it has no room for is discarded. An error means that the
    /// interface is gone for good.
    fn send(&mut self, frames: &[WireFrame<'_>]) -> io::Result<usize>;
}

/// The first ten bytes of a virtio-net header, little endian (virtio 1.2, 5.1.6; `struct virtio_net_hdr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct OffloadHeader {
    pub flags: u8,
    pub gso_type: u8,
    pub header_length: u16,
    pub segment_size: u16,
    pub checksum_start: u16,
    pub checksum_offset: u16,
}

impl OffloadHeader {
    pub const BYTES: usize = 10;
    /// In `flags`: the checksum from `checksum_start` on is to be filled in at `checksum_offset` from there.
    pub const NEEDS_CHECKSUM: u8 = 1;
    /// In `flags`: the checksum was verified.
    pub const CHECKSUM_VALID: u8 = 2;
    pub const GSO_NONE: u8 = 0;
    pub const GSO_TCP_IPV4: u8 = 1;
    pub const GSO_TCP_IPV6: u8 = 4;
    /// Datagrams of one length over either: no virtio driver of ours is given it, but a kernel gives it to a packet socket.
    pub const GSO_UDP: u8 = 5;
    /// Beside one of the two of TCP.
    pub const GSO_ECN: u8 = 0x80;

    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> OffloadHeader {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        OffloadHeader {
            flags: bytes[0],
            gso_type: bytes[1],
            header_length: word(2),
            segment_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }

    /// All of it in two numbers: the first eight bytes and the last two, least significant first.
    #[inline(always)]
    pub(crate) fn words(self) -> (u64, u16) {
        let low = u64::from(self.flags)
            | u64::from(self.gso_type) << 8
            | u64::from(self.header_length) << 16
            | u64::from(self.segment_size) << 32
            | u64::from(self.checksum_start) << 48;
        (low, self.checksum_offset)
    }

    /// The header of the same frame with a tag put in.
    pub(crate) fn tagged(mut self) -> OffloadHeader {
        const BYTES: u16 = TAG_BYTES as u16;
        if self.flags & Self::NEEDS_CHECKSUM != 0 {
            self.checksum_start = self.checksum_start.saturating_add(BYTES);
        }
        if self.gso_type != Self::GSO_NONE {
            self.header_length = self.header_length.saturating_add(BYTES);
        }
        self
    }

    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.header_length.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.segment_size.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.checksum_start.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.checksum_offset.to_le_bytes());
        bytes
    }
}

/// How long a slot's buffer is: the header and the longest frame.
pub const SLOT_BYTES: usize = OffloadHeader::BYTES + FRAME_BYTES_MAX;

/// Room for one received frame. `buffer` is for the header and, right behind it, the frame.
#[derive(Debug)]
pub struct WireSlot {
    buffer: Box<[u8]>,
    filled_bytes: usize,
    tag: Option<u16>,
}

impl WireSlot {
    #[must_use]
    pub fn new() -> WireSlot {
        WireSlot { buffer: vec![0; SLOT_BYTES].into_boxed_slice(), filled_bytes: 0, tag: None }
    }

    /// [`SLOT_BYTES`] bytes to receive into, as by readv(2) or recvmsg(2).
    pub fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    /// Says that the first `bytes` of the buffer, header and frame, were received. `tag`: the VLAN tag (TCI) that the
    /// kernel took out of the frame (PACKET_AUXDATA), or none.
    pub fn fill(&mut self, bytes: usize, tag: Option<u16>) {
        self.filled_bytes = bytes.min(SLOT_BYTES);
        self.tag = tag;
    }

    /// What was received: header and frame.
    #[must_use]
    pub fn filled(&self) -> &[u8] {
        &self.buffer[..self.filled_bytes]
    }

    #[must_use]
    pub fn tag(&self) -> Option<u16> {
        self.tag
    }
}

impl Default for WireSlot {
    fn default() -> WireSlot {
        WireSlot::new()
    }
}

/// A frame to send.
#[derive(Clone, Copy, Debug)]
pub struct WireFrame<'a> {
    /// The header of [`OffloadHeader::BYTES`] bytes first, then the frame in pieces with any tag in its place, as
    /// writev(2) and sendmsg(2) take them. The frame's bytes may lie in a guest's memory and change meanwhile: hand them to
    /// the kernel and do not look at them.
    pub parts: &'a [IoSlice<'a>],
    /// The frame's length without the header.
    pub octets: usize,
}
