//! What a virtual switch outlives: that the registry is lost, and that something else has what its wire wants.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hpvm_host::process::PidFd;
use hpvm_netlab::apart;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;
use rustix::process::Signal;
use serde_json::Value;

use crate::Test;
use crate::guest_processes::Process;
use crate::networks::SOUND;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_lost_registry_knows_its_switches_again,
    a_forward_whose_port_is_taken_is_told,
    a_nat_that_is_silent_gets_no_second_one,
    a_busy_switch_finds_its_nat_again,
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
    host.ok(&["hpvmnet", "-c", "-S", "nat1", "--wire", "nat"]);
    host.ok(&["hpvmnet", "-S", "nat1", "-b"]);
    host.ok(&["hpvmcreate", "-P", "one", "-a", "network:lan::vswitch:nat1"]);
    host.ok(&["hpvmstart", "-P", "one"]);
    host
}

fn a_nat_that_is_silent_gets_no_second_one() {
    apart(nat_is_silent);
}

/// One that does not answer lives, and has its sockets and its ports: guests start without a wire until it has ended.
fn nat_is_silent() {
    let host = with_a_guest_on_nat();
    let nats = || host.running("hpvmnat");
    let all = "one that works, one that would start it again, and one that would follow that";
    wait_until(BOUND, all, || nats().len() == 3);
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
    wait_until(BOUND, all, || nats().len() == 3);
    host.end_program("hpvmnat");
    wait_until(BOUND, "all are gone", || nats().is_empty());
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
        let (pid, _) = host.processes().into_iter().find(|(_, name)| name == "hpvmnat")?;
        let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        arguments.split('\0').find(|argument| argument.starts_with("host:")).map(str::to_owned)
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
