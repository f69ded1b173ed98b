//! A wire over an interface of the VM Host: a packet socket (packet(7)), which takes and gives a batch of frames a call.
//!
//! The kernel takes VLAN tags out of frames before it hands them over, and tells them beside (PACKET_AUXDATA).

#![allow(unsafe_code)]

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{null_mut, read_unaligned};

use nix::libc;

use super::{OffloadHeader, Wire, WireFrame, WireSlot};
use crate::features::Offloads;
use crate::vlan::TAG_BYTES;

/// As many as the switch has slots for, and sends at once.
const BATCH: usize = 32;
/// Room for what the kernel tells beside a frame: the head of a control message and `struct tpacket_auxdata`.
const BESIDE_BYTES: usize = 64;
const PACKET_AUXDATA: libc::c_int = 8;
/// The kernel took a tag out of the frame.
const VLAN_VALID: u32 = 1 << 4;
/// It tells of which kind (EtherType) the tag was.
const VLAN_KIND_VALID: u32 = 1 << 6;
/// Of IEEE 802.1Q; a switch of ours knows no other.
const VLAN_KIND: u16 = 0x8100;

/// `struct tpacket_auxdata` (linux/if_packet.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct Beside {
    status: u32,
    bytes: u32,
    bytes_copied: u32,
    mac_at: u16,
    network_at: u16,
    tag: u16,
    tag_kind: u16,
}

/// Aligned as control messages are.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Room([u8; BESIDE_BYTES]);

/// A raw packet socket that does not block, is bound to its interface, and has PACKET_VNET_HDR and PACKET_AUXDATA.
#[derive(Debug)]
pub struct PacketWire {
    socket: OwnedFd,
}

impl PacketWire {
    #[must_use]
    pub fn new(socket: OwnedFd) -> PacketWire {
        PacketWire { socket }
    }
}

impl Wire for PacketWire {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn offloads(&self) -> Offloads {
        Offloads::all()
    }

    fn receive(&mut self, slots: &mut [WireSlot]) -> io::Result<usize> {
        let mut beside = [Room([0; BESIDE_BYTES]); BATCH];
        let mut pieces: [MaybeUninit<libc::iovec>; BATCH] = [MaybeUninit::uninit(); BATCH];
        let mut heads = [no_message(); BATCH];
        let batch = slots.iter_mut().zip(&mut beside).zip(&mut pieces).zip(&mut heads);
        let mut asked = 0;
        for (((slot, room), piece), head) in batch {
            let buffer = slot.buffer();
            let piece = piece
                .write(libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() });
            head.msg_hdr.msg_iov = piece;
            head.msg_hdr.msg_iovlen = 1;
            head.msg_hdr.msg_control = room.0.as_mut_ptr().cast();
            head.msg_hdr.msg_controllen = BESIDE_BYTES;
            asked += 1;
        }
        // SAFETY: each of the first `asked` heads names a buffer and room that outlive the call, and their lengths.
        let received = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                heads.as_mut_ptr(),
                asked,
                libc::MSG_DONTWAIT,
                null_mut(),
            )
        };
        let Ok(received) = usize::try_from(received) else { return nothing_or_gone(slots) };
        for (slot, head) in slots.iter_mut().zip(&heads[..received]) {
            fill(slot, head);
        }
        Ok(received)
    }

    fn send(&mut self, frames: &[WireFrame<'_>]) -> io::Result<usize> {
        let (mut taken, mut at) = (0, 0);
        while at < frames.len() {
            match self.send_batch(&frames[at..]) {
                Ok(sent) => {
                    taken += sent;
                    at += sent;
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // No room, or nobody set the interface up: the rest is lost.
                    Some(libc::EAGAIN | libc::ENOBUFS | libc::ENETDOWN) => break,
                    Some(libc::ENXIO | libc::ENODEV | libc::EBADF) => return Err(error),
                    // The first of them is longer than the interface's MTU, or no packet: it alone is lost.
                    _ => at += 1,
                },
            }
        }
        Ok(taken)
    }
}

