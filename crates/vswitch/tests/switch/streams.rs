//! VIO peers that write nonsense, or do not read: each loses what is its own, and nobody else anything.
//!
//! `corpus/*.stream` has a case for each bound of a stream; between two lines the others on the switch talk:
//!
//! ```text
//!   bytes HEX        these bytes
//!   frame FROM TO    of a frame the bytes from FROM to right before TO
//!   expect WORD      `away`: the peer is sent away; `passes`: its frame arrives; `malformed`: it is discarded;
//!                    `nothing`: the switch waits for more
//! ```
//!
//! Beside it any bytes for HPVM_FUZZ_SECONDS.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use hpvm_model::NicKind;
use hpvm_vswitch::{Event, FRAME_BYTES_MAX};

use crate::guest::PATIENCE;
use crate::hostile::{Random, Scene, from_hex, fuzz_time, seed};
use crate::net::{BROADCAST, Vio, frame, mac, open_rules, port};

const HOSTILE: u16 = 5;
/// A machine that has much else to do gets as far in that time.
const ROUNDS_MIN: usize = 100;

#[derive(Debug, Default)]
struct Case {
    name: String,
    pieces: Vec<Vec<u8>>,
    frame_bytes: usize,
    expect: String,
}

fn corpus() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/switch/corpus");
    let entries = std::fs::read_dir(folder).expect("the corpus");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "stream"));
    paths.sort();
    paths.iter().map(|path| parse(path)).collect()
}

fn parse(path: &Path) -> Case {
    let text = std::fs::read_to_string(path).expect("a case");
    let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
    let mut case = Case { name, ..Case::default() };
    let number = |word: &str| word.parse::<usize>().expect("a number");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["bytes", digits] => case.pieces.push(from_hex(digits)),
            ["frame", from, to] => {
                case.frame_bytes = number(to);
                case.pieces.push(longest()[number(from)..case.frame_bytes].to_vec());
            }
            ["expect", word] => word.clone_into(&mut case.expect),
            _ => panic!("{}: '{line}'", case.name),
        }
    }
    case
}

fn longest() -> Vec<u8> {
    frame(mac(2), mac(HOSTILE), FRAME_BYTES_MAX + 1, 0)
}

#[test]
fn each_bound_of_a_stream_holds() {
    let mut scene = Scene::new();
    scene.net.add(HOSTILE, NicKind::Lan, open_rules());
    let cases = corpus();
    for Case { name, pieces, frame_bytes, expect } in &cases {
        let before = scene.net.counters(HOSTILE).discards.malformed;
        let mut peer = Vio::connect(&scene.net.path(HOSTILE)).socket;
        for (index, piece) in pieces.iter().enumerate() {
            if index > 0 {
                scene.others_talk();
            }
            // Who is sent away cannot write.
            let _ = peer.write_all(piece);
        }
        // What nobody has read when its sender goes is lost: each waits for what is to come of it.
        let malformed = |scene: &Scene| scene.net.counters(HOSTILE).discards.malformed - before;
        match expect.as_str() {
            "passes" => {
                assert!(scene.left.receive().frame == longest()[..*frame_bytes], "{name}");
            }
            "malformed" => {
                let deadline = Instant::now() + PATIENCE;
                while malformed(&scene) == 0 {
                    assert!(Instant::now() < deadline, "{name}: not counted");
                    std::thread::yield_now();
                }
            }
            _ => {}
        }
        scene.others_talk();
        if expect != "away" {
            drop(peer);
        }
        let events = scene.net.wait_for(&Event::Disconnected { port: port(HOSTILE) });
        let away = events.iter().any(|event| matches!(event, Event::Refused { .. }));
        assert_eq!(away, expect == "away", "{name}: {events:?}");
        assert_eq!(malformed(&scene), u64::from(expect == "malformed"), "{name}");
    }
    assert_eq!(cases.len(), 10, "the corpus is whole");
}

/// Bytes of any kind on a stream port: its peer is sent away at a length that no frame has, and others do not notice.
#[test]
fn no_nonsense_on_a_stream_is_noticed_by_others() {
    let end = Instant::now() + fuzz_time();
    let mut random = Random(seed());
    let mut scene = Scene::new();
    scene.net.add(HOSTILE, NicKind::Lan, open_rules());
    let (mut rounds, mut sent_away) = (0, 0);
    while Instant::now() < end {
        let mut peer = Vio::connect(&scene.net.path(HOSTILE)).socket;
        peer.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        for _ in 0..random.below(6) {
            let length = match random.below(6) {
                0 => random.next() as u32,
                1 => 0,
                _ => random.below(2000) as u32,
            };
            let really = match random.below(4) {
                0 => random.below(3000),
                _ => u64::from(length.min(70_000)),
            };
            let mut bytes = length.to_be_bytes().to_vec();
            bytes.extend((0..really).map(|_| random.next() as u8));
            if peer.write_all(&bytes).is_err() {
                break;
            }
        }
        scene.others_talk();
        drop(peer);
        let gone = Event::Disconnected { port: port(HOSTILE) };
        let events = scene.net.wait_for(&gone);
        sent_away += events.iter().filter(|event| matches!(event, Event::Refused { .. })).count();
        rounds += 1;
    }
    println!("{rounds} peers, {sent_away} sent away");
    assert!(rounds >= ROUNDS_MIN && sent_away >= ROUNDS_MIN / 10, "{rounds}, {sent_away}");
    // A good peer is served after all of them, also in pieces of one byte.
    let mut good = Vio::connect(&scene.net.path(HOSTILE));
    let sent = frame(mac(2), mac(HOSTILE), 60, 7);
    for byte in (sent.len() as u32).to_be_bytes().iter().chain(&sent) {
        good.socket.write_all(&[*byte]).expect("the switch reads");
    }
    scene.left.receive_until(&sent);
    let answer = frame(mac(HOSTILE), mac(2), 1514, 8);
    scene.left.send(&answer);
    good.receive_until(&answer);
}

/// A peer that does not read loses frames, not the switch its time.
#[test]
fn a_stream_peer_that_does_not_read_loses_its_own_frames_alone() {
    let mut scene = Scene::new();
    let _silent = scene.net.vio(5, open_rules());
    let big = frame(BROADCAST, mac(2), 9000, 0);
    let deadline = Instant::now() + PATIENCE;
    while scene.net.counters(5).discards.no_room == 0 {
        assert!(Instant::now() < deadline, "the backlog has an end");
        scene.left.send(&big);
        scene.right.receive();
        scene.vio.receive();
    }
    scene.others_talk();
}
