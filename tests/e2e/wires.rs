//! The wire of a virtual switch, and what becomes of the VM Host's network beneath it: interfaces that go and come, other
//! cards, addresses and packet sizes. Nobody starts a switch again for any of it. In networks of the tests' own.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::{Duration, Instant};

use hpvm_host::nic;
use hpvm_netlab::{Guest, Hub, SocketHandle, apart, ip, wait_until_up};
use hpvm_registry::{Access, Registry};
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::Test;
use crate::guest_processes::process;
use crate::networks::SOUND;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_switch_follows_its_interface,
    a_switch_waits_for_its_interface,
    a_tap_that_was_deleted_is_had_again_by_a_boot,
    a_tap_is_there_as_long_as_it_is_its_switch_s_wire,
    a_tap_that_a_command_left_when_it_died_is_removed,
    a_tap_has_one_switch,
    a_tap_that_another_program_has_is_missed,
];

const BOUND: Duration = Duration::from_secs(20);
/// From the moment the interface has a link, by the median of some rounds: how soon a process that has something to do gets a
/// processor is the machine's affair.
const BACK_BOUND: Duration = Duration::from_millis(200);
const ROUNDS: usize = 5;
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(5);
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PORT: u16 = 7;
/// Of the station at the other end, whose card stays the same.
const FAR_MAC: &str = "02:00:00:00:0f:01";

/// A VM Host with a switch over `wire0`, and a guest that talks by its port.
struct Lab {
    host: VmHost,
    hub: Hub,
    guest: Guest,
    socket: SocketHandle,
    questions: u32,
}

impl Lab {
    fn start(wire: &[&str]) -> Lab {
        let host = VmHost::new(Engine::Fake);
        let create = [&["hpvmnet", "-c", "-S", "sw1"], wire].concat();
        host.run(&create);
        host.run(&["hpvmnet", "-S", "sw1", "-b"]);
        let nic = "network:lan:0,1,0x56a100000001:vswitch:sw1";
        host.ok(&["hpvmcreate", "-P", "one", "-a", nic]);
        let started = host.run(&["hpvmstart", "-P", "one"]);
        assert!(started.status.success(), "{started}");
        let hub = Hub::new(connected(&host));
        let mut guest = Guest::new(&hub, 1);
        guest.use_address(Ipv4Addr::new(192, 0, 2, 9), 24, None);
        let socket = guest.udp_socket(50_000);
        Lab { host, hub, guest, socket, questions: 0 }
    }

    fn ask(&mut self) {
        self.questions += 1;
        // A queue that is full has asked often enough.
        let udp = self.guest.udp(self.socket);
        let _ = udp.send_slice(&self.questions.to_be_bytes(), (SERVER, PORT));
        self.guest.step();
    }

    /// What is sent while there is no wire is lost, and harms nothing.
    fn ask_in_vain(&mut self) {
        for _ in 0..20 {
            self.ask();
            self.hub.wait_for_frames(Duration::from_millis(1));
        }
    }

    /// How long it takes until the station answers to what is asked from now on.
    #[track_caller]
    fn answered_after(&mut self) -> Duration {
        let (began, first) = (Instant::now(), self.questions + 1);
        while began.elapsed() < BOUND {
            self.ask();
            self.hub.wait_for_frames(PAUSE);
            self.guest.step();
            while let Ok((answer, _)) = self.guest.udp(self.socket).recv() {
                let number = u32::from_be_bytes(answer.try_into().expect("as it was sent"));
                if number >= first {
                    return began.elapsed();
                }
            }
        }
        panic!("no answer\n{}", self.log());
    }

    #[track_caller]
    fn is_back(&mut self, what: &str) -> Duration {
        let took = self.answered_after();
        println!("{what}: frames pass after {took:?}");
        took
    }

    fn log(&self) -> String {
        fs::read_to_string(self.host.path("var/opt/hpvm/common/vswitch-2.log")).unwrap_or_default()
    }

    #[track_caller]
    fn wire_is(&self, word: &str) {
        let file = self.host.path("run/hpvm/net/2/wire");
        let is = || fs::read_to_string(&file).is_ok_and(|text| text.trim_end() == word);
        wait_until(BOUND, &format!("the wire is {word}"), is);
    }

