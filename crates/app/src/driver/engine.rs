//! QEMU as its worker has it: by its pidfd, which counts where /proc is withheld from the worker, and by its last words.

use std::fs::File;
use std::time::Duration;

use hpvm_app::snapshot::{Crash, Process};
use hpvm_engine::last_words;
use hpvm_host::process::{self, PidFd, Signal};

use super::crash::{self, OomKills};

pub(super) struct Engine {
    process: Process,
    /// `None` when it had ended before its keeper came.
    held: Option<PidFd>,
    /// Its standard error.
    log: File,
    /// The kernel's count, as it was seen last.
    oom_kills: u64,
}

impl Engine {
    pub(super) fn new(process: Process, held: Option<PidFd>, log: File) -> Engine {
        Engine { process, held, log, oom_kills: process::oom_kills().unwrap_or(u64::MAX) }
    }

    pub(super) fn process(&self) -> Process {
        self.process
    }

    /// How long it has been running.
    pub(super) fn age(&self) -> Duration {
        process::age(self.process.start_time)
    }

    /// Unless it has ended, or nobody can tell.
    pub(super) fn alive(&self) -> Option<&PidFd> {
        let lives = |held: &&PidFd| held.wait_exit(Duration::ZERO).is_ok_and(|ended| !ended);
        self.held.as_ref().filter(lives)
    }

    /// As far as anybody can tell.
    pub(super) fn has_ended(&self) -> bool {
        let has_ended = |held: &PidFd| held.wait_exit(Duration::ZERO).unwrap_or(false);
        self.held.as_ref().is_some_and(has_ended)
    }

    /// By ourselves, which we may only where it runs as our own user.
    pub(super) fn kill(&self) {
        if let Some(held) = &self.held {
            let _ = held.signal(Signal::KILL);
        }
    }

    pub(super) fn last_words(&self) -> String {
        last_words::read(&self.log).unwrap_or_default()
    }

    /// Which signal it ends by, and whose.
    pub(super) fn words_of_signal(&self) -> String {
        let words = self.last_words();
        if words.starts_with("terminating on signal") { words } else { String::new() }
    }

    /// Seen often, the count tells our own QEMU's end from that of others.
    pub(super) fn count_oom_kills(&mut self) {
        self.oom_kills = process::oom_kills().unwrap_or(self.oom_kills);
    }

    /// What its keeper saw of its end, who counted too when it started.
    pub(super) fn judge(&self, wait_status: Option<i32>, oom_kills: u64) -> Crash {
        let before = self.oom_kills.min(oom_kills);
        crash::judge(wait_status, OomKills { before, now: process::oom_kills().ok() })
    }
}
