//! Guests that write nonsense: each loses its port and nobody else anything.
//!
//! `corpus/*.ring` has a case for each bound in the walk over a ring; one line is one step:
//!
//! ```text
//!   without indirect                                       the driver did not agree on indirect descriptors
//!   transmit | receive                                     the ring that the next lines are about
//!   descriptor INDEX ADDRESS LENGTH FLAGS NEXT             an entry of its table; +N is N bytes into the guest's memory
//!   table +OFFSET INDEX ADDRESS LENGTH FLAGS NEXT          an entry of a table of indirect descriptors
//!   offer HEAD                                             the next place of `available`, and its index raised
//!   advance N                                              the index of `available` raised by N
//!   expect FAULT | nothing | anything                      what comes of it
//! ```
//!
//! Beside it the cases' numbers are changed at random for HPVM_FUZZ_SECONDS; HPVM_FUZZ_SEED repeats a run.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hpvm_model::NicKind;
use hpvm_vswitch::{Event, PortLink, RingFault};
use vhost::{VhostBackend, VringConfigData};

use crate::guest::{
    AVAILABLE, Driver, Guest, INDIRECT_DESC, LINUX, PATIENCE, RECEIVE, SIZE, TRANSMIT, USED,
    descriptor,
};
use crate::memory::{BYTES, GUEST_BASE, Memory, Seals};
use crate::net::{BROADCAST, Net, Vio, frame, mac, open_rules, port};

/// In `make test`; `make soak` says more.
const FUZZ_SECONDS: u64 = 10;
/// A machine that has much else to do gets as far in that time.
const ROUNDS_MIN: u32 = 100;
/// Of the kinds that a change of numbers leads to, of which there are ten.
const FAULTS_MIN: usize = 5;
const HOSTILE: u16 = 1;
/// A frame that is not lost arrives long before.
const AGAIN: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
struct Case {
    name: String,
    indirect: bool,
    steps: Vec<Step>,
    expect: String,
}

#[derive(Clone, Debug)]
enum Step {
    Ring(usize),
    Descriptor { index: u64, entry: [u64; 4] },
    Table { offset: u64, index: u64, entry: [u64; 4] },
    Offer(u64),
    Advance(u64),
}

fn corpus() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/switch/corpus");
    let mut cases: Vec<Case> = std::fs::read_dir(folder)
        .expect("the corpus")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            parse(name, &std::fs::read_to_string(&path).expect("a case"))
        })
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases
}

fn parse(name: String, text: &str) -> Case {
    let mut case = Case { name, indirect: true, steps: Vec::new(), expect: String::new() };
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        let numbers: Vec<u64> = words[1..].iter().filter_map(|word| number(word)).collect();
        match (words[0], &numbers[..]) {
            ("without", []) => case.indirect = false,
            ("transmit", []) => case.steps.push(Step::Ring(TRANSMIT)),
            ("receive", []) => case.steps.push(Step::Ring(RECEIVE)),
            ("descriptor", [index, a, b, c, d]) => {
                case.steps.push(Step::Descriptor { index: *index, entry: [*a, *b, *c, *d] });
            }
            ("table", [at, index, a, b, c, d]) => case.steps.push(Step::Table {
                offset: at - GUEST_BASE,
                index: *index,
                entry: [*a, *b, *c, *d],
            }),
            ("offer", [head]) => case.steps.push(Step::Offer(*head)),
            ("advance", [count]) => case.steps.push(Step::Advance(*count)),
            ("expect", _) => case.expect = words[1].to_owned(),
            _ => panic!("{}: '{line}' is no step", case.name),
        }
    }
    case
}

fn number(word: &str) -> Option<u64> {
    if let Some(offset) = word.strip_prefix('+') {
        return Some(GUEST_BASE + number(offset)?);
    }
    match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => word.parse().ok(),
    }
}

/// A hostile guest, and others on its switch who must not notice.
struct Scene {
    net: Net,
    left: Guest,
    right: Guest,
    vio: Vio,
    marks: u8,
}

impl Scene {
    fn new() -> Scene {
        let net = Net::new();
        let left = net.avio(2, open_rules(), Driver::LINUX);
        let right = net.avio(3, open_rules(), Driver::LINUX);
        let vio = net.vio(4, open_rules());
        net.add(HOSTILE, NicKind::AvioLan, open_rules());
        Scene { net, left, right, vio, marks: 0 }
    }

    fn hostile(&self, case: &Case) -> Guest {
        let indirect = if case.indirect { INDIRECT_DESC } else { 0 };
        let driver = Driver {
            features: LINUX & !INDIRECT_DESC | indirect,
            receive_buffers: 0,
            ..Driver::LINUX
        };
        let memory = Memory::new(Seals::Shrink);
        Guest::begin(&self.net.path(HOSTILE), driver, memory, [0, 0]).expect("the switch agrees")
    }

