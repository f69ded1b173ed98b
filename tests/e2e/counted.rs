//! What `hpvmnet` tells of a switch's ports against frames that were counted by those who sent and heard them, ports' rules as
//! they are set on running ports, and what becomes of a guest that means harm. The test speaks for the guests.

use std::collections::VecDeque;
use std::fs;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hpvm_host::nic;
use hpvm_netlab::{Card, apart, pair};
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde_json::{Value, json};

use crate::Test;
use crate::guest_processes::process;
use crate::networks::SOUND;

pub(crate) const TESTS: &[Test] = crate::tests![
    every_counter_is_shown_and_cleared,
    rules_hold_on_running_ports,
    rules_hold_in_the_processes_to_come,
    a_guest_that_writes_nonsense_loses_its_port_alone,
];

const BOUND: Duration = Duration::from_secs(20);
const BROADCAST: [u8; 6] = [0xff; 6];
/// Goes no further than the next switch (IEEE 802.1D, 7.12.6).
const LINK: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0x0e];
const STATION: [u8; 6] = [0x02, 7, 7, 7, 7, 7];
const VLAN: u16 = 10;
const OTHER_VLAN: u16 = 20;
const HEADER_BYTES: usize = 10;

/// A switch over `wire0` with a `lan` NIC at its port 1, an `avio_lan` NIC at port 2, and a station beyond the wire.
struct Scene {
    host: VmHost,
    speakers: [Speaker; 3],
}

/// Somebody at the switch: by port 1, by port 2, or beyond the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Lan = 0,
    Avio = 1,
    Station = 2,
}

enum Speaker {
    Lan(UnixStream),
    Avio(Box<Card>),
    Station(OwnedFd, VecDeque<Vec<u8>>),
}

impl Who {
    fn mac(self) -> [u8; 6] {
        match self {
            Who::Lan => [0x56, 0xa1, 0, 0, 0, 1],
            Who::Avio => [0x56, 0xa1, 0, 0, 0, 2],
            Who::Station => STATION,
        }
    }

    fn port(self) -> &'static str {
        match self {
            Who::Lan => "1",
            Who::Avio => "2",
            Who::Station => "wire",
        }
    }
}

/// A frame for experiments (IEEE 802, clause 9.2.4), filled with what tells it from others.
fn frame(to: [u8; 6], from: [u8; 6], bytes: usize, mark: u8) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.extend([0x88, 0xb5]);
    frame.resize(bytes, mark);
    frame
}

fn tagged(frame: &[u8]) -> Vec<u8> {
    tagged_as(VLAN, frame)
}

fn tagged_as(vlan: u16, frame: &[u8]) -> Vec<u8> {
    let [high, low] = vlan.to_be_bytes();
    [&frame[..12], &[0x81, 0x00, high, low], &frame[12..]].concat()
}

impl Speaker {
    fn send(&mut self, frame: &[u8]) {
        match self {
            Speaker::Lan(stream) => {
                let length = (frame.len() as u32).to_be_bytes();
                stream.write_all(&[&length, frame].concat()).expect("the switch reads");
            }
            Speaker::Avio(card) => card.send(frame),
            Speaker::Station(socket, _) => {
                let bytes = [&[0; HEADER_BYTES], frame].concat();
                send(&*socket, &bytes, SendFlags::empty()).expect("the wire takes it");
            }
        }
    }

    /// The next frame; one must come.
    #[track_caller]
    fn hear(&mut self) -> Vec<u8> {
        let deadline = Instant::now() + BOUND;
        loop {
            let heard = match self {
                Speaker::Lan(stream) => {
                    let mut length = [0; 4];
                    stream.read_exact(&mut length).expect("a frame comes");
                    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
                    stream.read_exact(&mut frame).expect("a whole frame");
                    Some(frame)
                }
                Speaker::Avio(card) => card.receive().or_else(|| {
                    card.wait(Duration::from_millis(100));
                    None
                }),
                Speaker::Station(socket, waiting) => {
                    hear_at_the_wire(socket, waiting);
                    waiting.pop_front()
                }
            };
            if let Some(frame) = heard {
                return frame;
            }
            assert!(Instant::now() < deadline, "no frame comes");
        }
    }
}

