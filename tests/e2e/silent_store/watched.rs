//! Each store that a running guest has is watched, whatever it is there for and however it came.

use std::fs;

use hpvm_qmp::blocking::Client;
use hpvm_qmp::command::SystemReset;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use super::{BOUND, DISK_BYTES, PATIENCE_WITHIN, answered, ended, guest_log, to_be_given};
use crate::Test;
use crate::file_server::FileServer;
use crate::guest_processes::process;

pub(crate) const TESTS: &[Test] = crate::tests![
    what_backs_a_drive_or_lies_under_a_disk_is_watched_too,
    the_last_of_many_disks_is_watched,
    a_store_that_waits_for_a_reset_is_watched_too,
];

/// A store under a linked clone's disk, and the image in a drive, which was put in while the guest ran.
fn what_backs_a_drive_or_lies_under_a_disk_is_watched_too() {
    const DRIVE: &str = "dvd:avio_stor:0,1,0";
    let mut host = VmHost::new(Engine::Fake);
    host.engine_behaves("requests=busy");
    let server = FileServer::over(&host.path("far"), DISK_BYTES);
    let far = server.file.display().to_string();
    let disk = format!("disk:avio_stor:0,0,0:file:{far}");
    host.ok(&["hpvmcreate", "-P", "base", "-r", "64M", "-a", &disk]);
    host.ok(&["hpvmclone", "-P", "base", "-N", "linked", "--linked"]);
    let empty = format!("{DRIVE}:null:{}", host.path("discs").display());
    fs::create_dir(host.path("discs")).expect("a folder");
    host.ok(&["hpvmcreate", "-P", "reader", "-r", "64M", "-a", &empty]);
    for guest in ["linked", "reader"] {
        host.ok(&["hpvmstart", "-P", guest]);
        host.wait_for_state(guest, "On (OS)", BOUND);
    }
    let image = format!("{DRIVE}:file:{far}");
    host.ok(&["hpvmmodify", "-P", "reader", "-m", &image]);

    server.leave_unanswered(|silence| &silence.reading);
    for (guest, device) in [("linked", "disk at 0,0,0"), ("reader", "dvd at 0,1,0")] {
        host.wait_for_state(guest, "On (ATTN)", BOUND);
        let told = format!("'{far}', which backs the {device}, does not answer");
        let shown = host.ok(&["hpvmstatus", "-P", guest]);
        assert!(shown.contains(&told), "{shown}");
    }
    for command in [
        &["hpvm", "gvsdmgr", "get_info", "-P", "linked"][..],
        &["hpvm", "why", "linked"],
        &["hpvm", "doctor"],
        &["hpvmhostrdev"],
    ] {
        answered(&host, command, 0);
    }
    to_be_given(&host, &far);
    let shared = format!("gdev:{far}:attr:SHARE=YES");
    answered(&host, &["hpvmdevmgmt", "-m", &shared], 1);
    let copy = format!("disk:avio_stor:0,0,0:file:{}", host.path("copy.img").display());
    let clone = answered(&host, &["hpvmclone", "-P", "base", "-N", "copy", "-b", &copy], 1);
    assert!(clone.stderr.contains("has not answered for 2 s"), "{clone}");
    // What is in the drive no more is of no interest any more.
    let eject = ["hpvmmodify", "-P", "reader", "-m", &empty];
    let left = answered(&host, &eject, 1);
    assert!(left.stderr.contains(&format!("'{far}', which backs the dvd at 0,1,0")), "{left}");
    server.answer_again();
    host.wait_for_state("reader", "On (OS)", BOUND);
    host.ok(&eject);
    server.leave_unanswered(|silence| &silence.reading);
    host.wait_for_state("linked", "On (ATTN)", BOUND);
    assert_eq!(host.state("reader"), "On (OS)");
}

