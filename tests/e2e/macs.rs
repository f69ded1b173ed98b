//! MAC addresses of guests that somebody on the LAN has already, on networks of the tests' own.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hpvm_host::nic;
use hpvm_netlab::{Station, apart, pair};
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![
    an_address_of_a_station_is_refused,
    a_trunk_is_asked_for_in_its_vlans,
    a_made_address_that_somebody_has_is_made_anew,
    so_many_frames_ask_as_were_wanted,
    an_address_of_another_guest_is_refused_and_nobody_asked,
    ; long:
    a_lan_that_answers_for_all_is_told,
];

const STATION: &str = "network:lan:0,1,0x56a1b2c3d4e5:vswitch:sw1";

fn an_address_of_a_station_is_refused() {
    apart(refused_of_a_station);
}

/// Settles 114: when a guest is made, changed and started all its addresses are asked for at once, and not at all when the
/// administrator does not want it.
fn refused_of_a_station() {
    let mut host = VmHost::new(Engine::Real);
    let station = Station::behind("lan0", "far0");
    station.run("ip link set far0 address 56:a1:b2:c3:d4:e5");
    station.set_up("lan0");
    host.ok(&["hpvmnet", "-c", "-S", "sw1", "-n", "lan0"]);
    host.ok(&["hpvmnet", "-S", "sw1", "-b"]);

    let words = "belongs to a station on the LAN of virtual switch 'sw1'; give another";
    let refusal = host.refused(&["hpvmcreate", "-P", "one", "-a", STATION]);
    assert!(refusal.contains(words), "{refusal}");
    let free = "network:lan:0,1,0x56a1b2c3d4e6:vswitch:sw1";
    host.ok(&["hpvmcreate", "-P", "one", "-r", "512M", "-a", free]);
    let second = "network:lan:0,2,0x56a1b2c3d4e5:vswitch:sw1";
    let refusal = host.refused(&["hpvmmodify", "-P", "one", "-a", second]);
    assert!(refusal.contains(words), "{refusal}");
    host.ok(&["hpvmmodify", "-P", "one", "-a", "network:avio_lan:0,2:vswitch:sw1"]);
    // On a switch that is joined to no LAN nobody has it.
    let elsewhere = "network:lan:0,4,0x56a1b2c3d4e5:vswitch:localnet";
    host.ok(&["hpvmmodify", "-P", "one", "-a", elsewhere]);
    host.ok(&["hpvmmodify", "-P", "one", "-d", "network:lan:0,4"]);

    station.run("ip link set far0 address 56:a1:b2:c3:d4:e6");
    let refusal = host.refused(&["hpvmstart", "-P", "one"]);
    assert!(refusal.contains("Guest MAC address for switch sw1 is in use."), "{refusal}");
    let why = host.run(&["hpvm", "why", "one"]);
    assert!(why.stdout.contains("Guest MAC address for switch sw1 is in use."), "{why}");
    // A change of something else does not ask for what the guest has.
    host.ok(&["hpvmmodify", "-P", "one", "-l", "text"]);
    host.set("HPVMACADDRFRAMES", "0");
    host.ok(&["hpvmstart", "-P", "one"]);
    host.ok(&["hpvmcreate", "-P", "two", "-a", STATION]);
    nobody_is_refused_an_address_of_his_own(&mut host);
}

/// A NIC of a running guest that moves to another switch of the same LAN, where the guest answers for it itself.
fn nobody_is_refused_an_address_of_his_own(host: &mut VmHost) {
    host.set("HPVMACADDRFRAMES", "3");
    pair("lan1", "far1");
    let _answering = Answering::start("far1", |mac| mac[..5] == [0x56, 0xa1, 0xb2, 0xc3, 0xd4]);
    host.ok(&["hpvmnet", "-c", "-S", "sw2", "-n", "lan1"]);
    let foreign = "network:lan:0,5,0x56a1b2c3d4e7:vswitch:sw2";
    let refusal = host.refused(&["hpvmmodify", "-P", "one", "-a", foreign]);
    assert!(
        refusal.contains("belongs to a station on the LAN of virtual switch 'sw2'"),
        "{refusal}"
    );
    host.ok(&["hpvmmodify", "-P", "one", "-m", "network:lan:0,1:vswitch:sw2"]);
}

fn a_trunk_is_asked_for_in_its_vlans() {
    apart(asked_in_vlans);
}

