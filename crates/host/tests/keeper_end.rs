//! A keeper that is ended while this process may open no more files. The limit is the whole process's, so it has no other test.

use std::process::{Command, Stdio};

use hpvm_host::launch::Keeper;
use hpvm_host::process::PidFd;
use rustix::process::{Resource, getrlimit, setrlimit};

#[test]
fn a_keeper_is_not_left_stopped() {
    let mut cat = Command::new("/bin/cat");
    let mut process = cat.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("a process");
    let pid = i32::try_from(process.id()).expect("a pid");
    let pidfd = PidFd::open_number(pid).expect("it may be held").expect("it lives");
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(1);
    setrlimit(Resource::Nofile, limit).expect("a limit may be lowered");
    let ended = Keeper { pid, pidfd }.end();
    assert!(ended.is_err(), "its children cannot be looked for");
    assert!(process.try_wait().expect("it is ours").is_some(), "it has ended");
}
