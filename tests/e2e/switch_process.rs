//! The process of a virtual switch at its limits: one that does not come up, and one with more than a hundred ports. The test
//! speaks for the guests.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use hpvm_netlab::{Card, apart};
use hpvm_testkit::vm_host::{Engine, Outcome, VmHost, program};
use hpvm_testkit::wait::wait_until;
use hpvm_testkit::write_script;

use crate::Test;
use crate::guest_processes::process;
use crate::networks::SOUND;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_start_is_refused_whose_switch_does_not_come_up,
    a_guest_starts_with_the_vm_host_although_its_switch_is_slow,
    a_hundred_ports_outlive_their_process,
];

const BOUND: Duration = Duration::from_secs(20);
/// The switch's process has two seconds; the rest is the command's own.
const REFUSED_WITHIN: Duration = Duration::from_secs(4);
/// A process that was killed, with all its ports.
const BACK_WITHIN: Duration = Duration::from_secs(2);
const GUESTS: usize = 7;
const NICS: usize = 16;
/// Of a guest's NICs the last are `avio_lan`.
const LAN_NICS: usize = 14;
/// How long idle ports are looked at, and what they may cost: four times what the bench allows.
const IDLE: Duration = Duration::from_secs(5);
const IDLE_SHARE_MAX: f64 = 0.0008;
const IDLE_KIB_MAX: u64 = 32 * 1024;
/// Less than a hundred ports need.
const FEW_DESCRIPTORS: &str = "--nofile=64:4096";

/// Whether it never answers or ends again and again: the start names the switch, and leaves nothing behind.
fn a_start_is_refused_whose_switch_does_not_come_up() {
    let mut host = VmHost::new(Engine::Fake);
    host.install();
    host.ok(&["hpvmnet", "-c", "-S", "sw1"]);
    host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
    host.ok(&["hpvmcreate", "-P", "one", "-r", "64M", "-a", "network:lan::vswitch:sw1"]);
    let place = host.path("opt/hpvm/lbin/hpvmnetd");
    let good = host.path("opt/hpvm/lbin/hpvmnetd.good");
    fs::rename(&place, &good).expect("put aside");
    for bad in ["exec sleep 1000", "exit 3"] {
        write_script(&place, bad);
        let began = Instant::now();
        let refusal = host.refused(&["hpvmstart", "-P", "one"]);
        let took = began.elapsed();
        println!("{bad}: refused after {took:?}: {refusal}");
        assert!(refusal.contains("virtual switch 'sw1'"), "{refusal}");
        assert!(took < REFUSED_WITHIN, "{took:?}");
        assert_eq!(host.state("one"), "Off");
        wait_until(BOUND, "nothing runs", || host.processes().is_empty());
        assert_eq!(host.ok(&["hpvm", "doctor"]), SOUND);
    }
    fs::rename(&good, &place).expect("put back");
    host.ok(&["hpvmstart", "-P", "one"]);
    host.ok(&["hpvmstop", "-P", "one", "-h", "-F"]);
}

/// The first process of a boot is too slow, the next one is not.
fn a_guest_starts_with_the_vm_host_although_its_switch_is_slow() {
    let mut host = VmHost::new(Engine::Fake);
    host.install();
    host.ok(&["hpvmnet", "-c", "-S", "sw1"]);
    host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
    let nic = ["-a", "network:lan::vswitch:sw1"];
    host.ok(&[&["hpvmcreate", "-P", "one", "-r", "64M", "-B", "auto"][..], &nic].concat());
    let place = host.path("opt/hpvm/lbin/hpvmnetd");
    let good = host.path("opt/hpvm/lbin/hpvmnetd.good");
    fs::rename(&place, &good).expect("put aside");
    let seen = host.path("seen");
    fs::create_dir(&seen).expect("a folder");
    fs::set_permissions(&seen, fs::Permissions::from_mode(0o777))
        .expect("the switch's user writes there");
    let (good, first) = (good.display(), seen.join("first"));
    let slow_once =
        format!("mkdir '{}' 2>/dev/null && exec sleep 1000\nexec '{good}' \"$@\"", first.display());
    write_script(&place, &slow_once);
    println!("{}", host.ok(&["hpvm", "autostart"]));
    assert!(first.exists(), "the slow one was tried");
    assert_ne!(host.state("one"), "Off");
    host.ok(&["hpvmstop", "-P", "one", "-h", "-F"]);
}

fn a_hundred_ports_outlive_their_process() {
    apart(hundred_ports);
}

fn hundred_ports() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmnet", "-c", "-S", "sw1"]);
    host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
    for guest in 1..=GUESTS {
        let nics: Vec<String> = (0..NICS)
            .map(|nic| {
                let kind = if nic < LAN_NICS { "lan" } else { "avio_lan" };
                format!("network:{kind}:{},{}:vswitch:sw1", slot(nic), mac_text(guest, nic))
            })
            .collect();
        let name = format!("guest{guest}");
        let mut line = vec!["hpvmcreate", "-P", &name, "-r", "64M"];
        line.extend(nics.iter().flat_map(|nic| ["-a", nic]));
        host.ok(&line);
    }
    start_with_few_descriptors(&host, "guest1");
    for guest in 2..=GUESTS {
        host.ok(&["hpvmstart", "-P", &format!("guest{guest}")]);
    }
    let mut speakers: Vec<Speaker> = (1..=GUESTS)
        .flat_map(|guest| (0..NICS).map(move |nic| (guest, nic)))
        .map(|(guest, nic)| Speaker::new(&host, guest, nic))
        .collect();
    all_are_heard(&mut speakers);
    all_are_shown(&host);

    process(&host, "hpvmnetd").expect("the switch runs").kill();
    let killed = Instant::now();
    for speaker in &mut speakers {
        wait_until(BOUND, "the port is served again", || speaker.connect_again());
    }
    all_are_heard(&mut speakers);
    let back = killed.elapsed();
    println!("{} ports are back {back:?} after the kill", speakers.len());
    assert!(back < BACK_WITHIN, "{back:?}");
    all_are_shown(&host);
    idle_ports_cost_nothing(&host);
    for guest in 1..=GUESTS {
        host.ok(&["hpvmstop", "-P", &format!("guest{guest}"), "-h", "-F"]);
    }
    wait_until(BOUND, "nothing runs", || host.processes().is_empty());
    assert_eq!(host.ok(&["hpvm", "doctor"]), SOUND);
}