/// What of the test's own frames comes; the kernel says things of itself.
fn hear_at_the_wire(socket: &OwnedFd, waiting: &mut VecDeque<Vec<u8>>) {
    let soon = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let mut readable = [PollFd::new(socket, PollFlags::IN)];
    if poll(&mut readable, Some(&soon)).expect("polled") == 0 {
        return;
    }
    let mut bytes = vec![0; 70_000];
    if let Ok((_, count)) = recv(socket, &mut bytes[..], RecvFlags::DONTWAIT) {
        let frame = bytes[HEADER_BYTES..count].to_vec();
        if frame[6] == Who::Lan.mac()[0] && frame[7] == Who::Lan.mac()[1] {
            waiting.push_back(frame);
        }
    }
}

/// A connection as QEMU has it.
fn lan_port(host: &VmHost) -> UnixStream {
    let stream = UnixStream::connect(host.run_dir(1).join("net/0-1")).expect("the port listens");
    stream.set_read_timeout(Some(BOUND)).expect("a timeout");
    stream
}

impl Scene {
    fn new() -> Scene {
        fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("of this network");
        pair("wire0", "far0");
        let host = VmHost::new(Engine::Fake);
        host.ok(&["hpvmnet", "-c", "-S", "sw1", "-n", "wire0"]);
        host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
        let nic = |kind: &str, number: u8| {
            format!("network:{kind}:0,{number},0x56a10000000{number}:vswitch:sw1:portid:{number}")
        };
        let (lan, avio) = (nic("lan", 1), nic("avio_lan", 2));
        host.ok(&["hpvmcreate", "-P", "one", "-r", "64M", "-a", &lan, "-a", &avio]);
        host.ok(&["hpvmstart", "-P", "one"]);
        let stream = lan_port(&host);
        let card = host.run_dir(1).join("net/0-2");
        let card = Card::plug_in(&card).expect("the switch agrees");
        let far = nic::named("far0").expect("told").expect("there");
        let far = nic::wire::packets(&far).expect("root of this network may");
        let speakers = [
            Speaker::Lan(stream),
            Speaker::Avio(Box::new(card)),
            Speaker::Station(far, VecDeque::new()),
        ];
        let mut scene = Scene { host, speakers };
        // Everybody is known then.
        for who in [Who::Lan, Who::Avio, Who::Station] {
            scene.says_to_all(who, 60);
        }
        scene
    }

    fn speaker(&mut self, who: Who) -> &mut Speaker {
        &mut self.speakers[who as usize]
    }

    fn says_to_all(&mut self, who: Who, bytes: usize) {
        let sent = frame(BROADCAST, who.mac(), bytes, 1);
        self.speaker(who).send(&sent);
        for other in [Who::Lan, Who::Avio, Who::Station] {
            if other != who {
                assert_eq!(self.speaker(other).hear(), sent, "{who:?} to {other:?}");
            }
        }
    }

    /// Says something to one, who hears it next: nothing else came before it.
    #[track_caller]
    fn says(&mut self, who: Who, to: Who, bytes: usize) {
        let sent = frame(to.mac(), who.mac(), bytes, 2);
        self.speaker(who).send(&sent);
        assert_eq!(self.speaker(to).hear(), sent, "{who:?} to {to:?}");
    }

    /// At the next process of the switch, as QEMU does; that one begins once it has everybody.
    fn connect_again(&mut self) {
        *self.speaker(Who::Lan) = Speaker::Lan(lan_port(&self.host));
        let Speaker::Avio(card) = self.speaker(Who::Avio) else { panic!("a card") };
        wait_until(BOUND, "the card is served again", || card.plug_in_again().is_ok());
    }

    fn change(&self, rules: &str) {
        self.host.ok(&["hpvmnet", "-S", "sw1", "-u", rules]);
    }

    /// Whether the switch knows a station to be in this VLAN at this place.
    fn knows(&self, station: [&str; 3]) -> bool {
        let macs = self.host.ok(&["hpvmnet", "-S", "sw1", "--macs"]);
        macs.lines().any(|line| line.split_whitespace().take(3).eq(station))
    }

