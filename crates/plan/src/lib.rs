//! Decisions, purely: from a configuration, a boot record and facts about the host to problems, addresses, a machine and
//! the steps that change it. Dry run, `hpvmstatus`, golden tests and the real run all use the values made here.
//!
//! Nothing here reads a file or asks a process: callers bring [`facts::HostFacts`] and act on what comes back.

pub mod clone;
pub mod command_line;
pub mod copying;
pub mod difference;
pub mod drives;
pub mod facts;
pub mod growth;
pub mod guest_path;
pub mod hotplug;
pub mod judge;
pub mod nvram;
pub mod placement;
pub mod record;
pub mod request;
