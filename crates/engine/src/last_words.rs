//! What QEMU said last on its standard error, for messages about its end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// More than this is no last word.
const TAIL_BYTES: usize = 2048;

/// The last line that is not empty, without the time and the program's name that QEMU puts before it.
#[must_use]
pub fn read(log: &File) -> Option<String> {
    let tail = tail(log).ok()?;
    let text = String::from_utf8_lossy(&tail);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    let words = line.split_once("qemu-system-x86_64: ").map_or(line, |(_, words)| words);
    Some(words.escape_debug().to_string())
}

fn tail(log: &File) -> io::Result<Vec<u8>> {
    let start = log.metadata()?.len().saturating_sub(TAIL_BYTES as u64);
    let mut tail = vec![0; TAIL_BYTES];
    let count = log.read_at(&mut tail, start)?;
    tail.truncate(count);
    Ok(tail)
}
