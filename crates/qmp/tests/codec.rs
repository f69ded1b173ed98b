//! The codec against whatever a socket can deliver: random bytes, mutated real messages cut anywhere, and a folder of
//! lines kept from earlier finds. It may refuse, but never panic, grow without bound or read a cut stream differently.

use std::collections::VecDeque;
use std::fs;

use hpvm_qmp::frame::{Decoder, FrameError, Incoming, LINE_BYTES_MAX};
use proptest::prelude::*;

/// What a decoder makes of a stream that comes in pieces.
fn decode(pieces: &[&[u8]]) -> (Vec<Incoming>, Result<(), FrameError>) {
    let mut decoder = Decoder::default();
    let mut messages = VecDeque::new();
    for piece in pieces {
        let outcome = decoder.feed(piece, &mut messages);
        assert!(decoder.pending_bytes() <= LINE_BYTES_MAX);
        if outcome.is_err() {
            assert_eq!(decoder.pending_bytes(), 0);
            assert_eq!(
                decoder.feed(b"{\"return\": {}}\n", &mut messages),
                Err(FrameError::Poisoned)
            );
            return (messages.into(), outcome);
        }
    }
    (messages.into(), Ok(()))
}

const REAL: &[&str] = &[
    r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian"}, "capabilities": ["oob"]}}"#,
    r#"{"return": {"status": "running", "running": true}, "id": 1}"#,
    r#"{"return": [{"fds": [{"fd": 10}], "fdset-id": 2}], "id": 18446744073709551615}"#,
    r#"{"return": "\r\nEAX=00000000\r\n", "id": 3}"#,
    r#"{"id": 4, "error": {"class": "GenericError", "desc": "Node 'm1' is already in use"}}"#,
    r#"{"error": {"class": "GenericError", "desc": "JSON parse error, expecting value"}}"#,
    r#"{"timestamp": {"seconds": 1795487790, "microseconds": 654525}, "event": "DEVICE_DELETED", "data": {"device": "s3", "path": "/machine/peripheral/s3"}}"#,
    r#"{"timestamp": {"seconds": -1, "microseconds": -1}, "event": "STOP"}"#,
];

fn real_stream() -> impl Strategy<Value = Vec<u8>> {
    let line = prop::sample::select(REAL);
    let end = prop::sample::select(&["\r\n", "\n", "\r\n\r\n"][..]);
    prop::collection::vec((line, end), 0..6)
        .prop_map(|lines| lines.into_iter().map(|(l, e)| format!("{l}{e}")).collect::<String>())
        .prop_map(String::into_bytes)
}

/// A change at a place, which is taken modulo the length.
#[derive(Clone, Debug)]
enum Mutation {
    Set(usize, u8),
    Remove(usize),
    Insert(usize, Vec<u8>),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        any::<usize>().prop_map(Mutation::Remove),
        (any::<usize>(), prop::collection::vec(any::<u8>(), 0..8))
            .prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
    ]
}

fn mutate(mut bytes: Vec<u8>, mutations: Vec<Mutation>) -> Vec<u8> {
    for mutation in mutations {
        if bytes.is_empty() {
            break;
        }
        let length = bytes.len();
        match mutation {
            Mutation::Set(at, byte) => bytes[at % length] = byte,
            Mutation::Remove(at) => drop(bytes.remove(at % length)),
            Mutation::Insert(at, more) => {
                let at = at % length;
                bytes.splice(at..at, more);
            }
        }
    }
    bytes
}

proptest! {
    #[test]
    fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let _ = decode(&[&bytes]);
    }

    #[test]
    fn real_messages_all_arrive(bytes in real_stream()) {
        let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.trim_ascii().is_empty());
        let (messages, outcome) = decode(&[&bytes]);
        prop_assert_eq!(outcome, Ok(()));
        prop_assert_eq!(messages.len(), lines.count());
    }

    #[test]
    fn where_a_stream_is_cut_makes_no_difference(
        stream in real_stream(),
        mutations in prop::collection::vec(mutation(), 0..4),
        piece in 1..40_usize,
    ) {
        let bytes = mutate(stream, mutations);
        let pieces: Vec<&[u8]> = bytes.chunks(piece).collect();
        let (whole, whole_outcome) = decode(&[&bytes]);
        let (cut, cut_outcome) = decode(&pieces);
        prop_assert_eq!(whole, cut);
        prop_assert_eq!(whole_outcome, cut_outcome);
    }

    #[test]
    fn nesting_does_not_exhaust_the_stack(depth in 1..100_000_usize, open in prop::sample::select(&["[", "{\"a\":"][..])) {
        let line = format!("{{\"return\": {}\n", open.repeat(depth.min(LINE_BYTES_MAX / 8)));
        let (messages, outcome) = decode(&[line.as_bytes()]);
        prop_assert!(messages.is_empty());
        prop_assert!(outcome.is_err());
    }
}

/// Files of `tests/corpus`: `ok-*` holds only messages, `bad-*` is refused. A find of the fuzzing is kept here for ever.
#[test]
fn the_corpus_is_read_as_its_names_say() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");
    let mut seen = (0, 0);
    for entry in fs::read_dir(folder).expect("corpus") {
        let path = entry.expect("entry").path();
        let name = path.file_name().and_then(|n| n.to_str()).expect("a name").to_owned();
        let bytes = fs::read(&path).expect("readable");
        let (messages, outcome) = decode(&[&bytes]);
        if name.starts_with("ok-") {
            assert_eq!(outcome, Ok(()), "{name}");
            assert!(!messages.is_empty(), "{name}");
            seen.0 += 1;
        } else {
            assert!(outcome.is_err(), "{name} gave {messages:?}");
            seen.1 += 1;
        }
    }
    assert!(seen.0 >= 4 && seen.1 >= 8, "the corpus is not where it was: {seen:?}");
}
