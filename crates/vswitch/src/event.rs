//! What happens to a switch's ports without anybody having asked for it.

use hpvm_model::PortNumber;

use crate::options::CaptureId;

/// Sent on the channel that [`crate::Switch::start`] returns, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A peer connected to the port's socket.
    Connected {
        port: PortNumber,
    },
    /// The peer of an AVIO port chose from the features it was offered; `acknowledged` is what its driver drives.
    Negotiated {
        port: PortNumber,
        offered: u64,
        acknowledged: u64,
    },
    /// Frames can pass: an AVIO guest's driver made its rings known, or a VIO peer is there.
    Started {
        port: PortNumber,
    },
    /// The driver of an AVIO guest took its rings back: a reset, or the guest is paused.
    Stopped {
        port: PortNumber,
    },
    Disconnected {
        port: PortNumber,
    },
    /// The guest wrote nonsense into its rings. Nothing passes until its driver makes them anew, as after a reset.
    Lost {
        port: PortNumber,
        fault: RingFault,
    },
    /// A peer was sent away because it broke the protocol; it may come again.
    Refused {
        port: PortNumber,
        reason: String,
    },
    /// A capture has ended, whoever ended it, and all that is in its file is written.
    CaptureOver {
        port: PortNumber,
        capture: CaptureId,
        /// Frames that were not written, since those before them took too long.
        lost: u64,
        /// Why its file takes no more, if that is what ended it.
        failure: Option<String>,
    },
    /// The interface behind the wire is gone; the switch has no wire now.
    WireLost {
        reason: String,
    },
}

/// What was nonsense in a ring. Each is one bound of the walk (virtio 1.2, 2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    #[error("a ring does not lie in the guest's memory, or is not aligned")]
    Place,
    /// Not the guest's fault: `ulimit -n` of whoever runs the switch.
    #[error("the process of the switch has no descriptor left for its rings")]
    Descriptors,
    #[error("the driver claims {claimed} new buffers in a ring of {size}")]
    Available { claimed: u16, size: u16 },
    #[error("descriptor {index} is beyond the table of {size}")]
    Index { index: u16, size: u16 },
    #[error("a chain has more than {max} descriptors")]
    Chain { max: u16 },
    #[error("address {address:#x} with {length} bytes is not in the guest's memory")]
    Address { address: u64, length: u32 },
    #[error(
        "a table of indirect descriptors has {length} bytes, no multiple of 16 from 16 to {max}"
    )]
    IndirectLength { length: u32, max: u32 },
    #[error("a table of indirect descriptors lies within another, or inside a chain")]
    IndirectNested,
    #[error("indirect descriptors were not agreed on")]
    IndirectRefused,
    #[error("a buffer to read from is marked for writing")]
    Writable,
    #[error("a buffer to write into is marked for reading")]
    ReadOnly,
    #[error("a descriptor's buffer has no bytes")]
    Empty,
    #[error("a buffer of {length} bytes does not hold a frame's header")]
    Header { length: u32 },
}
