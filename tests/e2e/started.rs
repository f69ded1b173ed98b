//! Commands that run beside their test. Whatever becomes of the test, none outlives it.

use std::io::Read;
use std::process::{Child, ChildStderr, Command};
use std::time::Duration;

use hpvm_host::process::{PidFd, Signal};
use hpvm_testkit::vm_host::{COMMAND_BOUND, VmHost};

pub(crate) struct Started {
    child: Child,
    process: PidFd,
}

impl Started {
    #[track_caller]
    pub(crate) fn of(host: &VmHost, line: &[&str]) -> Started {
        Started::by(host.command(line))
    }

    /// A command that a test put together itself.
    #[track_caller]
    pub(crate) fn by(mut command: Command) -> Started {
        let child = command.spawn().expect("it starts");
        let pid = i32::try_from(child.id()).expect("a process number");
        let process = PidFd::open_number(pid).expect("a pidfd").expect("our own child");
        Started { child, process }
    }

    pub(crate) fn number(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stderr(&mut self) -> ChildStderr {
        self.child.stderr.take().expect("a pipe that nobody has taken")
    }

    pub(crate) fn gets(&self, signal: Signal) {
        self.process.signal(signal).expect("a signal to our own child, or one that has ended");
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    pub(crate) fn ends_within(&self, bound: Duration) -> bool {
        self.process.wait_exit(bound).expect("a pidfd can be waited for")
    }

    /// Its exit status, and what it said that nobody has read, once it has ended.
    #[track_caller]
    pub(crate) fn end(self) -> (Option<i32>, String) {
        self.end_within(COMMAND_BOUND)
    }

    #[track_caller]
    pub(crate) fn end_within(mut self, bound: Duration) -> (Option<i32>, String) {
        assert!(self.ends_within(bound), "it has not ended");
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut said).expect("text");
        }
        (self.child.wait().expect("our own child").code(), said)
    }

    /// Ends one that goes on until somebody has enough of it, as Ctrl-C does; gives what it said.
    #[track_caller]
    pub(crate) fn end_by_ctrl_c(self) -> String {
        self.gets(Signal::INT);
        let (status, said) = self.end();
        assert_eq!(status, Some(0), "{said}");
        said
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
