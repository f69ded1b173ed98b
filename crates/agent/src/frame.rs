//! Bytes to messages and back, without any I/O.
//!
//! An agent ends each answer by a newline; it answers each command once, in order, and says nothing else. Before the answer
//! to a sync it sends a byte 0xFF, which is in no JSON text: whatever came before it belongs to an earlier conversation.
//! None of that can be relied on, since a guest may write to the port what it likes.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Cuts off what an earlier conversation left, in both directions.
pub const DELIMITER: u8 = 0xff;
/// The longest line taken. The longest answer we ask for, the abilities of an agent, has 6 KB.
pub const LINE_BYTES_MAX: usize = 64 << 10;

/// What came from the guest.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    Return(Value),
    /// The agent's own words.
    Error(String),
    /// What follows is of this conversation.
    Delimiter,
    /// A line that is no answer of any agent, or is too long.
    Garbage,
}

/// Cuts a stream of bytes into messages; it never keeps more than one line.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Vec<u8>,
    /// The line is too long; its rest is passed over.
    skipping: bool,
}

impl Decoder {
    /// Takes bytes as they came and appends the messages they complete.
    pub fn feed(&mut self, bytes: &[u8], messages: &mut VecDeque<Incoming>) {
        for part in bytes.split_inclusive(|byte| matches!(*byte, b'\n' | DELIMITER)) {
            match part.split_last() {
                Some((&DELIMITER, rest)) => {
                    self.keep(rest, messages);
                    self.begin_anew();
                    messages.push_back(Incoming::Delimiter);
                }
                Some((b'\n', rest)) => {
                    self.keep(rest, messages);
                    if !self.skipping {
                        messages.extend(message(&self.partial));
                    }
                    self.begin_anew();
                }
                _ => self.keep(part, messages),
            }
        }
    }

    /// Bytes of a line that has not ended.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.partial.len()
    }

    fn keep(&mut self, bytes: &[u8], messages: &mut VecDeque<Incoming>) {
        if self.skipping {
            return;
        }
        if self.partial.len() + bytes.len() > LINE_BYTES_MAX {
            self.partial = Vec::new();
            self.skipping = true;
            return messages.push_back(Incoming::Garbage);
        }
        self.partial.extend_from_slice(bytes);
    }

    fn begin_anew(&mut self) {
        self.partial.clear();
        self.skipping = false;
    }
}

/// A command as it goes to the agent, with its line end.
pub fn encode<A: Serialize + ?Sized>(
    name: &str,
    arguments: &A,
) -> Result<Vec<u8>, serde_json::Error> {
    #[derive(Serialize)]
    struct Outgoing<'a, A: Serialize + ?Sized> {
        execute: &'a str,
        arguments: &'a A,
    }
    let mut line = serde_json::to_vec(&Outgoing { execute: name, arguments })?;
    line.push(b'\n');
    Ok(line)
}

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<WireError>,
}

#[derive(Deserialize)]
struct WireError {
    #[serde(default)]
    desc: String,
}

/// The message in a line; an empty line is none.
fn message(line: &[u8]) -> Option<Incoming> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return None;
    }
    Some(match serde_json::from_slice(line) {
        Ok(Wire { value: Some(value), error: None }) => Incoming::Return(value),
        Ok(Wire { value: None, error: Some(error) }) => Incoming::Error(error.desc),
        _ => Incoming::Garbage,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn decode(bytes: &[u8]) -> Vec<Incoming> {
        let mut messages = VecDeque::new();
        Decoder::default().feed(bytes, &mut messages);
        messages.into()
    }

    #[test]
    fn each_kind_of_message_is_told_apart() {
        let bytes = b"half a li\xff{\"return\": 7}\n\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\nlogin:\n";
        let expected = [
            Incoming::Delimiter,
            Incoming::Return(json!(7)),
            Incoming::Error("no".into()),
            Incoming::Garbage,
        ];
        assert_eq!(decode(bytes), expected);
    }

    #[test]
    fn a_line_without_end_is_passed_over_and_kept_nowhere() {
        let mut decoder = Decoder::default();
        let mut messages = VecDeque::new();
        for _ in 0..100 {
            decoder.feed(&[b'x'; 10_000], &mut messages);
            assert!(decoder.pending_bytes() <= LINE_BYTES_MAX);
        }
        assert_eq!(messages, [Incoming::Garbage]);
        decoder.feed(b"tail\n{\"return\": {}}\n", &mut messages);
        assert_eq!(messages, [Incoming::Garbage, Incoming::Return(json!({}))]);
    }

    #[test]
    fn a_command_is_a_line() {
        let line = encode("guest-sync-delimited", &crate::command::Sync { id: 5 }).unwrap();
        assert_eq!(line, b"{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":5}}\n");
    }
}
