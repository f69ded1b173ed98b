//! What QEMU answers, reduced to the members we read. A member QEMU may leave out is an `Option`; members it adds are
//! ignored. Serializable only so that the check against the recorded schema can compare names.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The answer of commands that only do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub status: RunState,
    /// Whether processors run.
    pub running: bool,
}

/// A reservation manager.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrManager {
    pub id: String,
    pub connected: bool,
}

/// A queue between the guest's driver and a virtio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VirtQueue {
    /// How many requests the device has taken from it and not answered.
    pub inuse: u32,
    /// How many it has answered, from 0 again after 65,535.
    pub used_idx: u16,
}

/// What the machine as a whole is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum RunState {
    /// Processors run, also while a guest's system reset is under way.
    Running,
    /// Stopped by us.
    Paused,
    /// Not started yet, or reset while it was stopped.
    Prelaunch,
    /// The guest powered off and QEMU stays; `system_reset`, then `cont`, starts it again.
    Shutdown,
    /// A disk failed and its policy is to hold the guest.
    IoError,
    InternalError,
    GuestPanicked,
    Suspended,
    Watchdog,
    /// Anything a later QEMU calls it; migration states are among these for now.
    Other(String),
}

const RUN_STATES: &[(&str, RunState)] = &[
    ("running", RunState::Running),
    ("paused", RunState::Paused),
    ("prelaunch", RunState::Prelaunch),
    ("shutdown", RunState::Shutdown),
    ("io-error", RunState::IoError),
    ("internal-error", RunState::InternalError),
    ("guest-panicked", RunState::GuestPanicked),
    ("suspended", RunState::Suspended),
    ("watchdog", RunState::Watchdog),
];

impl RunState {
    /// QEMU's words for the states known by name.
    pub fn known_names() -> impl Iterator<Item = &'static str> {
        RUN_STATES.iter().map(|(name, _)| *name)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            RunState::Other(name) => name,
            known => RUN_STATES
                .iter()
                .find(|(_, state)| state == known)
                .map_or("unknown", |(name, _)| name),
        }
    }
}

impl From<String> for RunState {
    fn from(text: String) -> RunState {
        match RUN_STATES.iter().find(|(name, _)| *name == text) {
            Some((_, state)) => state.clone(),
            None => RunState::Other(text),
        }
    }
}

impl From<RunState> for String {
    fn from(state: RunState) -> String {
        state.name().to_owned()
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub qemu: VersionNumber,
    pub package: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VersionNumber {
    pub major: u32,
    pub minor: u32,
    pub micro: u32,
}

impl fmt::Display for VersionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// Where a passed descriptor went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AddedFd {
    pub fdset_id: i64,
    /// Its number in QEMU.
    pub fd: i64,
}

/// A set of descriptors, opened as `/dev/fdset/ID`. It outlives its descriptors while a block node has a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FdSet {
    pub fdset_id: i64,
    pub fds: Vec<FdSetMember>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdSetMember {
    pub fd: i64,
    pub opaque: Option<String>,
}

/// A block device as the guest's side of it: the drive, its tray, what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDevice {
    /// The device's id; a path for devices without one.
    pub qdev: Option<String>,
    pub removable: bool,
    /// Whether the guest holds the tray shut.
    pub locked: bool,
    /// None for devices that have no tray.
    pub tray_open: Option<bool>,
    /// None without a medium.
    pub inserted: Option<BlockNode>,
    #[serde(rename = "io-status")]
    pub io_status: Option<IoStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IoStatus {
    Ok,
    Failed,
    /// The host's file system is full.
    NoSpace,
    #[serde(untagged)]
    Other(String),
}

/// A block node: one layer of what holds a medium's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockNode {
    #[serde(rename = "node-name")]
    pub node_name: Option<String>,
    pub file: String,
    #[serde(rename = "ro")]
    pub read_only: bool,
    #[serde(rename = "drv")]
    pub driver: String,
    pub image: Image,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Image {
    pub filename: String,
    pub format: String,
    /// What the guest sees, in bytes.
    pub virtual_size: u64,
    /// What it takes on the host, in bytes.
    pub actual_size: Option<u64>,
}

/// Counters of a device or a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockStats {
    pub qdev: Option<String>,
    #[serde(rename = "node-name")]
    pub node_name: Option<String>,
    pub stats: BlockCounters,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockCounters {
    pub rd_bytes: u64,
    pub wr_bytes: u64,
    pub rd_operations: u64,
    pub wr_operations: u64,
    pub flush_operations: u64,
    pub failed_rd_operations: u64,
    pub failed_wr_operations: u64,
    pub failed_flush_operations: u64,
    /// How long they took, all together, from the guest's request to its answer.
    #[serde(default)]
    pub rd_total_time_ns: u64,
    #[serde(default)]
    pub wr_total_time_ns: u64,
    #[serde(default)]
    pub flush_total_time_ns: u64,
    /// Time since the last I/O; None when there was none since the machine began.
    pub idle_time_ns: Option<u64>,
}

/// Something long that QEMU does beside the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Job {
    pub id: String,
    pub status: JobStatus,
    /// In bytes for a job of the block layer, as the total, which grows while the guest writes.
    pub current_progress: u64,
    pub total_progress: u64,
    /// Why it failed; of a job that has ended none says that it did not.
    pub error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    Running,
    /// A mirror has copied all and keeps up with the guest.
    Ready,
    /// It has done its work and waits for leave to end; a mirror holds its source's I/O meanwhile.
    Pending,
    /// It has ended and can be forgotten.
    Concluded,
    #[serde(untagged)]
    Other(String),
}

/// A character device: a socket at one end, a device of the guest at the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Chardev {
    /// Its id.
    pub label: String,
    /// Whether the guest's side is in use; of a virtio-serial port: whether the guest has it open.
    pub frontend_open: bool,
}

/// A PCI bus and what answers on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciBus {
    pub bus: u32,
    pub devices: Vec<PciDevice>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciDevice {
    pub bus: u32,
    pub slot: u32,
    pub function: u32,
    /// The device's id; empty for those of the board.
    pub qdev_id: String,
    #[serde(rename = "class_info")]
    pub class: PciClass,
    #[serde(rename = "pci_bridge")]
    pub bridge: Option<PciBridge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciClass {
    pub class: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciBridge {
    /// Absent until firmware numbered the bus, or when nothing is behind it.
    pub devices: Option<Vec<PciDevice>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QomProperty {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
}

/// The value of an object's property; its type depends on the property.
pub type QomValue = Value;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_state_keeps_its_name_known_or_not() {
        for name in RunState::known_names().chain(["save-vm", "", "of the future"]) {
            let state = RunState::from(name.to_owned());
            assert_eq!(state.name(), name);
            assert_eq!(
                matches!(state, RunState::Other(_)),
                !RunState::known_names().any(|n| n == name)
            );
        }
    }

    #[test]
    fn an_io_status_of_the_future_is_kept() {
        let read = |text: &str| serde_json::from_str::<IoStatus>(text).expect("a string");
        assert_eq!(read(r#""nospace""#), IoStatus::NoSpace);
        assert_eq!(read(r#""melted""#), IoStatus::Other("melted".into()));
    }
}