    /// The others talk as if nothing was; a frame for all makes the switch look at the hostile guest's buffers.
    fn others_talk(&mut self) {
        self.marks = self.marks.wrapping_add(1);
        let Scene { left, right, vio, marks, .. } = self;
        let all = frame(BROADCAST, mac(2), 100, *marks);
        until_heard(|| left.send(&all), |within| right.hears(&all, within));
        until_heard(|| left.send(&all), |within| vio.hears(&all, within));
        let one = frame(mac(2), mac(3), 1514, *marks);
        until_heard(|| right.send(&one), |within| left.hears(&one, within));
        let across = frame(mac(2), mac(4), 200, *marks);
        until_heard(|| vio.send(&across), |within| left.hears(&across, within));
    }
}

/// What a hostile guest sends may fill others' buffers, as any guest's frames may, and a switch keeps none back: who is not
/// heard says it again.
fn until_heard(mut say: impl FnMut(), mut is_heard: impl FnMut(Duration) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        say();
        if is_heard(AGAIN) {
            return;
        }
        assert!(Instant::now() < deadline, "not heard within {PATIENCE:?}");
    }
}

fn perform(guest: &Guest, steps: &[Step]) {
    let mut ring = TRANSMIT;
    for step in steps {
        let index_at = |ring: usize| ring + AVAILABLE + 2;
        match step {
            Step::Ring(at) => ring = *at,
            Step::Descriptor { index, entry } => {
                let at = ring + 16 * (*index as usize % usize::from(SIZE));
                guest.memory.write(at, &bytes(entry));
            }
            Step::Table { offset, index, entry } => {
                let at = (*offset as usize + 16 * *index as usize) % (BYTES - 16);
                guest.memory.write(at, &bytes(entry));
            }
            Step::Offer(head) => {
                let index = guest.memory.word(index_at(ring));
                let place = usize::from(index.load(Ordering::Relaxed) % SIZE);
                let head = *head as u16;
                guest.memory.word(ring + AVAILABLE + 4 + 2 * place).store(head, Ordering::Relaxed);
                index.fetch_add(1, Ordering::Release);
            }
            Step::Advance(count) => {
                guest.memory.word(index_at(ring)).fetch_add(*count as u16, Ordering::Release);
            }
        }
    }
    guest.kick();
}

fn bytes([address, length, flags, next]: &[u64; 4]) -> [u8; 16] {
    descriptor(*address, *length as u32, *flags as u16, *next as u16)
}

#[test]
fn each_bound_of_the_walk_holds() {
    let mut scene = Scene::new();
    let cases = corpus();
    for case in &cases {
        let mut guest = scene.hostile(case);
        perform(&guest, &case.steps);
        scene.others_talk();
        let lost = |event: &Event| matches!(event, Event::Lost { .. });
        match case.expect.as_str() {
            "nothing" => {
                scene.others_talk();
                assert_eq!(scene.net.switch.port(port(1)).expect("it").link, PortLink::Started);
            }
            "anything" => {}
            fault => {
                let events = scene.net.wait_until(&format!("loss by {}", case.name), lost);
                let told = format!("{:?}", events.last().expect("one"));
                assert!(told.contains(&format!("fault: {fault} ")), "{}: {told}", case.name);
                assert_eq!(scene.net.switch.port(port(1)).expect("it").link, PortLink::Lost);
                comes_back(&mut scene, &mut guest, case);
            }
        }
        drop(guest);
        scene.net.wait_for(&Event::Disconnected { port: port(1) });
    }
    assert!(cases.len() > 35, "the corpus is whole");
}

/// Where rings lie is said by the guest's hypervisor, who has it from the driver.
#[test]
fn rings_that_lie_nowhere_lose_their_port() {
    let mut scene = Scene::new();
    let case = &corpus()[0];
    let mut guest = scene.hostile(case);
    let user = |offset: usize| guest.memory.user(offset);
    let used = user(RECEIVE + USED);
    let wrong = [(user(BYTES) - 16, used), (user(RECEIVE), user(BYTES)), (u64::MAX - 15, used)];
    let available = user(RECEIVE + AVAILABLE);
    for (descriptors, used) in wrong {
        let rings = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: descriptors,
            used_ring_addr: used,
            avail_ring_addr: available,
            log_addr: None,
        };
        guest.frontend.set_vring_addr(0, &rings).expect("an answer");
        scene.net.wait_for(&Event::Lost { port: port(1), fault: RingFault::Place });
        scene.others_talk();
        comes_back(&mut scene, &mut guest, case);
    }
}

