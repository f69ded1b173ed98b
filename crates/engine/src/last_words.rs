//! What QEMU said last on its standard error, for messages about its end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// More than this is no last word.
const TAIL_BYTES: usize = 2048;

/// Before each of its own sentences; hints and what libraries print go without.
const NAME: &str = "qemu-system-x86_64: ";

/// QEMU's last sentence, without the time and the program's name before it; else whatever stands last.
#[must_use]
pub fn read(log: &File) -> Option<String> {
    let tail = tail(log).ok()?;
    let text = String::from_utf8_lossy(&tail);
    let mut lines = text.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    let last = lines.clone().next()?;
    let own = lines.find_map(|line| line.split_once(NAME).map(|(_, words)| words));
    Some(own.unwrap_or(last).escape_debug().to_string())
}

fn tail(log: &File) -> io::Result<Vec<u8>> {
    let start = log.metadata()?.len().saturating_sub(TAIL_BYTES as u64);
    let mut tail = vec![0; TAIL_BYTES];
    let count = log.read_at(&mut tail, start)?;
    tail.truncate(count);
    Ok(tail)
}
