//! Changes of a running guest's NICs that come to nothing: its engine refuses a part of them, or a switch does not come up.
//! Ports, configuration and traffic are as before. One that is made is seen at once. The test speaks for the guests.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;
use hpvm_testkit::write_script;
use serde_json::Value;

use crate::Test;
use crate::networks::SOUND;
use crate::refusals::stored;

pub(crate) const TESTS: &[Test] = crate::tests![
    what_a_guest_does_not_take_leaves_its_ports,
    a_switch_that_does_not_come_up_leaves_the_ports_of_others,
    a_nic_that_moved_is_seen_at_its_port_when_the_command_returns,
];

const BOUND: Duration = Duration::from_secs(20);
const REFUSES: &str = "fail=netdev_add:no room for it,fail=chardev-add:no room for it";
const MOVES: &str = "network:lan:0,1:vswitch:sw2";
const MOVES_WITHIN: &str = "network:lan:0,1:vswitch:sw1:portid:7";
const COMES: &str = "network:lan:0,5:vswitch:sw1";
const COMES_ELSEWHERE: &str = "network:avio_lan:0,6:vswitch:sw2";

fn what_a_guest_does_not_take_leaves_its_ports() {
    let mut host = VmHost::new(Engine::Fake);
    host.engine_behaves(REFUSES);
    let mut scene = Scene::new(host);
    for change in [
        &["-a", COMES][..],
        &["-a", COMES_ELSEWHERE],
        &["-m", MOVES, "-a", COMES],
        &["-m", MOVES, "-a", COMES_ELSEWHERE],
        &["-m", MOVES_WITHIN, "-a", COMES],
    ] {
        let refusal = scene.comes_to_nothing(change);
        assert!(refusal.contains("no room for it"), "{change:?}: {refusal}");
    }
    scene.end();
}

fn a_switch_that_does_not_come_up_leaves_the_ports_of_others() {
    let mut host = VmHost::new(Engine::Fake);
    host.install();
    let mut scene = Scene::new(host);
    // What runs goes on; the next switch has no process.
    let program = scene.host.path("opt/hpvm/lbin/hpvmnetd");
    let good = program.with_extension("good");
    fs::rename(&program, &good).expect("put aside");
    write_script(&program, "exit 3");
    for change in [
        &["-a", COMES_ELSEWHERE][..],
        &["-m", MOVES],
        &["-a", COMES, "-a", COMES_ELSEWHERE],
        &["-m", MOVES_WITHIN, "-a", COMES_ELSEWHERE],
    ] {
        let refusal = scene.comes_to_nothing(change);
        assert!(refusal.contains("virtual switch 'sw2'"), "{change:?}: {refusal}");
    }
    fs::rename(&good, &program).expect("put back");
    scene.host.ok(&["hpvmmodify", "-P", "one", "-m", MOVES]);
    assert_ne!(scene.ports(), scene.before.ports, "what can be made is");
    scene.end();
}

/// Its engine connects again soon, as QEMU does; one that does not keeps the command no longer than it takes to be sure.
fn a_nic_that_moved_is_seen_at_its_port_when_the_command_returns() {
    let mut scene = Scene::new(VmHost::new(Engine::Fake));
    let state = |host: &VmHost, switch: &str, port: &str| {
        let shown = host.ok(&["hpvmnet", "-S", switch]);
        let line = shown.lines().find(|line| line.split_whitespace().next() == Some(port));
        line.and_then(|line| line.split_whitespace().nth(1)).map(str::to_owned)
    };
    let Scene { host, one, .. } = &mut scene;
    let ports = host.path("run/hpvm/net/2/ports");
    let has_it = || fs::read_to_string(&ports).is_ok_and(|text| text.contains("\"port\":7"));
    std::thread::scope(|scope| {
        scope.spawn(|| one.follows(has_it));
        host.ok(&["hpvmmodify", "-P", "one", "-m", MOVES_WITHIN]);
        assert_eq!(state(host, "sw1", "7").as_deref(), Some("Active"));
    });
    scene.host.ok(&["hpvmmodify", "-P", "one", "-m", MOVES]);
    assert_eq!(state(&scene.host, "sw2", "1").as_deref(), Some("Down"), "its engine does not come");
    scene.one.connects_again();
    scene.end();
}

/// Guests one and two on switch sw1, and sw2, on which is nobody.
struct Scene {
    host: VmHost,
    one: Speaker,
    two: Speaker,
    before: Before,
}

/// What is to stay.
#[derive(Debug, PartialEq)]
struct Before {
    configuration: Value,
    ports: Vec<(u32, Value)>,
    sockets: BTreeSet<String>,
    statements: String,
}

