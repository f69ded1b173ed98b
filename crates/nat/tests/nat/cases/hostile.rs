//! What a guest, or a client of the control socket, may do without harm; and what is left to a `hpvmnat` that was taken over.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hpvm_model::NatSubnet;
use hpvm_nat::Settings;
use hpvm_nat::control::{Reply, Request};
use hpvm_netlab::{Guest, Hub, mac};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use rustix::process::{Pid, Signal, kill_process};

use crate::nat::Nat;

/// A whole frame of a guest, with parts that libslirp looks at closely.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let head = prop_oneof![
        2 => Just(([0x08, 0x00], 0x45)),
        1 => (0x40u8..=0x4f).prop_map(|first| ([0x08, 0x00], first)),
        1 => Just(([0x08, 0x06], 0x00)),
        1 => Just(([0x86, 0xdd], 0x60)),
        1 => any::<([u8; 2], u8)>(),
    ];
    let protocol = prop_oneof![Just(1u8), Just(6), Just(17), any::<u8>()];
    let fragment = prop_oneof![4 => Just([0u8, 0]), 1 => any::<[u8; 2]>()];
    let destination = prop_oneof![
        Just([10u8, 0, 2, 2]),
        Just([10, 0, 2, 3]),
        Just([203, 0, 113, 1]),
        Just([255; 4]),
        any::<[u8; 4]>()
    ];
    let port = prop_oneof![Just(67u16), Just(69), Just(53), Just(0), any::<u16>()];
    let body = prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..120),
        1 => prop::collection::vec(any::<u8>(), 0..1480),
    ];
    (head, protocol, fragment, destination, port, body, 0u8..8).prop_map(
        |((ethertype, first), protocol, fragment, destination, port, body, honest)| {
            let mut frame = vec![0x52, 0x55, 10, 0, 2, 2];
            frame.extend(mac(9).as_bytes());
            frame.extend(ethertype);
            let length = u16::try_from(20 + 8 + body.len()).expect("short").to_be_bytes();
            let length = if honest == 0 { [body.len() as u8, 77] } else { length };
            frame.extend([first, 0, length[0], length[1], 0, 7, fragment[0], fragment[1]]);
            frame.extend([64, protocol, 0, 0, 10, 0, 2, 99]);
            frame.extend(destination);
            let sum = checksum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
            frame.extend([200, 7]);
            frame.extend(port.to_be_bytes());
            frame.extend(&body);
            frame
        },
    )
}

/// Of an IP header (RFC 1071), so that what comes behind it is looked at.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum = words.sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

/// So many seconds of it, by HPVM_FUZZ_SECONDS; the seed is printed, and taken from HPVM_FUZZ_SEED.
pub(crate) fn nonsense() {
    let seconds = std::env::var("HPVM_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let seed = std::env::var("HPVM_FUZZ_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("HPVM_FUZZ_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), random);
    let nat = Nat::start(Settings::default());
    let worker = nat.status().pid;
    let hub = Hub::new(nat.connect());
    let plug = hub.plug_in(mac(9));
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(3));
    let mut count = 0;
    while Instant::now() < end {
        for _ in 0..200 {
            hub.send(&frame().new_tree(&mut runner).expect("a frame").current());
            count += 1;
        }
    }
    drop(plug);
    println!("{count} frames");
    Guest::booted(&hub, 1);
    let status = nat.status();
    assert_eq!(status.pid, worker, "libslirp ended, seed {seed}");
    assert!(status.counters.frames_out >= count);
}

pub(crate) fn absurd_length() {
    let nat = Nat::start(Settings::default());
    let hub = Hub::new(nat.connect());
    hub.send_raw(&[0xff; 64]);
    assert!(hub.is_closed());
    hub.reconnect(nat.connect());
    Guest::booted(&hub, 1);
}

pub(crate) fn control() {
    let nat = Nat::start(Settings::default());
    let mut client = UnixStream::connect(nat.control()).expect("it listens");
    client.write_all(b"forward everything\n").expect("sent");
    let mut line = String::new();
    BufReader::new(&client).read_line(&mut line).expect("an answer");
    assert!(line.starts_with("{\"refused\":{\"why\":"), "{line}");
    // More clients than are served at once, all silent: the newest is heard.
    let _silent: Vec<UnixStream> =
        (0..20).map(|_| UnixStream::connect(nat.control()).expect("it listens")).collect();
    assert_eq!(nat.status().forwards, []);
}

pub(crate) fn confined() {
    let nat = Nat::start(Settings::default());
    let worker = nat.status().pid;
    let status = fs::read_to_string(format!("/proc/{worker}/status")).expect("it lives");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(field("Seccomp:"), ["2"], "a filter of system calls");
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    if let Some(ids) = nat.ids() {
        assert_eq!(field("Uid:"), vec![ids.uid.to_string(); 4]);
        assert_eq!(field("Gid:"), vec![ids.gid.to_string(); 4]);
        assert!(field("Groups:").is_empty());
        assert_eq!(field("CapEff:"), ["0000000000000000"]);
    }
}

/// Whatever ends the worker, another takes its place at the same sockets, and guests go on.
pub(crate) fn comes_back() {
    let nat = Nat::start(Settings::default());
    let hub = Hub::new(nat.connect());
    let mut guest = Guest::booted(&hub, 1);
    let first = nat.status().pid;
    let pid = i32::try_from(first).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(pid, Signal::ABORT).expect("killed");
    assert!(hub.is_closed());
    hub.reconnect(nat.connect());
    guest.resolve(NatSubnet::default().name_server(), "again.example");
    assert_ne!(nat.status().pid, first);
}

pub(crate) fn ends() {
    let mut nat = Nat::start(Settings::default());
    assert_eq!(nat.ask(&Request::End), Reply::Done);
    assert!(nat.ended().success());
}

/// The worker does not outlive who would start it again.
pub(crate) fn ends_together() {
    let mut nat = Nat::start(Settings::default());
    let hub = Hub::new(nat.connect());
    nat.status();
    nat.kill();
    assert!(hub.is_closed());
}
