//! The virtual console of a guest, both halves of it.
//!
//! ```text
//!  hpvmconsole                                                     hpvmapp
//!  terminal ── session ── menu            door                fanout ── history
//!     raw      the loop   the grammar  ◄──frames──►   seats and keyboard   recent output
//! ```
//!
//! The server half ([`fanout`], [`history`]) does no I/O: hpvmapp feeds it bytes and frames under its own event loop and
//! asks it what to send. The client half ([`session`], [`terminal`]) is synchronous and reaches the guest by the trait
//! [`session::Guest`] alone. [`door`] is what the two say to one another. Nothing here knows QMP, SQL or processes.

pub mod attachment;
pub mod door;
pub mod fanout;
pub mod history;
pub mod menu;
mod replay;
mod screen;
pub mod session;
pub mod terminal;
