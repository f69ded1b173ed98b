//! What a test can make the fake do, each word of `HPVM_FAKE_QEMU` once.

mod engine;

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use engine::{Engine, FAKE, wait_until};
use hpvm_qmp::blocking::Client;
use hpvm_qmp::command::*;
use hpvm_qmp::{Error, Happening, Occupant, RunState};

const WAIT: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(100);

fn state(client: &mut Client) -> RunState {
    client.execute(&QueryStatus {}).expect("answered").status
}

/// The next event, which must be this one.
fn expect_event(client: &mut Client, name: &str) -> Happening {
    let event = client.next_event(WAIT).expect("connected").expect("an event");
    assert_eq!(event.name, name);
    event.happening()
}

#[test]
fn an_os_obeys_the_power_button_and_can_be_started_again() {
    let engine = Engine::start(FAKE, "boot=os,powerdown=off:20");
    let mut client = engine.connect();
    assert!(client.execute(&ReadPowerButton {}).expect("told").enabled);
    assert_eq!(client.execute(&ReadRegisters {}).expect("told").occupant(), Occupant::Os);
    client.execute(&SystemPowerdown {}).expect("pressed");
    expect_event(&mut client, "POWERDOWN");
    let ended = expect_event(&mut client, "SHUTDOWN");
    assert!(matches!(ended, Happening::Shutdown(s) if s.guest && s.reason == "guest-shutdown"));
    expect_event(&mut client, "STOP");
    assert_eq!(state(&mut client), RunState::Shutdown);
    let refused = client.execute(&Cont {}).expect_err("only a reset helps");
    assert_eq!(
        refused.refusal().map(|r| r.description.as_str()),
        Some("Resetting the Virtual Machine is required")
    );
    client.execute(&SystemReset {}).expect("reset");
    assert_eq!(state(&mut client), RunState::Prelaunch);
    client.execute(&Cont {}).expect("started");
    assert_eq!(state(&mut client), RunState::Running);
}

#[test]
fn firmware_has_no_power_button_until_the_os_takes_over() {
    let engine = Engine::start(FAKE, "boot=os:50");
    let mut client = engine.connect();
    client.execute(&SystemPowerdown {}).expect("always yes");
    assert_eq!(client.execute(&ReadRegisters {}).expect("told").occupant(), Occupant::Firmware);
    let button = wait_until("the OS", || {
        client.execute(&ReadPowerButton {}).ok().filter(|button| button.enabled)
    });
    assert!(!button.pending);
    expect_event(&mut client, "POWERDOWN");
    assert_eq!(client.next_event(SHORT).expect("connected"), None, "the early press is lost");
    assert_eq!(state(&mut client), RunState::Running);
}

#[test]
fn an_os_may_ignore_the_button_and_a_held_one_takes_it_later() {
    let engine = Engine::start(FAKE, "powerdown=ignore");
    let mut client = engine.connect();
    client.execute(&Stop {}).expect("held");
    client.execute(&SystemPowerdown {}).expect("pressed");
    assert!(client.execute(&ReadPowerButton {}).expect("told").pending);
    client.execute(&Cont {}).expect("runs on");
    assert!(!client.execute(&ReadPowerButton {}).expect("told").pending);
    for name in ["STOP", "POWERDOWN", "RESUME"] {
        expect_event(&mut client, name);
    }
    assert_eq!(client.next_event(SHORT).expect("connected"), None);
}

