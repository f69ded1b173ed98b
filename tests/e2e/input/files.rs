//! Files that back no disk, or none any more.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Command;

use hpvm_testkit::vm_host::VmHost;

use super::inhabited;
use crate::Test;
use crate::refusals::{State, refused, start_refused};
use crate::statements::{disk_at, disk_on};

pub(crate) const TESTS: &[Test] = crate::tests![
    files_that_back_no_disk,
    a_running_guest_whose_new_disk_is_no_file,
    a_file_that_went_away,
];

fn files_that_back_no_disk() {
    let host = inhabited();
    for (path, reason) in unfit_files(&host) {
        let before = State::of(&host);
        for kind in ["disk", "dvd"] {
            let statement = format!("{kind}:scsi::file:{}", path.display());
            for line in [
                &["hpvmcreate", "-P", "new", "-a", &statement][..],
                &["hpvmmodify", "-P", "web", "-a", &statement],
                &["hpvmmodify", "-P", "other", "-a", &statement],
                &["hpvmmodify", "-P", "web", "-m", &disk_at("0,0,0", &path)],
            ] {
                let said = refused(&host, line);
                assert!(said.contains(reason), "'{reason}' is not told: {said}");
            }
        }
        before.assert_unchanged(&host, &path.display().to_string());
    }
}

/// Paths that no disk can be on, and a word of the reason.
fn unfit_files(host: &VmHost) -> Vec<(std::path::PathBuf, &'static str)> {
    let at = |name: &str| host.path(name);
    let made = Command::new("mkfifo").arg(at("pipe")).status().expect("mkfifo runs");
    assert!(made.success());
    let made = Command::new("mknod").arg(at("block")).args(["b", "7", "200"]).status();
    assert!(made.expect("mknod runs").success());
    // The name stays when the socket is closed.
    drop(UnixListener::bind(at("socket")).expect("a socket"));
    std::os::unix::fs::symlink(at("nowhere"), at("dangling")).expect("a link");
    std::os::unix::fs::symlink(at("loop"), at("loop")).expect("a link");
    vec![
        (at("missing.img"), "does not exist"),
        (at("no/such/folder.img"), "does not exist"),
        (at("web.img").join("below"), "does not exist"),
        (at("dangling"), "does not exist"),
        (at("loop"), "symbolic links"),
        (at(""), "is a folder"),
        ("/".into(), "is a folder"),
        ("/dev/null".into(), "is a character device"),
        ("/dev/full".into(), "is a character device"),
        (at("block"), "is a block device"),
        (at("pipe"), "is a named pipe"),
        (at("socket"), "is a socket"),
        (format!("/{}", "n".repeat(300)).into(), "File name too long"),
    ]
}

/// The engine never hears of it.
fn a_running_guest_whose_new_disk_is_no_file() {
    let host = inhabited();
    let good = host.disk("good.img", 1 << 20);
    let good = disk_on(&good);
    let before = State::of(&host);
    for bad in ["/nowhere", "/etc", "/dev/null"] {
        let bad = format!("disk:avio_stor::file:{bad}");
        refused(&host, &["hpvmmodify", "-P", "other", "-a", &good, "-a", &bad]);
        refused(&host, &["hpvmmodify", "-P", "other", "-a", &bad, "-a", &good, "-F"]);
        before.assert_unchanged(&host, &bad);
    }
}

/// Only the start is refused; every other change warns, and does what it was asked.
///
/// Settles 77: what a change has not caused is told as such.
fn a_file_that_went_away() {
    let host = inhabited();
    fs::rename(host.path("web.img"), host.path("elsewhere.img")).expect("it is renamed");
    let outcome = host.run(&["hpvmmodify", "-P", "web", "-l", "renamed"]);
    assert!(outcome.status.success(), "{outcome}");
    assert_eq!(outcome.stderr.matches("WARNING (web)").count(), 1, "{outcome}");
    assert!(outcome.stderr.contains("does not exist (it was so before this change)"), "{outcome}");
    let outcome = host.run(&["hpvmmodify", "-P", "web", "-c", "200", "--dry-run"]);
    let mut said = outcome.stderr.lines();
    let (new, old) = (said.next().expect("a warning"), said.next().expect("and the other"));
    assert!(new.contains("200 vCPUs") && !new.contains("before this change"), "{outcome}");
    assert!(old.contains("does not exist (it was so before this change)"), "{outcome}");
    // What is told of its disk names all disks of the adapter, and one more beside the one that is asked for.
    host.ok(&["hpvmmodify", "-P", "web", "-O", "windows", "-r", "512M"]);
    let before = State::of(&host);
    // A refusal has its own reason, and nothing before or behind it.
    let said = refused(&host, &["hpvmmodify", "-P", "web", "-a", "disk:avio_stor::file:/none"]);
    assert!(said.contains("/none") && !said.contains("WARNING"), "{said}");
    let said = start_refused(&host, "web");
    assert!(said.contains("does not exist"), "{said}");
    fs::create_dir(host.path("web.img")).expect("a folder");
    let said = start_refused(&host, "web");
    assert!(said.contains("is a folder"), "{said}");
    before.assert_unchanged(&host, "two starts that were refused");
    fs::remove_dir(host.path("web.img")).expect("it is empty");
    fs::rename(host.path("elsewhere.img"), host.path("web.img")).expect("it is renamed");
    host.ok(&["hpvmstart", "-P", "web"]);
}
