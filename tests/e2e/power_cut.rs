//! The power of the VM Host is cut at any moment of commands that make, rename, change and remove guests. The folder of its
//! state is a file system of its own, on a disk that keeps a log of all that reached it, with the flushes; for each flush
//! there is a disk that lost its power before the next one and forgot what it was not told to keep. The file system is ext4,
//! whose journal keeps names and folders together with any file that is synced after them: what this cannot show is a
//! missing sync of a folder that a later one makes up for.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

use hpvm_testkit::vm_host::{Engine, VmHost};
use serde_json::Value;

use crate::Test;
use crate::loop_device::LoopDevice;
use crate::refusals::export;
use crate::served::Served;
use crate::write_log::WriteLog;

pub(crate) const TESTS: &[Test] = crate::tests![what_was_told_is_done_survives_a_power_cut,];

const DISK_BYTES: u64 = 24 << 20;

const COMMANDS: &[&[&str]] = &[
    &["hpvmcreate", "-P", "web", "-r", "64M", "-l", "first"],
    &["hpvmcreate", "-P", "db"],
    &["hpvmmodify", "-P", "web", "-N", "site"],
    &["hpvmmodify", "-P", "db", "-r", "1G", "-l", "second"],
    &["hpvmremove", "-P", "site", "-F"],
    &["hpvm", "undelete", "-P", "site"],
    &["hpvmremove", "-P", "db", "-F", "--purge"],
];

/// What the registry knows of guests, and how much had reached the disk by then.
struct Told {
    known: Value,
    entries_count: usize,
}

fn what_was_told_is_done_survives_a_power_cut() {
    let host = VmHost::new(Engine::Fake);
    let content = host.disk("content.img", DISK_BYTES);
    let at_once = ["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
    run("mkfs.ext4", &at_once, &content);
    let replayed = host.copy_of(&content, "replayed.img");
    let log = host.disk("log", 0);
    let nodes = [
        format!("driver=file,node-name=content,filename={}", content.display()),
        format!("driver=file,node-name=log,filename={}", log.display()),
        "driver=blklogwrites,node-name=logged,file=content,log=log".to_owned(),
    ];
    let told = {
        let served = Served::new(&host, &[(nodes.to_vec(), "logged", DISK_BYTES)]);
        let _state = State::on(&host, &served.paths[0]);
        COMMANDS.iter().map(|command| Told::after(&host, &log, command)).collect::<Vec<_>>()
    };

    let log = WriteLog::read(&log);
    let store = OpenOptions::new().write(true).open(&replayed).expect("the disk");
    let flushes: Vec<usize> =
        (0..log.entries.len()).filter(|&n| log.entries[n].is_flush()).collect();
    let (mut replayed_count, mut cuts) = (0, 0);
    let end = log.entries.len();
    for (flush, next) in flushes.iter().zip(flushes[1..].iter().chain([&end])) {
        log.entries[replayed_count..*flush].iter().for_each(|entry| log.replay(entry, &store));
        replayed_count = *flush;
        // What was told by then must be kept; of the command after it, all or nothing.
        let done = told.iter().filter(|told| told.entries_count <= *next).count();
        let disk = host.copy_of(&replayed, "cut.img");
        let _state = State::on(&host, &disk);
        let what = format!("cut {cuts}, after {done} commands");
        is_as_told(&host, &what, &told[..], done);
        cuts += 1;
    }
    println!("{cuts} power cuts");
    assert!(cuts >= 2 * COMMANDS.len(), "{cuts} cuts: each command flushes");
}

impl Told {
    fn after(host: &VmHost, log: &Path, command: &[&str]) -> Told {
        host.ok(command);
        let entries_count = WriteLog::read(log).entries.len();
        Told { known: known(host), entries_count }
    }
}

fn known(host: &VmHost) -> Value {
    let mut export = export(host);
    Value::from(vec![export["guests"].take(), export["removed"].take()])
}

/// Whatever is left over is found and cleaned; then all is as the last command left it, or the one that was at work.
#[track_caller]
fn is_as_told(host: &VmHost, what: &str, told: &[Told], done: usize) {
    if done == 0 && !host.path("var/opt/hpvm/hpvm.db").exists() {
        return;
    }
    let found = host.run(&["hpvm", "doctor"]);
    if !found.status.success() {
        let repaired = host.run(&["hpvm", "doctor", "--repair"]);
        assert!(repaired.status.success(), "{what}: {found}\n{repaired}");
        let left = host.run(&["hpvm", "doctor"]);
        assert!(left.status.success(), "{what}: {left}");
    }
    let now = known(host);
    let before = done.checked_sub(1).map(|last| &told[last].known);
    let is_old = before.map_or(now == serde_json::json!([[], []]), |before| now == *before);
    let is_new = told.get(done).is_some_and(|next| now == next.known);
    assert!(is_old || is_new, "{what}: {now:#}\nis neither {before:#?}\nnor what comes next");
    for guest in now[0].as_array().expect("a list") {
        let name = guest["name"].as_str().expect("a name");
        let judged = host.run(&["hpvmstart", "-P", name, "-s"]);
        assert!(judged.status.success(), "{what}: {judged}");
    }
}

/// The folder of the VM Host's state, on a disk.
struct State {
    at: PathBuf,
    _device: LoopDevice,
}

impl State {
    fn on(host: &VmHost, disk: &Path) -> State {
        let at = host.path("var/opt/hpvm");
        fs::create_dir_all(&at).expect("a folder");
        let device = LoopDevice::on(disk, &[]);
        run("mount", &["-t", "ext4", &device.path().to_string_lossy()], &at);
        State { at, _device: device }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.at).status();
    }
}

#[track_caller]
fn run(program: &str, words: &[&str], path: &Path) {
    let done = Command::new(program).args(words).arg(path).output().expect("it runs");
    assert!(done.status.success(), "{program}: {done:?}");
}
