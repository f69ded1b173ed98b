//! How long an agent may take, with the reason. Which command may take longer than most stands beside it in
//! [`crate::command`].
//!
//! A deadline says when we stop waiting, not when the guest stops working: what it was asked may still happen.

use std::time::Duration;

/// The agent only looks something up or starts a program. It answers within milliseconds; a guest that swaps, or whose
/// emulated processors are busy, may need a second for it.
pub const DEFAULT: Duration = Duration::from_secs(3);

/// What a frozen guest may cost its users: all writes stand still meanwhile.
pub const FROZEN: Duration = Duration::from_secs(2);

/// A thaw goes through all file systems, and there is nothing else left to do but to wait for it.
pub const THAWING: Duration = Duration::from_secs(10);
