//! Guests that write nonsense: each loses its port and nobody else anything.
//!
//! `corpus/*.ring` has a case for each bound in the walk over a ring; one line is one step:
//!
//! ```text
//!   without indirect                                       the driver did not agree on indirect descriptors
//!   log BYTES                                              what is written is noted in a log of so many bytes
//!   transmit | receive                                     the ring that the next lines are about
//!   descriptor INDEX ADDRESS LENGTH FLAGS NEXT             an entry of its table; +N is N bytes into the guest's memory
//!   table +OFFSET INDEX ADDRESS LENGTH FLAGS NEXT          an entry of a table of indirect descriptors
//!   bytes +OFFSET HEX                                      what lies in the guest's memory
//!   offer HEAD                                             the next place of `available`, and its index raised
//!   advance N                                              the index of `available` raised by N
//!   expect FAULT | malformed | nothing | anything          what comes of it: the port is lost, a frame is discarded, or none
//! ```
//!
//! A case for each way to break a bound; the faults that they lead to are all there are.
//!
//! Beside it the cases' numbers are changed at random for HPVM_FUZZ_SECONDS; HPVM_FUZZ_SEED repeats a run.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hpvm_model::NicKind;
use hpvm_vswitch::{Event, PortLink, RingFault};
use vhost::{VhostBackend, VringConfigData};

use crate::guest::{
    AVAILABLE, Driver, Guest, INDIRECT_DESC, LINUX, LOG_ALL, PATIENCE, RECEIVE, SIZE, TRANSMIT,
    USED, descriptor,
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
    log_bytes: Option<u64>,
    steps: Vec<Step>,
    expect: String,
}

#[derive(Clone, Debug)]
enum Step {
    Ring(usize),
    Descriptor { index: u64, entry: [u64; 4] },
    Table { offset: u64, index: u64, entry: [u64; 4] },
    Bytes { offset: u64, bytes: Vec<u8> },
    Offer(u64),
    Advance(u64),
}

fn corpus() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/switch/corpus");
    let mut cases: Vec<Case> = std::fs::read_dir(folder)
        .expect("the corpus")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ring"))
        .map(|path| {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            parse(name, &std::fs::read_to_string(&path).expect("a case"))
        })
        .collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases
}

