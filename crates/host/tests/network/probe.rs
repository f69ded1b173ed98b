//! The search for a MAC address, among stations that are machines of their own.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hpvm_host::nic::probe::{self, Question, Verdict};
use hpvm_host::nic::{self, Nic};
use hpvm_model::MacAddress;
use hpvm_netlab::{Station, ip, pair};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};

const STATION: [u8; 6] = [0x56, 0xa1, 0xb2, 0xc3, 0xd4, 0xe5];

fn named(name: &str) -> Nic {
    nic::named(name).expect("told").unwrap_or_else(|| panic!("no {name}"))
}

fn ask(nic: &Nic, macs: &[[u8; 6]]) -> Vec<Verdict> {
    let questions: Vec<Question> =
        macs.iter().map(|mac| Question { nic, mac: MacAddress::new(*mac), vlan: None }).collect();
    probe::ask(&questions, 3).expect("root of this network may")
}

/// A machine whose card has the address, behind interface `near`.
fn station(near: &str, far: &str) -> Station {
    let station = Station::behind(near, far);
    station.run(&format!("ip link set {far} address 56:a1:b2:c3:d4:e5"));
    station
}

fn free_one() -> [u8; 6] {
    [0x56, 0xff, 0xff, 0xff, 0xff, 0x01]
}

pub(crate) fn ipv6() {
    let station = station("six0", "six1");
    station.set_up("six0");
    assert_eq!(ask(&named("six0"), &[STATION, free_one()]), [Verdict::InUse, Verdict::Free]);
}

pub(crate) fn other_address() {
    let station = station("odd0", "odd1");
    station.run("ip link set odd1 addrgenmode none");
    station.set_up("odd0");
    station.run("ip address add fe80::77/64 dev odd1 nodad");
    assert_eq!(ask(&named("odd0"), &[free_one(), STATION]), [Verdict::Free, Verdict::InUse]);
}

pub(crate) fn ipv4() {
    let station = station("four0", "four1");
    station.run("echo 1 > /proc/sys/net/ipv6/conf/four1/disable_ipv6");
    station.run("echo 0 > /proc/sys/net/ipv4/icmp_echo_ignore_broadcasts");
    station.set_up("four0");
    station.run("ip address add 192.0.2.99/24 dev four1");
    ip("address add 192.0.2.98/24 dev four0");
    assert_eq!(ask(&named("four0"), &[STATION]), [Verdict::InUse]);
}

pub(crate) fn free() {
    let station = station("free0", "free1");
    station.set_up("free0");
    let began = Instant::now();
    assert_eq!(ask(&named("free0"), &[free_one()]), [Verdict::Free]);
    assert!(began.elapsed() >= probe::DEADLINE, "it gives answers their time");
}

pub(crate) fn everything() {
    pair("all0", "all1");
    let parrot =
        Parrot::start(nic::wire::packets(&named("all1")).expect("root may"), Told::Equally);
    let verdicts = ask(&named("all0"), &[STATION, free_one()]);
    assert_eq!(verdicts, [Verdict::EverythingAnswers; 2]);
    drop(parrot);
}

/// Who is heard first is no station yet: what answers for all may take its time with the others.
pub(crate) fn everything_in_time() {
    pair("late0", "late1");
    let socket = nic::wire::packets(&named("late1")).expect("root may");
    let parrot = Parrot::start(socket, Told::StationFirst);
    assert_eq!(ask(&named("late0"), &[STATION]), [Verdict::EverythingAnswers]);
    drop(parrot);
}

/// When a parrot answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Equally,
    /// At once for [`STATION`], and for others after a while.
    StationFirst,
}

/// Answers each frame with the same frame, from whomever it was to.
struct Parrot {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Parrot {
    fn start(socket: OwnedFd, told: Told) -> Parrot {
        let ended = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let ended = Arc::clone(&ended);
            move || {
                while !ended.load(Ordering::Relaxed) {
                    answer(&socket, told);
                }
            }
        });
        Parrot { ended, thread: Some(thread) }
    }
}

fn answer(socket: &OwnedFd, told: Told) {
    const HEADER_BYTES: usize = 10;
    let nap = Timespec::try_from(Duration::from_millis(10)).expect("a time");
    poll(&mut [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)], Some(&nap))
        .expect("polled");
    let mut frame = [0; 2048];
    if let Ok((count, _)) = recv(socket, &mut frame[..], RecvFlags::DONTWAIT) {
        let (to, from) = (HEADER_BYTES, HEADER_BYTES + 6);
        if told == Told::StationFirst && frame[to..from] != STATION {
            let late = Timespec::try_from(Duration::from_millis(40)).expect("a time");
            poll(&mut [], Some(&late)).expect("waited");
        }
        for at in 0..6 {
            frame.swap(to + at, from + at);
        }
        // Nobody sends from a group.
        frame[from] &= 0xfe;
        let _ = send(socket, &frame[..count], SendFlags::DONTWAIT);
    }
}

impl Drop for Parrot {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it ends");
        }
    }
}

pub(crate) fn not_asked() {
    pair("none0", "none1");
    let questions = |nic| [Question { nic, mac: MacAddress::new(STATION), vlan: None }];
    let up = named("none0");
    assert_eq!(probe::ask(&questions(&up), 0).expect("nobody is asked"), [Verdict::NotAsked]);
    ip("link set none1 down");
    let down = named("none0");
    assert_eq!(probe::ask(&questions(&down), 3).expect("nobody is asked"), [Verdict::NotAsked]);
}

/// One wait for all, however many there are.
pub(crate) fn many() {
    let stations: Vec<Station> = (0..4)
        .map(|number| {
            let near = format!("many{number}");
            let station = station(&near, &format!("far{number}"));
            station.set_up(&near);
            station
        })
        .collect();
    let nics: Vec<Nic> = (0..4).map(|number| named(&format!("many{number}"))).collect();
    let mut questions = Vec::new();
    for nic in &nics {
        questions.push(Question { nic, mac: MacAddress::new(STATION), vlan: None });
        for number in 0..7 {
            let mac = MacAddress::new([0x56, 0xff, 0, 0, 0, number]);
            questions.push(Question { nic, mac, vlan: None });
        }
    }
    let began = Instant::now();
    let verdicts = probe::ask(&questions, 3).expect("root may");
    let took = began.elapsed();
    for (at, verdict) in verdicts.iter().enumerate() {
        let wanted = if at % 8 == 0 { Verdict::InUse } else { Verdict::Free };
        assert_eq!(*verdict, wanted, "question {at}");
    }
    // One at a time they would take almost ten seconds. A machine that has much else to do gets four times as long.
    assert!(took < 4 * probe::DEADLINE, "{took:?}");
    drop(stations);
}