#[test]
fn an_os_lets_an_adapter_go_with_what_hangs_on_it() {
    let engine = Engine::start(FAKE, "delete=10");
    let mut client = engine.connect();
    client.execute(&DeviceDel { id: "adapter-0-0".into() }).expect("asked");
    let mut gone = Vec::new();
    while gone.len() < 3 {
        match expect_event(&mut client, "DEVICE_DELETED") {
            Happening::DeviceDeleted(deleted) => gone.push(deleted.device),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(gone, [Some("drive".into()), None, Some("adapter-0-0".into())]);
    assert!(client.execute(&DeviceDel { id: "adapter-0-0".into() }).is_err());
}

#[test]
fn an_os_may_never_let_go() {
    let engine = Engine::start(FAKE, "delete=never");
    let mut client = engine.connect();
    client.execute(&DeviceDel { id: "adapter-0-0".into() }).expect("asked");
    assert_eq!(client.next_event(SHORT).expect("connected"), None);
}

#[test]
fn a_slow_command_holds_everything_up() {
    let engine = Engine::start(FAKE, "slow=device_del:150");
    let mut client = engine.connect();
    let began = Instant::now();
    let outcome =
        client.execute_within(&DeviceDel { id: "drive".into() }, Duration::from_millis(20));
    assert!(matches!(outcome, Err(Error::Deadline { .. })));
    assert_eq!(state(&mut client), RunState::Running);
    assert!(began.elapsed() >= Duration::from_millis(150));
}

#[test]
fn after_a_hanging_command_nothing_is_answered_and_a_signal_still_ends_it() {
    let mut engine = Engine::start(FAKE, "hang=stop");
    let mut client = engine.connect();
    assert!(client.execute_within(&Stop {}, SHORT).is_err());
    assert!(client.execute_within(&QueryStatus {}, SHORT).is_err());
    engine.terminate();
    assert_eq!(engine.end().code(), Some(0));
    assert!(engine.complaint().contains("terminating on signal 15"), "{}", engine.complaint());
}

#[test]
fn a_command_may_be_refused() {
    let engine = Engine::start(FAKE, "fail=device_del:no luck today");
    let mut client = engine.connect();
    let refused = client.execute(&DeviceDel { id: "drive".into() }).expect_err("refused");
    assert_eq!(refused.to_string(), "QEMU refused device_del: no luck today");
}

#[test]
fn disks_tell_how_long_they_were_idle() {
    let engine = Engine::start(FAKE, "idle=1500");
    let stats = engine.connect().execute(&QueryBlockstats {}).expect("answered");
    let drive = stats.iter().find(|s| s.qdev.as_deref() == Some("drive")).expect("the drive");
    assert_eq!(drive.stats.idle_time_ns, Some(1_500_000_000));
}

#[test]
fn a_start_may_fail_with_qemus_words() {
    let mut engine = Engine::start(FAKE, "refuse=no such machine");
    assert_eq!(engine.end().code(), Some(1));
    assert_eq!(engine.complaint(), "qemu-system-x86_64: no such machine\n");
}

#[test]
fn a_start_may_take_its_time() {
    let began = Instant::now();
    let engine = Engine::start(FAKE, "greet=120");
    engine.connect();
    assert!(began.elapsed() >= Duration::from_millis(120));
}

#[test]
fn it_may_crash_switch_off_or_reboot_by_itself() {
    let mut crashed = Engine::start(FAKE, "crash=10");
    assert_eq!(crashed.end().signal(), Some(6));

    let engine = Engine::start(FAKE, "off=30");
    let mut client = engine.connect();
    wait_until("switched off", || (state(&mut client) == RunState::Shutdown).then_some(()));

    let engine = Engine::start(FAKE, "reboot=100");
    let mut client = engine.connect();
    let reset = expect_event(&mut client, "RESET");
    assert!(matches!(reset, Happening::Reset(r) if r.guest && r.reason == "guest-reset"));
    assert_eq!(state(&mut client), RunState::Running);
}

#[test]
fn the_console_logs_every_byte_and_echoes() {
    let engine = Engine::start(FAKE, "text=ready: ");
    let log = wait_until("the boot", || {
        Some(engine.console_log()).filter(|log| log.ends_with("ready: "))
    });
    assert!(log.contains("BdsDxe"));
    let mut serial = engine.serial();
    serial.set_read_timeout(Some(WAIT)).expect("a bound");
    serial.write_all(b"hello\r").expect("typed");
    let mut echo = [0; 7];
    serial.read_exact(&mut echo).expect("echoed");
    assert_eq!(&echo, b"hello\r\n");
    let log = engine.console_log();
    assert!(log.ends_with("ready: hello\r\n"), "{log}");
}

#[test]
fn a_misspelt_behaviour_ends_the_start() {
    let mut engine = Engine::start(FAKE, "bot=os");
    assert_eq!(engine.end().code(), Some(1));
    assert!(engine.complaint().contains("bot=os"), "{}", engine.complaint());
}