/// In the lowest sixteen, three frames each.
fn asked_in_vlans() {
    let host = VmHost::new(Engine::Fake);
    pair("lan0", "far0");
    host.ok(&["hpvmnet", "-c", "-S", "sw1", "-n", "lan0"]);
    host.ok(&["hpvmnet", "-S", "sw1", "-u", "portid:7:trunk:5,100-200"]);
    host.ok(&["hpvmnet", "-S", "sw1", "-u", "portid:8:trunk:5,6"]);
    let listening = Answering::start("far0", |_| false);
    for (port, last) in [(7, 7), (8, 8)] {
        let nic = format!("network:lan:0,1,0x56a10000000{last}:vswitch:sw1:portid:{port}");
        host.ok(&["hpvmcreate", "-P", &format!("guest{port}"), "-a", &nic]);
    }
    let asked = || {
        let asked = listening.asked();
        [7, 8].map(|last| asked.get(&[0x56, 0xa1, 0, 0, 0, last]).copied().unwrap_or(0))
    };
    wait_until(Duration::from_secs(10), "all frames are seen", || asked() == [48, 6]);
}

fn a_made_address_that_somebody_has_is_made_anew() {
    apart(made_anew);
}

fn made_anew() {
    let host = VmHost::new(Engine::Fake);
    pair("lan0", "far0");
    host.ok(&["hpvmnet", "-c", "-S", "sw1", "-n", "lan0"]);
    let made: [(&str, &[&str]); 2] = [
        ("one", &["hpvmcreate", "-P", "one", "-a", "network:lan:0,1:vswitch:sw1"]),
        ("two", &["hpvmclone", "-P", "one", "-N", "two"]),
    ];
    for (name, line) in made {
        // Somebody has whatever is asked for first, and nothing else.
        let first = Arc::new(Mutex::new(None));
        let answering = Answering::start("far0", {
            let first = Arc::clone(&first);
            move |mac| *first.lock().expect("sound").get_or_insert(mac) == mac
        });
        host.ok(line);
        let taken = first.lock().expect("sound").expect("somebody was asked");
        let taken: Vec<String> = taken.iter().map(|byte| format!("{byte:02x}")).collect();
        let shown = host.ok(&["hpvmstatus", "-P", name]);
        assert!(!shown.contains(&taken.join("-")), "{taken:?}: {shown}");
        // The one that was drawn first, the one the guest has, and for each of these two one that nobody has.
        assert_eq!(answering.asked().len(), 4, "{:x?}", answering.asked());
    }
}

fn a_lan_that_answers_for_all_is_told() {
    apart(answers_for_all);
}

/// Settles 89.
fn answers_for_all() {
    let mut host = VmHost::new(Engine::Real);
    pair("lan0", "far0");
    host.ok(&["hpvmnet", "-c", "-S", "sw1", "-n", "lan0"]);
    host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
    let answering = Answering::start("far0", |_| true);
    let words = "something on the LAN of virtual switch 'sw1' answers for every MAC address";
    let nic = "network:lan:0,1:vswitch:sw1";
    let made = host.run(&["hpvmcreate", "-P", "one", "-r", "512M", "-a", nic]);
    assert!(made.status.success() && made.stderr.contains(words), "{made}");
    let started = host.run(&["hpvmstart", "-P", "one"]);
    assert!(started.status.success() && started.stderr.contains(words), "{started}");
    let asked = answering.asked().len();
    host.set("HPVMACADDRFRAMES", "0");
    let made = host.run(&["hpvmcreate", "-P", "two", "-a", nic]);
    assert!(made.status.success() && !made.stderr.contains(words), "{made}");
    assert_eq!(answering.asked().len(), asked, "nobody is asked any more");
}

fn so_many_frames_ask_as_were_wanted() {
    apart(many_frames);
}

/// `HPVMACADDRFRAMES` as it is seen on the wire, where nobody answers.
fn many_frames() {
    let mut host = VmHost::new(Engine::Fake);
    pair("lan0", "far0");
    host.ok(&["hpvmnet", "-c", "-S", "sw1", "-n", "lan0"]);
    let listening = Answering::start("far0", |_| false);
    let create = |host: &VmHost, number: u8| {
        let nic = format!("network:lan:0,1,0x56a10000000{number}:vswitch:sw1");
        host.ok(&["hpvmcreate", "-P", &format!("guest{number}"), "-a", &nic]);
    };
    // Three if nobody says.
    create(&host, 3);
    for number in [0, 1, 5] {
        host.set("HPVMACADDRFRAMES", &number.to_string());
        create(&host, number);
    }
    let asked = || {
        let asked = listening.asked();
        [0, 1, 3, 5].map(|number| asked.get(&[0x56, 0xa1, 0, 0, 0, number]).copied().unwrap_or(0))
    };
    wait_until(Duration::from_secs(10), "all frames are seen", || asked() == [0, 1, 3, 5]);
}

