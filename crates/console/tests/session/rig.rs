//! A guest in a folder, its worker's door, and clients on terminals or pipes.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

use crate::door_server::DoorServer;

pub(crate) const GUEST: &str = "web1";

const PATIENCE: Duration = Duration::from_secs(20);

/// A pause while something else works.
pub(crate) fn tick() {
    let _ = poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: 2_000_000 }));
}

/// Waits until `fact` holds.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut fact: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !fact() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} until {what}");
        tick();
    }
}

pub(crate) struct Rig {
    folder: tempfile::TempDir,
}

impl Rig {
    pub(crate) fn off() -> Rig {
        let rig = Rig { folder: tempfile::tempdir().expect("folder") };
        rig.put("power", "off");
        rig
    }

    /// A guest that runs and has printed `before`.
    pub(crate) fn on(before: &[u8]) -> (Rig, DoorServer) {
        let rig = Rig::off();
        let door = rig.switch_on(before);
        (rig, door)
    }

    pub(crate) fn switch_on(&self, before: &[u8]) -> DoorServer {
        let door = DoorServer::start(&self.path("door"), before);
        self.put("power", "on");
        door
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn put(&self, name: &str, text: &str) {
        // By rename, so that a client never reads half of it.
        fs::write(self.path("new"), text).expect(name);
        fs::rename(self.path("new"), self.path(name)).expect(name);
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).expect(name);
    }

    pub(crate) fn verbs(&self) -> String {
        fs::read_to_string(self.path("verbs")).unwrap_or_default()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg("--client").arg(self.folder.path()).args(arguments);
        command
    }

    /// A client on a terminal of its own.
    pub(crate) fn on_terminal(&self, arguments: &[&str]) -> OnTerminal {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("pty");
        grantpt(&master).expect("pty");
        unlockpt(&master).expect("pty");
        let slave = ioctl_tiocgptpeer(
            &master,
            OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
        )
        .expect("pty");
        let original = tcgetattr(&slave).expect("modes");
        let stdio = || Stdio::from(slave.try_clone().expect("pty"));
        let mut command = self.command(arguments);
        command.arg("--own-terminal").stdin(stdio()).stdout(stdio()).stderr(stdio());
        let child = Process(command.spawn().expect("client"));
        OnTerminal { child, master, slave, original, text: String::new(), read: 0 }
    }

    /// A client on pipes, to its end.
    pub(crate) fn with_input(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut feed = tempfile::tempfile().expect("input");
        std::io::Write::write_all(&mut feed, input).expect("input");
        std::io::Seek::rewind(&mut feed).expect("input");
        self.command(arguments).stdin(feed).output().expect("client")
    }

    /// A client on pipes that stay open.
    pub(crate) fn on_pipes(&self, arguments: &[&str]) -> Process {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Process(command.spawn().expect("client"))
    }
}

/// A child that does not outlive its test.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    #[track_caller]
    pub(crate) fn end(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the client ended", || {
            status = self.0.try_wait().expect("wait");
            status.is_some()
        });
        status.expect("an end")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) struct OnTerminal {
    pub(crate) child: Process,
    master: OwnedFd,
    slave: OwnedFd,
    original: Termios,
    text: String,
    /// Up to here the text was expected.
    read: usize,
}

impl OnTerminal {
    pub(crate) fn types(&self, keys: &[u8]) {
        let mut rest = keys;
        while !rest.is_empty() {
            let written = rustix::io::write(&self.master, rest).expect("keys");
            rest = &rest[written..];
        }
    }

    /// Waits until the terminal shows `text`, and returns what it showed before it since the last time. Line ends are
    /// single newlines here.
    #[track_caller]
    pub(crate) fn shows(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(place) = self.text[self.read..].find(text) {
                let before = self.text[self.read..self.read + place].to_owned();
                self.read += place + text.len();
                return before;
            }
            assert!(
                Instant::now() < deadline,
                "waited for {text:?} after {:?}",
                &self.text[self.read..]
            );
            self.read_some();
        }
    }

    /// All that was shown since the last time; the client has to have ended.
    pub(crate) fn rest(&mut self) -> String {
        while self.read_some() {}
        self.text.split_off(self.read)
    }

    fn read_some(&mut self) -> bool {
        let mut polled = [PollFd::new(&self.master, PollFlags::IN)];
        let timeout = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        if !matches!(poll(&mut polled, Some(&timeout)), Ok(ready) if ready > 0) {
            return false;
        }
        let mut part = [0; 4096];
        let Ok(length) = rustix::io::read(&self.master, &mut part) else { return false };
        self.text.push_str(&String::from_utf8_lossy(&part[..length]).replace('\r', ""));
        length > 0
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.child.pid(), signal).expect("signal");
    }

    /// Whether the terminal hands lines over, not keys.
    pub(crate) fn is_raw(&self) -> bool {
        !tcgetattr(self.slave.as_fd()).expect("modes").local_modes.contains(LocalModes::ICANON)
    }

    /// The client ends with this status, and the terminal is as it was.
    #[track_caller]
    pub(crate) fn ends_with(&mut self, status: i32) {
        let ended = self.child.end();
        assert_eq!(
            ended.code().or(ended.signal().map(|signal| -signal)),
            Some(status),
            "{:?}",
            self.rest()
        );
        let now = tcgetattr(self.slave.as_fd()).expect("modes");
        assert_eq!(
            format!("{now:?}"),
            format!("{:?}", self.original),
            "the terminal was not given back"
        );
    }
}
