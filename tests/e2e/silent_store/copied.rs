//! A store that falls silent while hpvmclone copies from it or to it: the command says so, and ends when it is told to.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use hpvm_host::process::{PidFd, Signal};
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use super::BOUND;
use crate::Test;
use crate::clone::slow::{COPYING, is_copying};
use crate::clone::{nothing_is_left, on};
use crate::file_server::FileServer;
use crate::loop_device::LoopDevice;
use crate::mounted::Freezable;
use crate::started::Started;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_source_that_falls_silent_is_named_and_holds_nobody,
    a_target_that_falls_silent_is_named_and_holds_nobody,
    a_target_that_takes_no_writes_is_named_and_holds_nobody,
    a_copy_to_a_frozen_file_system_is_refused,
    what_a_clone_left_on_a_frozen_file_system_holds_nobody,
    a_clone_that_was_killed_and_cannot_end_is_told_of,
];

const COPIED_BYTES: u64 = 64 << 20;
/// From a signal to the end of the command, with room for a busy machine.
const ENDS_WITHIN: Duration = Duration::from_secs(12);

/// A guest `web` that is off, a file server of which the far half answers nobody, and whoever reads is let go by nobody.
fn beside_a_silent_half() -> (VmHost, FileServer) {
    let host = VmHost::new(Engine::Fake);
    let server = FileServer::over(&host.path("far"), COPIED_BYTES);
    server.leave_unanswered(|silence| &silence.far_half);
    server.leave_unanswered(|silence| &silence.interrupts);
    (host, server)
}

fn a_source_that_falls_silent_is_named_and_holds_nobody() {
    let (host, server) = beside_a_silent_half();
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &on(&server.file, "file")]);
    let copying = Copying::to(&host, &on(&host.path("copy.img"), "file"));
    wait_until(COPYING, "the copy begins", || is_copying(&host));
    server.leave_unanswered(|silence| &silence.reading);
    let said = copying.ends(Signal::TERM, 143, &server.file.display().to_string());
    assert!(said.contains("interrupted; nothing was changed"), "{said}");
    host.ok(&["hpvmmodify", "-P", "web", "-l", "changed meanwhile"]);
    nothing_is_left(&host, host.root());
    server.answer_again();
}

/// The kernel ends no process whose read is not answered, and what it has locked stays so. `umount -f` has the kernel give up the
/// file system's server.
fn a_clone_that_was_killed_and_cannot_end_is_told_of() {
    let (host, server) = beside_a_silent_half();
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &on(&server.file, "file")]);
    let clone = ["hpvmclone", "-P", "web", "-N", "new", "-b"];
    let copy = on(&host.path("copy.img"), "file");
    let clone = Started::of(&host, &[&clone[..], &[&copy]].concat());
    wait_until(COPYING, "the copy waits", || server.is_holding());
    clone.gets(Signal::KILL);
    // What it says is not read to its end, which the process that stays would hold up.
    assert!(clone.ends_within(BOUND), "it was killed");
    let mut waits = Started::of(&host, &["hpvmmodify", "-P", "web", "-l", "changed afterwards"]);
    let (mut told, mut line) = (BufReader::new(waits.stderr()), String::new());
    told.read_line(&mut line).expect("text");
    let why = format!("it was killed, and cannot end before '{}' answers", server.file.display());
    assert!(line.starts_with("hpvmmodify: waits for hpvmclone") && line.contains(&why), "{line}");
    // It says that the folder is in use, and does that all the same.
    let far = server.file.parent().expect("a folder");
    let _ = Command::new("umount").arg("-f").arg(far).output().expect("umount runs");
    assert_eq!(waits.end().0, Some(0));
    host.ok(&["hpvm", "doctor", "--repair"]);
    assert!(!is_copying(&host), "nothing is left of the copy");
}

fn a_target_that_falls_silent_is_named_and_holds_nobody() {
    target_is_named_and_holds_nobody(|server| {
        server.leave_unanswered(|silence| &silence.reading);
    });
}

/// As a thin pool that is full and waits for room: who reads is answered.
fn a_target_that_takes_no_writes_is_named_and_holds_nobody() {
    target_is_named_and_holds_nobody(|server| {
        server.leave_unanswered(|silence| &silence.writing);
    });
}

