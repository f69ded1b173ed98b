//! A store that falls silent while a running guest is copied: the command names it, says what comes of Ctrl-C, and does that.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use hpvm_host::process::Signal;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use super::slow::{engine_is_as_it_was, left_in_engine};
use super::{BOUND, MIB};
use crate::Test;
use crate::clone::{fill, nothing_is_left, on};
use crate::file_server::FileServer;
use crate::loop_device::LoopDevice;
use crate::mounted::Freezable;
use crate::started::Started;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_source_that_falls_silent_under_a_running_guest_is_named,
    a_target_that_falls_silent_under_a_running_guest_is_named,
    a_target_that_takes_no_writes_of_a_running_guest_is_named,
];

const COPIED_BYTES: u64 = 64 * MIB;
/// A silence is told two seconds after it began, with room for a busy machine.
const NAMED_WITHIN: Duration = Duration::from_secs(8);
/// From Ctrl-C to the end of a command that leaves what a far store holds, with room for a busy machine.
const ENDS_WITHIN: Duration = Duration::from_secs(12);
/// The same of one whose stores are this machine's own: QEMU is waited for, which writes them.
const TAKEN_BACK_WITHIN: Duration = Duration::from_secs(40);
const CTRL_C: &str = "the copy waits, and perhaps the guest with it; Ctrl-C ends the command";

fn a_source_that_falls_silent_under_a_running_guest_is_named() {
    let host = VmHost::new(Engine::Real);
    let server = FileServer::over(&host.path("far"), COPIED_BYTES);
    let far = server.file.display();
    let copy = on(&host.path("copy.img"), "file");
    let told = format!("'{far}', which backs the disk at 0,1,0, does not answer");
    beside_a_silent_half(&host, &server, &on(&server.file, "file"), &copy, &told);
}

fn a_target_that_falls_silent_under_a_running_guest_is_named() {
    let host = VmHost::new(Engine::Real);
    let server = FileServer::over(&host.path("far"), COPIED_BYTES);
    let device = LoopDevice::on(&server.file, &["--direct-io=on"]);
    let source = host.disk("web.img", COPIED_BYTES);
    fill(&source, COPIED_BYTES / MIB);
    let target = device.path().display();
    let told =
        format!("'{target}', which is being made a copy of the disk at 0,1,0, does not answer");
    beside_a_silent_half(&host, &server, &on(&source, "file"), &on(device.path(), "disk"), &told);
}

/// A copy comes to where the server answers nobody, and then it answers nobody at all. Whoever waits for it is let go by
/// nobody.
#[track_caller]
fn beside_a_silent_half(host: &VmHost, server: &FileServer, disk: &str, copy: &str, told: &str) {
    host.create("web", "512M", &[disk]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (EFI)", BOUND);
    server.leave_unanswered(|silence| &silence.interrupts);
    server.leave_unanswered(|silence| &silence.far_half);
    let clone = Started::of(host, &["hpvmclone", "-P", "web", "-N", "new", "-b", copy]);
    wait_until(BOUND, "the copy waits", || server.is_holding());
    server.leave_unanswered(|silence| &silence.reading);
    let said = is_named_and_ends(clone, told, NAMED_WITHIN, ENDS_WITHIN);
    assert!(said.contains("interrupted; "), "{said}");
    server.answer_again();
    runs_on_without_a_copy(host);
    nothing_is_left(host, host.root());
}

/// Who only reads is answered by a file system that is frozen.
fn a_target_that_takes_no_writes_of_a_running_guest_is_named() {
    let host = VmHost::new(Engine::Real);
    let source = host.disk("web.img", 512 * MIB);
    fill(&source, 512);
    host.create("web", "512M", &[on(&source, "file")]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (EFI)", BOUND);
    let near = Freezable::of(&host, 640 * MIB);
    let copy = near.folder().join("copy.img");
    let statement = on(&copy, "file");
    // From here on QEMU looks at no store any more, and waits for none.
    let begun = || copy.exists() || left_in_engine(&host).contains("job copy-nvram");
    // On a busy machine the copy may be there first: then it is tried again.
    for _ in 0..10 {
        let clone = Started::of(&host, &["hpvmclone", "-P", "web", "-N", "new", "-b", &statement]);
        wait_until(BOUND, "the copy begins", begun);
        near.freeze();
        if copy.exists() {
            near.thaw();
            let (status, said) = clone.end();
            assert_eq!(status, Some(0), "{said}");
            host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
            fs::remove_file(&copy).expect("the copy");
            continue;
        }
        let told = format!(
            "'{}' cannot be written: its file system has not answered for 2 s",
            copy.display()
        );
        let said = is_named_and_ends(clone, &told, BOUND, TAKEN_BACK_WITHIN);
        assert!(said.contains("interrupted; the clone was not made"), "{said}");
        near.thaw();
        runs_on_without_a_copy(&host);
        return nothing_is_left(&host, near.folder());
    }
    panic!("none of ten was met in its middle");
}

/// It says what it waits for, and ends after Ctrl-C though that does not answer; what it says to it is given.
#[track_caller]
fn is_named_and_ends(
    mut clone: Started,
    told: &str,
    named_within: Duration,
    ends_within: Duration,
) -> String {
    let begun = Instant::now();
    let mut stderr = BufReader::new(clone.stderr());
    let mut line = String::new();
    // That QEMU does not answer may be known before it is known why.
    while !line.contains(told) {
        line.clear();
        assert_ne!(stderr.read_line(&mut line).expect("text"), 0, "it has ended");
        println!("{line}");
    }
    let took = begun.elapsed();
    assert!(line.contains(&format!("{told}; {CTRL_C}")), "{line}");
    assert!(took < named_within, "named after {took:?}");
    clone.gets(Signal::INT);
    assert!(clone.ends_within(ends_within), "Ctrl-C is answered");
    let mut said = String::new();
    stderr.read_to_string(&mut said).expect("text");
    assert_eq!(clone.end().0, Some(130), "{said}");
    said
}

/// The store answers again.
#[track_caller]
fn runs_on_without_a_copy(host: &VmHost) {
    host.wait_for_state("web", "On (EFI)", BOUND);
    engine_is_as_it_was(host);
    // What a clone left that could not wait for the store.
    host.run(&["hpvm", "doctor", "--repair"]);
    host.ok(&["hpvmmodify", "-P", "web", "-l", "changed afterwards"]);
}
