//! What a guest, or a client of the control socket, may do without harm; and what is left to a `hpvmnat` that was taken over.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddrV4, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hpvm_model::NatSubnet;
use hpvm_nat::Settings;
use hpvm_nat::control::{Reply, Request};
use hpvm_netlab::{Guest, Hub, mac};
use rustix::process::{Pid, Signal, kill_process};

use crate::nat::Nat;
use crate::nonsense::{Hostile, datagram};
use crate::world::{FAR, echo_server};

/// So many seconds of it, by HPVM_FUZZ_SECONDS; the seed is printed, and taken from HPVM_FUZZ_SEED.
pub(crate) fn nonsense() {
    let seconds = std::env::var("HPVM_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let seed = std::env::var("HPVM_FUZZ_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("HPVM_FUZZ_SEED={seed}");
    let nat = Nat::start(Settings::default());
    let worker = nat.status().pid;
    let hub = Hub::new(nat.connect());
    let mut plug = hub.plug_in(mac(9));
    let mut hostile = Hostile::new(seed, echo_server(FAR));
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(10));
    let mut count = 0;
    while Instant::now() < end {
        for _ in 0..20 {
            hub.send(&hostile.frame());
            count += 1;
        }
        hostile.hear(&mut plug);
        assert!(count % 20_000 != 0 || nat.status().pid == worker, "libslirp ended, seed {seed}");
    }
    drop(plug);
    println!("{count} frames");
    Guest::booted(&hub, 1);
    let status = nat.status();
    assert_eq!(status.pid, worker, "libslirp ended, seed {seed}");
    println!("{:?}", status.counters);
    assert!(status.counters.frames_out >= count);
}

/// What is wrong in one place that matters, each by itself.
pub(crate) fn kept_nonsense() {
    let nat = Nat::start(Settings::default());
    let worker = nat.status().pid;
    let hub = Hub::new(nat.connect());
    let (mut what, mut count) = ("", 0);
    for line in include_str!("../corpus.txt").lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            what = comment;
            continue;
        }
        let pair = |at: usize| u8::from_str_radix(&line[at..at + 2], 16).expect("two digits");
        hub.send(&(0..line.len()).step_by(2).map(pair).collect::<Vec<u8>>());
        count += 1;
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = nat.status();
            assert_eq!(status.pid, worker, "libslirp ended: {what}");
            if status.counters.frames_out >= count {
                break;
            }
            assert!(Instant::now() < deadline, "not taken: {what}");
        }
    }
    Guest::booted(&hub, 1);
    assert_eq!(nat.status().pid, worker);
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

/// A guest that has all connections there can be keeps its neighbours from new ones, and nobody from the rest.
pub(crate) fn exhausted() {
    const DATAGRAMS: u16 = 3000;
    let nat = Nat::start(Settings::default());
    let hub = Hub::new(nat.connect());
    let server = UdpSocket::bind((FAR, 0)).expect("a port");
    let port = server.local_addr().expect("bound").port();
    for from in 0..DATAGRAMS {
        hub.send(&datagram(10_000 + from, SocketAddrV4::new(FAR, port)));
    }
    // Clients that wait and go, and a switch that comes anew.
    let _silent: Vec<UnixStream> =
        (0..20).map(|_| UnixStream::connect(nat.control()).expect("it listens")).collect();
    let deadline = Instant::now() + Duration::from_secs(20);
    while nat.status().counters.frames_out < u64::from(DATAGRAMS) {
        assert!(Instant::now() < deadline, "{:?}", nat.status().counters);
    }
    let held = fs::read_dir(format!("/proc/{}/fd", nat.status().pid)).expect("it lives").count();
    assert!(held > 2000, "{held} descriptors, which are not all");
    for _ in 0..20 {
        hub.reconnect(nat.connect());
        assert!(nat.status().connected);
    }
    Guest::booted(&hub, 1);
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

/// Whoever starts the worker may be killed, and whoever follows then: guests have their network back.
pub(crate) fn is_followed() {
    let nat = Nat::start(Settings::default());
    let hub = Hub::new(nat.connect());
    for number in 1..4 {
        let worker = nat.status().pid;
        let status = fs::read_to_string(format!("/proc/{worker}/status")).expect("it lives");
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("a parent");
        let outer = parent.trim().parse().ok().and_then(Pid::from_raw).expect("a process");
        kill_process(outer, Signal::KILL).expect("killed");
        assert!(hub.is_closed(), "the worker does not outlive who would start it again");
        hub.reconnect(nat.connect());
        let mut guest = Guest::booted(&hub, number);
        guest.resolve(NatSubnet::default().name_server(), "again.example");
        assert_ne!(nat.status().pid, worker);
    }
}

/// Nothing is left to come back of one that was killed as a whole.
pub(crate) fn ends_together() {
    let mut nat = Nat::start(Settings::default());
    let hub = Hub::new(nat.connect());
    nat.status();
    nat.kill();
    assert!(hub.is_closed());
}
