//! What a switch, a port and a wire are made from.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hpvm_model::{MacAddress, NicKind, PortRules, SwitchState};

use crate::wire::Wire;

/// A switch as it begins.
#[derive(Debug)]
pub struct Options {
    /// Names the switch's threads, for people who look at them with ps or top.
    pub name: String,
    /// Halted, frames are taken from the ports and discarded; peers stay connected.
    pub state: SwitchState,
    pub clock: Clock,
    pub beginning: Beginning,
}

/// What a switch does with frames while its peers come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// Each place's frames go their ways from its first moment on.
    AtOnce,
    /// For a switch that goes on with the ports of one that ended: in its first 75 ms all frames wait where they are, and longer
    /// when somebody comes meanwhile, until he has had 50 ms to see that he has a link again. A guest whose link went for an
    /// instant has forgotten its neighbours' addresses; were its question for one lost, or put before it knows that its link is
    /// back, it would ask again after a second only (Linux, net/core/neighbour.c).
    Together,
}

/// Where rates and ages take their time from.
#[derive(Clone, Debug)]
pub enum Clock {
    Monotonic,
    /// Nanoseconds that a test moves by hand; [`crate::Switch::wake`] makes the switch look.
    Manual(Arc<AtomicU64>),
}

/// A port as it begins.
#[derive(Debug)]
pub struct PortOptions {
    /// `AvioLan`: the peers that connect speak vhost-user; `Lan`: QEMU's stream sockets.
    pub kind: NicKind,
    /// Bound and listening. One peer at a time; the next is taken when the last has gone.
    pub listener: UnixListener,
    /// The card's address, which the guard lets the guest send from and which nobody else is believed to have.
    pub mac: MacAddress,
    /// The virtio features to offer, exactly: what the port was given at its first connect. `None`: [`crate::FEATURES`].
    pub features: Option<u64>,
    pub memory: GuestMemory,
    pub rules: PortRules,
}

/// What is asked of the memory a peer of an AVIO port shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestMemory {
    /// Sealed against shrinking (memfd_create(2)), as QEMU's memory-backend-memfd does by itself. A peer that cuts off
    /// memory which is in use would end the whole switch by SIGBUS.
    Sealed,
    /// Any: for peers that are trusted, such as a traffic generator on hugepages.
    Trusted,
}

/// The world outside, of which a switch has at most one.
pub enum WireOptions {
    /// A network interface.
    Device(Box<dyn Wire>),
    /// A process that speaks as QEMU's stream sockets do, such as one that does NAT, connected already.
    Stream(UnixStream),
    /// The same, coming and going by itself.
    StreamListener(UnixListener),
}

/// Which of a switch's captures; no two have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CaptureId(pub(crate) u64);

/// Where a port's frames are written to, both ways, as its guest sees them.
#[derive(Debug)]
pub struct Capture {
    /// Gets a file in pcap's format (libpcap, pcap-savefile(5)); written by a thread of its own, so it may be a pipe.
    pub file: OwnedFd,
    /// How many bytes of each frame are kept.
    pub snap_bytes: u32,
}
