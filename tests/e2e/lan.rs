//! Virtual switches that have a wire, in a network of the test's own: two real guests, and the VM Host itself at the other end
//! of a tap.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use hpvm_host::process::PidFd;
use hpvm_netlab::{apart, ip, pair};
use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;
use rustix::process::Signal;

use crate::Test;
use crate::networks::{at_the_shell, reaches};

pub(crate) const TESTS: &[Test] =
    crate::tests![guests_talk_with_their_host_and_keep_to_rules, packet_sizes_are_compared];

const BOUND: Duration = Duration::from_secs(20);
/// The last byte of the VM Host's address on the guests' network.
const HOST: u32 = 100;
const PING: u32 = 5;
/// The address that a guest gives itself.
const OTHER: &str = "02:11:22:33:44:55";

fn guests_talk_with_their_host_and_keep_to_rules() {
    apart(talk_and_keep_to_rules);
}

/// Settles 117, 126. One boot of two guests serves all of this, since it takes most of the time.
fn talk_and_keep_to_rules() {
    let host = VmHost::new(Engine::Real);
    host.ok(&["hpvmnet", "-c", "-S", "sw1", "--wire", "tap:hpvmtap1"]);
    host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
    let mut avio = at_the_shell(&host, 1, "avio", "avio_lan", "virtio_net");
    ip(&format!("address add 10.9.0.{HOST}/24 dev hpvmtap1"));
    let mut vio = at_the_shell(&host, 2, "vio", "lan", "e1000");

    a_capture_has_what_passes(&host, &mut avio);
    the_host_is_reached(&mut vio);
    vlans_part(&host, &mut avio, &mut vio);
    a_changed_address_is_refused(&host, &mut avio);

    for name in ["avio", "vio"] {
        host.ok(&["hpvmstop", "-P", name, "-h", "-F"]);
    }
    wait_until(BOUND, "nothing runs", || host.processes().is_empty());
}

/// A ping of the VM Host, in a capture of the guest's port.
fn a_capture_has_what_passes(host: &VmHost, avio: &mut Console) {
    let file = host.path("port1.pcap");
    let line = ["hpvmnet", "-S", "sw1", "-p", "1", "--capture", &file.to_string_lossy()];
    let mut command = host.command(&line).spawn().expect("it runs");
    let bytes = || fs::metadata(&file).map_or(0, |file| file.len());
    wait_until(BOUND, "the capture has begun", || bytes() > 0);
    assert!(reaches(avio, HOST, PING), "{}", host.ok(&["hpvmnet", "-S", "sw1", "-A"]));
    let mac = mac_of(host, "avio");
    let passed = |file: &Path| {
        let frames = frames_of(&fs::read(file).expect("a capture"));
        let is_echo = |frame: &&Vec<u8>, kind| {
            frame.len() >= 35 && frame[12..14] == [8, 0] && frame[23] == 1 && frame[34] == kind
        };
        let out = frames.iter().any(|f| is_echo(&f, 8) && f[6..12] == mac);
        out && frames.iter().any(|f| is_echo(&f, 0) && f[..6] == mac)
    };
    wait_until(BOUND, "the file has the question and the answer", || passed(&file));
    end(&mut command);
    assert!(passed(&file), "it is whole at the end");
    let length = bytes();
    assert!(reaches(avio, HOST, PING));
    assert_eq!(bytes(), length, "a capture that has ended grows no more");
}

/// As Ctrl-C does.
pub(crate) fn end(command: &mut Child) {
    let pid = i32::try_from(command.id()).expect("a number");
    let handle = PidFd::open_number(pid).expect("a pidfd").expect("it lives");
    assert!(handle.signal(Signal::INT).expect("our own process"));
    let status = command.wait().expect("it ends");
    assert!(status.success(), "{status}");
}

/// The frames of a capture (pcap-savefile(5)): each record whole, none longer than it was, in the order of time.
fn frames_of(pcap: &[u8]) -> Vec<Vec<u8>> {
    let word =
        |at: usize| pcap.get(at..at + 4).map(|w| u32::from_ne_bytes(w.try_into().expect("4")));
    assert_eq!(word(0), Some(0xa1b2_c3d4), "microseconds");
    assert_eq!(word(4), Some(2 | 4 << 16), "version 2.4");
    assert_eq!(word(20), Some(1), "Ethernet");
    let snap_bytes = word(16).expect("a whole head");
    let (mut at, mut time, mut frames) = (24, (0, 0), Vec::new());
    // The switch writes a batch's records in one piece, and a reader between two writes sees whole ones.
    while at < pcap.len() {
        let field = |number: usize| word(at + 4 * number).expect("a whole head of a record");
        let (now, kept, octets) = ((field(0), field(1)), field(2), field(3));
        assert!(now >= time && now.1 < 1_000_000, "{now:?} after {time:?}");
        assert_eq!(kept, octets.min(snap_bytes));
        let end = at + 16 + kept as usize;
        frames.push(pcap.get(at + 16..end).expect("a whole record").to_vec());
        (at, time) = (end, now);
    }
    frames
}

fn mac_of(host: &VmHost, guest: &str) -> Vec<u8> {
    let shown = host.ok(&["hpvmstatus", "-P", guest]);
    let nic = shown.lines().find(|line| line.starts_with("vswitch")).expect("a NIC");
    let mac = nic.split_whitespace().next_back().expect("its address");
    mac.split('-').map(|byte| u8::from_str_radix(byte, 16).expect("a byte")).collect()
}

