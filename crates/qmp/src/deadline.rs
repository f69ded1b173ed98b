//! How long QEMU may take, with the reason. A command that may take longer than most, or must not take so long, says so in
//! the table of [`crate::command`].
//!
//! A deadline says when we stop waiting, not when QEMU stops working: what it was asked may still happen.

use std::time::Duration;

/// Most commands only look something up. A host that swaps or a busy emulator makes a second of it, never five.
pub const DEFAULT: Duration = Duration::from_secs(5);

/// How long QEMU may take from accepting a connection to its greeting and our leave to speak.
pub const CONNECT: Duration = Duration::from_secs(5);

/// How long a guest may take to let go of a device after `device_del`. A quiet Linux needs 0.1 s. One that was given the
/// adapter a moment ago first ends its search of 256 SCSI targets, in the same kernel thread: 6.5 s with emulated processors.
pub const DEVICE_DELETED: Duration = Duration::from_secs(15);
