//! Decisions, purely: from a configuration, a boot record and facts about the host to problems, addresses, a machine and
//! the steps that change it. Dry run, `hpvmstatus`, golden tests and the real run all use the values made here.
//!
//! Nothing here reads a file or asks a process: callers bring [`facts::HostFacts`] and act on what comes back.

/// The QEMU command line of a boot record.
pub mod command_line;
/// What a change of configuration comes to, field by field.
pub mod difference;
/// What is known about the host when a decision is made.
pub mod facts;
/// Changes to the devices of a running guest.
pub mod hotplug;
/// What is wrong with a configuration.
pub mod judge;
/// Automatic addresses and root ports.
pub mod placement;
/// The boot record: the machine a boot got, and the journal of what changed since.
pub mod record;
/// From what an administrator asks to the configuration that results.
pub mod request;
