//! Running a program in the guest to its end.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::command::{Command, Exec, ExecStatus, Execution};
use crate::{Conversation, Error};

/// Output beyond this is dropped: what we run says a sentence.
pub const OUTPUT_BYTES_MAX: usize = 16 << 10;
/// Between two looks at the program; it doubles up to the second one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// `None` when a signal ended it.
    pub status: Option<i64>,
    /// Standard output, and standard error when there is none; what is no text is replaced.
    pub said: String,
}

impl Conversation<'_> {
    /// Starts a program and waits for its end. One that runs longer than `bound` runs on in the guest, unwatched.
    pub async fn run(
        &mut self,
        path: &str,
        arguments: &[&str],
        bound: Duration,
    ) -> Result<Finished, Error> {
        let until = Instant::now() + bound;
        let exec = Exec {
            path: path.into(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            capture_output: true,
        };
        let pid = self.execute(&exec).await?.pid;
        let mut pause = FIRST_PAUSE;
        loop {
            let execution = self.execute(&ExecStatus { pid }).await?;
            if execution.exited {
                return Ok(finished(&execution));
            }
            if Instant::now() >= until {
                return Err(Error::Deadline { command: ExecStatus::NAME, after: bound });
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

fn finished(execution: &Execution) -> Finished {
    let text = |data: &Option<String>| data.as_deref().map(decoded).unwrap_or_default();
    let said = match text(&execution.out_data) {
        nothing if nothing.is_empty() => text(&execution.err_data),
        output => output,
    };
    let status = execution.status.filter(|_| execution.signal.is_none());
    Finished { status, said }
}

/// Base64 (RFC 4648, section 4) up to the first character that is none; the beginning of what is too long.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for value in text.bytes().map_while(sextet) {
        bits = bits << 6 | value;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            if bytes.len() == OUTPUT_BYTES_MAX {
                break;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn sextet(character: u8) -> Option<u32> {
    Some(match character {
        b'A'..=b'Z' => u32::from(character - b'A'),
        b'a'..=b'z' => u32::from(character - b'a') + 26,
        b'0'..=b'9' => u32::from(character - b'0') + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_decoded_and_bounded() {
        for (text, plain) in [
            ("", ""),
            ("aA==", "h"),
            ("aHA=", "hp"),
            ("aHB2", "hpv"),
            ("L2Rldi9zZGIgaXMgbW91bnRlZCBvbiAvZGF0YQo=", "/dev/sdb is mounted on /data\n"),
            ("aHB2!aHB2", "hpv"),
        ] {
            assert_eq!(decoded(text), plain, "{text}");
        }
        assert_eq!(decoded(&"AAAA".repeat(100_000)).len(), OUTPUT_BYTES_MAX);
    }
}
