//! The door protocol: what is said is understood however the stream is cut, and what is nonsense is refused within bounds.
//! `tests/corpus/door` keeps streams by which the codec is judged: every one that once was of interest.

use std::fmt::Debug;
use std::fs;
use std::path::Path;

use hpvm_console::door::{
    ClientFrame, Decoder, DoorError, Drive, DriveAddress, Ended, Frame, Hello, Keyboard,
    MediumRequest, PAYLOAD_BYTES_MAX, ServerFrame, TEXT_BYTES_MAX, Want, Welcome,
};
use proptest::prelude::*;

/// All frames of a stream that comes in parts, what ended it, and what is left.
fn decoded<F: Frame>(parts: &[&[u8]]) -> (Vec<F>, Option<DoorError>, usize) {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for part in parts {
        decoder.push(part);
        loop {
            match decoder.take() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error), decoder.buffered()),
            }
        }
    }
    (frames, None, decoder.buffered())
}

fn encoded<F: Frame>(frames: &[F]) -> Vec<u8> {
    let mut stream = Vec::new();
    for frame in frames {
        frame.encode(&mut stream);
    }
    stream
}

/// Every kept stream says what its file says it does, wherever it is cut.
#[test]
fn kept_streams_mean_what_they_meant() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/door");
    let mut kept = 0;
    for entry in fs::read_dir(&folder).expect("the corpus") {
        let path = entry.expect("the corpus").path();
        let text = fs::read_to_string(&path).expect("a kept stream");
        let field = |name: &str| {
            let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            lines.collect::<Vec<_>>().join(" ")
        };
        let stream: Vec<u8> = field("bytes")
            .split_whitespace()
            .map(|byte| u8::from_str_radix(byte, 16).expect("two digits"))
            .collect();
        for cut in 0..=stream.len() {
            let (first, second) = stream.split_at(cut);
            let meaning = match field("from").as_str() {
                "client" => meaning(decoded::<ClientFrame>(&[first, second])),
                "server" => meaning(decoded::<ServerFrame>(&[first, second])),
                other => panic!("{}: nobody is called {other:?}", path.display()),
            };
            assert_eq!(meaning, field("means"), "{} cut at {cut}", path.display());
        }
        kept += 1;
    }
    assert!(kept >= 12, "only {kept} streams are left in {}", folder.display());
}

fn meaning<F: Debug>((frames, error, left): (Vec<F>, Option<DoorError>, usize)) -> String {
    match (error, left) {
        (Some(error), _) => format!("{frames:?} then: {error}"),
        (None, 0) => format!("{frames:?}"),
        (None, left) => format!("{frames:?} and {left} bytes of the next"),
    }
}

#[test]
fn a_frame_that_is_too_long_is_refused_by_its_header() {
    let too_long = [0x83, 0x01, 0x00, 0x01];
    let (frames, error, left) = decoded::<ServerFrame>(&[&too_long]);
    assert!(frames.is_empty());
    assert_eq!(error, Some(DoorError::TooLong { kind: 0x83, length: PAYLOAD_BYTES_MAX + 1 }));
    assert_eq!(left, 4, "nothing of it was waited for");
}

#[test]
fn long_bytes_become_several_frames_and_long_texts_are_cut() {
    let output = vec![b'x'; PAYLOAD_BYTES_MAX + 1];
    let (frames, error, _) = decoded::<ServerFrame>(&[&encoded(&[ServerFrame::Live(output)])]);
    assert_eq!(error, None);
    let lengths = frames.iter().map(|frame| match frame {
        ServerFrame::Live(part) => part.len(),
        other => panic!("{other:?}"),
    });
    assert_eq!(lengths.collect::<Vec<_>>(), [PAYLOAD_BYTES_MAX, 1]);

    let reason = "ä".repeat(TEXT_BYTES_MAX);
    let (frames, ..) = decoded::<ServerFrame>(&[&encoded(&[ServerFrame::Denied(reason)])]);
    assert_eq!(frames, [ServerFrame::Denied("ä".repeat(TEXT_BYTES_MAX / 2))]);
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..300)
}

fn client_frame() -> impl Strategy<Value = ClientFrame> {
    let want = prop_oneof![Just(Want::Watch), Just(Want::Write)];
    prop_oneof![
        (any::<u8>(), want, any::<u32>()).prop_map(|(version, want, history_bytes)| {
            ClientFrame::Hello(Hello { version, want, history_bytes })
        }),
        bytes().prop_map(ClientFrame::Input),
        Just(ClientFrame::TakeKeyboard),
        Just(ClientFrame::Drives),
        (address(), proptest::option::of(".{1,20}"))
            .prop_map(|(drive, image)| ClientFrame::Medium(MediumRequest { drive, image })),
        Just(ClientFrame::Detach),
    ]
}

