//! What a virtual switch outlives: that the registry is lost, and that something else has what its wire wants.

use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hpvm_host::process::PidFd;
use hpvm_netlab::{Guest, Hub, SocketHandle, apart};
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::Test;
use crate::guest_processes::{Process, arguments};
use crate::networks::SOUND;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_lost_registry_knows_its_switches_again,
    a_forward_whose_port_is_taken_is_told,
    a_nat_that_is_silent_gets_no_second_one,
    a_nat_is_started_again_whoever_started_it,
    a_busy_switch_finds_its_nat_again,
    forwards_change_while_a_guest_runs,
];

const BOUND: Duration = Duration::from_secs(20);
/// Switches are rebuilt from their texts, and the doctor keeps texts and registry together.
fn a_lost_registry_knows_its_switches_again() {
    let host = VmHost::new(Engine::Fake);
    let web = "tcp:127.0.0.1:8080:10.0.2.15:80";
    host.ok(&["hpvmnet", "-c", "-S", "gone"]);
    host.ok(&["hpvmnet", "-c", "-S", "nat1", "--wire", "nat", "--forward", web]);
    host.ok(&["hpvmnet", "-S", "nat1", "-u", "portid:4:trunk:10,20-29"]);
    host.ok(&["hpvmnet", "-S", "nat1", "-u", "portid:5:isolated:on"]);
    host.ok(&["hpvmnet", "-S", "nat1", "-C", "-N", "nat2"]);
    host.ok(&["hpvmnet", "-S", "nat2", "-b"]);
    host.ok(&["hpvmnet", "-S", "localnet", "-h", "-F"]);
    host.ok(&["hpvmnet", "-S", "gone", "-d", "-F"]);
    host.ok(&["hpvmcreate", "-P", "one", "-a", "network:lan::vswitch:nat2:portid:4"]);
    assert_eq!(host.ok(&["hpvm", "doctor"]), SOUND);
    let shown = || host.ok(&["hpvmnet", "--json"]);
    let before = shown();
    assert!(before.contains("\"isolated\": true") && before.contains("trunk 10,20-29"), "{before}");

    fs::remove_file(host.path("var/opt/hpvm/hpvm.db")).expect("the registry");
    let told = host.ok(&["hpvm", "doctor", "--rebuild"]);
    assert!(told.contains("1 guest and the virtual switches localnet, nat2."), "{told}");
    assert_eq!(shown(), before);
    assert_eq!(host.ok(&["hpvm", "doctor"]), SOUND);

    let text = host.path("var/opt/hpvm/common/vswitch-3.json");
    let kept = fs::read(&text).expect("the text");
    fs::remove_file(&text).expect("removed");
    host.refused(&["hpvm", "doctor"]);
    host.ok(&["hpvm", "doctor", "--repair"]);
    assert_eq!(fs::read(&text).expect("the text"), kept);
    // As after a backup of the registry was put back.
    host.ok(&["hpvmnet", "-S", "nat2", "-d", "-F"]);
    assert!(!text.exists(), "nothing is left of a switch that was deleted");
    fs::write(&text, &kept).expect("written");
    let found = host.run(&["hpvm", "doctor"]);
    assert!(found.stdout.contains("does not know virtual switch 'nat2'"), "{found}");
    host.ok(&["hpvm", "doctor", "--repair"]);
    assert!(host.ok(&["hpvmnet"]).contains("nat2          3 Up"), "{}", host.ok(&["hpvmnet"]));
    assert_eq!(host.ok(&["hpvm", "doctor"]), SOUND);
}

/// Guest `one` runs on virtual switch `nat1`, whose wire is a NAT.
fn with_a_guest_on_nat() -> VmHost {
    let host = VmHost::new(Engine::Fake);
    put_a_guest_on_nat(&host);
    host
}

fn put_a_guest_on_nat(host: &VmHost) {
    host.ok(&["hpvmnet", "-c", "-S", "nat1", "--wire", "nat"]);
    host.ok(&["hpvmnet", "-S", "nat1", "-b"]);
    let nic = "network:lan:0,1,0x56a100000001:vswitch:nat1";
    host.ok(&["hpvmcreate", "-P", "one", "-a", nic]);
    host.ok(&["hpvmstart", "-P", "one"]);
}

fn all_run(host: &VmHost) {
    let all = "one that works, one that would start it again, and one that would follow that";
    wait_until(BOUND, all, || host.running("hpvmnat").len() == 3);
}

fn a_nat_is_started_again_whoever_started_it() {
    apart(nat_is_started_again);
}

fn nat_is_started_again() {
    let mut host = VmHost::new(Engine::Fake);
    host.install();
    host.start_ignoring_children("hpvmnat");
    put_a_guest_on_nat(&host);
    let worker = || {
        let works = |pid: &i32| {
            arguments(*pid)
                .is_some_and(|arguments| arguments.get(1).is_some_and(|it| it == "worker"))
        };
        host.running("hpvmnat.built").into_iter().find(works)
    };
    wait_until(BOUND, "one works", || worker().is_some());
    let first = worker();
    Process::open(first.expect("it works")).kill();
    wait_until(BOUND, "another works", || worker().is_some_and(|pid| Some(pid) != first));
}

