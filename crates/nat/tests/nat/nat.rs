//! A `hpvmnat` that a test started, and ends whatever becomes of the test.

use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use hpvm_host::users::{Ids, is_root};
use hpvm_nat::control::{Reply, Request, Status, ask};
use hpvm_nat::{Places, Settings, start};
use rustix::process::{Pid, Signal, kill_process_group};

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

    /// Ends it without a word, worker and all, and starts another at the same sockets.
    pub(crate) fn replace(&mut self) {
        self.kill();
        self.child = spawn(&self.settings, &self.wire, &self.control);
    }

    /// All of it at once; it has a process group of its own.
    pub(crate) fn kill(&mut self) {
        kill_process_group(Pid::from_child(&self.child), Signal::KILL).expect("killed");
        self.child.wait().expect("waited for");
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

    pub(crate) fn ids(&self) -> Option<Ids> {
        self.settings.ids
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
    let copy = |listener: &UnixListener| listener.try_clone().expect("copied");
    let log = std::io::stderr().as_fd().try_clone_to_owned().expect("copied").into();
    let places = Places { wire: copy(wire), control: copy(control), log };
    start(Path::new(env!("CARGO_BIN_EXE_hpvmnat")), settings, places).expect("hpvmnat starts")
}

impl Drop for Nat {
    fn drop(&mut self) {
        // Of a group that nobody is left in the number may be another's, but for a moment that no test waits for.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}
