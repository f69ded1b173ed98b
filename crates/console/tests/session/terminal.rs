//! The terminal is given back whatever ends the session.

use libtest_mimic::Trial;
use rustix::process::Signal;

use crate::rig::{Rig, wait_until};
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("terminal_is_given_back_after_signals", given_back_after_signals),
        trial("terminal_is_given_back_by_a_panic", given_back_by_a_panic),
        trial("terminal_at_the_menu_obeys_ctrl_c", obeys_ctrl_c_at_the_menu),
        trial("terminal_is_lent_to_power_verbs", lent_to_power_verbs),
        trial("terminal_survives_suspension", survives_suspension),
        trial("terminal_that_nobody_reads_holds_up_nobody", nobody_reads),
    ]
}

fn given_back_after_signals() {
    let (rig, _door) = Rig::on(b"login: ");
    for (signal, status) in
        [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129), (Signal::QUIT, 131)]
    {
        let mut session = rig.on_terminal(&["--command", "co"]);
        session.shows("login: ");
        assert!(session.is_raw());
        session.signal(signal);
        session.ends_with(status);
    }
}

fn given_back_by_a_panic() {
    let rig = Rig::off();
    rig.put("panic", "");
    let mut session = rig.on_terminal(&["--command", "co"]);
    session.ends_with(-Signal::ABORT.as_raw());
    session.shows("asked to panic");
}

fn obeys_ctrl_c_at_the_menu() {
    let (rig, door) = Rig::on(b"login: ");
    let mut session = rig.on_terminal(&[]);
    session.shows("vMP> ");
    session.types(b"co\r");
    session.shows("login: ");
    session.types(b"\x03\x1c\x1a");
    wait_until("the keys of signals went to the guest", || door.typed() == b"\x03\x1c\x1a");
    session.types(b"\x02");
    session.shows("vMP> ");
    session.types(b"\x03");
    session.ends_with(130);
}

/// What a verb starts must not inherit blocked signals, and may ask the user itself.
fn lent_to_power_verbs() {
    let rig = Rig::off();
    rig.put("hold", "");
    let mut session = rig.on_terminal(&[]);
    session.shows("vMP> ");
    session.types(b"pc -on\r");
    wait_until("the verb has begun", || rig.verbs() == "on\n");
    let blocked = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).expect("mask");
        u64::from_str_radix(mask, 16).expect("mask")
    };
    let of_this_program = blocked(rustix::process::getpid().as_raw_nonzero().get());
    assert_eq!(blocked(session.child.pid().as_raw_nonzero().get()), of_this_program);
    session.signal(Signal::TERM);
    session.ends_with(-Signal::TERM.as_raw());
}

fn survives_suspension() {
    let (rig, door) = Rig::on(b"login: ");
    let mut session = rig.on_terminal(&["--command", "co"]);
    session.shows("login: ");
    session.signal(Signal::STOP);
    door.prints(b"meanwhile");
    session.signal(Signal::CONT);
    session.shows("meanwhile");
    assert!(session.is_raw());
    session.types(b"\x02");
    session.ends_with(0);
}

/// Ctrl-S, a dead connection: neither the other sessions nor Ctrl-B nor a signal wait for such a terminal.
fn nobody_reads() {
    let (rig, door) = Rig::on(b"login: ");
    let mut stuck = rig.on_terminal(&[]);
    stuck.shows("vMP> ");
    stuck.types(b"co\r");
    stuck.shows("login: ");
    let mut other = rig.on_terminal(&["--command", "co"]);
    other.shows("login: ");
    // Parts of several sizes, each larger than what a full terminal has room for at last.
    for number in 0..100 {
        let line = "x".repeat(2500 + number * 13);
        door.prints(format!("{line}line {number}\r\n").as_bytes());
        other.shows(&format!("line {number}\n"));
    }
    assert_eq!(door.sessions(), 2);
    stuck.types(b"\x02");
    wait_until("the session went back to its menu", || door.sessions() == 1);
    stuck.signal(Signal::TERM);
    stuck.ends_with(143);
    other.types(b"\x02");
    other.ends_with(0);
}
