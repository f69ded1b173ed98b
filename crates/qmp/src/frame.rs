//! Bytes to messages and back, without any I/O: both transports feed it and the fuzzing does.
//!
//! QEMU ends each message by CR LF and sends one of four: a greeting, an answer, an error or an event. A line that is none
//! of these ends the conversation, since from there on nobody knows which answer belongs to which command.

use std::collections::VecDeque;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::error::Refusal;
use crate::event::{Event, Timestamp};

/// The longest line taken. The largest answer QEMU gives, its own schema, has 236 KB.
pub const LINE_BYTES_MAX: usize = 4 << 20;
/// A buffer grown by one long answer is given back: there is one client per running guest.
const BUFFER_BYTES_KEPT: usize = 16 << 10;

/// One message from QEMU.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    Greeting(Greeting),
    /// The answer to the command with this id.
    Return {
        id: Option<u64>,
        value: Value,
    },
    /// No id: QEMU could not even read the command.
    Error {
        id: Option<u64>,
        refusal: Refusal,
    },
    Event(Event),
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Greeting {
    pub version: crate::answer::Version,
}

/// Why what came cannot be QMP.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a line is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    #[error("a line is not QMP ({reason}): {start}")]
    NotQmp { reason: String, start: String },
    #[error("an earlier line was not QMP")]
    Poisoned,
}

/// Cuts a stream of bytes into messages. After an error it stays in error.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Vec<u8>,
    poisoned: bool,
}

impl Decoder {
    /// Takes bytes as they came and appends the messages they complete. Messages before a bad line are still given.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        messages: &mut VecDeque<Incoming>,
    ) -> Result<(), FrameError> {
        if self.poisoned {
            return Err(FrameError::Poisoned);
        }
        let outcome = self.lines(bytes, messages);
        if outcome.is_err() {
            self.poisoned = true;
            self.partial = Vec::new();
        }
        outcome
    }

    /// Bytes of a line that has not ended.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.partial.len()
    }

    fn lines(
        &mut self,
        mut bytes: &[u8],
        messages: &mut VecDeque<Incoming>,
    ) -> Result<(), FrameError> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            if self.partial.len() + line.len() > LINE_BYTES_MAX {
                return Err(FrameError::TooLong);
            }
            if self.partial.is_empty() {
                messages.extend(message(line)?);
            } else {
                self.partial.extend_from_slice(line);
                let whole = message(&self.partial);
                self.partial.clear();
                self.partial.shrink_to(BUFFER_BYTES_KEPT);
                messages.extend(whole?);
            }
        }
        if self.partial.len() + bytes.len() > LINE_BYTES_MAX {
            return Err(FrameError::TooLong);
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }
}

/// A command as it goes to QEMU, with its line end.
pub fn encode<A: Serialize + ?Sized>(
    name: &str,
    arguments: &A,
    id: u64,
) -> Result<Vec<u8>, serde_json::Error> {
    #[derive(Serialize)]
    struct Outgoing<'a, A: Serialize + ?Sized> {
        execute: &'a str,
        arguments: &'a A,
        id: u64,
    }
    let mut line = serde_json::to_vec(&Outgoing { execute: name, arguments, id })?;
    line.push(b'\n');
    Ok(line)
}

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "QMP")]
    greeting: Option<Greeting>,
    #[serde(rename = "return", default, deserialize_with = "present")]
    value: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    timestamp: Option<Timestamp>,
    id: Option<Value>,
}

