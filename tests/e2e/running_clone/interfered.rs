//! Whoever is killed, hangs, is interrupted or out of room while a running guest is copied: the guest runs on, and nothing of the
//! copy is left.

use std::fs;
use std::io::{BufRead, BufReader};
use std::time::Duration;

use hpvm_host::lock::pause_for;
use hpvm_host::process::Signal;
use hpvm_qmp::RunState;
use hpvm_qmp::blocking::Client;
use hpvm_qmp::command::QueryStatus;
use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use super::slow::{Slow, Still, engine_is_as_it_was, left_in_engine};
use super::{BOUND, MIB};
use crate::Test;
use crate::chance::{Met, Moments};
use crate::clone::{is_told_of_no_room, nothing_is_left, on, with_web};
use crate::file_server::FileServer;
use crate::guest_processes::{Process, process};
use crate::loop_device::LoopDevice;
use crate::pool::image;
use crate::started::Started;

pub(crate) const TESTS: &[Test] = crate::tests![
    a_command_killed_at_any_moment_leaves_nothing,
    a_worker_killed_in_the_middle_leaves_nothing,
    a_worker_killed_while_it_holds_the_guest_leaves_it_running,
    an_engine_killed_in_the_middle_leaves_nothing,
    an_engine_that_hangs_in_the_middle_is_rid_of_the_copy_when_it_answers,
    a_target_that_falls_silent_is_named_and_not_the_source,
    whoever_waits_for_a_clone_says_so,
    an_interrupted_copy_leaves_the_guest_running,
    a_stop_does_not_wait_for_a_copy,
    no_room_harms_no_guest,
];

fn a_command_killed_at_any_moment_leaves_nothing() {
    let slow = Slow::start();
    let mut moments = Moments::within(Duration::from_secs(1));
    while let Some(moment) = moments.next() {
        let clone = slow.clone();
        // Each second moment counts from where the copy has begun, so that enough of them meet it.
        if moments.round().is_multiple_of(2) {
            slow.until_it_copies();
        }
        pause_for(moment);
        let has_begun = slow.is_copying();
        clone.gets(Signal::KILL);
        moments.was(match clone.end() {
            (Some(0), _) => Met::AfterItsEnd,
            _ if has_begun => Met::AtWork,
            _ => Met::BeforeItsWork,
        });
        let doctor = slow.host.run(&["hpvm", "doctor", "--repair"]);
        assert!(doctor.status.success(), "{moments}: {doctor}");
        slow.runs_on();
        if slow.copy.exists() {
            slow.host.ok(&["hpvmremove", "-P", "new", "-F", "--purge"]);
            fs::remove_file(&slow.copy).expect("the copy");
        }
        nothing_is_left(&slow.host, slow.host.root());
    }
}

fn a_worker_killed_in_the_middle_leaves_nothing() {
    let slow = Slow::start();
    let kill = |_: &Started| process(&slow.host, "hpvmapp").expect("a worker").kill();
    let (status, said) = slow.in_the_middle(kill);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("could not be copied"), "{said}");
    slow.runs_on();
    nothing_is_left(&slow.host, slow.host.root());
    // And the next worker copies.
    let (status, said) = slow.clone().end();
    assert_eq!(status, Some(0), "{said}");
    slow.runs_on();
}

/// On an engine that takes long to complete a mirror.
fn a_worker_killed_while_it_holds_the_guest_leaves_it_running() {
    let mut host = with_web();
    host.engine_behaves("complete=4000");
    host.ok(&["hpvmstart", "-P", "web"]);
    let statement = on(&host.path("copy.img"), "file");
    let clone = Started::of(&host, &["hpvmclone", "-P", "web", "-N", "new", "-b", &statement]);
    let mut second = Client::connect(&host.run_dir(1).join("rescue")).expect("the second monitor");
    wait_until(BOUND, "the guest is held", || {
        // The engine copies meanwhile, to a disk on which other tests write too.
        let status = second.execute_within(&QueryStatus {}, BOUND).expect("told").status;
        status == RunState::Paused
    });
    process(&host, "hpvmapp").expect("a worker").kill();
    drop(second);
    let (status, said) = clone.end();
    assert_eq!(status, Some(1), "{said}");
    engine_is_as_it_was(&host);
    host.wait_for_state("web", "On (OS)", BOUND);
    nothing_is_left(&host, host.root());
}

fn an_engine_killed_in_the_middle_leaves_nothing() {
    let slow = Slow::start();
    let kill = |_: &Started| process(&slow.host, "hpvm-1").expect("an engine").kill();
    let (status, said) = slow.in_the_middle(kill);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("could not be copied"), "{said}");
    slow.host.wait_for_state("web", "Off", BOUND);
    nothing_is_left(&slow.host, slow.host.root());
}

/// It would go on writing the copy that nobody wants any more.
fn an_engine_that_hangs_in_the_middle_is_rid_of_the_copy_when_it_answers() {
    let mut host = with_web();
    let statement = on(&host.path("copy.img"), "file");
    let clone = endless_clone(&mut host, &statement);
    let engine = Process::open(host.snapshot(1).expect("it runs").qemu.pid);
    let still = Still::hold(&engine);
    let (status, said) = clone.end();
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("could not be copied: QEMU did not answer"), "{said}");
    let copy = host.path("copy.img");
    let told = format!("a copy of its disks has failed, and QEMU may write '{}'", copy.display());
    let shown = host.ok(&["hpvmstatus", "-P", "web"]);
    assert!(shown.contains(&told), "{shown}");
    drop(still);
    let is_told = || guest_log(&host).contains("nothing is left in QEMU of the copy");
    wait_until(BOUND, "its end is told", is_told);
    assert_eq!(left_in_engine(&host), "");
    host.wait_for_state("web", "On (OS)", BOUND);
    assert!(!host.ok(&["hpvmstatus", "-P", "web"]).contains("QEMU may write"));
    nothing_is_left(&host, host.root());
}

