//! The client side of QMP, QEMU's control protocol: hpvmapp steers its guest with it, rescue and tests look in with it.
//!
//! ```text
//!   typed commands        command ── deadline          how long each may take
//!   typed answers         answer, event                extra members ignored, unknown events kept
//!   what a guest does     occupant, power_button       read through the human monitor
//!   bytes                 frame                        lines in, `Incoming` out; no I/O
//!   transports            client (tokio)  blocking     one request at a time is not required, ids match
//! ```
//!
//! The protocol is tolerant where QEMU grows (members, events, run states it may add) and strict where a fault would
//! hide (garbage ends the connection, a line has a greatest length, every command a deadline). Which commands exist with
//! which arguments is checked against `schemas/`, recorded from QEMU itself.
//!
//! This crate knows nothing of guests, files or what a change is for.

pub mod answer;
pub mod blocking;
pub mod client;
pub mod command;
pub mod deadline;
mod error;
pub mod event;
pub mod frame;
pub mod occupant;
mod passing;
pub mod power_button;

pub use answer::RunState;
pub use command::{Command, Properties};
pub use error::{Class, Error, Refusal};
pub use event::{Event, Happening};
pub use hpvm_model::Occupant;
pub use power_button::PowerButton;
