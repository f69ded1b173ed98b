//! A `hpvmnat` that a test started, and ends whatever becomes of the test.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use hpvm_host::users::{Ids, is_root};
use hpvm_nat::control::{Reply, Request, Status, ask};
use hpvm_nat::{Settings, descriptor};

use crate::world::FAR;

pub(crate) struct Nat {
    folder: tempfile::TempDir,
    wire: UnixListener,
    control: UnixListener,
    settings: Settings,
    child: Child,
}

impl Nat {
    pub(crate) fn start(settings: Settings) -> Nat {
        let folder = tempfile::tempdir().expect("a folder");
        let listen = |name| UnixListener::bind(folder.path().join(name)).expect("a socket");
        let (wire, control) = (listen("wire"), listen("control"));
        // An ordinary user is root in the namespace, and has one user to be.
        let has_users = is_root()
            && std::fs::read_to_string("/proc/self/uid_map")
                .is_ok_and(|map| map.contains("4294967295"));
        let ids = has_users.then_some(Ids { uid: 1_500_079, gid: 1_500_079 });
        let settings = Settings { ids, ..settings };
        let child = spawn(&settings, &wire, &control);
        Nat { folder, wire, control, settings, child }
    }

    /// Ends it without a word, and starts another at the same sockets.
    pub(crate) fn replace(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited for");
        self.child = spawn(&self.settings, &self.wire, &self.control);
    }

    pub(crate) fn connect(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("wire")).expect("hpvmnat listens")
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.folder.path().join("control")
    }

    pub(crate) fn ask(&self, request: &Request) -> Reply {
        ask(&self.control(), request).expect("an answer")
    }

    pub(crate) fn status(&self) -> Status {
        match self.ask(&Request::Status) {
            Reply::Status(status) => status,
            other => panic!("no status: {other:?}"),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn ids(&self) -> Option<Ids> {
        self.settings.ids
    }

    pub(crate) fn lives(&mut self) -> bool {
        self.child.try_wait().expect("waited for").is_none()
    }

    /// How it ends, which it must do within seconds.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(10);
        let pid = rustix::process::Pid::from_child(&self.child);
        let held = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
        let held = held.expect("held");
        let rest = deadline.saturating_duration_since(Instant::now());
        let rest = rustix::event::Timespec::try_from(rest).expect("a time");
        let mut polled = [rustix::event::PollFd::new(&held, rustix::event::PollFlags::IN)];
        let count = rustix::event::poll(&mut polled, Some(&rest)).expect("polled");
        assert_eq!(count, 1, "hpvmnat did not end");
        self.child.wait().expect("waited for")
    }
}

fn spawn(settings: &Settings, wire: &UnixListener, control: &UnixListener) -> Child {
    let copy =
        |listener: &UnixListener| -> OwnedFd { listener.try_clone().expect("copied").into() };
    Command::new(env!("CARGO_BIN_EXE_hpvmnat"))
        .args(settings.arguments())
        .stdin(Stdio::null())
        .fd_mappings(vec![
            FdMapping { parent_fd: copy(wire), child_fd: descriptor::WIRE },
            FdMapping { parent_fd: copy(control), child_fd: descriptor::CONTROL },
        ])
        .expect("two numbers")
        .spawn()
        .unwrap_or_else(|error| panic!("hpvmnat starts, with {FAR} outside: {error}"))
}

impl Drop for Nat {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
