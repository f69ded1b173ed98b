//! How long QEMU may take over each command, with the reason: the one table of such bounds.
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

/// Commands that differ from [`DEFAULT`].
const EXCEPTIONS: &[(&str, Duration)] = &[
    // The beat: after this the guest is shown as unresponsive, so it must not take longer than a reader's patience.
    ("query-status", Duration::from_secs(3)),
    // Opens the image, takes its locks and may read a chain of layers from slow storage.
    ("blockdev-add", Duration::from_secs(30)),
    // Drains and flushes what the guest wrote.
    ("blockdev-del", Duration::from_secs(30)),
    ("block_resize", Duration::from_secs(30)),
    // Drains what the guest has under way to put a filter between it and its disk.
    ("blockdev-mirror", Duration::from_secs(30)),
    ("block-job-cancel", Duration::from_secs(30)),
    ("blockdev-remove-medium", Duration::from_secs(30)),
    ("blockdev-change-medium", Duration::from_secs(30)),
    ("eject", Duration::from_secs(30)),
    // Stops every processor and waits for all I/O under way.
    ("stop", Duration::from_secs(30)),
    // Realizes a device in the main loop: option ROM, memory regions of every processor under emulation.
    ("device_add", Duration::from_secs(10)),
    // Waits in the main loop until the switch has answered for a new port.
    ("netdev_add", Duration::from_secs(10)),
    ("device_del", Duration::from_secs(10)),
    // What does not obey is ended by force.
    ("quit", Duration::from_secs(2)),
    // 1,200 entries, 236 KB.
    ("query-qmp-schema", Duration::from_secs(10)),
];

/// The deadline of a command.
#[must_use]
pub fn of(command: &str) -> Duration {
    EXCEPTIONS.iter().find(|(name, _)| *name == command).map_or(DEFAULT, |(_, bound)| *bound)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_exception_is_named_once_and_is_a_command_we_send() {
        let names: BTreeSet<_> = EXCEPTIONS.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), EXCEPTIONS.len());
        for name in names {
            assert!(crate::command::NAMES.contains(&name), "{name} is never sent");
        }
    }

    #[test]
    fn exceptions_differ_from_the_rule() {
        assert!(EXCEPTIONS.iter().all(|(_, bound)| *bound != DEFAULT));
        assert_eq!(of("query-version"), DEFAULT);
        assert_eq!(of("device_add"), Duration::from_secs(10));
    }
}
