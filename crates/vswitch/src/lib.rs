//! The data path of one virtual switch: frames between guests' ports and a wire. hpvmnetd runs one switch with it, tests
//! and `examples/bridge.rs` run others.
//!
//! ```text
//!   control      Switch ──commands──► forwarding thread ──events──► Receiver<Event>
//!   ports        vhost-user (AVIO: rings in the guest's memory) · stream (VIO: frames over a Unix socket) · wire
//!   decisions    vlan · table of MAC addresses · guard · rate            pure, each a module
//!   frames       batch: gathered from one port, sorted by receiver, copied once into each receiver
//! ```
//!
//! One thread forwards and owns everything frames touch, so nothing on their path is locked: [`Switch`] sends it commands
//! that it takes between two batches. Each AVIO port has a second thread that speaks the vhost-user protocol and sleeps
//! nearly always. Counters and a port's state are written by the forwarding thread and read by anybody without stopping it.
//!
//! A port's peer is hostile. What it writes is copied before it is judged, each number of it is checked once, and a port
//! whose rings hold nonsense is [lost](Event::Lost), alone. A receiver without room is waited for by those who send to it
//! alone, and for a bounded share of their time; then it loses frames.
//!
//! This crate knows nothing of guests, of files and paths, or of who may do what: sockets come bound, descriptors open.

mod accept;
mod avio;
mod capture;
mod command;
mod conversation;
mod counters;
mod delivery;
mod device;
mod device_state;
mod early;
mod event;
mod features;
mod forward;
mod frame;
mod guard;
mod hold;
mod lan_boot;
mod mac_table;
mod memory;
mod obey;
mod offload;
mod options;
mod pace;
mod packet;
mod patience;
mod port;
mod rate;
mod ring;
mod shared;
mod stream;
mod switch;
mod vlan;
mod watch;
mod ways;
mod wire;

pub use counters::{Counters, Discards};
pub use event::{Event, RingFault};
pub use features::{FEATURES, Offloads};
pub use options::{
    Beginning, Capture, CaptureId, Clock, GuestMemory, Options, PortOptions, WireOptions,
};
pub use switch::{MacEntry, MacOrigin, Place, PortLink, PortStatus, Switch, SwitchError};
pub use wire::{OffloadHeader, PacketWire, SLOT_BYTES, TapWire, Wire, WireFrame, WireSlot};

/// The longest frame a switch carries: an IP packet of 65,535 bytes, Ethernet's header and one tag.
pub const FRAME_BYTES_MAX: usize = 14 + 4 + 65_535;
