//! The descriptors that a process was started with, taken by their numbers. Called first of all by hpvmapp, hpvmnetd, hpvmnat
//! and hpvmreserve. They are copied and the numbers stay open: a successor of the keeper is given what stands there.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::fcntl_dupfd_cloexec;

use crate::launch::FIRST;

/// What the keeper was to hand over.
#[derive(Debug, thiserror::Error)]
#[error(
    "descriptor {number} ({what}) did not come from the keeper; {program} is started by hpvmkeeper, not by hand"
)]
pub struct Missing {
    program: &'static str,
    number: RawFd,
    what: &'static str,
    source: io::Error,
}

/// A copy of what the keeper started a program with at a number.
pub fn from_keeper(
    program: &'static str,
    number: RawFd,
    what: &'static str,
) -> Result<OwnedFd, Missing> {
    inherited(number).map_err(|source| Missing { program, number, what, source })
}

/// The keeper's program, out of the way of the numbers up to `above`, which a successor of the keeper is given.
#[must_use]
pub fn keeper_program(number: RawFd, above: RawFd) -> Option<OwnedFd> {
    fcntl_dupfd_cloexec(inherited(number).ok()?, above).ok()
}

/// A copy of the descriptor that this process was started with at a number; the number itself stays as it is. To be
/// called before anything else is opened, which would take the numbers that are free.
#[allow(unsafe_code)]
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the number is only looked up by the kernel, in one call that copies what is there or says that nothing is.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(fcntl_dupfd_cloexec(borrowed.as_fd(), FIRST)?)
}