    fn counters(&self, who: Who) -> Value {
        let text = self.host.ok(&["hpvmnet", "-S", "sw1", "-p", who.port(), "-A", "--json"]);
        let switches: Value = serde_json::from_str(&text).expect("JSON");
        let counters = switches.pointer("/vswitches/0/ports/0/now/counters");
        counters.unwrap_or_else(|| panic!("no counters in {text}")).clone()
    }

    /// How many of `sent` frames that others send to this port got there, once all are counted as that or as discarded for
    /// `reason`.
    fn arrived(&self, who: Who, before: &Value, sent: u64, reason: &str) -> u64 {
        let mut arrived = 0;
        wait_until(BOUND, &format!("{sent} frames are counted"), || {
            let now = self.counters(who);
            let more = |at: &str| {
                let number =
                    |value: &Value| value.pointer(at).and_then(Value::as_u64).expect("one");
                number(&now) - number(before)
            };
            arrived = more("/in_unicast_local") + more("/in_unicast_wire");
            arrived + more(&format!("/discards/{reason}")) == sent
        });
        arrived
    }

    fn end(self) {
        self.host.ok(&["hpvmstop", "-P", "one", "-h", "-F"]);
        wait_until(BOUND, "nothing runs", || self.host.processes().is_empty());
        assert_eq!(self.host.ok(&["hpvm", "doctor"]), SOUND);
    }
}

fn every_counter_is_shown_and_cleared() {
    apart(|| {
        let mut scene = Scene::new();
        for (who, other) in [(Who::Lan, Who::Avio), (Who::Avio, Who::Lan)] {
            let wanted = traffic(&mut scene, who, other);
            are_shown(&scene.host, who, &wanted);
        }
        what_the_wire_loses_is_shown(&mut scene);
        scene.end();
    });
}

/// Each kind of frame another number of times, and each reason to discard one. Returns what a port's counters are then, in the
/// order in which they are shown.
fn traffic(scene: &mut Scene, who: Who, other: Who) -> [u64; 18] {
    let line = ["hpvmnet", "-S", "sw1", "-p", who.port(), "-A", "-z"];
    scene.host.ok(&line);
    scene.says(Who::Station, who, 100);
    (0..2).for_each(|_| scene.says(other, who, 110));
    (0..3).for_each(|_| scene.says_to_all(Who::Station, 120));
    (0..4).for_each(|_| scene.says_to_all(other, 130));
    (0..6).for_each(|_| scene.says(who, Who::Station, 200));
    (0..13).for_each(|_| scene.says(who, other, 210));
    (0..15).for_each(|_| scene.says_to_all(who, 220));
    let refused: [(u64, Vec<u8>); 4] = [
        (8, frame(other.mac(), [0x56, 9, 9, 9, 9, 9], 60, 0)),
        (9, tagged(&frame(other.mac(), who.mac(), 60, 0))),
        (10, frame(other.mac(), who.mac(), 14, 0)[..13].to_vec()),
        (12, frame(LINK, who.mac(), 60, 0)),
    ];
    for (times, frame) in &refused {
        (0..*times).for_each(|_| scene.speaker(who).send(frame));
    }
    scene.says(who, other, 210);
    scene.host.ok(&["hpvmnet", "-S", "sw1", "-h", "-F"]);
    (0..11).for_each(|_| scene.speaker(who).send(&frame(other.mac(), who.mac(), 60, 0)));
    wait_until(BOUND, "they are taken", || scene.counters(who)["discards"]["halted"] == 11);
    scene.host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
    // It knows nobody then.
    scene.says_to_all(who, 220);
    scene.says_to_all(other, 130);

    let slow = format!("portid:{}:rate:8K/16K,none", who.port());
    let through = in_excess(scene, who, other, &slow, [40, 1000], "rate");
    let not_read = in_excess(scene, who, other, "", [400, 9000], "no_room");
    let (rate, no_room) = (40 - through, 400 - not_read);
    assert!(rate > 12 && no_room > 18, "{rate} beyond the rate, {no_room} without room");
    let local = 2 + through + not_read + 2;
    [
        100 + 3 * 120 + 5 * 130 + 2 * 110 + through * 1000 + not_read * 9000 + 2 * 110,
        1,
        local,
        3,
        5,
        rate + no_room,
        6 * 200 + 14 * 210 + 16 * 220 + (8 + 12) * 60 + 9 * 64,
        6,
        14,
        16,
        8 + 9 + 10 + 11 + 12,
        no_room,
        rate,
        8,
        9,
        10,
        11,
        12,
    ]
}