/// After a reset the driver begins anew, and everything passes again.
fn comes_back(scene: &mut Scene, guest: &mut Guest, case: &Case) {
    guest.stop();
    guest.reset();
    guest.start().expect("rings");
    let back = frame(mac(2), mac(1), 90, 0);
    guest.send(&back);
    assert_eq!(scene.left.receive().frame, back, "{}", case.name);
}

/// Numbers near the bounds are the most promising.
fn change(value: u64, random: &mut Random) -> u64 {
    match random.below(8) {
        0 => value ^ 1 << random.below(64),
        1 => value.wrapping_add(1),
        2 => value.wrapping_sub(1),
        3 => random.next(),
        4 => GUEST_BASE + random.below(BYTES as u64),
        5 => random.below(300),
        6 => u64::MAX >> random.below(64),
        _ => value,
    }
}

struct Random(u64);

impl Random {
    /// The next number after the last (Knuth, MMIX), its better bits first.
    fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0.rotate_left(32)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn mutated(cases: &[Case], random: &mut Random) -> Vec<Step> {
    let mut steps = Vec::new();
    for _ in 0..=random.below(3) {
        steps.extend(cases[random.below(cases.len() as u64) as usize].steps.clone());
    }
    for step in &mut steps {
        if random.below(3) > 0 {
            continue;
        }
        match step {
            Step::Ring(_) => {}
            Step::Offer(value) | Step::Advance(value) => *value = change(*value, random),
            Step::Descriptor { entry, .. } | Step::Table { entry, .. } => {
                let part = random.below(4) as usize;
                entry[part] = change(entry[part], random);
            }
        }
    }
    steps
}

pub(crate) fn fuzz_time() -> Duration {
    let seconds = std::env::var("HPVM_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(FUZZ_SECONDS))
}

pub(crate) fn seed() -> u64 {
    let seed = std::env::var("HPVM_FUZZ_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("HPVM_FUZZ_SEED={seed}");
    seed
}

#[test]
fn no_nonsense_in_a_ring_is_noticed_by_others() {
    let end = Instant::now() + fuzz_time();
    let mut random = Random(seed());
    let cases = corpus();
    let mut scene = Scene::new();
    let (mut rounds, mut faults) = (0u32, BTreeMap::<String, u32>::new());
    while Instant::now() < end {
        let mut guest = scene.hostile(&cases[0]);
        // Several drivers' lives a connection.
        for _ in 0..8 {
            perform(&guest, &mutated(&cases, &mut random));
            scene.others_talk();
            guest.stop();
            guest.reset();
            guest.start().expect("rings");
            rounds += 1;
        }
        drop(guest);
        let gone = Event::Disconnected { port: port(1) };
        let events = scene.net.wait_for(&gone);
        for event in events {
            if let Event::Lost { fault, .. } = event {
                *faults.entry(name(fault)).or_default() += 1;
            }
        }
    }
    println!("{rounds} rounds, ports lost by {faults:?}");
    assert!(rounds >= ROUNDS_MIN, "{rounds} rounds");
    assert!(faults.len() >= FAULTS_MIN, "{faults:?}");
}

/// Which bound was broken, without by what.
fn name(fault: RingFault) -> String {
    let shown = format!("{fault:?}");
    shown.split(' ').next().map_or_else(String::new, str::to_owned)
}

/// Bytes of any kind on a stream port: its peer is sent away at a length that no frame has, and others do not notice.
#[test]
fn no_nonsense_on_a_stream_is_noticed_by_others() {
    use std::io::Write;
    let end = Instant::now() + fuzz_time() / 4;
    let mut random = Random(seed());
    let mut scene = Scene::new();
    scene.net.add(5, NicKind::Lan, open_rules());
    let mut sent_away = 0;
    while Instant::now() < end {
        let mut peer = Vio::connect(&scene.net.path(5)).socket;
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
        let gone = Event::Disconnected { port: port(5) };
        let events = scene.net.wait_for(&gone);
        sent_away += events.iter().filter(|event| matches!(event, Event::Refused { .. })).count();
    }
    assert!(sent_away > 0);
    // A good peer is served after all of them, also in pieces of one byte.
    let mut good = Vio::connect(&scene.net.path(5));
    let sent = frame(mac(2), mac(5), 60, 7);
    for byte in (sent.len() as u32).to_be_bytes().iter().chain(&sent) {
        good.socket.write_all(&[*byte]).expect("the switch reads");
    }
    scene.left.receive_until(&sent);
    let answer = frame(mac(5), mac(2), 1514, 8);
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