fn address() -> impl Strategy<Value = DriveAddress> {
    any::<(u8, u8, u8)>().prop_map(|(bus, device, target)| DriveAddress { bus, device, target })
}

fn drive_shown() -> impl Strategy<Value = Drive> {
    let text = || proptest::option::of(".{1,20}");
    let images = prop::collection::vec(".{0,20}", 0..5);
    (address(), text(), text(), text(), images).prop_map(
        |(address, medium, folder, trouble, images)| Drive {
            address,
            medium,
            folder,
            trouble,
            images,
        },
    )
}

fn server_frame() -> impl Strategy<Value = ServerFrame> {
    let keyboard = || {
        prop_oneof![
            Just(Keyboard::Free),
            Just(Keyboard::Yours),
            Just(Keyboard::WatchOnly),
            ".{0,20}".prop_map(Keyboard::HeldBy),
        ]
    };
    let ended = prop_oneof![Just(Ended::ShutDown), Just(Ended::Stopped), Just(Ended::Crashed)];
    let answer = prop_oneof![".{0,20}".prop_map(Ok), ".{0,20}".prop_map(Err)];
    prop_oneof![
        (any::<u8>(), ".{0,20}", ".{0,20}", keyboard()).prop_map(
            |(version, guest, state, keyboard)| {
                ServerFrame::Welcome(Welcome { version, guest, state, keyboard })
            }
        ),
        bytes().prop_map(ServerFrame::History),
        Just(ServerFrame::Current),
        bytes().prop_map(ServerFrame::Live),
        keyboard().prop_map(ServerFrame::Keyboard),
        answer.prop_map(ServerFrame::Answer),
        drive_shown().prop_map(ServerFrame::Drive),
        ended.prop_map(ServerFrame::Ended),
        any::<u64>().prop_map(ServerFrame::Lagged),
        ".{0,20}".prop_map(ServerFrame::Denied),
    ]
}

/// Frames of both kinds come back as they were said, in parts of any size.
fn comes_back<F: Frame + Debug + PartialEq>(
    frames: &[F],
    part: usize,
) -> Result<(), TestCaseError> {
    let stream = encoded(frames);
    let parts: Vec<&[u8]> = stream.chunks(part).collect();
    let (back, error, left) = decoded::<F>(&parts);
    prop_assert_eq!(back, frames);
    prop_assert_eq!((error, left), (None, 0));
    Ok(())
}

/// Bytes that mean something mean exactly one thing: said again, they are the same bytes.
fn is_exact<F: Frame>(stream: &[u8]) -> Result<(), TestCaseError> {
    let (frames, error, left) = decoded::<F>(&[stream]);
    let understood = encoded(&frames);
    prop_assert!(stream.starts_with(&understood));
    prop_assert!(error.is_some() || understood.len() + left == stream.len());
    prop_assert!(error.is_some() || left < 4 + PAYLOAD_BYTES_MAX);
    Ok(())
}

proptest! {
    #[test]
    fn what_clients_say_is_understood(
        frames in prop::collection::vec(client_frame(), 0..10), part in 1_usize..50,
    ) {
        comes_back(&frames, part)?;
    }

    #[test]
    fn what_servers_say_is_understood(
        frames in prop::collection::vec(server_frame(), 0..10), part in 1_usize..50,
    ) {
        comes_back(&frames, part)?;
    }

    #[test]
    fn any_bytes_are_judged(stream in prop::collection::vec(any::<u8>(), 0..600)) {
        is_exact::<ClientFrame>(&stream)?;
        is_exact::<ServerFrame>(&stream)?;
    }

    /// Headers that fit, payloads that need not.
    #[test]
    fn any_payload_is_judged(
        kind in prop_oneof![1_u8..7, 0x80_u8..0x8b],
        payload in prop::collection::vec(prop_oneof![0_u8..4, any::<u8>()], 0..24),
    ) {
        let mut stream = vec![kind, 0, 0, payload.len() as u8];
        stream.extend(payload);
        is_exact::<ClientFrame>(&stream)?;
        is_exact::<ServerFrame>(&stream)?;
    }

    #[test]
    fn a_changed_bit_never_panics(
        frames in prop::collection::vec(server_frame(), 1..5), place in any::<prop::sample::Index>(), bit in 0_u8..8,
    ) {
        let mut stream = encoded(&frames);
        let place = place.index(stream.len());
        stream[place] ^= 1 << bit;
        is_exact::<ServerFrame>(&stream)?;
    }
}
