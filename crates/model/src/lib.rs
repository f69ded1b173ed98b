//! The words of hpvm as types: names, sizes, addresses, resource statements, a guest's configuration, limits, problems.
//!
//! Everybody stands on this crate and it stands on nothing: no files, no processes, no QEMU. A value of one of these
//! types can only be made valid, so nobody checks it again.

/// Exact amounts of memory and storage.
pub mod bytes;
/// vCPU counts and entitlements.
pub mod cpu;
/// A guest's configuration, as the administrator asked for it.
pub mod guest;
/// What a guest may have at most and at least.
pub mod limits;
/// Names and labels.
pub mod name;
/// Guest operating systems.
pub mod os;
/// What is wrong with a configuration, or may become so.
pub mod problem;
/// What a guest is doing, as the tables say it.
pub mod state;
/// Storage devices, their addresses and the statements that describe them.
pub mod storage;

pub use bytes::{Bytes, Memory};
pub use cpu::{Entitlement, Vcpus};
pub use guest::{AutoStart, GuestConfig, GuestNumber, GuestUuid, Runnable};
pub use name::{GuestName, Label};
pub use os::{OsFamily, OsType};
pub use problem::{Problem, Remedy, Severity};
pub use state::{Occupant, RunState};
pub use storage::{
    AdapterKind, Backing, DeviceKind, DiskId, PciSlot, Statement, StatementForm, StorageAddress,
    StorageDevice,
};