    /// The switch's line: state, interface, MAC address, IP address.
    fn shown(&self) -> Vec<String> {
        let line = self.host.ok(&["hpvmnet"]);
        let line = line.lines().find(|line| line.starts_with("sw1")).expect("the switch");
        line.split_whitespace().map(str::to_owned).collect()
    }

    /// A line of all that is shown of the switch.
    fn shown_link(&self) -> String {
        let all = self.host.ok(&["hpvmnet", "-S", "sw1", "-V"]);
        let line = all.lines().find_map(|line| line.strip_prefix("Wire Link")).expect("a line");
        line.trim_start_matches([' ', ':']).to_owned()
    }

    fn end(self) {
        self.host.ok(&["hpvmstop", "-P", "one", "-h", "-F"]);
        wait_until(BOUND, "nothing runs", || self.host.processes().is_empty());
    }
}

fn connected(host: &VmHost) -> UnixStream {
    let socket = host.run_dir(1).join("net/0-1");
    UnixStream::connect(&socket).expect("the port listens")
}

/// The station answers whatever comes, at whatever interface it has its address.
fn serve() {
    let socket = UdpSocket::bind(("0.0.0.0", PORT)).expect("a port of this network");
    thread::spawn(move || {
        let mut question = [0; 64];
        while let Ok((count, from)) = socket.recv_from(&mut question) {
            // Its interface may be gone.
            let _ = socket.send_to(&question[..count], from);
        }
    });
}

/// Connects `wire0` with the station.
fn plug_in(near: &str) {
    ip(&format!("link add wire0 {near} type veth peer name far0 address {FAR_MAC}"));
    ip(&format!("address add {SERVER}/24 dev far0"));
    ip("link set far0 up");
    ip("link set wire0 up");
    wait_until_up("wire0");
}

fn index() -> u32 {
    nic::named("wire0").expect("told").expect("there").index
}

fn a_switch_follows_its_interface() {
    apart(follow);
}

/// Settles 115, 121.
fn follow() {
    serve();
    plug_in("address 02:00:00:00:00:0a");
    let mut lab = Lab::start(&["-n", "wire0"]);
    lab.answered_after();
    assert_eq!(lab.shown()[2..6], ["Up", "Shared", "wire0", "0x02000000000a"]);

    let first = index();
    ip("link del wire0");
    lab.ask_in_vain();
    lab.wire_is("missing");
    assert_eq!(lab.shown()[2..6], ["Down", "Shared", "wire0", "0x000000000000"]);
    plug_in("address 02:00:00:00:00:0b");
    lab.is_back("another card");
    assert_ne!(index(), first);
    lab.wire_is("there");
    assert_eq!(lab.shown()[2..6], ["Up", "Shared", "wire0", "0x02000000000b"]);

    let same = index();
    let mut rounds = [(); ROUNDS].map(|()| {
        ip("link del wire0");
        lab.ask_in_vain();
        plug_in(&format!("index {same} address 02:00:00:00:00:0b"));
        lab.is_back("another card in the same place")
    });
    rounds.sort();
    assert!(rounds[ROUNDS / 2] < BACK_BOUND, "{rounds:?}\n{}", lab.log());

    ip("link set wire0 address 02:00:00:00:00:0c");
    assert_eq!(lab.shown()[5], "0x02000000000c");
    lab.is_back("another MAC address");
    ip("link set wire0 mtu 1400");
    assert!(lab.shown_link().starts_with("up") && lab.shown_link().ends_with(", MTU 1400"));
    lab.is_back("another MTU");
    ip("address add 192.0.2.77/24 dev wire0");
    assert_eq!(lab.shown()[6], "192.0.2.77");
    ip("address del 192.0.2.77/24 dev wire0");
    lab.is_back("another IP address");
    ip("link set far0 down");
    wait_until(BOUND, "the link is gone", || lab.log().contains("wire0: no link"));
    assert_eq!(lab.shown_link(), "down, MTU 1400");
    ip("link set far0 up");
    wait_until_up("wire0");
    lab.is_back("the cable again");
    ip("link set wire0 down");
    ip("link set wire0 up");
    wait_until_up("wire0");
    lab.is_back("set up anew");

    // The card in use is taken aside, and another has its name.
    ip("link set wire0 down");
    ip("link set wire0 name old0");
    lab.wire_is("missing");
    ip("link del old0");
    plug_in("");
    lab.is_back("a card that was renamed");
    outlives_its_processes(lab);
}

