//! A switch whose process has no descriptor left. In a process of its own, whose limit it lowers.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use hpvm_model::{MacAddress, NicKind, PortNumber, PortRules, SwitchState};
use hpvm_vswitch::{Beginning, Clock, Event, GuestMemory, Options, PortOptions, Switch};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};

/// Long enough for a thread that spins to show.
const WATCHED: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(10);

fn processor_time() -> Duration {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), spent.tv_nsec.try_into().expect("below a second"))
}

/// A VIO guest that comes when there is no descriptor for it costs nothing, and is taken once there is one.
#[test]
fn a_peer_without_a_descriptor_waits_for_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("1");
    let options = Options {
        name: "test".into(),
        state: SwitchState::Up,
        clock: Clock::Monotonic,
        beginning: Beginning::AtOnce,
    };
    let (switch, events) = Switch::start(options).expect("a switch");
    let number = PortNumber::new(1).expect("a port's number");
    let port = PortOptions {
        kind: NicKind::Lan,
        listener: UnixListener::bind(&path).expect("a socket"),
        mac: MacAddress::new([2, 0, 0, 0, 0, 1]),
        features: None,
        memory: GuestMemory::Sealed,
        rules: PortRules::default(),
    };
    switch.add_port(number, port).expect("a port");
    let guest = socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
    let before = getrlimit(Resource::Nofile);
    let none_left = u64::try_from(guest.as_raw_fd()).expect("a descriptor") + 1;
    setrlimit(Resource::Nofile, Rlimit { current: Some(none_left), ..before }).expect("lowered");
    let spent = processor_time();
    connect(&guest, &SocketAddrUnix::new(&path).expect("a path")).expect("connected");
    assert_eq!(events.recv_timeout(WATCHED), Err(RecvTimeoutError::Timeout));
    let spent = processor_time() - spent;
    assert!(spent < WATCHED / 10, "{spent:?} of processor time in {WATCHED:?}");
    setrlimit(Resource::Nofile, before).expect("raised");
    assert_eq!(events.recv_timeout(PATIENCE), Ok(Event::Connected { port: number }));
}
