//! `ask-helper SOCKET DISK COMMAND…`: plays QEMU's part towards qemu-pr-helper, for tests of who reserves a disk for a guest.
//! It sends one SCSI command with the disk's descriptor (QEMU, scsi/pr-helper.h) and prints the status, in decimal: 0 is
//! good, 24 a reservation conflict, 2 a refusal.
//!
//! ```text
//! register KEY · reserve KEY (exclusive access) · preempt KEY OTHER · release KEY · clear KEY · inquiry (at which it must hang up)
//! ```

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hpvm_host::fdpass;

const BOUND: Duration = Duration::from_secs(30);
/// Result and size, four bytes each, big endian, then 96 bytes of sense data.
const ANSWER_BYTES: usize = 104;
/// A command, padded.
const COMMAND_BYTES: usize = 16;
/// `PERSISTENT RESERVE OUT` and the length of its parameters (SPC-4, 6.16).
const RESERVE_OUT: u8 = 0x5f;
const PARAMETER_BYTES: u8 = 24;
const EXCLUSIVE_ACCESS: u8 = 3;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [socket, disk, command @ ..] = words.as_slice() else {
        bail!("usage: ask-helper SOCKET DISK COMMAND [KEY [OTHER]]");
    };
    let (command, parameters) = understood(command)?;
    let disk = OpenOptions::new().read(true).write(true).open(disk).context("opening the disk")?;
    let mut helper = UnixStream::connect(socket).context("connecting to the helper")?;
    helper.set_read_timeout(Some(BOUND))?;
    let mut feature = [0; 4];
    helper.read_exact(&mut feature).context("waiting for the helper")?;
    helper.write_all(&[0; 4])?;
    let sent = fdpass::send(&helper, &command, &[disk.as_fd()])?;
    ensure!(sent == COMMAND_BYTES, "the helper took a part of the command");
    helper.write_all(&parameters)?;
    let mut answer = [0; ANSWER_BYTES];
    helper.read_exact(&mut answer).context("waiting for an answer")?;
    println!("{}", u32::from_be_bytes([answer[0], answer[1], answer[2], answer[3]]));
    Ok(())
}

fn understood(words: &[&str]) -> Result<([u8; COMMAND_BYTES], Vec<u8>)> {
    let (action, kind, own, other) = match words {
        ["register", key] => (0x00, 0, 0, number(key)?),
        ["reserve", key] => (0x01, EXCLUSIVE_ACCESS, number(key)?, 0),
        ["release", key] => (0x02, EXCLUSIVE_ACCESS, number(key)?, 0),
        ["clear", key] => (0x03, 0, number(key)?, 0),
        ["preempt", key, other] => (0x04, EXCLUSIVE_ACCESS, number(key)?, number(other)?),
        // Of six bytes, with room for 36.
        ["inquiry"] => return Ok((padded(&[0x12, 0, 0, 0, 36, 0]), Vec::new())),
        _ => bail!("'{}' is no command of ask-helper", words.join(" ")),
    };
    let command = padded(&[RESERVE_OUT, action, kind, 0, 0, 0, 0, 0, PARAMETER_BYTES, 0]);
    let mut parameters = vec![0; usize::from(PARAMETER_BYTES)];
    parameters[..8].copy_from_slice(&own.to_be_bytes());
    parameters[8..16].copy_from_slice(&other.to_be_bytes());
    Ok((command, parameters))
}

fn padded(command: &[u8]) -> [u8; COMMAND_BYTES] {
    let mut padded = [0; COMMAND_BYTES];
    padded[..command.len()].copy_from_slice(command);
    padded
}

fn number(text: &str) -> Result<u64> {
    text.parse().with_context(|| format!("'{text}' is no key"))
}
