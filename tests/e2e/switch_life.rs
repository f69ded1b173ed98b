//! What a virtual switch outlives: that its process is replaced under its guests by another version of the program, which can do
//! more or less, that the registry is lost, and that something else has what its wire wants.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hpvm_host::process::PidFd;
use hpvm_netlab::{Pinger, apart, ip};
use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;
use rustix::process::Signal;
use serde_json::Value;

use crate::Test;
use crate::guest_processes::process;
use crate::networks::{SOUND, at_the_shell, reaches, wait_for_carrier};

pub(crate) const TESTS: &[Test] = crate::tests![
    versions_change_under_running_guests,
    a_lost_registry_knows_its_switches_again,
    a_forward_whose_port_is_taken_is_told,
    a_nat_that_is_silent_gets_no_second_one,
    a_busy_switch_finds_its_nat_again,
];

const BOUND: Duration = Duration::from_secs(20);
/// What traffic may take from the switch's return on.
const RESUMED_WITHIN: Duration = Duration::from_millis(200);
/// Segmentation over IPv6, both ways: what the older version has not (virtio 1.2, 5.1.3).
const NEW_FEATURES: u64 = 1 << 8 | 1 << 12;
const HOST: u32 = 100;
const PINGS: u32 = 5;

#[derive(Clone, Copy, Debug)]
enum Version {
    Older,
    Newer,
}

#[derive(Clone, Copy, Debug)]
enum Replacing {
    /// `hpvmnet -r`
    Reset,
    /// `kill -9`, after which the keeper starts what is installed.
    Kill,
}

fn versions_change_under_running_guests() {
    apart(versions_change);
}

fn versions_change() {
    let mut host = VmHost::new(Engine::Real);
    host.install();
    install(&host, Version::Older);
    host.ok(&["hpvmnet", "-c", "-S", "sw1", "--wire", "tap:hpvmtap1"]);
    host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
    let mut vio = at_the_shell(&host, 1, "vio", "lan", "e1000");
    // The process runs already, so a port gets what that process has.
    let mut avio = at_the_shell(&host, 2, "avio", "avio_lan", "virtio_net");
    for network in [8, 9] {
        ip(&format!("address add 10.{network}.0.{HOST}/24 dev hpvmtap1"));
    }
    let given = features(&host, 2);
    assert_eq!(given & NEW_FEATURES, 0, "{given:#x}");
    assert!(reaches(&mut avio, HOST, PINGS) && reaches(&mut vio, 2, PINGS));

    traffic_goes_on(&host, given);
    assert!(reaches(&mut avio, 1, PINGS) && reaches(&mut vio, 2, PINGS));
    a_port_waits_for_the_version_it_needs(&host, &mut vio);
    what_another_version_wrote_is_kept(&host);
    assert!(reaches(&mut avio, 1, PINGS) && reaches(&mut vio, 2, PINGS));

    for name in ["avio", "vio"] {
        host.ok(&["hpvmstop", "-P", name, "-h", "-F"]);
    }
    wait_until(BOUND, "nothing runs", || host.processes().is_empty());
    assert_eq!(host.ok(&["hpvm", "doctor"]), SOUND);
}

fn install(host: &VmHost, version: Version) {
    let arguments = match version {
        Version::Older => format!("without:{NEW_FEATURES:x}"),
        Version::Newer => String::new(),
    };
    host.replace_program("hpvmnetd", &arguments);
}

/// What the switch is to be, as its process keeps it.
fn ports(host: &VmHost) -> Value {
    let text = fs::read_to_string(host.path("run/hpvm/net/2/ports")).expect("the ports");
    serde_json::from_str(&text).expect("JSON")
}

/// The features that a port is offered.
fn features(host: &VmHost, port: u64) -> u64 {
    let ports = ports(host);
    let mut plugs = ports["ports"].as_array().expect("ports").iter();
    let plug = plugs.find(|plug| plug["port"] == port).expect("the port");
    plug["features"].as_u64().expect("of an AVIO port")
}

