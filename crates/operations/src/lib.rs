//! What an administrator can do to the guests and virtual switches of a VM Host: create, change, start, stop, look, explain, repair.
//!
//! Each operation is a function from a typed request to a typed outcome; commands parse and print, nothing more, so that
//! another front end (a web manager, a cluster agent) calls the same functions. Operations decide by `plan`, store by
//! `registry`, act by `engine` and the worker's control protocol.

mod actor;
pub mod adapters;
pub mod autostart;
pub mod autostop;
mod claims;
pub mod clone;
mod company;
pub mod console_media;
pub mod create;
pub mod devdb;
mod displaced;
pub mod doctor;
mod facts;
mod folder;
mod forgotten;
mod hanging;
mod helper;
mod lost;
mod lost_record;
pub mod modify;
pub mod network;
pub mod nvram;
mod presence;
pub mod processor_use;
mod random;
mod refusal;
pub mod remove;
mod shell_limits;
pub mod start;
pub mod stop;
mod stores;
mod supervise;
pub mod view;
mod vm_host;
pub mod why;

pub use actor::Actor;
pub use refusal::Refusal;
pub use vm_host::VmHost;

/// Whether an operation is carried out or only judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Apply,
    /// Say what would happen; change nothing.
    DryRun,
}
