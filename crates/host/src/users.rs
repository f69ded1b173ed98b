//! Who runs a command, and as whom a guest's processes run.
//!
//! Root gives each guest's QEMU and each worker a user id of its own, from a range without passwd entries. For an ordinary
//! user everything runs as that user.

use std::env;
use std::io::{stderr, stdin};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use rustix::process::{geteuid, getuid};
use rustix::termios::ttyname;

use crate::asking;

/// A user id and a group id for a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    pub uid: u32,
    pub gid: u32,
}

/// How far a worker's id lies above that of its guest's QEMU.
const WORKER_OFFSET: u32 = 500_000;

/// How far a switch's id lies above that of the guest with the same number.
const SWITCH_OFFSET: u32 = 700_000;

/// The same of the process that does NAT for it.
const NAT_OFFSET: u32 = 800_000;

/// How far the id of a guest's reservation helper lies above that of its QEMU.
const RESERVATION_OFFSET: u32 = 600_000;

#[must_use]
pub fn effective_uid() -> u32 {
    geteuid().as_raw()
}

#[must_use]
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// As whom QEMU of a guest runs, by the guest's number; `None` when only root could say so.
#[must_use]
pub fn guest_ids(base: u32, number: u32) -> Option<Ids> {
    ids(base.checked_add(number)?)
}

/// As whom the worker of a guest runs, by the guest's number; `None` when only root could say so.
#[must_use]
pub fn worker_ids(base: u32, number: u32) -> Option<Ids> {
    ids(base.checked_add(WORKER_OFFSET)?.checked_add(number)?)
}

/// As whom the reservation helper of a guest runs, by the guest's number; `None` when only root could say so.
#[must_use]
pub fn reservation_ids(base: u32, number: u32) -> Option<Ids> {
    ids(base.checked_add(RESERVATION_OFFSET)?.checked_add(number)?)
}

/// As whom a virtual switch runs, by its number; `None` when only root could say so.
#[must_use]
pub fn switch_ids(base: u32, number: u32) -> Option<Ids> {
    ids(base.checked_add(SWITCH_OFFSET)?.checked_add(number)?)
}

/// As whom NAT of a virtual switch runs, by the switch's number; `None` when only root could say so.
#[must_use]
pub fn nat_ids(base: u32, number: u32) -> Option<Ids> {
    ids(base.checked_add(NAT_OFFSET)?.checked_add(number)?)
}

fn ids(id: u32) -> Option<Ids> {
    is_root().then_some(Ids { uid: id, gid: id })
}

/// A user's name, or the number where there is none.
#[must_use]
pub fn name(uid: u32) -> String {
    name_here(uid).or_else(|| name_elsewhere(uid)).unwrap_or_else(|| uid.to_string())
}

/// The same for who starts no program and waits for no service.
#[must_use]
pub fn local_name(uid: u32) -> String {
    name_here(uid).unwrap_or_else(|| uid.to_string())
}

fn name_here(uid: u32) -> Option<String> {
    name_in(&std::fs::read_to_string("/etc/passwd").ok()?, uid)
}

/// Until a directory service that does not answer is given up.
const DIRECTORY_BOUND: Duration = Duration::from_secs(2);

/// A user whom another service knows (getent(1)). The C library could ask it within this process only by loading parts of
/// itself, which a program that has it built in cannot do.
fn name_elsewhere(uid: u32) -> Option<String> {
    let mut getent = Command::new("getent");
    let entry = asking::answer(getent.arg("passwd").arg(uid.to_string()), DIRECTORY_BOUND);
    name_in(&entry.ok()??, uid)
}

/// The name in lines of passwd(5).
fn name_in(passwd: &str, uid: u32) -> Option<String> {
    let is_wanted = |line: &&str| line.split(':').nth(2).is_some_and(|id| id.parse() == Ok(uid));
    passwd.lines().find(is_wanted)?.split(':').next().map(str::to_owned)
}

/// Who gave a command, for its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    /// The user; behind sudo the one who called it: `root (by sudo: anna)`.
    pub who: String,
    /// Where they sit: `ssh 192.0.2.7`, a terminal, or `no terminal`.
    pub from: String,
}

static CALLER: LazyLock<Caller> = LazyLock::new(found);

/// Whoever called us stays so: he is looked for once.
#[must_use]
pub fn caller() -> &'static Caller {
    &CALLER
}

fn found() -> Caller {
    let uid = getuid().as_raw();
    let user = name(uid);
    let who = match env::var("SUDO_USER") {
        Ok(behind) if uid == 0 && !behind.is_empty() => format!("{user} (by sudo: {behind})"),
        _ => user,
    };
    Caller { uid, who, from: origin() }
}

fn origin() -> String {
    let client = env::var("SSH_CONNECTION")
        .ok()
        .and_then(|connection| connection.split_whitespace().next().map(str::to_owned));
    if let Some(address) = client {
        return format!("ssh {address}");
    }
    ttyname(stdin(), Vec::new())
        .or_else(|_| ttyname(stderr(), Vec::new()))
        .map_or_else(|_| "no terminal".to_owned(), |tty| tty.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_this_host_are_found_by_their_number() {
        let passwd =
            "root:x:0:0::/root:/bin/sh\nnobody\n+::::::\nanna:x:1000:100::/home/anna:/bin/sh\n";
        assert_eq!(name_in(passwd, 1000).as_deref(), Some("anna"));
        assert_eq!(name_in(passwd, 0).as_deref(), Some("root"));
        assert_eq!(name_in(passwd, 100), None);
        assert_eq!(name(0), "root");
    }
}