/// The card is exchanged while nobody looks, and under a process that may open no sockets.
fn outlives_its_processes(mut lab: Lab) {
    process(&lab.host, "hpvmnetd").expect("the switch runs").kill();
    ip("link del wire0");
    plug_in("");
    wait_until(BOUND, "another process", || process(&lab.host, "hpvmnetd").is_some());
    let anew = |lab: &mut Lab| {
        // QEMU would have connected again by itself.
        lab.hub.reconnect(connected(&lab.host));
        lab.answered_after();
    };
    anew(&mut lab);
    process(&lab.host, "hpvmnetd").expect("the switch runs").parent().kill();
    wait_until(BOUND, "another keeper", || lab.log().contains("started its successor"));
    wait_until(BOUND, "the next process", || lab.log().matches(" runs with ").count() == 3);
    anew(&mut lab);
    ip("link del wire0");
    lab.wire_is("missing");
    plug_in("");
    lab.is_back("another card, by the third process");
    lab.end();
}

fn a_switch_waits_for_its_interface() {
    apart(wait_for_interface);
}

fn wait_for_interface() {
    serve();
    let mut lab = Lab::start(&["-n", "wire0"]);
    lab.wire_is("missing");
    assert_eq!((lab.shown()[2].as_str(), lab.shown_link().as_str()), ("Down", "missing"));
    plug_in("");
    lab.is_back("an interface that was never there");
    lab.wire_is("there");
    assert_eq!(lab.shown()[2], "Up");
    // Another wire is followed from then on, and this one no more.
    lab.host.run(&["hpvmnet", "-S", "sw1", "-C", "-n", "wire1"]);
    lab.wire_is("missing");
    lab.host.ok(&["hpvmnet", "-S", "sw1", "-C", "-n", "wire0"]);
    lab.wire_is("there");
    lab.is_back("the old wire");
    lab.end();
}

fn a_tap_that_was_deleted_is_had_again_by_a_boot() {
    apart(tap);
}

fn tap() {
    serve();
    let mut lab = Lab::start(&["--wire", "tap:talk0"]);
    let address = || {
        ip(&format!("link set talk0 address {FAR_MAC}"));
        ip(&format!("address add {SERVER}/24 dev talk0"));
    };
    address();
    lab.is_back("a tap");
    ip("link set talk0 down");
    ip("link set talk0 up");
    lab.is_back("a tap that was set up anew");
    ip("link del talk0");
    lab.ask_in_vain();
    lab.wire_is("missing");
    assert_eq!(lab.shown()[2], "Down");
    ip("tuntap add talk0 mode tap");
    lab.host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
    address();
    lab.is_back("a tap that was made anew");
    lab.wire_is("there");
    assert_eq!(lab.shown()[2], "Up");
    lab.end();
}

fn a_tap_is_there_as_long_as_it_is_its_switch_s_wire() {
    apart(lasting_tap);
}