fn an_address_of_another_guest_is_refused_and_nobody_asked() {
    apart(of_another_guest);
}

/// When a guest is made, changed and cloned: the VM Host knows itself who has it.
fn of_another_guest() {
    let host = VmHost::new(Engine::Fake);
    pair("lan0", "far0");
    host.ok(&["hpvmnet", "-c", "-S", "sw1", "-n", "lan0"]);
    let nic = |number: u8| format!("network:lan:0,1,0x56a10000000{number}:vswitch:sw1");
    host.ok(&["hpvmcreate", "-P", "one", "-a", &nic(1)]);
    host.ok(&["hpvmcreate", "-P", "two"]);
    let listening = Answering::start("far0", |_| false);
    let add = ["hpvmmodify", "-P", "two", "-a", &nic(1)];
    let clone = ["hpvmclone", "-P", "two", "-N", "four", "-a", &nic(1)];
    for line in [&["hpvmcreate", "-P", "three", "-a", &nic(1)][..], &add, &clone] {
        let refusal = host.refused(line);
        assert!(
            refusal.contains("MAC address 0x56a100000001 belongs to a NIC of guest one;"),
            "{refusal}"
        );
    }
    host.ok(&["hpvmmodify", "-P", "two", "-a", &nic(2)]);
    let asked = |number| listening.asked().get(&[0x56, 0xa1, 0, 0, 0, number]).copied();
    wait_until(Duration::from_secs(10), "what is asked is seen", || asked(2) == Some(3));
    assert_eq!(asked(1), None);
}

/// The addresses that frames were sent to, and how many TEST commands (IEEE 802.2, 5.4.1.2.2) were among them: one a round.
type Asked = Arc<Mutex<BTreeMap<[u8; 6], u32>>>;

/// Somebody at an interface who has addresses: a frame to one of them comes back as it was, from there.
struct Answering {
    asked: Asked,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Answering {
    fn start(interface: &str, mut has: impl FnMut([u8; 6]) -> bool + Send + 'static) -> Answering {
        let nic = nic::named(interface).expect("told").expect("it is there");
        let socket = nic::wire::packets(&nic).expect("root may");
        let (asked, ended) = (Asked::default(), Arc::new(AtomicBool::new(false)));
        let thread = thread::spawn({
            let (asked, ended) = (Arc::clone(&asked), Arc::clone(&ended));
            move || {
                while !ended.load(Ordering::Relaxed) {
                    answer(&socket, &mut has, &asked);
                }
            }
        });
        Answering { asked, ended, thread: Some(thread) }
    }

    fn asked(&self) -> BTreeMap<[u8; 6], u32> {
        self.asked.lock().expect("sound").clone()
    }
}

fn answer(socket: &OwnedFd, has: &mut dyn FnMut([u8; 6]) -> bool, asked: &Asked) {
    const HEADER_BYTES: usize = 10;
    /// Where Ethernet has a length, and of what an address is sent only such a command has this one.
    const TEST_LENGTH: [u8; 2] = [0, 3];
    let nap = Timespec::try_from(Duration::from_millis(10)).expect("a time");
    let fd = PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN);
    poll(&mut [fd], Some(&nap)).expect("polled");
    let mut frame = [0; 2048];
    let Ok((count, _)) = recv(socket, &mut frame[..], RecvFlags::DONTWAIT) else { return };
    let to: [u8; 6] = std::array::from_fn(|at| frame[HEADER_BYTES + at]);
    if to[0] & 1 != 0 {
        // To a group.
        return;
    }
    let is_test = frame[HEADER_BYTES + 12..HEADER_BYTES + 14] == TEST_LENGTH;
    *asked.lock().expect("sound").entry(to).or_default() += u32::from(is_test);
    if has(to) {
        for at in HEADER_BYTES..HEADER_BYTES + 6 {
            frame.swap(at, at + 6);
        }
        let _ = send(socket, &frame[..count], SendFlags::DONTWAIT);
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it ends");
        }
    }
}
