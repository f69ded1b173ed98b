//! A guest driven by its console: wait for text, type a command, read what it printed.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hpvm_app::snapshot::Snapshot;
use hpvm_console::attachment::Attachment;
use hpvm_console::door::{ClientFrame, ServerFrame, Want};
use hpvm_guesthost::KeptOff;
use hpvm_host::lock::pause_for;
use hpvm_host::names::run_folder;

/// The tiny guest's prompt, without the blank that follows.
const PROMPT: &str = "hpvm-guest#";
/// Four times what the tiny guest needs from power-on on a quiet machine.
pub const BOOT_BOUND: Duration = Duration::from_secs(60);
pub const COMMAND_BOUND: Duration = Duration::from_secs(30);

/// The number of the next command's marks.
static MARKS: AtomicU32 = AtomicU32::new(1);

/// However busy the machine is, nobody waits longer than so many times a bound.
const BUSY_FACTOR_MAX: u32 = 10;

/// A session on a guest's console, from the first byte its worker remembers.
pub struct Console {
    door: Attachment,
    seen: String,
    run_dir: PathBuf,
}

impl Console {
    /// Attaches to the console behind `run/NUMBER/door`.
    #[must_use]
    #[track_caller]
    pub fn attach(run_dir: &Path) -> Console {
        Console::with_history(run_dir, 64 * 1024)
    }

    /// The same without what was printed before, which includes the boots before: for a guest that was just started again.
    #[must_use]
    #[track_caller]
    pub fn attach_from_now(run_dir: &Path) -> Console {
        Console::with_history(run_dir, 0)
    }

    #[track_caller]
    fn with_history(run_dir: &Path, bytes: u32) -> Console {
        let stream = UnixStream::connect(run_dir.join("door")).expect("the door is open");
        let door = Attachment::new(stream, Want::Write, bytes).expect("a session");
        Console { door, seen: String::new(), run_dir: run_dir.to_owned() }
    }

    /// Everything seen so far.
    #[must_use]
    pub fn seen(&self) -> &str {
        &self.seen
    }

    /// Waits until the guest printed `text` after what was waited for before; gives what came before it. Time in which other
    /// programs had the processors that the guest was ready to use does not count.
    #[track_caller]
    pub fn expect(&mut self, text: &str, bound: Duration) -> String {
        let (since, kept_off) = (Instant::now(), KeptOff::by(self.qemu()));
        let is_over = || {
            let waited = since.elapsed();
            waited > bound * BUSY_FACTOR_MAX
                || waited > bound && waited.saturating_sub(kept_off.since_then()) > bound
        };
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                let before = std::mem::replace(&mut self.seen, rest);
                return before[..at].to_owned();
            }
            let tail = self.seen.len().saturating_sub(500);
            let tail = self.seen.get(tail..).unwrap_or(&self.seen);
            assert!(!is_over(), "'{text}' not within {bound:?}; last: {tail:?}");
            assert!(!self.door.is_closed(), "the console closed before '{text}'; last: {tail:?}");
            self.pump();
        }
    }

    pub fn type_in(&mut self, text: &str) {
        self.door.say(&ClientFrame::Input(text.as_bytes().to_vec()));
        self.pump();
    }

    /// Waits for the shell of the tiny guest.
    #[track_caller]
    pub fn wait_for_shell(&mut self) {
        self.expect("HPVM GUEST READY", BOOT_BOUND);
        self.expect(PROMPT, BOOT_BOUND);
    }

    /// Runs a command in the guest's shell; gives what it printed.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> String {
        self.run_within(command, COMMAND_BOUND)
    }

    #[track_caller]
    pub fn run_within(&mut self, command: &str, bound: Duration) -> String {
        // The marks are put together by the shell, so that the echo of the line does not contain them, and never used again,
        // so that the history of an earlier session has others.
        let mark = MARKS.fetch_add(1, Ordering::Relaxed);
        self.type_in(&format!("echo BE''GIN{mark}.; {command}; echo E''ND{mark}.\n"));
        self.expect(&format!("BEGIN{mark}."), bound);
        let printed = self.expect(&format!("END{mark}."), bound);
        printed.replace('\r', "").trim().to_owned()
    }

    /// The guest's process, once its worker has published it.
    fn qemu(&self) -> Option<i32> {
        let text = std::fs::read_to_string(self.run_dir.join(run_folder::STATUS)).ok()?;
        Snapshot::from_file(&text).map(|(_, snapshot)| snapshot.qemu.pid)
    }

    fn pump(&mut self) {
        self.door.send();
        self.door.receive();
        while let Ok(Some(frame)) = self.door.take() {
            match frame {
                ServerFrame::History(bytes) | ServerFrame::Live(bytes) => {
                    self.seen.push_str(&String::from_utf8_lossy(&bytes));
                }
                _ => {}
            }
        }
        pause_for(Duration::from_millis(2));
    }
}
