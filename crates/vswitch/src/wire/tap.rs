//! A wire to the VM Host itself: a tap, whose other end is an interface of the host's.
//!
//! One system call a frame. The kernel takes frames with open checksums and long segments (IFF_VNET_HDR, TUNSETOFFLOAD), and
//! gives such too.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, read, writev};

use super::{OffloadHeader, Wire, WireFrame, WireSlot};
use crate::features::Offloads;

/// A tap that does not block, opened with IFF_NO_PI and IFF_VNET_HDR, a header of [`OffloadHeader::BYTES`] bytes, and all
/// offloads switched on.
#[derive(Debug)]
pub struct TapWire {
    tap: OwnedFd,
}

impl TapWire {
    #[must_use]
    pub fn new(tap: OwnedFd) -> TapWire {
        TapWire { tap }
    }
}

impl Wire for TapWire {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }

    fn offloads(&self) -> Offloads {
        Offloads::all()
    }

    fn receive(&mut self, slots: &mut [WireSlot]) -> io::Result<usize> {
        let mut count = 0;
        while let Some(slot) = slots.get_mut(count) {
            match read(&self.tap, slot.buffer()) {
                Ok(bytes) if bytes > OffloadHeader::BYTES => {
                    slot.fill(bytes, None);
                    count += 1;
                }
                Ok(_) | Err(Errno::INTR) => {}
                // Nothing waits, or nobody set the interface up.
                Err(Errno::AGAIN | Errno::IO) => break,
                // What came before is handed on; the next call says it again.
                Err(_) if count > 0 => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(count)
    }

    fn send(&mut self, frames: &[WireFrame<'_>]) -> io::Result<usize> {
        let mut taken = 0;
        for frame in frames {
            match writev(&self.tap, frame.parts) {
                Ok(_) => taken += 1,
                // The device behind the descriptor was deleted.
                Err(error @ Errno::BADFD) => return Err(error.into()),
                // No room, not set up, or nothing that the kernel could make a packet of: this frame is lost.
                Err(_) => {}
            }
        }
        Ok(taken)
    }
}
