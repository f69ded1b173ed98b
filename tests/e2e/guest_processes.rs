//! The three processes of a running guest, as a test that kills or looks at them needs them.

use std::fs;
use std::time::Duration;

use hpvm_host::process::PidFd;
use hpvm_testkit::vm_host::VmHost;
use rustix::process::Signal;

/// From a signal that nobody catches; an engine has its memory to give back.
const GONE_BOUND: Duration = Duration::from_secs(20);

/// A process that cannot be mistaken for a later one.
pub(crate) struct Process {
    pub(crate) pid: i32,
    handle: PidFd,
}

/// The process of this name on a VM Host that runs one guest: `hpvmkeeper`, `hpvmapp`, or `hpvm-1`,
/// which is QEMU.
pub(crate) fn process(host: &VmHost, name: &str) -> Option<Process> {
    let mut all = host.processes().into_iter().filter(|(_, comm)| comm == name);
    all.find_map(|(pid, _)| {
        let handle = PidFd::open_number(pid).ok().flatten()?;
        let ended = handle.wait_exit(Duration::ZERO).unwrap_or(true);
        (!ended).then_some(Process { pid, handle })
    })
}

/// The command line of a process, if it is there.
pub(crate) fn arguments(pid: i32) -> Option<Vec<String>> {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    Some(line.split('\0').map(str::to_owned).collect())
}

impl Process {
    /// One that lives, by its number.
    pub(crate) fn open(pid: i32) -> Process {
        Process { pid, handle: PidFd::open_number(pid).expect("a pidfd").expect("it lives") }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        assert!(self.handle.signal(signal).expect("a signal to our own process"), "it has ended");
    }

    pub(crate) fn lives(&self) -> bool {
        !self.handle.wait_exit(Duration::ZERO).expect("a pidfd can be waited for")
    }

    /// Fine when it has ended meanwhile.
    pub(crate) fn signal_if_alive(&self, signal: Signal) {
        self.handle.signal(signal).expect("a signal to our own process");
    }

    /// The keeper of a worker, or of a switch.
    pub(crate) fn parent(&self) -> Process {
        Process::open(status_field(self.pid, "PPid").parse().expect("a number"))
    }

    /// `kill -9`, and until it is gone.
    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
        let ended = self.handle.wait_exit(GONE_BOUND).expect("a pidfd can be waited for");
        assert!(ended, "process {} did not end", self.pid);
    }
}

/// A line of /proc/PID/status.
pub(crate) fn status_field(pid: i32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.expect("a field of /proc/PID/status").trim().to_owned()
}
