//! The console itself: history, live output, keys, two users, power off, a worker that is replaced.

use hpvm_console::attachment::{DoorFailure, request_medium};
use hpvm_console::door::{DriveAddress, Ended, MediumRequest};
use hpvm_console::fanout::Rights;
use libtest_mimic::Trial;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use crate::rig::{Rig, wait_until};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("console_attached_late_shows_the_boot", attached_late_shows_the_boot),
        trial("console_passes_every_byte_both_ways", passes_every_byte_both_ways),
        trial("console_of_an_off_guest_waits_for_power", waits_for_power),
        trial("console_start_is_not_aborted_by_ctrl_b", start_is_not_aborted_by_ctrl_b),
        trial("console_session_outlives_its_guest", session_outlives_its_guest),
        trial("console_keyboard_is_handed_over", keyboard_is_handed_over),
        trial("console_may_be_watched_only", may_be_watched_only),
        trial("console_joins_a_replaced_worker", joins_a_replaced_worker),
        trial("console_gives_up_a_silent_worker", gives_up_a_silent_worker),
        trial("console_leaves_no_trace_on_the_terminal", leaves_no_trace_on_the_terminal),
        trial("door_medium_request_is_answered", medium_request_is_answered),
    ]
}

const PRIOR: &str = "- - - - - - - - - - Prior Console Output - - - - - - - - - -\n";
const LIVE: &str = "- - - - - - - - - - - - Live Console - - - - - - - - - - - -\n";

fn attached_late_shows_the_boot() {
    let (rig, door) = Rig::on(b"BdsDxe: starting Boot0001\r\nLinux version 6.1\r\nweb1 login: ");
    let mut session = rig.on_terminal(&[]);
    session.shows("vMP> ");
    session.types(b"co\r");
    let screen = session.shows("web1 login: ");
    assert_eq!(
        screen,
        format!(
            "co\n\n       (Use Ctrl-B to return to vMP main menu.)\n\n{PRIOR}\
             BdsDxe: starting Boot0001\nLinux version 6.1\n\x1b[0m{LIVE}"
        )
    );
    session.types(b"root\r");
    wait_until("the guest got the keys", || door.typed() == b"root\r");
    door.prints(b"root\r\nPassword: ");
    assert_eq!(session.shows("Password: "), "root\n");
    session.types(b"\x02");
    assert_eq!(session.shows("[web1] vMP> ").lines().next(), Some("\x1b[0m"));
    wait_until("the session has left the door", || door.sessions() == 0);
    session.types(b"x\r");
    session.ends_with(0);
}

/// Settles 52.
fn passes_every_byte_both_ways() {
    let (rig, door) = Rig::on(b"");
    let mut session = rig.on_terminal(&["--quiet", "--command", "co"]);
    wait_until("the session is there", || door.sessions() == 1 && session.is_raw());
    let keys: Vec<u8> = (0..=255).filter(|byte| *byte != 0x02).collect();
    session.types(&keys);
    wait_until("the guest got all keys", || door.typed() == keys);
    // Windows and box characters, and what a terminal would have to make of them.
    let output = "\u{2554}\u{2550}\u{2557} äöü \x1b[1;31mred\x1b[0m\x1b#8\n\n";
    door.prints(output.as_bytes());
    session.shows(output);
    session.types(b"\x02");
    session.ends_with(0);
}

fn waits_for_power() {
    let rig = Rig::off();
    let mut session = rig.on_terminal(&[]);
    session.shows("vMP> ");
    session.types(b"co\r");
    session.shows("Guest 'web1' is Off. Waiting until it is switched on; Ctrl-B leaves.\n");
    session.types(b"\x02");
    session.shows("vMP> ");
    session.types(b"co\r");
    session.shows("Ctrl-B leaves.\n");
    // What is typed at a guest that is off is not typed at its firmware later.
    session.types(b"\r\r");
    let door = rig.switch_on(b"UEFI firmware\r\n");
    session.shows("UEFI firmware\n");
    session.types(b"1");
    wait_until("the guest got a key", || !door.typed().is_empty());
    assert_eq!(door.typed(), b"1");
    session.types(b"\x02");
    session.shows("vMP> ");
    session.types(b"x\r");
    session.ends_with(0);
}

/// Settles 94.
fn start_is_not_aborted_by_ctrl_b() {
    let rig = Rig::off();
    rig.put("hold", "");
    let mut session = rig.on_terminal(&[]);
    session.shows("vMP> ");
    session.types(b"pc -on\r");
    wait_until("the start has begun", || rig.verbs() == "on\n");
    session.types(b"\x02");
    session.shows("^B");
    rig.remove("hold");
    session.shows("Guest 'web1' is on.");
    session.shows("vMP MAIN MENU");
    session.shows("vMP> ");
    assert_eq!(rig.verbs(), "on\ndone\n");
    session.types(b"x\r");
    session.ends_with(0);
}

