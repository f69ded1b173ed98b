//! Copies a small file whole, without its bytes passing through memory: the pages that the kernel keeps of the source go to the
//! disk as they are. Called for a guest's firmware variables, which every creation and every start of a guest copies. A copy in
//! the page cache would cost fresh memory for each guest, and be written by the sync after it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::{BLOCK_BYTES, Direct};

/// What one pipe holds at most by default (pipe(7), /proc/sys/fs/pipe-max-size).
const PIPE_BYTES_MAX: u64 = 1 << 20;

/// Copies `source` to the empty file `target`. Where that fails on the way the target has some of it, and another copy over it
/// is as good as if this one had not been tried. The target's size and where its blocks are is not synced.
pub(crate) fn copy(source: &File, target: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(target, source).is_ok() {
        return Ok(());
    }
    let size = source.metadata()?.len();
    if size > PIPE_BYTES_MAX || !size.is_multiple_of(BLOCK_BYTES) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let direct = Direct::set(target);
    if !direct.is_set() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let size = usize::try_from(size).map_err(io::Error::other)?;
    let (from_pipe, to_pipe) = pipe_with(PipeFlags::CLOEXEC)?;
    // A smaller one would have the disk wait for each part.
    fcntl_setpipe_size(&to_pipe, size)?;
    let (mut read, mut written) = (0, 0);
    while written < size as u64 {
        move_on(source, Some(&mut read), &to_pipe, None, size)?;
        while written < read {
            move_on(&from_pipe, None, target, Some(&mut written), size)?;
        }
    }
    Ok(())
}

/// Moves up to `room` bytes, and one at least.
fn move_on(
    from: impl AsFd,
    read: Option<&mut u64>,
    to: impl AsFd,
    written: Option<&mut u64>,
    room: usize,
) -> io::Result<()> {
    match splice(from, read, to, written, room, SpliceFlags::empty())? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::durable;

    /// No two words alike.
    fn content(size: u32) -> Vec<u8> {
        (0..size.div_ceil(4)).flat_map(u32::to_le_bytes).take(size as usize).collect()
    }

    #[test]
    fn whole_blocks_are_copied() {
        let folder = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
        fs::write(&from, content(132 << 12)).unwrap();
        let outcome = copy(&File::open(&from).unwrap(), &File::create_new(&to).unwrap());
        // A file system may write through its cache alone.
        match outcome {
            Ok(()) => assert!(fs::read(&to).unwrap() == content(132 << 12)),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported),
        }
    }

    #[test]
    fn what_goes_another_way_arrives_as_well() {
        let folder = tempfile::tempdir().unwrap();
        for size in [0, 1, 4095, 4096, 5000, 1 << 20, (1 << 20) + 4096] {
            let [from, to] = ["from", "to"].map(|name| folder.path().join(format!("{name}{size}")));
            fs::write(&from, content(size)).unwrap();
            durable::copy_file(&from, &to, 0o600).unwrap();
            assert!(fs::read(&to).unwrap() == content(size), "{size} bytes");
        }
    }
}