/// By TCP, whose checksums are left open on the way.
fn the_host_is_reached(vio: &mut Console) {
    assert!(reaches(vio, HOST, PING));
    let listener = TcpListener::bind(("0.0.0.0", 7007)).expect("a port of this network");
    listener.set_nonblocking(true).expect("set");
    vio.type_in(&format!("echo from the guest | nc -w 5 10.9.0.{HOST} 7007 &\n"));
    let mut stream = None;
    wait_until(BOUND, "the guest has called", || {
        stream = listener.accept().ok();
        stream.is_some()
    });
    let (mut stream, from) = stream.expect("waited for");
    assert_eq!(from.ip().to_string(), "10.9.0.2");
    stream.set_nonblocking(false).expect("set");
    stream.set_read_timeout(Some(BOUND)).expect("set");
    let mut said = [0; 15];
    stream.read_exact(&mut said).expect("it says something");
    assert_eq!(&said, b"from the guest\n");
}

fn vlans_part(host: &VmHost, avio: &mut Console, vio: &mut Console) {
    let vlan = |port: u32, vlan: &str| {
        host.ok(&["hpvmnet", "-S", "sw1", "-u", &format!("portid:{port}:vlanid:{vlan}")]);
    };
    assert!(reaches(avio, 2, PING));
    vlan(1, "10");
    assert!(!reaches(avio, 2, 2), "one has a VLAN, the other has none");
    assert!(!reaches(avio, HOST, 2), "the VM Host has none");
    vlan(2, "20");
    assert!(!reaches(avio, 2, 2) && !reaches(vio, 1, 2), "two VLANs");
    vlan(2, "10");
    assert!(reaches(avio, 2, PING) && reaches(vio, 1, PING), "one VLAN");
    assert!(!reaches(vio, HOST, 2), "the VM Host is still outside");
    vlan(1, "none");
    vlan(2, "none");
    assert!(reaches(avio, 2, PING) && reaches(avio, HOST, PING));
}

/// Whoever changes a guest's address is not heard until that is allowed, and seen at once.
fn a_changed_address_is_refused(host: &VmHost, avio: &mut Console) {
    let in_use = |line: &[&str]| {
        let shown = host.ok(line);
        let line = shown.lines().find(|line| line.contains("Mac Address in use"));
        line.map(|line| line.rsplit(':').next().unwrap_or_default().trim().to_lowercase())
    };
    let of_port = ["hpvmnet", "-S", "sw1", "-p", "1", "-A"];
    let of_guest = ["hpvmstatus", "-P", "avio", "-V"];
    assert_eq!((in_use(&of_port), in_use(&of_guest)), (None, None));
    avio.run(&format!("ifconfig eth0 down; ifconfig eth0 hw ether {OTHER}"));
    avio.run("ifconfig eth0 10.9.0.1 netmask 255.255.255.0 up");
    assert!(!reaches(avio, 2, 2));
    let counted = host.ok(&of_port);
    assert!(!counted.contains("Discards: spoofed            : 0\n"), "{counted}");
    let other =
        |prefix: &str, between: &str| Some(prefix.to_owned() + &OTHER.replace(':', between));
    assert_eq!(in_use(&of_port), other("0x", ""));
    assert_eq!(in_use(&of_guest), other("", "-"));
    host.ok(&["hpvmnet", "-S", "sw1", "-u", "portid:1:spoof:off"]);
    assert!(reaches(avio, 2, PING), "{}", host.ok(&of_port));
    assert!(reaches(avio, HOST, PING));
}

fn packet_sizes_are_compared() {
    apart(compared);
}

/// Settles 127: who starts is compared with the wire, and who runs when the switch is booted anew.
fn compared() {
    let host = VmHost::new(Engine::Real);
    pair("lan0", "far0");
    ip("link set lan0 mtu 9000");
    host.ok(&["hpvmnet", "-c", "-S", "sw1", "-n", "lan0"]);
    host.ok(&["hpvmnet", "-S", "sw1", "-b"]);
    let nics = ["network:lan:0,1:vswitch:sw1", "network:avio_lan:0,2:vswitch:sw1"];
    host.ok(&["hpvmcreate", "-P", "one", "-r", "512M", "-a", nics[0], "-a", nics[1]]);
    let started = host.run(&["hpvmstart", "-P", "one"]);
    assert!(started.status.success(), "{started}");
    let words = "carries packets of 9000 bytes, and the guest takes 1500 for its NIC at 0,1;";
    assert!(started.stderr.contains(words), "{started}");
    assert!(!started.stderr.contains("NIC at 0,2"), "an AVIO NIC tells its guest: {started}");

    let booted = || host.run(&["hpvmnet", "-S", "sw1", "-b"]);
    let emulated = "carries packets of 9000 bytes, and guest one takes 1500 for its NIC at 0,1;";
    assert!(booted().stderr.contains(emulated), "{}", booted());
    ip("link set lan0 mtu 1500");
    let avio = "carries packets of 1500 bytes, and guest one takes 9000 for its NIC at 0,2;";
    let told = booted();
    assert!(told.status.success() && told.stderr.contains(avio), "{told}");
    assert!(!told.stderr.contains("NIC at 0,1"), "{told}");
}