/// The guest's start starts the switch's process too.
fn start_with_few_descriptors(host: &VmHost, guest: &str) {
    let link = host.path("hpvmstart");
    symlink(program("hpvm"), &link).expect("a link");
    let mut command = Command::new("prlimit");
    command.arg(FEW_DESCRIPTORS).arg(&link).args(["-P", guest]).env("HPVM_ROOT", host.root());
    let outcome = Outcome::of("hpvmstart with few descriptors", command, b"");
    assert!(outcome.status.success(), "{outcome}");
}

/// Each says something to all, and the last one hears it.
fn all_are_heard(speakers: &mut [Speaker]) {
    let (last, others) = speakers.split_last_mut().expect("some");
    for speaker in others {
        let sent = speaker.frame();
        speaker.send(&sent);
        last.hear(&sent);
    }
}

/// What the process publishes once a second tells of each port that it is served.
fn all_are_shown(host: &VmHost) {
    wait_until(BOUND, "each port is shown as served", || {
        let shown = host.ok(&["hpvmnet", "-S", "sw1"]);
        let rows = shown.lines().filter(|line| line.starts_with(char::is_numeric));
        rows.filter(|line| line.contains(" Active ")).count() == GUESTS * NICS
    });
}

/// Of the switch's process and its keeper, over some of the moments at which the process looks for what has changed. What a
/// hypervisor takes from a processor counts as used by whoever runs on it, so the time is measured until it was left alone.
fn idle_ports_cost_nothing(host: &VmHost) {
    let switch = process(host, "hpvmnetd").expect("the switch runs");
    let both = [switch.pid, switch.parent().pid];
    let used = || both.map(processor_time).into_iter().sum::<Duration>();
    wait_until(BOUND, "idle ports cost nothing", || {
        let (began, before) = (Instant::now(), used());
        wait_until(BOUND, "it was looked for", || began.elapsed() > IDLE);
        let share = (used() - before).as_secs_f64() / began.elapsed().as_secs_f64();
        println!("idle: {:.3}% of a processor", share * 100.0);
        share < IDLE_SHARE_MAX
    });
    let memory: u64 = both.map(memory_kib).into_iter().sum();
    println!("idle: {memory} KiB");
    assert!(memory <= IDLE_KIB_MAX, "{memory}");
}

/// Of all its threads, to the nanosecond (proc(5), schedstat).
fn processor_time(pid: i32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it lives").flatten();
    let ran = tasks.map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).expect("of a thread");
        text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).expect("a number")
    });
    Duration::from_nanos(ran.sum())
}

/// Its own, and its part of what it shares.
fn memory_kib(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it lives");
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Some of bus 0 are kept.
fn slot(nic: usize) -> String {
    format!("{},{}", 1 + nic / 8, nic % 8)
}

fn mac_text(guest: usize, nic: usize) -> String {
    format!("0x56a10000{guest:02x}{nic:02x}")
}

struct Speaker {
    place: PathBuf,
    mac: [u8; 6],
    line: Line,
}

enum Line {
    Lan(UnixStream),
    Avio(Box<Card>),
}

impl Speaker {
    fn new(host: &VmHost, guest: usize, nic: usize) -> Speaker {
        let place = host.run_dir(guest as u32).join("net").join(slot(nic).replace(',', "-"));
        let line = if nic < LAN_NICS {
            Line::Lan(UnixStream::connect(&place).expect("the port listens"))
        } else {
            Line::Avio(Box::new(Card::plug_in(&place).expect("the switch agrees")))
        };
        Speaker { place, mac: [0x56, 0xa1, 0, 0, guest as u8, nic as u8], line }
    }

    /// Whether there was somebody to connect to. The keeper holds the socket: who waits there is served by the next process.
    fn connect_again(&mut self) -> bool {
        match &mut self.line {
            Line::Lan(stream) => {
                UnixStream::connect(&self.place).map(|anew| *stream = anew).is_ok()
            }
            Line::Avio(card) => card.plug_in_again().is_ok(),
        }
    }

    fn frame(&self) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend(self.mac);
        frame.extend([0x88, 0xb5]);
        frame.resize(60, 0);
        frame
    }

    fn send(&mut self, frame: &[u8]) {
        match &mut self.line {
            Line::Lan(stream) => {
                let length = (frame.len() as u32).to_be_bytes();
                stream.write_all(&[&length, frame].concat()).expect("the switch reads");
            }
            Line::Avio(card) => card.send(frame),
        }
    }

    /// Waits for this frame; the last of the speakers is an `avio_lan` NIC.
    fn hear(&mut self, wanted: &[u8]) {
        let Line::Avio(card) = &mut self.line else { panic!("a card") };
        let deadline = Instant::now() + BOUND;
        while card.receive().as_deref() != Some(wanted) {
            card.wait(Duration::from_millis(50));
            assert!(Instant::now() < deadline, "not heard");
        }
    }
}
