//! Who runs a command, and as whom a guest's processes run.
//!
//! Root gives each guest's QEMU and each worker a user id of its own, from a range without passwd entries. For an ordinary
//! user everything runs as that user.

use std::env;
use std::io::{stderr, stdin};

use nix::unistd::{Uid, User};
use rustix::process::{geteuid, getuid};
use rustix::termios::ttyname;

/// A user id and a group id for a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    pub uid: u32,
    pub gid: u32,
}

/// How far a worker's id lies above that of its guest's QEMU.
const WORKER_OFFSET: u32 = 500_000;

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

fn ids(id: u32) -> Option<Ids> {
    is_root().then_some(Ids { uid: id, gid: id })
}

/// A user's name, or the number where there is none.
#[must_use]
pub fn name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
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

#[must_use]
pub fn caller() -> Caller {
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