fn a_nat_that_is_silent_gets_no_second_one() {
    apart(nat_is_silent);
}

/// One that does not answer lives, and has its sockets and its ports: guests start without a wire until it has ended.
fn nat_is_silent() {
    let host = with_a_guest_on_nat();
    let nats = || host.running("hpvmnat");
    all_run(&host);
    let silent: Vec<Process> = nats().into_iter().map(Process::open).collect();
    silent.iter().for_each(|nat| nat.signal(Signal::STOP));
    host.ok(&["hpvmstop", "-P", "one", "-h", "-F"]);
    host.ok(&["hpvmstart", "-P", "one"]);
    let log = fs::read_to_string(host.path("var/opt/hpvm/common/vswitch-2.log")).expect("a log");
    assert!(log.contains("the NAT of virtual switch 'nat1' fails: "), "{log}");
    assert_eq!(nats().len(), 3, "no other was started");
    // It does then what it was asked.
    silent.iter().for_each(|nat| nat.signal(Signal::CONT));
    wait_until(BOUND, "it ends", || nats().is_empty());
    host.ok(&["hpvmstop", "-P", "one", "-h", "-F"]);
    host.ok(&["hpvmstart", "-P", "one"]);
    all_run(&host);
    host.end_program("hpvmnat");
    let shown = host.ok(&["hpvmnet", "-S", "nat1", "-V"]);
    assert!(shown.contains("Wire Link                        : missing\n"), "{shown}");
    let why = host.ok(&["hpvm", "why", "-P", "one"]);
    assert!(why.contains("because the NAT of virtual switch 'nat1' was killed\n"), "{why}");
    let doctor = host.run(&["hpvm", "doctor"]);
    assert!(doctor.stdout.contains("the NAT of virtual switch 'nat1'"), "{doctor}");
    let next = "hpvmnet -S nat1 -b";
    assert!(why.ends_with(&format!("Next:  {next}\n")) && doctor.stdout.contains(next));
    host.ok(&next.split(' ').collect::<Vec<_>>());
    assert_eq!(host.ok(&["hpvm", "doctor"]), SOUND);
    let shown = host.ok(&["hpvmnet", "-S", "nat1", "-V"]);
    assert!(shown.contains("Wire Link                        : up\n"), "{shown}");
}

fn a_forward_whose_port_is_taken_is_told() {
    apart(forward_is_told);
}

/// Who starts a guest hears of it once, with the port and what to do.
fn forward_is_told() {
    let mut host = VmHost::new(Engine::Fake);
    let taken = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = taken.local_addr().expect("bound").port();
    let forward = format!("tcp:127.0.0.1:{port}:10.0.2.15:80");
    host.ok(&["hpvmnet", "-c", "-S", "nat1", "--wire", "nat", "--forward", &forward]);
    host.ok(&["hpvmnet", "-S", "nat1", "-b"]);
    let words = format!("port forward {forward} of virtual switch 'nat1' is not there: ");
    let nic = "network:lan::vswitch:nat1";
    host.ok(&["hpvmcreate", "-P", "one", "-a", nic]);
    let started = host.run(&["hpvmstart", "-P", "one"]);
    assert!(started.status.success(), "{started}");
    assert_eq!(started.stderr.matches(&words).count(), 1, "{started}");
    assert!(started.stderr.contains("`hpvmnet -S nat1 -C --forward`"), "{started}");

    // The owner of the VM Host alone lets guests reach its loopback.
    let host_access = |host: &VmHost| {
        let pid = host.running("hpvmnat").pop_first()?;
        arguments(pid)?.into_iter().find(|argument| argument.starts_with("host:"))
    };
    assert_eq!(host_access(&host).as_deref(), Some("host:hidden"));
    host.ok(&["hpvmstop", "-P", "one", "-h", "-F"]);
    host.set("HPVMNATREACHABLE", "other nat1");
    host.ok(&["hpvmstart", "-P", "one"]);
    assert_eq!(host_access(&host).as_deref(), Some("host:reachable"));

    // The port is free again, so the forward is made for whoever comes next.
    drop(taken);
    host.ok(&["hpvmcreate", "-P", "two", "-a", nic]);
    let started = host.run(&["hpvmstart", "-P", "two"]);
    assert!(started.status.success() && !started.stderr.contains("port forward"), "{started}");
    TcpStream::connect(("127.0.0.1", port)).expect("somebody listens there");
}

fn a_busy_switch_finds_its_nat_again() {
    apart(nat_is_found_again);
}

