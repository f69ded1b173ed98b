//! Logs that live as long as a guest or a switch does: when one has grown beyond [`BYTES_MAX`], its last half is kept, from the
//! beginning of a line. hpvmapp and hpvmnetd, which write most of one, cut it. A line that another process appends in that
//! very instant may be lost. The file is open for reading and appending.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

pub const BYTES_MAX: u64 = 1 << 20;

/// Without its older half a log is as good as before; one that cannot be cut is cut another time.
pub fn cut(mut log: &File) -> io::Result<()> {
    let length = log.metadata()?.len();
    if length <= BYTES_MAX {
        return Ok(());
    }
    let mut half = vec![0; usize::try_from(BYTES_MAX / 2).unwrap_or(0)];
    let count = log.read_at(&mut half, length - BYTES_MAX / 2)?;
    let half = &half[..count];
    let line = half.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    log.set_len(0)?;
    log.write_all(&half[line..])
}