/// Sends a port more than it takes; returns how many it took. They are all that it hears, and what is sent then.
fn in_excess(
    scene: &mut Scene,
    who: Who,
    other: Who,
    rules: &str,
    [frames, bytes]: [usize; 2],
    reason: &str,
) -> u64 {
    if !rules.is_empty() {
        scene.change(rules);
    }
    let before = scene.counters(who);
    let sent = frame(who.mac(), other.mac(), bytes, 3);
    (0..frames).for_each(|_| scene.speaker(other).send(&sent));
    let arrived = scene.arrived(who, &before, frames as u64, reason);
    for _ in 0..arrived {
        assert!(scene.speaker(who).hear() == sent);
    }
    if !rules.is_empty() {
        scene.change(&format!("portid:{}:rate:none", who.port()));
    }
    scene.says(other, who, 110);
    arrived
}

/// In text, for programs, and once they are cleared.
fn are_shown(host: &VmHost, who: Who, wanted: &[u64; 18]) {
    const KEYS: [&str; 18] = [
        "Inbound Octets",
        "Inbound Unicast Pkts (wire)",
        "Inbound Unicast Pkts (local)",
        "Inbound Non-Unicast Pkts (wire)",
        "Inbound Non-Unicast Pkts (local)",
        "Inbound Discards",
        "Outbound Octets",
        "Outbound Unicast Pkts (wire)",
        "Outbound Unicast Pkts (local)",
        "Outbound Non-Unicast Pkts",
        "Outbound Discards",
        "Discards: no room in guest",
        "Discards: beyond rate",
        "Discards: spoofed",
        "Discards: wrong VLAN",
        "Discards: malformed",
        "Discards: halted",
        "Discards: never forwarded",
    ];
    const POINTERS: [&str; 18] = [
        "in_octets",
        "in_unicast_wire",
        "in_unicast_local",
        "in_non_unicast_wire",
        "in_non_unicast_local",
        "in_discards",
        "out_octets",
        "out_unicast_wire",
        "out_unicast_local",
        "out_non_unicast",
        "out_discards",
        "discards/no_room",
        "discards/rate",
        "discards/spoofed",
        "discards/vlan",
        "discards/malformed",
        "discards/halted",
        "discards/filtered",
    ];
    let line = ["hpvmnet", "-S", "sw1", "-p", who.port(), "-A"];
    let pairs = |numbers: &[u64; 18]| -> Vec<(String, String)> {
        KEYS.iter().zip(numbers).map(|(key, n)| ((*key).to_owned(), n.to_string())).collect()
    };
    let shown = |text: &str| -> Vec<(String, String)> {
        let facts = text.lines().filter_map(|line| line.rsplit_once(':'));
        let facts = facts.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()));
        facts.filter(|(key, _)| KEYS.contains(&key.as_str())).collect()
    };
    // A batch is counted after its frames are there.
    let mut last = String::new();
    let deadline = Instant::now() + BOUND;
    while shown(&last) != pairs(wanted) {
        assert!(Instant::now() < deadline, "{who:?}: {last}\nnot {:#?}", pairs(wanted));
        last = host.ok(&line);
    }
    let json = host.ok(&[&line[..], &["--json"]].concat());
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let counters = json.pointer("/vswitches/0/ports/0/now/counters").expect("counters");
    let told = POINTERS.map(|at| counters.pointer(&format!("/{at}")).and_then(Value::as_u64));
    assert_eq!(told, wanted.map(Some), "{who:?}");
    assert_eq!(
        shown(&host.ok(&[&line[..], &["-z"]].concat())),
        pairs(wanted),
        "shown, then cleared"
    );
    assert_eq!(shown(&host.ok(&line)), pairs(&[0; 18]), "{who:?}");
}

