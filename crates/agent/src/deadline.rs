//! How long an agent may take over each command, with the reason: the one table of such bounds.
//!
//! A deadline says when we stop waiting, not when the guest stops working: what it was asked may still happen.

use std::time::Duration;

/// The agent only looks something up or starts a program. It answers within milliseconds; a guest that swaps, or whose
/// emulated processors are busy, may need a second for it.
pub const DEFAULT: Duration = Duration::from_secs(3);

/// What a frozen guest may cost its users: all writes stand still meanwhile.
pub const FROZEN: Duration = Duration::from_secs(2);

/// Commands that differ from [`DEFAULT`].
const EXCEPTIONS: &[(&str, Duration)] = &[
    ("guest-fsfreeze-freeze", FROZEN),
    // Goes through all file systems, and there is nothing else left to do but to wait for it.
    ("guest-fsfreeze-thaw", Duration::from_secs(10)),
];

/// The deadline of a command.
#[must_use]
pub fn of(command: &str) -> Duration {
    EXCEPTIONS.iter().find(|(name, _)| *name == command).map_or(DEFAULT, |(_, bound)| *bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_exception_is_a_command_we_send_and_differs_from_the_rule() {
        for (name, bound) in EXCEPTIONS {
            assert!(crate::command::NAMES.contains(name), "{name} is never sent");
            assert_ne!(*bound, DEFAULT, "{name}");
        }
        assert_eq!(of("guest-ping"), DEFAULT);
        assert_eq!(of("guest-fsfreeze-freeze"), FROZEN);
    }
}
