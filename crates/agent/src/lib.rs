//! The host's side of the guest agent's protocol, as QEMU's agent speaks it (QEMU, docs/interop/qemu-ga-ref). hpvmapp asks the
//! agent of its guest with it; nobody else does.
//!
//! ```text
//!   verbs         disk, exec, freeze      what hpvm wants of a guest
//!   typed         command ── deadline     how long each may take
//!   in step       channel                 one connection, one command at a time, a sync before
//!   bytes         frame                   lines in, `Incoming` out; no I/O
//! ```
//!
//! The other end belongs to the guest, which is hostile: it may be silent, late, or say anything at any length. So each
//! wait has a deadline, a line and a conversation have a greatest length, what is not understood is passed over, and what
//! the guest says in words is cut and cleaned before a person sees it ([`words::printable`]). While nothing is asked
//! nothing is read, so that a guest that talks unasked costs nobody anything.
//!
//! This crate knows nothing of QMP, of files and of what a removal or a freeze is for.

pub mod channel;
pub mod command;
pub mod deadline;
pub mod disk;
mod error;
pub mod exec;
pub mod frame;
pub mod freeze;
pub mod words;

pub use channel::{Channel, Conversation};
pub use command::Command;
pub use error::Error;