/// Of many disks each is watched, those that the guest starts with and those that one command adds while it runs; by the next
/// supervisors too.
fn the_last_of_many_disks_is_watched() {
    let mut host = VmHost::new(Engine::Fake);
    host.engine_behaves("requests=busy");
    let disks = |bus: u32, count: u32, last: &FileServer| {
        let statement = |n: u32| {
            let file = if n + 1 == count {
                last.file.clone()
            } else {
                host.disk(&format!("{bus}-{n}"), 4096)
            };
            [
                "-a".to_owned(),
                format!("disk:avio_stor:{bus},{},{}:file:{}", n / 100, n % 100, file.display()),
            ]
        };
        (0..count).flat_map(statement).collect::<Vec<String>>()
    };
    let servers = ["far", "farther"].map(|name| FileServer::over(&host.path(name), DISK_BYTES));
    let line = |command: &[&str], disks: &[String]| {
        let disks: Vec<&str> = disks.iter().map(String::as_str).collect();
        host.ok(&[command, &disks].concat());
    };
    line(&["hpvmcreate", "-P", "web", "-r", "64M"], &disks(0, 250, &servers[0]));
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", BOUND);
    line(&["hpvmmodify", "-P", "web"], &disks(1, 150, &servers[1]));
    for (name, adoptions) in [("hpvmapp", 1), ("hpvmkeeper", 2), ("hpvmapp", 3)] {
        process(&host, name).expect("it lives").kill();
        let is_followed = || host.snapshot(1).is_some_and(|s| s.adoptions == adoptions);
        wait_until(BOUND, "the next worker is there", is_followed);
        host.wait_for_state("web", "On (OS)", BOUND);
    }
    assert!(!guest_log(&host).contains("is not watched"), "{}", guest_log(&host));
    for (server, device) in servers.iter().zip(["0,2,49", "1,1,49"]) {
        server.leave_unanswered(|silence| &silence.reading);
        let told = format!(
            "'{}', which backs the disk at {device}, does not answer",
            server.file.display()
        );
        wait_until(BOUND, "it is shown", || host.ok(&["hpvmstatus", "-P", "web"]).contains(&told));
    }
}

/// QEMU has it open from when it is told, and looks at it with all the others.
fn a_store_that_waits_for_a_reset_is_watched_too() {
    let mut host = VmHost::new(Engine::Fake);
    host.engine_behaves("boot=os:1000");
    let server = FileServer::over(&host.path("far"), DISK_BYTES);
    let far = format!("disk:scsi:0,0,1:file:{}", server.file.display());
    let near = |name: &str| host.disk(name, 4096).display().to_string();
    let disks = ["0,0,0", "0,0,1"].map(|at| format!("disk:scsi:{at}:file:{}", near(at)));
    let other = format!("disk:avio_stor:0,1,0:file:{}", near("other"));
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &disks[0], "-a", &disks[1]]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", BOUND);
    host.ok(&["hpvmmodify", "-P", "web", "-m", &far]);
    let has_come = || guest_log(&host).contains(&format!("adding {far}, is done"));
    let resets = || {
        let mut rescue = Client::connect(&host.run_dir(1).join("rescue")).expect("QEMU answers");
        let before = guest_log(&host).matches("the guest restarts").count();
        rescue.execute(&SystemReset {}).expect("it is reset");
        let restarts = || guest_log(&host).matches("the guest restarts").count() > before;
        wait_until(BOUND, "the guest to restart", restarts);
    };

    server.leave_unanswered(|silence| &silence.reading);
    resets();
    host.wait_for_state("web", "On (ATTN)", BOUND);
    let told = format!("'{}', which backs the disk at 0,0,1", server.file.display());
    let refused = ended(&host, &["hpvmmodify", "-P", "web", "-a", &other], PATIENCE_WITHIN);
    assert!(refused.stderr.contains(&told), "{refused}");
    assert!(!has_come(), "{}", guest_log(&host));

    server.answer_again();
    host.wait_for_state("web", "On (OS)", BOUND);
    resets();
    wait_until(BOUND, "it comes", has_come);
    host.ok(&["hpvmmodify", "-P", "web", "-a", &other]);
}