/// Its address and the VM Host's IP address on it outlive guests and halts. What the administrator made is never removed.
fn lasting_tap() {
    let host = VmHost::new(Engine::Fake);
    let tap = |name: &str| nic::named(name).expect("the interfaces of this network");
    host.ok(&["hpvmnet", "-c", "-S", "talk", "--wire", "tap:talk1"]);
    assert_eq!(tap("talk1"), None, "a switch that is halted was never up");
    host.ok(&["hpvmnet", "-S", "talk", "-b"]);
    let first = tap("talk1").expect("it is there without a guest").mac;
    ip(&format!("address add {SERVER}/24 dev talk1"));
    let keeps_its_address = |after: &str| {
        let now = tap("talk1").unwrap_or_else(|| panic!("no tap after {after}"));
        assert_eq!(now.mac, first, "after {after}");
        assert!(now.addresses.contains(&(SERVER.into(), 24)), "after {after}: {now:?}");
    };
    host.ok(&["hpvmcreate", "-P", "one", "-a", "network:lan:0,1,0x56a100000001:vswitch:talk"]);
    host.ok(&["hpvmstart", "-P", "one"]);
    host.ok(&["hpvmstop", "-P", "one", "-h", "-F"]);
    wait_until(BOUND, "nothing runs", || host.processes().is_empty());
    keeps_its_address("a guest's run");
    host.ok(&["hpvmnet", "-S", "talk", "-h", "-F"]);
    host.ok(&["hpvmnet", "-S", "talk", "-b"]);
    keeps_its_address("a halt");

    host.ok(&["hpvmnet", "-S", "talk", "-C", "--wire", "none"]);
    assert_eq!(tap("talk1"), None, "it is no wire any more");
    host.ok(&["hpvmnet", "-S", "talk", "-C", "--wire", "tap:talk1"]);
    assert_eq!(tap("talk1").expect("made anew").mac, first);
    // As a boot of the VM Host leaves it.
    ip("link del talk1");
    let shown = host.ok(&["hpvmnet", "-S", "talk"]);
    assert!(
        shown.lines().any(|line| line.starts_with("talk ") && line.contains(" Down ")),
        "{shown}"
    );
    host.ok(&["hpvm", "autostart"]);
    assert_eq!(tap("talk1").expect("made anew").mac, first);

    ip("tuntap add own1 mode tap");
    host.ok(&["hpvmnet", "-S", "talk", "-C", "--wire", "tap:own1"]);
    assert_eq!(tap("talk1"), None, "another is the wire");
    host.ok(&["hpvmmodify", "-P", "one", "-d", "network:lan:0,1"]);
    host.ok(&["hpvmnet", "-S", "talk", "-d", "-F"]);
    assert!(tap("own1").is_some(), "the administrator's own stays");
    host.ok(&["hpvmnet", "-c", "-S", "again", "--wire", "tap:talk1"]);
    host.ok(&["hpvmnet", "-S", "again", "-b"]);
    assert!(tap("talk1").is_some());
    host.ok(&["hpvmnet", "-S", "again", "-d", "-F"]);
    assert_eq!(tap("talk1"), None, "its switch is deleted");
}

fn a_tap_has_one_switch() {
    apart(one_tap);
}

fn one_tap() {
    let host = VmHost::new(Engine::Fake);
    let wire = ["--wire", "tap:talk1"];
    host.ok(&[&["hpvmnet", "-c", "-S", "sw1"], &wire[..]].concat());
    host.ok(&["hpvmnet", "-c", "-S", "sw2"]);
    let both = |host: &VmHost| {
        let path = host.path("var/opt/hpvm/hpvm.db");
        let mut registry = Registry::open(&path, Access::ReadWrite).expect("the registry");
        let mut switches = registry.vswitches().expect("the switches");
        switches[2].wire = switches[1].wire.clone();
        let change = registry.change().expect("a change");
        change.update_vswitch(&switches[2]).expect("one tap for both");
        change.commit().expect("a commit");
    };
    let taken = "talk1 is the wire of virtual switch 'sw1', and a tap has one switch";
    for line in [&["-c", "-S", "sw3"][..], &["-S", "sw2", "-C"]] {
        let refusal = host.refused(&[&["hpvmnet"], line, &wire[..]].concat());
        assert!(refusal.contains(taken), "{refusal}");
    }
    // As an earlier version let it be.
    both(&host);
    host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
    let refusal = host.refused(&["hpvmnet", "-S", "sw2", "-b"]);
    assert!(refusal.contains(taken), "{refusal}");
    host.ok(&["hpvmnet", "-S", "sw1", "-h", "-F"]);
    host.ok(&["hpvmnet", "-S", "sw2", "-b"]);
}

fn a_tap_that_another_program_has_is_missed() {
    apart(taken_tap);
}

