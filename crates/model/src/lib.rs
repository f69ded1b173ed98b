//! The words of hpvm as types: names, sizes, addresses, resource statements, a guest's configuration, limits, problems.
//!
//! Everybody stands on this crate and it stands on nothing: no files, no processes, no QEMU. A value of one of these
//! types can only be made valid, so nobody checks it again.

pub mod accelerator;
pub mod article;
pub mod bytes;
pub mod causes;
pub mod cpu;
pub mod entry;
pub mod guest;
pub mod limits;
pub mod name;
pub mod network;
pub mod os;
pub mod problem;
pub mod shell;
pub mod state;
pub mod storage;

pub use accelerator::{Accelerator, AvioService};
pub use article::with_article;
pub use bytes::{Bytes, Memory};
pub use causes::chain;
pub use cpu::{Entitlement, Vcpus};
pub use entry::{Attributes, Choice, EntryId, EntryType, Likeness, Origin, StoreIdentity};
pub use guest::{AutoStart, GuestConfig, GuestNumber, GuestUuid, Runnable};
pub use name::{GuestName, Label};
pub use network::{
    BootFile, BootProfile, Forward, ForwardError, InterfaceName, Isolation, LanBoot, LanBootError,
    MacAddress, NatSubnet, Nic, NicKind, NicStatement, PortNumber, PortRules, PortVlan, Rate,
    SpoofGuard, SubnetError, SwitchName, SwitchNumber, SwitchState, Transport, VlanId, VlanSet,
    Vswitch, Wire, WireNow,
};
pub use os::{OsFamily, OsType};
pub use problem::{Problem, Remedy, Severity};
pub use shell::quoted;
pub use state::{Occupant, RunState};
pub use storage::{
    AdapterKind, Backing, Below, DeviceKind, DiskId, FileIdentity, PciSlot, Statement,
    StatementForm, StorageAddress, StorageDevice, StorageType, StoreRole, is_shared_freely,
};