fn session_outlives_its_guest() {
    let (rig, door) = Rig::on(b"");
    let mut session = rig.on_terminal(&[]);
    session.shows("vMP> ");
    session.types(b"co\r");
    session.shows(LIVE);
    door.prints(b"reboot: Power down\r\n");
    door.ends(Ended::ShutDown);
    assert_eq!(session.shows("(Guest 'web1' has shut down.)\n"), "reboot: Power down\n\n");
    session.shows("vMP> ");
    drop(door);
    rig.put("power", "off");
    session.types(b"pc -on\r");
    session.shows("Guest 'web1' is on.\n\n[web1] vMP> ");
    let door = rig.switch_on(b"second boot\r\n");
    session.types(b"co\r");
    session.shows("second boot\n");
    session.shows(LIVE);
    door.ends(Ended::Crashed);
    session.shows("(The engine of guest 'web1' died; 'hpvm why web1' tells more.)\n");
    session.shows("vMP> ");
    session.types(b"x\r");
    session.ends_with(0);
}

fn keyboard_is_handed_over() {
    let (rig, door) = Rig::on(b"");
    let mut first = rig.on_terminal(&["--command", "co"]);
    first.shows(LIVE);
    let mut second = rig.on_terminal(&["--command", "co"]);
    second.shows("(user1 has the keyboard, you watch. Ctrl-E c f takes it over.)\n");
    second.shows(LIVE);
    door.prints(b"for all");
    first.shows("for all");
    second.shows("for all");
    second.types(b"lost");
    second.shows("(You watch: what you type is not sent. Ctrl-E c f takes the keyboard over.)\n");
    second.types(b"\x05cf");
    second.shows("(You have the keyboard.)\n");
    first.shows("(user2 has the keyboard now, you watch. Ctrl-E c f takes it over.)\n");
    second.types(b"\x05cf");
    wait_until("the keys of the holder go to the guest", || door.typed() == b"\x05cf");
    second.types(b"\x02");
    second.ends_with(0);
    first.shows("(The keyboard is free: type to take it.)\n");
    first.types(b"mine");
    wait_until("the first key took the keyboard", || door.typed() == b"\x05cfmine");
    first.types(b"\x02");
    first.ends_with(0);
}

fn may_be_watched_only() {
    let (rig, door) = Rig::on(b"");
    door.admits_with(Rights::Watch);
    let mut session = rig.on_terminal(&["--command", "co"]);
    session.shows("(You may watch this console, but not type.)\n");
    session.shows(LIVE);
    session.types(b"\x05cfkeys");
    session.shows("(You may only watch: what you type is not sent.)\n");
    door.prints(b"seen");
    session.shows("seen");
    session.types(b"\x02");
    session.ends_with(0);
    assert_eq!(door.typed(), b"");
}

fn joins_a_replaced_worker() {
    let (rig, door) = Rig::on(b"boot\r\n");
    let mut session = rig.on_terminal(&["--command", "co"]);
    session.shows(LIVE);
    door.prints(b"one\r\n");
    session.shows("one\n");
    drop(door);
    session.types(b"key");
    let door = rig.switch_on(b"boot\r\none\r\ntwo\r\n");
    assert_eq!(session.shows("two\n"), "", "nothing is shown twice, nothing left out");
    wait_until("the guest got the key typed to no worker", || door.typed() == b"key");
    session.types(b"s");
    wait_until("the guest got the keys", || door.typed() == b"keys");
    drop(door);
    rig.put("power", "off");
    session.shows("(Guest 'web1' is Off.)\n");
    session.ends_with(0);
}

fn gives_up_a_silent_worker() {
    let rig = Rig::off();
    let _listener = UnixListener::bind(rig.path("door")).expect("door");
    rig.put("power", "on");
    let mut silent = rig.on_terminal(&["--command", "co"]);
    let mut left = rig.on_terminal(&["--command", "co"]);
    left.shows("main menu.)\n");
    left.types(b"\x02");
    left.ends_with(0);
    silent.ends_with(1);
    silent.shows("client: the console of guest 'web1' does not answer");
}

fn leaves_no_trace_on_the_terminal() {
    let (rig, door) = Rig::on(b"size? \x1b[6n\r\n\x1b[?1049h");
    let mut session = rig.on_terminal(&["--command", "co"]);
    let screen = session.shows(LIVE);
    assert!(screen.contains("size? \n"), "a question to the terminal was replayed: {screen:?}");
    door.prints(b"\x1b[?25l\x1b[?2004hvi\x1b[6n");
    session.shows("vi\x1b[6n");
    session.types(b"\x02");
    session.shows("\x1b[?25h\x1b[?1049l\x1b[?2004l\x1b[0m");
    session.ends_with(0);
}

fn medium_request_is_answered() {
    let (rig, door) = Rig::on(b"");
    let connect = || UnixStream::connect(rig.path("door")).expect("door");
    let patience = Duration::from_secs(10);
    let put = |image: Option<&str>, patience| {
        let drive = DriveAddress { bus: 0, device: 4, target: 0 };
        let request = MediumRequest { drive, image: image.map(str::to_owned) };
        request_medium(connect(), request, patience)
    };
    let ask = |image| put(image, patience).expect("an answer");
    assert_eq!(ask(None), Ok("done".into()));
    assert_eq!(ask(Some("none.iso")), Err("there is no 'none.iso' in the folder of images".into()));
    door.admits_with(Rights::Watch);
    assert_eq!(
        ask(None).expect_err("refused").split_once(" may").map(|(_, why)| why.to_owned()),
        Some(" watch guest 'web1' but not change its media".into())
    );
    drop(door);
    let _silent = UnixListener::bind(rig.path("door")).expect("door");
    let late = put(None, Duration::from_millis(50));
    assert!(matches!(late, Err(DoorFailure::Late(_))), "{late:?}");
}