impl PacketWire {
    /// How many of the first frames were sent; an error is about the first of all.
    fn send_batch(&self, frames: &[WireFrame<'_>]) -> io::Result<usize> {
        let mut heads = [no_message(); BATCH];
        let mut asked = 0;
        for (frame, head) in frames.iter().zip(&mut heads) {
            // An IoSlice has the form of an iovec, and the kernel only reads what it names.
            head.msg_hdr.msg_iov = frame.parts.as_ptr().cast_mut().cast();
            head.msg_hdr.msg_iovlen = frame.parts.len();
            asked += 1;
        }
        // SAFETY: each of the first `asked` heads names pieces that outlive the call, and how many they are.
        let sent = unsafe {
            libc::sendmmsg(self.socket.as_raw_fd(), heads.as_mut_ptr(), asked, libc::MSG_DONTWAIT)
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

fn no_message() -> libc::mmsghdr {
    // SAFETY: numbers that are 0 and pointers that are null say: no address, no pieces, nothing beside.
    unsafe { mem::zeroed() }
}

/// After a receive that failed. An interface that is not set up says so once, and may be set up again; one that was removed
/// says the same, and the caller hears of that by rtnetlink. A frame for whose offload the kernel has no header is lost (Linux
/// before 6.2: UDP segments), and what is behind it is there.
fn nothing_or_gone(slots: &mut [WireSlot]) -> io::Result<usize> {
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EINTR | libc::ENETDOWN) => Ok(0),
        Some(libc::EINVAL) => {
            let lost = slots.first_mut().map(|slot| slot.fill(0, None));
            Ok(usize::from(lost.is_some()))
        }
        _ => Err(error),
    }
}

fn fill(slot: &mut WireSlot, head: &libc::mmsghdr) {
    let bytes = head.msg_len as usize;
    let cut_short = head.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
    if cut_short || bytes < OffloadHeader::BYTES {
        // Longer than any frame: a slot that holds nothing is no frame.
        slot.fill(0, None);
        return;
    }
    match tag(&head.msg_hdr) {
        Some((VLAN_KIND, tag)) => slot.fill(bytes, Some(tag)),
        Some((kind, tag)) => put_back(slot, bytes, kind, tag),
        None => slot.fill(bytes, None),
    }
}

/// The tag that the kernel took out: its kind, and its content.
fn tag(head: &libc::msghdr) -> Option<(u16, u16)> {
    // SAFETY: the kernel has written the control messages, and their length into the head.
    let first = unsafe { libc::CMSG_FIRSTHDR(head).as_ref() }?;
    let whole = first.cmsg_len >= size_of::<libc::cmsghdr>() + size_of::<Beside>();
    if first.cmsg_level != libc::SOL_PACKET || first.cmsg_type != PACKET_AUXDATA || !whole {
        return None;
    }
    // SAFETY: behind the head is as much as its length says, which is enough.
    let beside: Beside = unsafe { read_unaligned(libc::CMSG_DATA(first).cast()) };
    let kind = if beside.status & VLAN_KIND_VALID != 0 { beside.tag_kind } else { VLAN_KIND };
    (beside.status & VLAN_VALID != 0).then_some((kind, beside.tag))
}

/// A tag of another kind goes back to where it was, as a part of the frame that means nothing to the switch.
fn put_back(slot: &mut WireSlot, bytes: usize, kind: u16, tag: u16) {
    /// Behind the two addresses.
    const TAG_AT: usize = OffloadHeader::BYTES + 12;
    let buffer = slot.buffer();
    if bytes < TAG_AT || bytes + TAG_BYTES > buffer.len() {
        slot.fill(0, None);
        return;
    }
    buffer.copy_within(TAG_AT..bytes, TAG_AT + TAG_BYTES);
    buffer[TAG_AT..TAG_AT + 2].copy_from_slice(&kind.to_be_bytes());
    buffer[TAG_AT + 2..TAG_AT + TAG_BYTES].copy_from_slice(&tag.to_be_bytes());
    if let Some(header) = buffer.first_chunk_mut::<{ OffloadHeader::BYTES }>() {
        *header = OffloadHeader::from_bytes(*header).tagged().to_bytes();
    }
    slot.fill(bytes + TAG_BYTES, None);
}