fn guest_log(host: &VmHost) -> String {
    fs::read_to_string(host.path("var/opt/hpvm/guests/web/log")).expect("a log")
}

/// A clone that goes on until it is interrupted.
fn endless_clone(host: &mut VmHost, statement: &str) -> Started {
    host.engine_behaves("mirror=60000");
    host.ok(&["hpvmstart", "-P", "web"]);
    let clone = Started::of(host, &["hpvmclone", "-P", "web", "-N", "new", "-b", statement]);
    wait_until(BOUND, "it is copied", || left_in_engine(host).contains("job copy-nvram"));
    clone
}

fn a_target_that_falls_silent_is_named_and_not_the_source() {
    let mut host = with_web();
    let server = FileServer::over(&host.path("far"), 64 * MIB);
    let device = LoopDevice::on(&server.file, &["--direct-io=on"]);
    let clone = endless_clone(&mut host, &on(device.path(), "disk"));
    server.leave_unanswered(|silence| &silence.reading);
    let target =
        format!("'{}', which is being made a copy of the disk at 0,1,0", device.path().display());
    host.wait_for_state("web", "On (ATTN)", BOUND);
    for look in [&["hpvmstatus", "-P", "web"][..], &["hpvm", "why", "web"]] {
        let shown = host.ok(look);
        assert!(shown.contains(&target) && !shown.contains("which backs"), "{shown}");
    }
    server.answer_again();
    host.wait_for_state("web", "On (OS)", BOUND);
    assert!(guest_log(&host).contains(&format!("{target}, answers again")));
    clone.gets(Signal::INT);
    assert_eq!(clone.end().0, Some(130));
    engine_is_as_it_was(&host);
}

fn whoever_waits_for_a_clone_says_so() {
    let mut host = with_web();
    let statement = on(&host.path("copy.img"), "file");
    let clone = endless_clone(&mut host, &statement);
    let mut waits = Started::of(&host, &["hpvmmodify", "-P", "web", "-l", "later"]);
    let (mut told, mut line) = (BufReader::new(waits.stderr()), String::new());
    told.read_line(&mut line).expect("text");
    let who = format!("hpvmmodify: waits for hpvmclone (process {})", clone.number());
    assert!(line.starts_with(&who) && line.contains("copying disks"), "{line}");
    clone.gets(Signal::INT);
    assert_eq!(clone.end().0, Some(130));
    assert_eq!(waits.end().0, Some(0));
}

fn an_interrupted_copy_leaves_the_guest_running() {
    let slow = Slow::start();
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let (code, said) = slow.in_the_middle(|clone| {
            clone.gets(signal);
            assert!(clone.ends_within(Duration::from_secs(5)), "it is answered");
            assert_eq!(left_in_engine(&slow.host), "", "taken back before the command ends");
        });
        assert_eq!(code, Some(status), "{said}");
        assert!(said.contains("interrupted; nothing was changed"), "{said}");
        slow.runs_on();
        nothing_is_left(&slow.host, slow.host.root());
    }
}

fn a_stop_does_not_wait_for_a_copy() {
    let mut host = with_web();
    host.engine_behaves("mirror=20000");
    host.ok(&["hpvmstart", "-P", "web"]);
    let statement = on(&host.path("copy.img"), "file");
    let clone = Started::of(&host, &["hpvmclone", "-P", "web", "-N", "new", "-b", &statement]);
    wait_until(BOUND, "it is copied", || left_in_engine(&host).contains("job copy-nvram"));
    let stopped = host.run(&["hpvmstop", "-P", "web", "-h", "-F"]);
    assert!(stopped.status.success(), "{stopped}");
    assert!(stopped.stderr.contains("is copying its disks, and fails now"), "{stopped}");
    let (status, said) = clone.end();
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("could not be copied: the guest has ended in the meantime"), "{said}");
    assert_eq!(host.state("web"), "Off");
    assert!(!host.run_dir(1).join("qmp").exists(), "what is left of it is cleared");
    nothing_is_left(&host, host.root());
}

/// The copy fails, and the guest writes on without an error.
fn no_room_harms_no_guest() {
    let host = VmHost::new(Engine::Real);
    let boot = host.copy_of(&image("test-cloud"), "web.img");
    host.ok(&["hpvmcreate", "-P", "web", "-O", "linux", "-r", "512M", "-a", &on(&boot, "file")]);
    host.ok(&["hpvmstart", "-P", "web"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.wait_for_shell();
    console.run("OTHER=; (n=0; while :; do n=$((n+1)); printf %08d $n | dd of=/dev/sda1 bs=8 conv=fsync,notrunc 2>/dev/null || break; done; echo FAILED > /tmp/failed) & true");
    let small = is_told_of_no_room(&host);
    engine_is_as_it_was(&host);
    nothing_is_left(&host, small.path());
    assert_eq!(host.state("web"), "On (OS)");
    assert_eq!(console.run("cat /tmp/failed 2>/dev/null; dmesg | grep -i 'i/o error'"), "");
}
