//! Programs that are run for what they print, such as `qemu --version`: within a bound, without a shell, and with no more of
//! the answer kept than anybody needs.

use std::io::{self, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::process::PidFd;

/// So much of an answer is kept. It is read when the program has ended: one that prints more than a pipe holds (pipe(7)) never
/// ends by itself, and has not answered.
const ANSWER_BYTES_MAX: u64 = 16 << 10;

/// What a program printed on its standard output, once it has ended; `None` when it had to be ended at the bound.
pub fn answer(command: &mut Command, bound: Duration) -> io::Result<Option<String>> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let ended = wait(&child, bound)?;
    if !ended {
        child.kill()?;
    }
    child.wait()?;
    if !ended {
        return Ok(None);
    }
    let answer = child.stdout.take().map(printed).transpose()?.unwrap_or_default();
    Ok(Some(String::from_utf8_lossy(&answer).into_owned()))
}

/// What is in the pipe. Whoever the program left behind may keep it open, and is not waited for.
fn printed(stdout: ChildStdout) -> io::Result<Vec<u8>> {
    rustix::io::ioctl_fionbio(&stdout, true)?;
    let mut answer = Vec::new();
    match stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut answer) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(answer),
    }
}

fn wait(child: &Child, bound: Duration) -> io::Result<bool> {
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    match PidFd::open_number(pid)? {
        Some(held) => held.wait_exit(bound),
        None => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_answers_or_is_ended() {
        let mut command = Command::new("echo");
        let said = answer(command.arg("hello"), Duration::from_secs(10)).expect("it runs");
        assert_eq!(said.as_deref(), Some("hello\n"));
        let mut command = Command::new("sleep");
        let said = answer(command.arg("1000"), Duration::from_millis(20)).expect("it runs");
        assert_eq!(said, None);
        let mut command = Command::new("sh");
        let left = command.args(["-c", "sleep 3 & echo hello"]);
        let began = std::time::Instant::now();
        let said = answer(left, Duration::from_secs(10)).expect("it runs");
        assert_eq!(said.as_deref(), Some("hello\n"));
        assert!(began.elapsed() < Duration::from_secs(3), "it waited for who was left behind");
        assert!(answer(&mut Command::new("/no/such"), Duration::from_secs(1)).is_err());
    }
}
