//! Reservations on disks that several guests have at once: how `hpvmreserve`, which keeps QEMU's helper for one guest, is
//! started, and how anybody sees whether the helper answers.
//!
//! A guest commands a shared disk itself, but the kernel lets only who has `CAP_SYS_RAWIO` reserve it. So QEMU hands each
//! `PERSISTENT RESERVE` and the disk's descriptor to qemu-pr-helper, at a socket of the guest's. Called by whoever starts a
//! guest or gives it a disk, and by its worker. Nothing here knows guests or disks.

mod probe;
mod settings;
mod start;

pub use probe::{FIRST_WORD_BYTES, answers};
pub use settings::{Settings, SettingsError};
pub use start::{Places, StartError, start};

/// The numbers of the descriptors that `hpvmreserve` is started with. Its standard error is the guest's log.
pub mod descriptor {
    /// Listening Unix stream socket, to which QEMU connects. The helper expects it there (sd_listen_fds(3)).
    pub const SOCKET: i32 = 3;
    /// What can be read, or is closed at its other end, once the guest's QEMU is gone: a pidfd, or the reading end of a pipe
    /// of which QEMU holds the other.
    pub const LIFELINE: i32 = 4;
}