/// Frames that the interface does not take, and from outside those that no switch takes, with others before and behind.
fn what_the_wire_loses_is_shown(scene: &mut Scene) {
    /// The interface's MTU is 1,500.
    const TOO_LONG: usize = 1515;
    let told = |host: &VmHost, more: &[&str]| {
        host.ok(&[&["hpvmnet", "-S", "sw1", "-A"][..], more].concat())
    };
    let shown = |text: &str| {
        ["Inbound", "Outbound"].map(|way| {
            let key = format!("{way} Discards at the Wire");
            let line = text.lines().find(|line| line.starts_with(&key)).expect("a line");
            line.rsplit(' ').next().and_then(|number| number.parse::<u64>().ok()).expect("one")
        })
    };
    // It is not known since the switch was halted.
    scene.says_to_all(Who::Station, 60);
    told(&scene.host, &["-z"]);
    assert_eq!(shown(&told(&scene.host, &[])), [0, 0]);
    for (who, times) in [(Who::Lan, 2), (Who::Avio, 3)] {
        let long = frame(STATION, who.mac(), TOO_LONG, 0);
        scene.says(who, Who::Station, TOO_LONG - 1);
        (0..times).for_each(|_| scene.speaker(who).send(&long));
        scene.says(who, Who::Station, TOO_LONG - 1);
    }
    let refused = [
        (4, frame(LINK, STATION, 60, 0)), // From a group.
        (6, frame(Who::Lan.mac(), BROADCAST, 60, 0)),
    ];
    for (times, frame) in refused {
        (0..times).for_each(|_| scene.speaker(Who::Station).send(&frame));
    }
    scene.says(Who::Station, Who::Lan, 60);
    scene.says(Who::Station, Who::Avio, 60);
    // A batch is counted after its frames are there.
    wait_until(BOUND, "all are counted", || shown(&told(&scene.host, &[])) == [10, 5]);
    let told_json: Value = serde_json::from_str(&told(&scene.host, &["--json"])).expect("JSON");
    let reasons = json!({
        "no_room": 5, "rate": 0, "spoofed": 0, "vlan": 0, "malformed": 6, "halted": 0, "filtered": 4,
    });
    assert_eq!(told_json["vswitches"][0]["wire_discards"], reasons);
    assert_eq!(shown(&told(&scene.host, &["-z"])), [10, 5], "shown, then cleared");
    assert_eq!(shown(&told(&scene.host, &[])), [0, 0]);
}

fn rules_hold_on_running_ports() {
    apart(|| {
        let mut scene = Scene::new();
        for (who, other) in [(Who::Lan, Who::Avio), (Who::Avio, Who::Lan)] {
            a_trunk_has_tags(&mut scene, who, other);
            an_address_is_held_to(&mut scene, who, other);
            a_mirror_hears_both_ways(&mut scene, who, other);
            what_a_guest_sends_beyond_its_rate_waits(&mut scene, who, other);
        }
        for (mac, place) in
            [("0x56a100000001", "1"), ("0x56a100000002", "2"), ("0x020707070707", "wire")]
        {
            assert!(scene.knows([mac, "none", place]));
        }
        scene.end();
    });
}

fn a_trunk_has_tags(scene: &mut Scene, who: Who, other: Who) {
    let [own, others] = [who, other].map(|who| format!("portid:{}", who.port()));
    scene.change(&format!("{own}:trunk:{VLAN}"));
    scene.change(&format!("{others}:vlanid:{VLAN}"));
    // The wire carries every VLAN; the kernel beyond it takes the tag aside.
    let all = frame(BROADCAST, other.mac(), 100, 4);
    scene.speaker(other).send(&all);
    assert_eq!(scene.speaker(who).hear(), tagged(&all));
    assert_eq!(scene.speaker(Who::Station).hear(), all);
    let one = frame(other.mac(), who.mac(), 100, 5);
    // Without a tag it goes nowhere.
    scene.speaker(who).send(&one);
    let one = frame(other.mac(), who.mac(), 100, 6);
    scene.speaker(who).send(&tagged(&one));
    assert_eq!(scene.speaker(other).hear(), one);
    assert!(scene.knows([&format!("0x56a10000000{}", who.port()), "10", who.port()]));
    for port in [own, others] {
        scene.change(&format!("{port}:vlanid:none"));
    }
    // Who changed the VLAN is known no more.
    scene.says_to_all(who, 60);
    scene.says_to_all(other, 60);
}