impl Scene {
    fn new(host: VmHost) -> Scene {
        for switch in ["sw1", "sw2"] {
            host.ok(&["hpvmnet", "-c", "-S", switch]);
            host.ok(&["hpvmnet", "-S", switch, "-b"]);
        }
        for (number, guest) in [(1, "one"), (2, "two")] {
            let nic = format!("network:lan:0,1,0x56a10000000{number}:vswitch:sw1:portid:{number}");
            host.ok(&["hpvmcreate", "-P", guest, "-r", "64M", "-a", &nic]);
            host.ok(&["hpvmstart", "-P", guest]);
        }
        let [one, two] = [1, 2].map(|number| Speaker::new(&host, number));
        let before = Before {
            configuration: Value::Null,
            ports: Vec::new(),
            sockets: BTreeSet::new(),
            statements: String::new(),
        };
        let mut scene = Scene { host, one, two, before };
        scene.before = scene.now();
        scene.both_are_heard();
        scene
    }

    fn now(&self) -> Before {
        let folder = fs::read_dir(self.host.run_dir(1).join("net")).expect("its sockets");
        Before {
            configuration: stored(&self.host, "one"),
            ports: self.ports(),
            sockets: folder
                .map(|entry| entry.expect("read").file_name().into_string().expect("a name"))
                .collect(),
            statements: self.host.ok(&["hpvmstatus", "-P", "one", "-d"]),
        }
    }

    /// Those of both switches, as their processes keep them.
    fn ports(&self) -> Vec<(u32, Value)> {
        let of = |switch: u32| {
            let text = fs::read_to_string(self.host.path(&format!("run/hpvm/net/{switch}/ports")));
            let mut wanted: Value = serde_json::from_str(&text.ok()?).expect("JSON");
            let ports = wanted["ports"].as_array_mut().map(std::mem::take).expect("a list");
            Some(ports.into_iter().map(move |port| (switch, port)))
        };
        [2, 3].into_iter().filter_map(of).flatten().collect()
    }

    /// A change that is refused; gives why.
    #[track_caller]
    fn comes_to_nothing(&mut self, change: &[&str]) -> String {
        let outcome = self.host.run(&[&["hpvmmodify", "-P", "one"], change].concat());
        assert_eq!(outcome.status.code(), Some(1), "{outcome}");
        assert_eq!(self.now(), self.before, "after {change:?}");
        self.one.connects_again();
        self.both_are_heard();
        outcome.stderr
    }

    fn both_are_heard(&mut self) {
        let said = self.one.says();
        self.two.hears(&said);
        let said = self.two.says();
        self.one.hears(&said);
    }

    fn end(self) {
        for guest in ["one", "two"] {
            self.host.ok(&["hpvmstop", "-P", guest, "-h", "-F"]);
        }
        wait_until(BOUND, "nothing runs", || self.host.processes().is_empty());
        assert_eq!(self.host.ok(&["hpvm", "doctor"]), SOUND);
    }
}

/// A guest's NIC at 0,1.
struct Speaker {
    place: PathBuf,
    mac: [u8; 6],
    stream: UnixStream,
    said: u8,
}

impl Speaker {
    fn new(host: &VmHost, number: u8) -> Speaker {
        let place = host.run_dir(number.into()).join("net/0-1");
        let stream = connect(&place);
        Speaker { place, mac: [0x56, 0xa1, 0, 0, 0, number], stream, said: 0 }
    }

    /// As QEMU does when its connection has ended.
    fn connects_again(&mut self) {
        // Of a port that is gone there is nothing to end.
        let _ = self.stream.shutdown(Shutdown::Both);
        self.stream = connect(&self.place);
    }

    /// Connects once more when it is sent away, and not to the port that it had.
    fn follows(&mut self, is_other_there: impl Fn() -> bool) {
        while self.stream.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
        wait_until(BOUND, "the new port listens", is_other_there);
        self.stream = connect(&self.place);
    }

    /// To all.
    fn says(&mut self) -> Vec<u8> {
        self.said += 1;
        let mut frame = [[0xff; 6], self.mac].concat();
        frame.extend([0x88, 0xb5]);
        frame.resize(60, self.said);
        let length = (frame.len() as u32).to_be_bytes();
        self.stream.write_all(&[&length, &frame[..]].concat()).expect("the switch reads");
        frame
    }

    fn hears(&mut self, wanted: &[u8]) {
        let deadline = Instant::now() + BOUND;
        let mut frame = Vec::new();
        while frame != wanted {
            assert!(Instant::now() < deadline, "not heard");
            let mut length = [0; 4];
            self.stream.read_exact(&mut length).expect("a frame comes");
            frame = vec![0; u32::from_be_bytes(length) as usize];
            self.stream.read_exact(&mut frame).expect("a whole frame");
        }
    }
}

fn connect(place: &Path) -> UnixStream {
    let stream = UnixStream::connect(place).expect("the port listens");
    stream.set_read_timeout(Some(BOUND)).expect("a timeout");
    stream
}