#[track_caller]
fn target_is_named_and_holds_nobody(falls_silent: impl Fn(&FileServer)) {
    let (host, server) = beside_a_silent_half();
    let source = host.disk("web.img", COPIED_BYTES);
    crate::clone::fill(&source, COPIED_BYTES >> 20);
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &on(&source, "file")]);
    let device = LoopDevice::on(&server.file, &["--direct-io=on"]);
    let copying = Copying::to(&host, &on(device.path(), "disk"));
    wait_until(COPYING, "something is written", || server.is_holding());
    falls_silent(&server);
    let said = copying.ends(Signal::INT, 130, &device.path().display().to_string());
    let left = format!("the content of '{}' is partly overwritten", device.path().display());
    assert!(said.contains("the clone was not made") && said.contains(&left), "{said}");
    host.ok(&["hpvmmodify", "-P", "web", "-l", "changed meanwhile"]);
    nothing_is_left(&host, host.root());
    server.answer_again();
}

/// The kernel would let nobody go who makes a file there.
fn a_copy_to_a_frozen_file_system_is_refused() {
    let host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web", "-a", &on(&host.disk("web.img", 1 << 20), "file")]);
    let near = Freezable::over(&host);
    near.freeze();
    let copy = on(&near.folder().join("copy.img"), "file");
    let said = host.refused(&["hpvmclone", "-P", "web", "-N", "new", "-b", &copy]);
    let told =
        format!("cannot change '{}': its file system has not answered", near.folder().display());
    assert!(said.contains(&told), "{said}");
    host.ok(&["hpvmmodify", "-P", "web", "-l", "changed meanwhile"]);
    near.thaw();
    nothing_is_left(&host, near.folder());
    host.ok(&["hpvmclone", "-P", "web", "-N", "new", "-b", &copy]);
}

/// Who would remove it there is let go by nobody, and has the registry.
fn what_a_clone_left_on_a_frozen_file_system_holds_nobody() {
    let mut host = VmHost::new(Engine::Fake);
    host.ok(&["hpvmcreate", "-P", "web", "-a", &on(&host.disk("web.img", 1 << 20), "file")]);
    host.ok(&["hpvmcreate", "-P", "other"]);
    let near = Freezable::over(&host);
    let copy = on(&near.folder().join("copy.img"), "file");
    host.environment("HPVM_ABORT_AT", "clone.placed");
    let killed = host.run(&["hpvmclone", "-P", "web", "-N", "new", "-b", &copy]);
    host.without_environment("HPVM_ABORT_AT");
    assert_eq!(killed.status.code(), None, "{killed}");
    near.freeze();
    let begun = Instant::now();
    let started = host.run(&["hpvmstart", "-P", "other"]);
    assert!(started.status.success() && begun.elapsed() < ENDS_WITHIN, "{started}");
    let told = "was interrupted, and what it left stays: ";
    assert!(started.stderr.contains(told), "{started}");
    assert!(started.stderr.contains("its file system has not answered"), "{started}");
    host.ok(&["hpvmcreate", "-P", "third"]);
    near.thaw();
    host.ok(&["hpvm", "doctor", "--repair"]);
    let names = fs::read_dir(near.folder()).expect("a folder").flatten().map(|e| e.file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["lost+found"]);
    assert_eq!(host.ok(&["hpvm", "doctor"]), "Nothing to complain of.\n");
}

/// A clone under way.
struct Copying(Child);

impl Copying {
    fn to(host: &VmHost, copy: &str) -> Copying {
        let mut command = host.command(&["hpvmclone", "-P", "web", "-N", "new", "-b", copy]);
        Copying(command.stdin(Stdio::null()).spawn().expect("it starts"))
    }

    /// It says what it waits for; what it says after that is given.
    #[track_caller]
    fn waits_for(&mut self, silent: &str, end: &str) -> BufReader<ChildStderr> {
        let mut stderr = BufReader::new(self.0.stderr.take().expect("a pipe"));
        let mut line = String::new();
        stderr.read_line(&mut line).expect("text");
        assert!(line.contains(&format!("'{silent}' does not answer; {end}")), "{line}");
        stderr
    }

    fn process(&self) -> PidFd {
        let number = i32::try_from(self.0.id()).expect("a number");
        PidFd::open_number(number).expect("a pidfd").expect("it lives")
    }

    /// It says what it waits for. Told to end, it is gone with all that anybody waits for, and what it said besides is given.
    #[track_caller]
    fn ends(mut self, signal: Signal, status: i32, silent: &str) -> String {
        let mut stderr = self.waits_for(silent, "the copy waits, and Ctrl-C ends it");
        let process = self.process();
        process.signal(signal).expect("a signal to our own child");
        let told = Instant::now();
        let mut said = String::new();
        stderr.read_to_string(&mut said).expect("text");
        assert!(process.wait_exit(BOUND).expect("waited"), "it has not ended");
        assert!(told.elapsed() < ENDS_WITHIN, "ended after {:?}", told.elapsed());
        assert_eq!(self.0.wait().expect("our own child").code(), Some(status), "{said}");
        said
    }
}
