//! How long the scheduler lets this thread run at a stretch (Linux, `sched_setattr(2)`, `sched_runtime` of an ordinary
//! thread). Called by processes that do a little work often, between threads that always have work: who asks for a short
//! slice comes to the processor sooner when it wakes, and gets no larger share of it. Threads inherit it.

#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::time::Duration;

use nix::libc;

/// Asks for slices so short. Kernels before 6.12 take the wish and do nothing about it.
///
/// # Errors
/// The kernel knows no such call, or forbids it.
pub fn shorten(slice: Duration) -> io::Result<()> {
    let mut attributes = attributes()?;
    // A real-time policy has no slices, and who set it knows better.
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attributes.sched_runtime = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: the kernel reads as many bytes as `size` says, which are those of the structure.
    done(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

fn attributes() -> io::Result<libc::sched_attr> {
    // SAFETY: the structure consists of integers, for which zero is a value.
    let mut attributes: libc::sched_attr = unsafe { mem::zeroed() };
    let size = mem::size_of_val(&attributes);
    // SAFETY: the kernel writes at most `size` bytes, and the structure has so many.
    done(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) })?;
    Ok(attributes)
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_inherited_and_leaves_the_rest_as_it_was() {
        let before = attributes().unwrap();
        let slice = Duration::from_micros(700);
        let (own, heir) = std::thread::spawn(move || {
            shorten(slice).unwrap();
            (attributes().unwrap(), std::thread::spawn(|| attributes().unwrap()).join().unwrap())
        })
        .join()
        .unwrap();
        assert_eq!((own.sched_policy, own.sched_nice), (before.sched_policy, before.sched_nice));
        assert_eq!(own.sched_runtime, heir.sched_runtime);
        // A kernel that has no slices to choose says none, here as before.
        let expected = if before.sched_runtime == 0 { 0 } else { 700_000 };
        assert_eq!(own.sched_runtime, expected);
        assert_eq!(attributes().unwrap().sched_runtime, before.sched_runtime);
    }
}