/// Upgraded and downgraded, by the administrator and by a death: the guests of both kinds do nothing, and go on.
fn traffic_goes_on(host: &VmHost, given: u64) {
    let guests = [1, 2].map(|number| Pinger::start(Ipv4Addr::new(10, 9, 0, number)));
    let since = Instant::now();
    await_answer(host, &guests, since);
    let mut all = Vec::new();
    for round in 0..2 {
        for replacing in [Replacing::Reset, Replacing::Kill] {
            for version in [Version::Newer, Version::Older] {
                install(host, version);
                let from = Instant::now();
                let back = replace(host, replacing);
                let resumed = await_answer(host, &guests, back) - back;
                all.push(resumed);
                let [vio, avio] = guests.each_ref().map(|guest| lost(guest, from));
                println!(
                    "round {round}, {replacing:?} to {version:?}: back after {:?}, traffic {resumed:?} later; lost of questions {:?} apart: lan {vio}, avio_lan {avio}",
                    back - from,
                    Duration::from_millis(5),
                );
                assert_eq!(features(host, 2), given, "exactly what it was given first");
            }
        }
    }
    // Each guest is emulated, and may wait for a processor that long by itself.
    all.sort();
    assert!(all[all.len() / 2] <= RESUMED_WITHIN, "{all:?}");
}

/// Waits until all answer what is asked after this moment.
fn await_answer(host: &VmHost, guests: &[Pinger], moment: Instant) -> Instant {
    let deadline = Instant::now() + BOUND;
    let mut answered = None;
    wait_until(2 * BOUND, "all answer", || {
        answered = answer(guests, moment);
        assert!(answered.is_some() || Instant::now() < deadline, "{}", told(host));
        answered.is_some()
    });
    answered.expect("waited for")
}

/// What may tell why nothing passes.
fn told(host: &VmHost) -> String {
    let log = fs::read_to_string(host.path("var/opt/hpvm/common/vswitch-2.log"));
    format!("{}\n{}", host.ok(&["hpvmnet", "-S", "sw1", "-A"]), log.unwrap_or_default())
}

/// When all of them had answered something that was asked after this moment.
fn answer(guests: &[Pinger], moment: Instant) -> Option<Instant> {
    let answers: Option<Vec<Instant>> =
        guests.iter().map(|guest| guest.answered_since(moment)).collect();
    answers?.into_iter().max()
}

/// Questions without an answer, of those asked from a moment to the last that was answered.
fn lost(guest: &Pinger, from: Instant) -> usize {
    let echoes = guest.echoes();
    let last = echoes.iter().rposition(|echo| echo.answered.is_some()).unwrap_or(0);
    echoes[..last].iter().filter(|echo| echo.asked >= from && echo.answered.is_none()).count()
}

/// Replaces the process; gives the moment at which another one is there.
fn replace(host: &VmHost, replacing: Replacing) -> Instant {
    match replacing {
        Replacing::Reset => {
            host.ok(&["hpvmnet", "-S", "sw1", "-r", "-F"]);
            Instant::now()
        }
        Replacing::Kill => {
            let status = host.path("run/hpvm/net/2/status");
            let written = || fs::metadata(&status).map(|file| file.ino()).ok();
            process(host, "hpvmnetd").expect("the switch runs").kill();
            let before = written();
            wait_until(BOUND, "another process has published its status", || written() != before);
            Instant::now()
        }
    }
}