fn taken_tap() {
    let host = VmHost::new(Engine::Fake);
    let taken = nic::wire::tap("talk0").expect("a tap of ours");
    let state = |host: &VmHost| {
        let list = host.ok(&["hpvmnet", "-S", "sw1"]);
        let line = list.lines().find(|line| line.starts_with("sw1 ")).map(str::to_owned);
        line.expect("a line").split_whitespace().nth(2).expect("a state").to_owned()
    };
    let wire = || fs::read_to_string(host.path("run/hpvm/net/2/wire")).expect("it is told");
    host.ok(&["hpvmnet", "-c", "-S", "sw1", "--wire", "tap:talk0"]);
    let booted = host.run(&["hpvmnet", "-S", "sw1", "-b"]);
    assert!(booted.status.success(), "{booted}");
    assert!(booted.stderr.contains("the tap talk0 is in use by another program"), "{booted}");
    host.ok(&["hpvmcreate", "-P", "one", "-a", "network:lan:0,1,0x56a100000001:vswitch:sw1"]);
    let started = host.run(&["hpvmstart", "-P", "one"]);
    assert!(started.status.success(), "{started}");
    let words = "virtual switch 'sw1' has no wire, since its tap:talk0 could not be had";
    assert!(started.stderr.contains(words), "{started}");
    assert_eq!((wire().trim(), state(&host).as_str()), ("missing", "Down"));
    drop(taken);
    host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
    assert_eq!((wire().trim(), state(&host).as_str()), ("there", "Up"));
    host.ok(&["hpvmstop", "-P", "one", "-h", "-F"]);
    wait_until(BOUND, "nothing runs", || host.processes().is_empty());
}

fn a_tap_that_a_command_left_when_it_died_is_removed() {
    apart(left_tap);
}

/// By the doctor, by the same command typed again, which also has the running process hear of the wire, by a boot, and with the
/// switch.
fn left_tap() {
    const SIGABRT: i32 = 6;
    let mut host = VmHost::new(Engine::Fake);
    let tap = |name: &str| nic::named(name).expect("the interfaces of this network");
    let wire = |wire| ["hpvmnet", "-S", "talk", "-C", "--wire", wire];
    host.ok(&["hpvmnet", "-c", "-S", "talk"]);
    host.ok(&["hpvmnet", "-S", "talk", "-b"]);
    let dies = |host: &mut VmHost| {
        host.ok(&wire("tap:talk1"));
        host.environment("HPVM_ABORT_AT", "vswitch.committed");
        let killed = host.run(&wire("tap:talk2"));
        host.without_environment("HPVM_ABORT_AT");
        assert_eq!(killed.status.signal(), Some(SIGABRT), "{killed}");
        assert!(tap("talk1").is_some() && tap("talk2").is_none(), "it died before it did anything");
    };

    dies(&mut host);
    let told = host.run(&["hpvm", "doctor"]);
    let left = "the tap talk1 was made for virtual switch 'talk' and is its wire no more";
    assert!(told.stdout.contains(left), "{told}");
    assert!(tap("talk1").is_some(), "who only looks removes nothing");
    let repaired = host.run(&["hpvm", "doctor", "--repair"]);
    assert!(repaired.stdout.contains("removed talk1"), "{repaired}");
    assert_eq!(tap("talk1"), None);
    assert_eq!(host.ok(&["hpvm", "doctor"]), SOUND);

    dies(&mut host);
    host.ok(&["hpvmnet", "-S", "talk", "-b"]);
    assert!(tap("talk1").is_none() && tap("talk2").is_some(), "a boot");

    host.ok(&["hpvmcreate", "-P", "one", "-a", "network:lan:0,1,0x56a100000001:vswitch:talk"]);
    host.ok(&["hpvmstart", "-P", "one"]);
    dies(&mut host);
    host.ok(&wire("tap:talk2"));
    assert!(tap("talk1").is_none() && tap("talk2").is_some(), "the same again");
    let ports = fs::read_to_string(host.path("run/hpvm/net/2/ports")).expect("what it has");
    assert!(ports.contains("talk2"), "the process has it: {ports}");
    host.ok(&["hpvmstop", "-P", "one", "-h", "-F"]);
    wait_until(BOUND, "nothing runs", || host.processes().is_empty());

    dies(&mut host);
    host.ok(&["hpvmmodify", "-P", "one", "-d", "network:lan:0,1"]);
    host.ok(&["hpvmnet", "-S", "talk", "-d", "-F"]);
    assert_eq!(tap("talk1"), None, "with the switch");
}