fn an_address_is_held_to(scene: &mut Scene, who: Who, other: Who) {
    for (own, others) in [("10.0.0.1", "10.0.0.9"), ("fd00::1", "fd00::9")] {
        let [own_frame, others_frame] =
            [own, others].map(|source| packet(other.mac(), who, source));
        scene.change(&format!("portid:{}:addr:{own}", who.port()));
        scene.speaker(who).send(&others_frame);
        scene.speaker(who).send(&own_frame);
        assert_eq!(scene.speaker(other).hear(), own_frame);
        scene.change(&format!("portid:{}:addr:none", who.port()));
        scene.speaker(who).send(&others_frame);
        assert_eq!(scene.speaker(other).hear(), others_frame);
    }
}

/// A packet from this IP address.
fn packet(to: [u8; 6], who: Who, source: &str) -> Vec<u8> {
    let mut frame = frame(to, who.mac(), 60, 0);
    match source.parse().expect("an address") {
        IpAddr::V4(source) => {
            frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
            frame[26..30].copy_from_slice(&source.octets());
        }
        IpAddr::V6(source) => {
            frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
            // Of six bytes, which no protocol has (59; RFC 8200, 4.7).
            frame[18..21].copy_from_slice(&[0, 6, 59]);
            frame[22..38].copy_from_slice(&source.octets());
        }
    }
    frame
}

fn a_mirror_hears_both_ways(scene: &mut Scene, who: Who, other: Who) {
    scene.change(&format!("portid:{}:mirror:{}", who.port(), other.port()));
    for (from, to) in [(who, Who::Station), (Who::Station, who)] {
        scene.says(from, to, 90);
        assert_eq!(scene.speaker(other).hear(), frame(to.mac(), from.mac(), 90, 2));
    }
    scene.change(&format!("portid:{}:mirror:none", who.port()));
    scene.says(who, Who::Station, 90);
    scene.says(Who::Station, other, 91);
}

/// Of 20 frames of 1,000 bytes 16,384 bytes come at once; the last waits until the 2,616 bytes between have gone at 10,000 a
/// second. None is lost.
fn what_a_guest_sends_beyond_its_rate_waits(scene: &mut Scene, who: Who, other: Who) {
    const AT_LEAST: Duration = Duration::from_millis(260);
    let before = scene.counters(who);
    scene.change(&format!("portid:{}:rate:none,80K/16K", who.port()));
    let began = Instant::now();
    let sent = frame(other.mac(), who.mac(), 1000, 7);
    (0..20).for_each(|_| scene.speaker(who).send(&sent));
    (0..20).for_each(|_| assert!(scene.speaker(other).hear() == sent));
    let took = began.elapsed();
    assert!(took >= AT_LEAST, "{who:?}: {took:?}");
    scene.change(&format!("portid:{}:rate:none", who.port()));
    scene.says(who, other, 90);
    assert_eq!(scene.counters(who)["out_discards"], before["out_discards"]);
}

