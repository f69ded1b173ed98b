//! What is known about the host when a decision is made. Collected by the command, never looked up here.

use std::collections::BTreeMap;

pub use hpvm_model::FileIdentity;
use hpvm_model::limits::LimitsTable;
use hpvm_model::{Accelerator, Bytes, GuestName, StorageAddress};
use serde::{Deserialize, Serialize};

/// What a path led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileFact {
    Regular {
        identity: FileIdentity,
        size: Bytes,
        writable: Writable,
    },
    Folder,
    /// A device node, socket or pipe: the word that names it.
    Special(&'static str),
    Missing,
    /// It exists and cannot be looked at: the system's reason.
    Unreadable(String),
}

/// Whether we may write to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writable {
    Yes,
    No,
}

/// Another guest has the same file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharer {
    pub guest: GuestName,
    pub address: StorageAddress,
    /// It runs now and has the file open for writing.
    pub holds_it: bool,
}

/// The engine of this host, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    pub program: String,
    /// As QEMU says it: `10.0.2`.
    pub version: String,
}

impl Engine {
    /// The versioned machine type of this engine, which a guest keeps from its first start on.
    #[must_use]
    pub fn machine_type(&self) -> String {
        let mut parts = self.version.split('.');
        let major = parts.next().unwrap_or("10");
        let minor = parts.next().unwrap_or("0");
        format!("pc-q35-{major}.{minor}")
    }
}

/// A file the host must offer, at a path, present or not and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provision {
    pub path: String,
    pub missing: Option<String>,
}

/// What only a start needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFacts {
    pub memory_available: Bytes,
    pub engine: Result<Engine, String>,
    pub accelerator: Result<Accelerator, String>,
    pub firmware: Provision,
    /// The guest's own firmware variables: missing, of the wrong size, or damaged, and why.
    pub nvram: Provision,
    pub option_rom: Provision,
    /// Disks' files that a program outside this VM Host keeps from being used, and which program.
    pub locked: BTreeMap<String, String>,
    /// Folders of the guest that have no room left.
    pub full: Vec<FullFolder>,
}

/// A folder a start writes to, on a file system that has no room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullFolder {
    pub path: String,
    pub needed: Bytes,
}

/// Everything a decision may depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    pub processors: u32,
    pub processor_mhz: u32,
    pub memory_total: Bytes,
    pub limits: LimitsTable,
    /// Backing files of the configuration (and of the one before), by path.
    pub files: BTreeMap<String, FileFact>,
    /// Other guests' claims, by identity of the file.
    pub sharers: BTreeMap<FileIdentity, Vec<Sharer>>,
    /// Present when a start is judged.
    pub start: Option<StartFacts>,
}

impl HostFacts {
    #[must_use]
    pub fn identity(&self, path: &str) -> Option<FileIdentity> {
        match self.files.get(path) {
            Some(FileFact::Regular { identity, .. }) => Some(*identity),
            _ => None,
        }
    }
}