/// A port that was given more than the older version has is down under that one, while the others go on, and comes back with
/// the version that has it.
fn a_port_waits_for_the_version_it_needs(host: &VmHost, vio: &mut Console) {
    install(host, Version::Newer);
    host.ok(&["hpvmnet", "-S", "sw1", "-r", "-F"]);
    host.ok(&["hpvmmodify", "-P", "vio", "-a", "network:avio_lan:0,2:vswitch:sw1:portid:3"]);
    vio.run("modprobe virtio_net");
    vio.run("i=50; until [ -e /sys/class/net/eth1 ] || [ $i = 0 ]; do i=$((i-1)); sleep 0.1; done");
    // Linux would have eth0 answer for eth1.
    vio.run("echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore");
    vio.run("ifconfig eth1 10.8.0.3 netmask 255.255.255.0 up");
    let guests = [[9, 1], [9, 2], [8, 3]]
        .map(|[network, number]| Pinger::start(Ipv4Addr::new(10, network, 0, number)));
    let all_answer = || {
        await_answer(host, &guests, Instant::now());
    };
    all_answer();
    let given = features(host, 3);
    assert_eq!(given & NEW_FEATURES, NEW_FEATURES);

    install(host, Version::Older);
    let reset = host.run(&["hpvmnet", "-S", "sw1", "-r", "-F"]);
    assert!(reset.status.success(), "{reset}");
    assert!(reset.stderr.contains("which this version of hpvmnetd has not"), "{reset}");
    let eth1 = |console: &mut Console| console.run("cat /sys/class/net/eth1/carrier");
    wait_until(BOUND, "the link of the port is down", || eth1(vio) == "0");
    let now = Instant::now();
    await_answer(host, &guests[..2], now);
    assert_eq!(guests[2].answered_since(now).map(|at| at - now), None, "{}", told(host));
    let shown = host.ok(&["hpvmnet", "-S", "sw1"]);
    assert!(shown.contains("3       Down         avio_lan none     1            vio\n"), "{shown}");

    install(host, Version::Newer);
    host.ok(&["hpvmnet", "-S", "sw1", "-r", "-F"]);
    wait_for_carrier(vio, "1");
    all_answer();
    assert_eq!(features(host, 3), given);
    drop(guests);
    host.ok(&["hpvmmodify", "-P", "vio", "-d", "network:avio_lan:0,2"]);
}

/// A field that another version wrote goes through the hands of this one.
fn what_another_version_wrote_is_kept(host: &VmHost) {
    let path = host.path("run/hpvm/net/2/ports");
    let switch = process(host, "hpvmnetd").expect("the switch runs");
    switch.signal(Signal::STOP);
    let mut known = ports(host);
    known["ports"][0]["rules"]["colour"] = "red".into();
    fs::write(&path, known.to_string()).expect("written");
    switch.kill();
    wait_until(BOUND, "another process runs", || process(host, "hpvmnetd").is_some());
    host.ok(&["hpvmnet", "-S", "sw1", "-u", "portid:1:spoof:off"]);
    let rules = &ports(host)["ports"][0]["rules"];
    assert_eq!([&rules["colour"], &rules["spoof_guard"]], ["red", "off"], "{rules}");
    host.ok(&["hpvmnet", "-S", "sw1", "-u", "portid:1:spoof:on"]);
    let log = fs::read_to_string(host.path("var/opt/hpvm/common/vswitch-2.log")).expect("a log");
    assert!(log.contains("another version of hpvmnetd wrote 'ports.rules.colour'"), "{log}");
}

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
    assert!(told.contains("1 guests and the virtual switches localnet, nat2."), "{told}");
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
    let nats = || {
        // The one that works, and the one that stands by, are started by /proc/self/exe.
        let is_nat = |name: &str| ["hpvmnat", "exe"].contains(&name);
        let all = host.processes().into_iter().filter(|(_, name)| is_nat(name));
        all.filter_map(|(pid, _)| PidFd::open_number(pid).ok().flatten()).collect::<Vec<_>>()
    };
    let signal = |to: &[PidFd], signal| {
        to.iter().for_each(|nat| assert!(nat.signal(signal).expect("our own process")));
    };
    let all = "one that works, one that would start it again, and one that would follow that";
    wait_until(BOUND, all, || nats().len() == 3);
    let silent = nats();
    signal(&silent, Signal::STOP);
    host.ok(&["hpvmstop", "-P", "one", "-h", "-F"]);
    host.ok(&["hpvmstart", "-P", "one"]);
    let log = fs::read_to_string(host.path("var/opt/hpvm/common/vswitch-2.log")).expect("a log");
    assert!(log.contains("the NAT of virtual switch 'nat1' fails: "), "{log}");
    assert_eq!(nats().len(), 3, "no other was started");
    // It does then what it was asked.
    signal(&silent, Signal::CONT);
    wait_until(BOUND, "it ends", || nats().is_empty());
    host.ok(&["hpvmstop", "-P", "one", "-h", "-F"]);
    host.ok(&["hpvmstart", "-P", "one"]);
    wait_until(BOUND, all, || nats().len() == 3);
    // Stopped first, so that none is left to start another.
    let killed = nats();
    signal(&killed, Signal::STOP);
    signal(&killed, Signal::KILL);
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