/// Of a process that follows one that was killed, and of the one that `hpvmnet -r` starts.
fn rules_hold_in_the_processes_to_come() {
    apart(|| {
        let mut scene = Scene::new();
        for number in ["1", "2"] {
            for rule in [
                &format!("vlanid:{VLAN}")[..],
                "isolated:on",
                &format!("addr:10.0.0.{number}"),
                "rate:8K/16K,none",
            ] {
                scene.change(&format!("portid:{number}:{rule}"));
            }
        }
        scene.change("portid:2:spoof:off");
        all_rules_hold(&mut scene, 1);

        let killed = process(&scene.host, "hpvmnetd").expect("the switch runs");
        killed.kill();
        wait_until(BOUND, "another process", || process(&scene.host, "hpvmnetd").is_some());
        scene.connect_again();
        all_rules_hold(&mut scene, 2);

        scene.host.ok(&["hpvmnet", "-S", "sw1", "-r", "-F"]);
        scene.connect_again();
        all_rules_hold(&mut scene, 3);

        for number in [1, 2] {
            scene.change(&format!("portid:{number}:isolated:off"));
            scene.change(&format!("portid:{number}:rate:none"));
        }
        let own = frame(BROADCAST, Who::Lan.mac(), 60, 4);
        scene.speaker(Who::Lan).send(&own);
        assert_eq!(scene.speaker(Who::Avio).hear(), own, "it was isolation that kept them apart");
        scene.end();
    });
}

/// Both ports are in [`VLAN`], isolated, have an IP address and a rate; of the second nobody guards whose addresses it sends
/// from. Whoever hears a frame did not hear what was sent before it.
fn all_rules_hold(scene: &mut Scene, mark: u8) {
    for (who, ip) in [(Who::Lan, "10.0.0.1"), (Who::Avio, "10.0.0.2")] {
        let others = [
            frame(BROADCAST, [0x56, 0xa1, 9, 9, 9, 9], 60, mark),
            packet(BROADCAST, who, "10.0.0.9"),
        ];
        for others in others {
            scene.speaker(who).send(&others);
            if who == Who::Avio {
                assert_eq!(scene.speaker(Who::Station).hear(), others, "{mark}");
            }
        }
        for own in [packet(BROADCAST, who, ip), frame(BROADCAST, who.mac(), 60, mark)] {
            scene.speaker(who).send(&own);
            assert_eq!(scene.speaker(Who::Station).hear(), own, "{who:?} {mark}");
        }
    }
    // Neither hears the other, nor other VLANs.
    let all = frame(BROADCAST, STATION, 60, mark);
    let station = scene.speaker(Who::Station);
    station.send(&frame(BROADCAST, STATION, 90, mark));
    station.send(&tagged_as(OTHER_VLAN, &frame(BROADCAST, STATION, 91, mark)));
    station.send(&tagged(&all));
    for who in [Who::Lan, Who::Avio] {
        assert_eq!(scene.speaker(who).hear(), all, "{who:?} {mark}");
        let before = scene.counters(who);
        let one = frame(who.mac(), STATION, 1000, mark);
        (0..40).for_each(|_| scene.speaker(Who::Station).send(&tagged(&one)));
        let through = scene.arrived(who, &before, 40, "rate");
        assert!(through < 28, "{through} of 40 frames are within the rate of {who:?} {mark}");
        (0..through).for_each(|_| assert!(scene.speaker(who).hear() == one));
    }
}

/// Who claims buffers that its ring has no room for is not served any more, until it begins anew; the log tells it, and
/// nobody else notices.
fn a_guest_that_writes_nonsense_loses_its_port_alone() {
    apart(|| {
        let mut scene = Scene::new();
        for _ in 0..3 {
            let Speaker::Avio(card) = scene.speaker(Who::Avio) else { panic!("a card") };
            card.claim(1000);
            let line = ["hpvmnet", "-S", "sw1", "-p", "2", "-A", "--json"];
            let lost = "\"link\": \"lost\"";
            wait_until(BOUND, "the port is lost", || scene.host.ok(&line).contains(lost));
            for _ in 0..20 {
                scene.says(Who::Lan, Who::Station, 1514);
                scene.says(Who::Station, Who::Lan, 1514);
            }
            let Speaker::Avio(card) = scene.speaker(Who::Avio) else { panic!("a card") };
            card.reset().expect("the switch agrees again");
            scene.says(Who::Avio, Who::Lan, 100);
            scene.says(Who::Lan, Who::Avio, 100);
        }
        let log = fs::read_to_string(scene.host.path("var/opt/hpvm/common/vswitch-2.log"));
        let told = "port 2 (guest one) is lost: the driver claims 1000 new buffers in a ring of 64";
        assert!(log.as_ref().is_ok_and(|log| log.contains(told)), "{log:?}");
        scene.end();
    });
}
