//! The outer hpvmreserve as whoever starts a guest starts it, with a helper that does not stay.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use hpvm_reserve::{Places, Settings, start};
use hpvm_testkit::wait::wait_until;
use hpvm_testkit::write_script;

const BOUND: Duration = Duration::from_secs(20);

/// As many daemons and scripts do, its starter ignores how children end, and so would it.
#[test]
fn a_helper_that_ends_is_started_again_whoever_started_its_keeper() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let starter = path("starter");
    let program = env!("CARGO_BIN_EXE_hpvmreserve");
    write_script(&starter, &format!("exec env --ignore-signal=CHLD {program} \"$@\""));
    let (lifeline, guest) = io::pipe().expect("a pipe");
    let places = Places {
        socket: UnixListener::bind(path("socket")).expect("a socket"),
        lifeline: lifeline.into(),
        log: File::create(path("log")).expect("a log"),
    };
    let settings = Settings { helper: "/bin/false".into(), ids: None };
    let mut keeper = start(&starter, &settings, places).expect("it starts");
    let said = || fs::read_to_string(path("log")).expect("a log");
    wait_until(BOUND, "the helper has ended again and again", || {
        let ended = "the reservation helper ended by itself (exit status: 1)";
        said().matches(ended).count() >= 2 || keeper.try_wait().expect("it is ours").is_some()
    });
    assert!(keeper.try_wait().expect("it is ours").is_none(), "it goes on: {}", said());
    drop(guest);
    assert!(keeper.wait().expect("it is ours").success(), "it ends with the guest: {}", said());
}