fn parse(name: String, text: &str) -> Case {
    let (steps, expect) = (Vec::new(), String::new());
    let mut case = Case { name, indirect: true, log_bytes: None, steps, expect };
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(' ').collect();
        let numbers: Vec<u64> = words[1..].iter().filter_map(|word| number(word)).collect();
        match (words[0], &numbers[..]) {
            ("without", []) => case.indirect = false,
            ("log", [bytes]) => case.log_bytes = Some(*bytes),
            ("bytes", [at, ..]) => {
                case.steps.push(Step::Bytes { offset: at - GUEST_BASE, bytes: from_hex(words[2]) });
            }
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

pub(crate) fn from_hex(digits: &str) -> Vec<u8> {
    let pair = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("two digits");
    (0..digits.len()).step_by(2).map(pair).collect()
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
pub(crate) struct Scene {
    pub(crate) net: Net,
    pub(crate) left: Guest,
    pub(crate) right: Guest,
    pub(crate) vio: Vio,
    marks: u8,
}

impl Scene {
    pub(crate) fn new() -> Scene {
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
        let mut guest = Guest::begin(&self.net.path(HOSTILE), driver, memory, [0, 0])
            .expect("the switch agrees");
        if let Some(bytes) = case.log_bytes {
            let _log = guest.set_log(bytes);
            guest.frontend.set_features(driver.features | LOG_ALL).expect("features");
            guest.log_used();
        }
        guest
    }

    /// The others talk as if nothing was; a frame for all makes the switch look at the hostile guest's buffers.
    pub(crate) fn others_talk(&mut self) {
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
            Step::Bytes { offset, bytes } => {
                guest.memory.write(*offset as usize % (BYTES - bytes.len()), bytes);
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
        let malformed = |scene: &Scene| scene.net.counters(HOSTILE).discards.malformed;
        let before = malformed(&scene);
        perform(&guest, &case.steps);
        scene.others_talk();
        let lost = |event: &Event| matches!(event, Event::Lost { .. });
        match case.expect.as_str() {
            "nothing" | "malformed" => {
                scene.others_talk();
                assert_eq!(scene.net.switch.port(port(1)).expect("it").link, PortLink::Started);
                let discarded = malformed(&scene) - before;
                assert_eq!(discarded, u64::from(case.expect == "malformed"), "{}", case.name);
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
    let broken: BTreeSet<String> =
        std::iter::successors(after(None), |fault| after(Some(*fault))).map(name).collect();
    let others = ["anything", "malformed", "nothing"];
    let expected = cases.into_iter().map(|case| case.expect);
    let expected = expected.filter(|word| !others.contains(&word.as_str())).collect();
    assert_eq!(broken, expected, "each fault has a case");
}

/// All faults that a driver's steps lead to, one after the other. Whoever adds one is sent here by the compiler, and to the
/// corpus by the test.
fn after(fault: Option<RingFault>) -> Option<RingFault> {
    let (claimed, index, length, size, max) = (0, 0, 0, SIZE, u32::from(SIZE));
    let Some(fault) = fault else { return Some(RingFault::Available { claimed, size }) };
    match fault {
        RingFault::Available { .. } => Some(RingFault::Index { index, size }),
        RingFault::Index { .. } => Some(RingFault::Chain { max: size }),
        RingFault::Chain { .. } => Some(RingFault::Address { address: 0, length }),
        RingFault::Address { .. } => Some(RingFault::IndirectLength { length, max }),
        RingFault::IndirectLength { .. } => Some(RingFault::IndirectNested),
        RingFault::IndirectNested => Some(RingFault::IndirectRefused),
        RingFault::IndirectRefused => Some(RingFault::Writable),
        RingFault::Writable => Some(RingFault::ReadOnly),
        RingFault::ReadOnly => Some(RingFault::Empty),
        RingFault::Empty => Some(RingFault::Header { length }),
        // The next tests', and nobody's but the host's.
        RingFault::Header { .. } | RingFault::Place | RingFault::Descriptors => None,
    }
}

/// Where rings lie is said by the guest's hypervisor, who has it from the driver. The three parts have sizes of their own
/// (virtio 1.2, 2.7), and each ends in turn a little beyond memory, or begins where there is none.
#[test]
fn rings_that_lie_nowhere_lose_their_port() {
    let mut scene = Scene::new();
    let case = &corpus()[0];
    let mut guest = scene.hostile(case);
    let [descriptors, available, used] = parts(&guest, 0);
    let (end, entries) = (guest.memory.user(BYTES), u64::from(SIZE));
    let wrong = [
        [end - 16 * entries + 16, available, used],
        [u64::MAX - 15, available, used],
        [descriptors, end - (6 + 2 * entries) + 2, used],
        [descriptors, end, used],
        [descriptors, u64::MAX - 1, used],
        [descriptors, available, end - (8 + 8 * entries) + 4],
        [descriptors, available, end],
        [descriptors, available, u64::MAX - 3],
    ];
    for parts in wrong {
        guest.frontend.set_vring_addr(0, &place(parts)).expect("an answer");
        scene.net.wait_for(&Event::Lost { port: port(1), fault: RingFault::Place });
        scene.others_talk();
        comes_back(&mut scene, &mut guest, case);
    }
}

/// A hypervisor's addresses are aligned as they must be, and its memory begins in the midst of a word.
#[test]
fn rings_that_are_not_aligned_lose_their_port() {
    let mut scene = Scene::new();
    let case = &corpus()[0];
    let mut guest = scene.hostile(case);
    let regions = guest.memory.regions();
    for (part, skew) in [(0, 4), (1, 1), (2, 2)] {
        let mut skewed = guest.memory.regions();
        skewed[1].userspace_addr -= skew;
        guest.frontend.set_mem_table(&skewed).expect("a table");
        let mut lie = parts(&guest, 0);
        lie[part] = parts(&guest, BYTES / 2)[part];
        guest.frontend.set_vring_addr(0, &place(lie)).expect("an answer");
        scene.net.wait_for(&Event::Lost { port: port(1), fault: RingFault::Place });
        scene.others_talk();
        guest.frontend.set_mem_table(&regions).expect("a table");
        comes_back(&mut scene, &mut guest, case);
    }
}

/// Table, available and used of the first ring, so far behind where they are.
fn parts(guest: &Guest, behind: usize) -> [u64; 3] {
    [0, AVAILABLE, USED].map(|part| guest.memory.user(RECEIVE + part + behind))
}

fn place([descriptors, available, used]: [u64; 3]) -> VringConfigData {
    VringConfigData {
        queue_max_size: SIZE,
        queue_size: SIZE,
        flags: 0,
        desc_table_addr: descriptors,
        used_ring_addr: used,
        avail_ring_addr: available,
        log_addr: None,
    }
}

/// A hypervisor that asks for what no driver has is sent away, and the next is served.
#[test]
fn rings_that_no_driver_has_lose_their_peer() {
    let mut scene = Scene::new();
    let sizes = [0, 3, u32::from(SIZE) + 1, 65_536, 65_536 + u32::from(SIZE)];
    for size in sizes {
        is_sent_away(&mut scene, |guest| set_size(guest, size));
    }
    for (part, skew) in [(0, 8), (1, 1), (2, 2)] {
        is_sent_away(&mut scene, |guest| {
            let mut odd = parts(guest, 0);
            odd[part] += skew;
            guest.frontend.set_vring_addr(0, &place(odd)).expect_err("no such ring");
        });
    }
}

fn is_sent_away(scene: &mut Scene, by: impl Fn(&Guest)) {
    let case = &corpus()[0];
    let guest = scene.hostile(case);
    by(&guest);
    let refused = |event: &Event| matches!(event, Event::Refused { .. });
    scene.net.wait_until("refusal", refused);
    scene.net.wait_for(&Event::Disconnected { port: port(1) });
    scene.others_talk();
    drop(guest);
    let mut next = scene.hostile(case);
    comes_back(scene, &mut next, case);
    drop(next);
    scene.net.wait_for(&Event::Disconnected { port: port(1) });
}

/// Of the first ring (vhost-user, VHOST_USER_SET_VRING_NUM), in a number that the crate's own function has no room for.
fn set_size(guest: &Guest, size: u32) {
    const SET_VRING_NUM: u32 = 8;
    const VERSION: u32 = 1;
    let request: Vec<u8> =
        [SET_VRING_NUM, VERSION, 8, 0, size].into_iter().flat_map(u32::to_le_bytes).collect();
    // SAFETY: the connection is open as long as the guest lives.
    let socket = unsafe { BorrowedFd::borrow_raw(guest.frontend.as_raw_fd()) };
    assert_eq!(rustix::io::write(socket, &request), Ok(request.len()));
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

pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The next number after the last (Knuth, MMIX), its better bits first.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0.rotate_left(32)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
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
            Step::Bytes { bytes, .. } => {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = change(bytes[at].into(), random) as u8;
            }
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
