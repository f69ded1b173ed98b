//! A switch of a test, its sockets in a folder that goes with it, and frames to send over it.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use hpvm_model::{MacAddress, NicKind, PortNumber, PortRules, SpoofGuard, SwitchState};
use hpvm_vswitch::{Beginning, Clock, Counters, Event, GuestMemory, Options, PortOptions, Switch};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::guest::{Driver, Guest, PATIENCE, PROTOCOL_FEATURES};

pub(crate) struct Net {
    pub(crate) switch: Switch,
    pub(crate) events: Receiver<Event>,
    folder: tempfile::TempDir,
}

/// Rules that let everything pass.
pub(crate) fn open_rules() -> PortRules {
    PortRules { spoof_guard: SpoofGuard::Off, ..PortRules::default() }
}

pub(crate) fn port(number: u16) -> PortNumber {
    PortNumber::new(number).expect("a port's number")
}

/// The card of port N.
pub(crate) fn mac(number: u16) -> [u8; 6] {
    let [high, low] = number.to_be_bytes();
    [0x02, 0, 0, 0, high, low]
}

pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];

/// A frame of so many bytes, filled with what tells it from others.
pub(crate) fn frame(to: [u8; 6], from: [u8; 6], bytes: usize, mark: u8) -> Vec<u8> {
    let mut frame = to.to_vec();
    frame.extend(from);
    frame.extend([0x88, 0xb5]);
    frame.extend((14..bytes).map(|at| (at as u8).wrapping_add(mark)));
    frame
}

impl Net {
    pub(crate) fn new() -> Net {
        Net::with_clock(Clock::Monotonic)
    }

    pub(crate) fn with_clock(clock: Clock) -> Net {
        Net::beginning(Beginning::AtOnce, clock)
    }

    pub(crate) fn beginning(beginning: Beginning, clock: Clock) -> Net {
        let options = Options { name: "test".into(), state: SwitchState::Up, clock, beginning };
        let (switch, events) = Switch::start(options).expect("a switch");
        Net { switch, events, folder: tempfile::tempdir().expect("a folder") }
    }

    pub(crate) fn path(&self, number: u16) -> PathBuf {
        self.folder.path().join(number.to_string())
    }

    pub(crate) fn options(&self, number: u16, kind: NicKind, rules: PortRules) -> PortOptions {
        let path = self.path(number);
        let _ = std::fs::remove_file(&path);
        PortOptions {
            kind,
            listener: UnixListener::bind(path).expect("a socket"),
            mac: MacAddress::new(mac(number)),
            features: None,
            memory: GuestMemory::Sealed,
            rules,
        }
    }

    pub(crate) fn add(&self, number: u16, kind: NicKind, rules: PortRules) {
        let options = self.options(number, kind, rules);
        self.switch.add_port(port(number), options).expect("a port");
    }

    /// A port with an AVIO guest.
    pub(crate) fn avio(&self, number: u16, rules: PortRules, driver: Driver) -> Guest {
        self.add(number, NicKind::AvioLan, rules);
        let guest = Guest::connect(&self.path(number), driver);
        // Who did not agree on answers does not know when the switch is ready.
        if driver.features & PROTOCOL_FEATURES == 0 {
            self.wait_for(&Event::Started { port: port(number) });
        }
        guest
    }

    /// A port with a VIO guest.
    pub(crate) fn vio(&self, number: u16, rules: PortRules) -> Vio {
        self.add(number, NicKind::Lan, rules);
        let vio = Vio::connect(&self.path(number));
        self.wait_for(&Event::Started { port: port(number) });
        vio
    }

    /// Reads events up to this one.
    pub(crate) fn wait_for(&self, wanted: &Event) -> Vec<Event> {
        self.wait_until(&format!("{wanted:?}"), |event| event == wanted)
    }

    pub(crate) fn wait_until(&self, what: &str, wanted: impl Fn(&Event) -> bool) -> Vec<Event> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left);
            let event = event.unwrap_or_else(|_| panic!("no {what}; there was {seen:?}"));
            seen.push(event.clone());
            if wanted(&event) {
                return seen;
            }
        }
    }

    pub(crate) fn counters(&self, number: u16) -> Counters {
        self.switch.counters(port(number)).expect("a port")
    }

    /// Waits until a port's counters are as wanted: the switch counts a batch after its frames are there.
    pub(crate) fn wait_for_counters(&self, number: u16, wanted: &Counters) {
        let deadline = Instant::now() + PATIENCE;
        while self.counters(number) != *wanted {
            assert!(Instant::now() < deadline, "{:#?}, not {wanted:#?}", self.counters(number));
            std::thread::yield_now();
        }
    }
}

/// QEMU's end of a VIO port.
pub(crate) struct Vio {
    pub(crate) socket: UnixStream,
}

impl Vio {
    pub(crate) fn connect(path: &std::path::Path) -> Vio {
        let socket = UnixStream::connect(path).expect("the switch listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Vio { socket }
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.socket.write_all(&(frame.len() as u32).to_be_bytes()).expect("the switch reads");
        self.socket.write_all(frame).expect("the switch reads");
    }

    pub(crate) fn receive(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.socket.read_exact(&mut length).expect("a frame arrives");
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.socket.read_exact(&mut frame).expect("a whole frame");
        frame
    }

    /// Whether a frame arrives in time; what else arrives is passed over.
    pub(crate) fn hears(&mut self, frame: &[u8], within: Duration) -> bool {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).expect("a short time");
            let mut readable = [PollFd::new(&self.socket, PollFlags::IN)];
            if poll(&mut readable, Some(&timeout)).expect("a wait") == 0 {
                return false;
            }
            if self.receive() == frame {
                return true;
            }
        }
    }

    pub(crate) fn receive_until(&mut self, last: &[u8]) -> Vec<Vec<u8>> {
        std::iter::repeat_with(|| self.receive()).take_while(|frame| frame != last).collect()
    }
}