/// However often somebody wants something of the switch: here, its counters.
fn nat_is_found_again() {
    let host = with_a_guest_on_nat();
    wait_until(BOUND, "the switch is connected", || nat_says(&host).contains("\"connected\":true"));
    let pid = |status: &str| {
        let status: Value = serde_json::from_str(status).ok()?;
        i32::try_from(status["status"]["pid"].as_i64()?).ok()
    };
    let before = pid(&nat_says(&host)).expect("the worker's number");
    let worker = PidFd::open_number(before).expect("a pidfd").expect("it lives");
    worker.signal(Signal::KILL).expect("a signal to our own process");
    wait_until(BOUND, "the switch is connected to the next", || {
        host.ok(&["hpvmnet", "-S", "nat1", "-A"]);
        let status = nat_says(&host);
        pid(&status).is_some_and(|pid| pid != before) && status.contains("\"connected\":true")
    });
}

fn forwards_change_while_a_guest_runs() {
    apart(forwards_change);
}

/// The NAT that runs has the forwards of the last command, and no other.
fn forwards_change() {
    const PORT: u16 = 7053;
    let host = with_a_guest_on_nat();
    let line = UnixStream::connect(host.run_dir(1).join("net/0-1")).expect("the port listens");
    let mut guest = Guest::booted(&Hub::new(line), 1);
    all_run(&host);
    let before = host.running("hpvmnat");
    let [udp, tcp] = ["udp", "tcp"].map(|kind| format!("{kind}:127.0.0.1:{PORT}:10.0.2.15:53"));
    let has = |forwards: &[&str]| {
        let mut line = vec!["hpvmnet", "-S", "nat1", "-C"];
        let asked = if forwards.is_empty() { &["none"] } else { forwards };
        line.extend(asked.iter().flat_map(|forward| ["--forward", forward]));
        host.ok(&line);
        let status: Value = serde_json::from_str(&nat_says(&host)).expect("a status");
        assert_eq!(status["status"]["forwards"], json!(forwards));
        let shown = host.ok(&["hpvmnet", "-S", "nat1", "-V"]);
        let shown = shown.lines().filter(|line| line.starts_with("Port Forward"));
        let shown: Vec<&str> =
            shown.filter_map(|line| line.split_once(": ")).map(|l| l.1).collect();
        assert_eq!(shown, forwards);
    };
    let datagrams = guest.udp_socket(53);

    has(&[&udp]);
    let asking = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    asking.connect((Ipv4Addr::LOCALHOST, PORT)).expect("an address");
    asking.set_read_timeout(Some(BOUND)).expect("a bound");
    by_datagram(&mut guest, datagrams, &asking);
    is_refused(TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)));
    has(&[&udp, &tcp]);
    by_datagram(&mut guest, datagrams, &asking);
    by_stream(&mut guest, PORT);
    has(&[&tcp]);
    by_stream(&mut guest, PORT);
    asking.send(b"ask").expect("sent");
    is_refused(asking.recv(&mut [0; 16]));
    has(&[]);
    is_refused(TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)));
    has(&[&udp]);
    by_datagram(&mut guest, datagrams, &asking);
    assert_eq!(host.running("hpvmnat"), before, "it is the same NAT");
}

#[track_caller]
fn is_refused<T: std::fmt::Debug>(outcome: io::Result<T>) {
    assert_eq!(outcome.expect_err("nobody listens").kind(), ErrorKind::ConnectionRefused);
}

/// Somebody on the VM Host asks, and the guest answers.
fn by_datagram(guest: &mut Guest, socket: SocketHandle, asking: &UdpSocket) {
    asking.send(b"ask").expect("sent");
    let from = guest.until("the datagram reaches the guest", |guest| {
        let (bytes, from) = guest.udp(socket).recv().ok()?;
        (bytes == b"ask").then_some(from.endpoint)
    });
    guest.udp(socket).send_slice(b"answer", from).expect("sent");
    guest.until("the answer is sent", |guest| (guest.udp(socket).send_queue() == 0).then_some(()));
    let mut answer = [0; 16];
    let count = asking.recv(&mut answer).expect("an answer");
    assert_eq!(&answer[..count], b"answer");
}

fn by_stream(guest: &mut Guest, port: u16) {
    let listening = guest.listen(53);
    let mut asking = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the NAT listens");
    asking.set_read_timeout(Some(BOUND)).expect("a bound");
    guest.until("the guest is called", |guest| guest.tcp(listening).may_send().then_some(()));
    guest.tcp(listening).send_slice(b"answer").expect("sent");
    guest.tcp(listening).close();
    guest.until("the answer is sent", |guest| {
        (guest.tcp(listening).send_queue() == 0).then_some(())
    });
    let mut answer = [0; 6];
    asking.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"answer");
}

/// The answer to `status`; empty when nobody gives one.
fn nat_says(host: &VmHost) -> String {
    let mut answer = String::new();
    if let Ok(mut asking) = UnixStream::connect(host.path("run/hpvm/net/2/nat-control")) {
        asking.set_read_timeout(Some(BOUND)).expect("a bound");
        let _ = asking.write_all(b"\"status\"\n");
        let _ = BufReader::new(asking).read_line(&mut answer);
    }
    answer
}
