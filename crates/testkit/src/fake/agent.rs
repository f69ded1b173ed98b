//! The agent in the guest that is not there: what it answers to a line, as QEMU's agent would. No I/O.

use serde_json::{Value, json};

use super::behaviour::Agent;

/// What the agent does with bytes at its port. Bytes before a 0xFF are forgotten, as a real one does.
pub(super) fn answers(agent: &Agent, bytes: &mut Vec<u8>) -> Vec<u8> {
    if matches!(agent, Agent::None | Agent::Silent | Agent::Junk) {
        bytes.clear();
        return Vec::new();
    }
    let mut said = Vec::new();
    while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
        let line: Vec<u8> = bytes.drain(..=end).collect();
        let begin = line.iter().rposition(|byte| *byte == 0xff).map_or(0, |at| at + 1);
        said.extend(answer(agent, &line[begin..]));
    }
    said
}

fn answer(agent: &Agent, line: &[u8]) -> Vec<u8> {
    let Ok(message) = serde_json::from_slice::<Value>(line) else {
        return b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"Parse error\"}}\n".to_vec();
    };
    let command = message["execute"].as_str().unwrap_or_default();
    let result = match command {
        "guest-sync-delimited" => Ok(message["arguments"]["id"].clone()),
        "guest-ping" => Ok(json!({})),
        "guest-fsfreeze-status" => Ok(json!("thawed")),
        "guest-fsfreeze-freeze" if *agent == Agent::Cannot => {
            Err("Command guest-fsfreeze-freeze has been disabled".to_owned())
        }
        "guest-fsfreeze-freeze" | "guest-fsfreeze-thaw" => Ok(json!(1)),
        "guest-exec" if matches!(agent, Agent::Cannot | Agent::CannotRun) => {
            Err("Command guest-exec has been disabled".to_owned())
        }
        "guest-exec" => Ok(json!({ "pid": 7 })),
        "guest-exec-status" => Ok(ended(agent)),
        other => Err(format!("The command {other} has not been found")),
    };
    let answer = match result {
        Ok(value) => json!({ "return": value }),
        Err(text) => json!({ "error": { "class": "GenericError", "desc": text } }),
    };
    let mut line = format!("{answer}\n").into_bytes();
    if command == "guest-sync-delimited" {
        line.insert(0, 0xff);
    }
    line
}

/// How the script ended that lets go of a disk.
fn ended(agent: &Agent) -> Value {
    match agent {
        Agent::Busy(reason) => json!({ "exited": true, "exitcode": 3, "out-data": base64(reason) }),
        _ => json!({ "exited": true, "exitcode": 0 }),
    }
}

fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.as_bytes().chunks(3).flat_map(|chunk| {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - chunk.len()));
        let digit = move |place: usize| match place <= chunk.len() {
            true => DIGITS[(bits >> (18 - 6 * place)) as usize & 63] as char,
            false => '=',
        };
        (0..4).map(digit)
    });
    digits.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_cuts_off_what_was_before() {
        let mut bytes =
            b"{\"exec\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":9}}\n{"
                .to_vec();
        assert_eq!(answers(&Agent::Answers, &mut bytes), b"\xff{\"return\":9}\n");
        assert_eq!(bytes, b"{", "half a line is kept");
        assert_eq!(base64("hpvm!"), "aHB2bSE=");
    }
}