/// Tells `"return": null` from no `return` at all.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// The message in a line; an empty line is none.
fn message(line: &[u8]) -> Result<Option<Incoming>, FrameError> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return Ok(None);
    }
    let wire: Wire = serde_json::from_slice(line).map_err(|e| not_qmp(e.to_string(), line))?;
    let id = wire.id.as_ref().and_then(Value::as_u64);
    match wire {
        Wire { greeting: Some(greeting), value: None, error: None, event: None, .. } => {
            Ok(Some(Incoming::Greeting(greeting)))
        }
        Wire { greeting: None, value: Some(value), error: None, event: None, .. } => {
            Ok(Some(Incoming::Return { id, value }))
        }
        Wire { greeting: None, value: None, error: Some(refusal), event: None, .. } => {
            Ok(Some(Incoming::Error { id, refusal }))
        }
        Wire { greeting: None, value: None, error: None, event: Some(name), .. } => {
            let timestamp = wire.timestamp.unwrap_or_default();
            Ok(Some(Incoming::Event(Event { name, data: wire.data, timestamp })))
        }
        _ => Err(not_qmp("none of greeting, answer, error and event".into(), line)),
    }
}

fn not_qmp(reason: String, line: &[u8]) -> FrameError {
    const SHOWN: usize = 60;
    let start = line[..line.len().min(SHOWN)].escape_ascii().to_string();
    FrameError::NotQmp { reason, start }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Vec<Incoming>, FrameError> {
        let mut messages = VecDeque::new();
        Decoder::default().feed(bytes, &mut messages)?;
        Ok(messages.into())
    }

    #[test]
    fn each_kind_of_message_is_told_apart() {
        let lines = concat!(
            r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "x"}, "capabilities": ["oob"]}}"#,
            "\r\n",
            r#"{"return": {"status": "running"}, "id": 7}"#,
            "\r\n",
            r#"{"return": null, "id": 8}"#,
            "\r\n",
            r#"{"id": 9, "error": {"class": "DeviceNotFound", "desc": "Device 'zz' not found"}}"#,
            "\r\n",
            r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "NEVER_HEARD_OF", "data": {"a": [1]}}"#,
            "\r\n",
        );
        let messages = decode(lines.as_bytes()).expect("all are QMP");
        assert_eq!(messages.len(), 5);
        assert!(matches!(&messages[0], Incoming::Greeting(g) if g.version.qemu.major == 10));
        assert!(matches!(&messages[1], Incoming::Return { id: Some(7), .. }));
        assert!(matches!(&messages[2], Incoming::Return { id: Some(8), value: Value::Null }));
        assert!(matches!(&messages[3], Incoming::Error { id: Some(9), refusal }
            if refusal.class == crate::Class::DeviceNotFound));
        assert!(matches!(&messages[4], Incoming::Event(e)
            if e.name == "NEVER_HEARD_OF" && e.data["a"][0] == 1));
    }

    #[test]
    fn messages_before_a_bad_line_are_given_and_nothing_after_it() {
        let mut decoder = Decoder::default();
        let mut messages = VecDeque::new();
        let outcome =
            decoder.feed(b"{\"return\":{}}\n{\"return\":{}\n{\"return\":{}}\n", &mut messages);
        assert!(matches!(outcome, Err(FrameError::NotQmp { .. })));
        assert_eq!(messages.len(), 1);
        assert_eq!(decoder.feed(b"{\"return\":{}}\n", &mut messages), Err(FrameError::Poisoned));
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_the_memory() {
        let mut decoder = Decoder::default();
        let mut messages = VecDeque::new();
        let chunk = vec![b' '; 1 << 20];
        for _ in 0..4 {
            decoder.feed(&chunk, &mut messages).expect("within the bound");
        }
        assert_eq!(decoder.feed(b" ", &mut messages), Err(FrameError::TooLong));
        assert_eq!(decoder.pending_bytes(), 0);
    }

    #[test]
    fn two_meanings_in_one_line_are_no_message() {
        assert!(decode(br#"{"return": {}, "event": "STOP"}"#).expect("no line end yet").is_empty());
        assert!(decode(b"{\"return\": {}, \"event\": \"STOP\"}\n").is_err());
        assert!(decode(b"{}\n").is_err());
        assert!(decode(b"[]\n").is_err());
    }
}
