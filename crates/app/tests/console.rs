//! The console's door with its guest, on the fake engine.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hpvm_app::snapshot::*;
use hpvm_console::door::*;
use hpvm_host::process::Signal;
use hpvm_model::{DeviceKind, StorageAddress};

use crate::at_reset::what_leaves_at_the_reset;
use crate::guest::{Guest, PATIENCE, signal};

/// A session at the door, as raw as can be.
struct Session {
    stream: UnixStream,
    decoder: Decoder,
    /// Everything the guest printed, history and live.
    output: Vec<u8>,
}

impl Session {
    fn enter(guest: &Guest, want: Want) -> Session {
        let stream = UnixStream::connect(guest.places.run_dir.join("door")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut session = Session { stream, decoder: Decoder::default(), output: Vec::new() };
        session.say(&ClientFrame::Hello(Hello { version: VERSION, want, history_bytes: 65536 }));
        session
    }

    fn say(&mut self, frame: &ClientFrame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next frame; `None` at the end of the stream.
    fn hear(&mut self) -> Option<ServerFrame> {
        let mut part = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.take::<ServerFrame>().unwrap() {
                if let ServerFrame::History(bytes) | ServerFrame::Live(bytes) = &frame {
                    self.output.extend(bytes);
                }
                return Some(frame);
            }
            match self.stream.read(&mut part).expect("within the bound") {
                0 => return None,
                count => self.decoder.push(&part[..count]),
            }
        }
    }

    #[track_caller]
    fn until(&mut self, wanted: impl Fn(&Session, &ServerFrame) -> bool) -> ServerFrame {
        let began = Instant::now();
        while let Some(frame) = self.hear() {
            if wanted(self, &frame) {
                return frame;
            }
            assert!(began.elapsed() < PATIENCE, "{}", String::from_utf8_lossy(&self.output));
        }
        panic!("the door was shut: {}", String::from_utf8_lossy(&self.output));
    }

    #[track_caller]
    fn until_output(&mut self, text: &str) {
        let has = |output: &[u8]| String::from_utf8_lossy(output).contains(text);
        if !has(&self.output) {
            self.until(|session, _| has(&session.output));
        }
    }
}

#[test]
fn who_comes_late_sees_the_boot() {
    let guest = Guest::fake("text=late> ").start();
    guest.until_os();
    let mut first = Session::enter(&guest, Want::Write);
    first.until_output("late> ");
    let mut second = Session::enter(&guest, Want::Watch);
    second.until_output("late> ");
}

#[test]
fn the_console_outlives_its_worker() {
    let guest = Guest::fake("text=here> ").start();
    Session::enter(&guest, Want::Write).until_output("here> ");
    signal(guest.worker().unwrap(), Signal::KILL);
    guest.until(|snapshot| snapshot.adoptions == 1);
    let mut session = Session::enter(&guest, Want::Write);
    session.until_output("here> ");
    session.say(&ClientFrame::Input(b"hello\n".to_vec()));
    // The fake guest's terminal echoes.
    session.until_output("hello");
}

#[test]
fn the_end_is_told() {
    let guest = Guest::fake("").start();
    let mut watcher = Session::enter(&guest, Want::Watch);
    let mut session = Session::enter(&guest, Want::Write);
    session.until(|_, frame| *frame == ServerFrame::Current);
    guest.stop();
    for session in [&mut session, &mut watcher] {
        session.until(|_, frame| *frame == ServerFrame::Ended(Ended::Stopped));
    }
    guest.until_phase(&Phase::Ended { how: Ending::StoppedHard });
    guest.until_gone();
}

#[test]
fn a_crash_is_told_as_one() {
    let guest = Guest::fake("").start();
    let mut session = Session::enter(&guest, Want::Write);
    session.until(|_, frame| *frame == ServerFrame::Current);
    signal(guest.qemu(), Signal::KILL);
    session.until(|_, frame| *frame == ServerFrame::Ended(Ended::Crashed));
}

#[test]
fn a_session_that_reads_nothing_delays_nobody() {
    let guest = Guest::fake("").start();
    let _sleeper = Session::enter(&guest, Want::Write);
    let mut other = Session::enter(&guest, Want::Write);
    other.say(&ClientFrame::TakeKeyboard);
    for _ in 0..200 {
        other.say(&ClientFrame::Input([b'x'; 1000].to_vec()));
    }
    other.say(&ClientFrame::Input(b"\nat last\n".to_vec()));
    other.until_output("at last");
    let began = Instant::now();
    guest.stop();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

/// It leaves at the reset, and QEMU is at it.
#[test]
fn who_wants_something_of_a_drive_that_goes_before_his_turn_is_told() {
    let (guest, address) = what_leaves_at_the_reset(DeviceKind::Dvd);
    let mut session = Session::enter(&guest, Want::Write);
    let StorageAddress { slot, target } = address;
    let drive = DriveAddress { bus: slot.bus(), device: slot.device(), target };
    session.say(&ClientFrame::Medium(MediumRequest { drive, image: None }));
    let answer = session.until(|_, frame| matches!(frame, ServerFrame::Answer(_)));
    let gone = format!("the guest has no drive at {address}");
    assert_eq!(answer, ServerFrame::Answer(Err(gone)), "{}", guest.story());
}

#[test]
fn junk_at_the_door_is_refused_and_nobody_else_notices() {
    let guest = Guest::fake("text=ok> ").start();
    let mut junk = Session::enter(&guest, Want::Write);
    junk.stream.write_all(&[0xff; 64]).unwrap();
    junk.until(|_, frame| matches!(frame, ServerFrame::Denied(_)));
    while junk.hear().is_some() {}
    Session::enter(&guest, Want::Write).until_output("ok> ");
}
