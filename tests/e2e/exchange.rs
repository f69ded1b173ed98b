//! Disks of a running guest that are exchanged for others, at once or at its next reset, and those that leave or come then. Steps
//! of a test of `devices`, whose guest has both adapters and is reset anyhow.

use std::fs;
use std::path::PathBuf;

use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Outcome, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::devices::{SEEN_BOUND, holds};

/// A disk of the guest: its place, the port of that in the guest, and the text on it, which is the name of its file.
#[derive(Clone, Copy)]
struct Disk(&'static str, &'static str, &'static str);

const AVIO: &str = "09.1";
const VIO_ALONE: &str = "08.4";
const VIO: &str = "09.0";

impl Disk {
    fn file(self, host: &VmHost) -> PathBuf {
        host.path(&format!("{}.img", self.2))
    }

    fn statement(self, host: &VmHost) -> String {
        let file = self.file(host);
        if !file.exists() {
            let mut bytes = format!("{}\n", self.2).into_bytes();
            bytes.resize(4 << 20, 0);
            fs::write(&file, bytes).expect("the disk's file");
        }
        format!("disk:{}:file:{}", self.0, file.display())
    }
}

fn change(host: &VmHost, option: &str, disks: &[Disk]) -> Outcome {
    let statements = disks.iter().flat_map(|disk| [option.to_owned(), disk.statement(host)]);
    let line: Vec<String> = statements.collect();
    let line = ["hpvmmodify", "-P", "vio"].into_iter().chain(line.iter().map(String::as_str));
    let outcome = host.run(&line.collect::<Vec<_>>());
    assert!(outcome.status.success(), "{outcome}");
    outcome
}

/// What the guest reads from the disks behind a port, anew.
fn read(console: &mut Console, port: &str) -> Vec<String> {
    let read = format!(
        "echo 3 >/proc/sys/vm/drop_caches; for d in /sys/class/block/sd?; do readlink -f $d | grep -q 0000:00:{port}/ && head -n 1 /dev/${{d##*/}}; done; true"
    );
    let printed = console.run(&read);
    let mut lines: Vec<String> = printed.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

#[track_caller]
fn wait_to_read(console: &mut Console, port: &str, texts: &[&str]) {
    wait_until(SEEN_BOUND, &format!("{texts:?} at {port}"), || read(console, port) == texts);
}

/// The part of the guest's status about what waits.
fn waiting(host: &VmHost) -> String {
    let shown = host.ok(&["hpvmstatus", "-P", "vio"]);
    shown.split_once("[Waiting for Next ").map_or(String::new(), |(_, rest)| rest.to_owned())
}

/// Alone on its emulated adapter a disk is exchanged with that; one of several on a live adapter, when it may leave.
pub(crate) fn while_it_runs(host: &VmHost, console: &mut Console) {
    let old = Disk("scsi:0,4,0", VIO_ALONE, "vio-old");
    change(host, "-a", &[old]);
    wait_to_read(console, old.1, &["vio-old"]);
    let new = Disk("scsi:0,4,0", VIO_ALONE, "vio-new").statement(host);
    let outcome = host.run(&["hpvmmodify", "-P", "vio", "-F", "-m", &new]);
    assert!(outcome.status.success() && !outcome.stderr.contains("WARNING"), "{outcome}");
    wait_to_read(console, old.1, &["vio-new"]);

    let old = Disk("avio_stor:1,1,0", AVIO, "avio-old");
    change(host, "-a", &[old, Disk("avio_stor:1,1,1", AVIO, "beside")]);
    wait_to_read(console, old.1, &["avio-old", "beside"]);
    let new = Disk("avio_stor:1,1,0", AVIO, "avio-new").statement(host);
    host.ok(&["hpvmmodify", "-P", "vio", "-F", "-m", &new]);
    wait_to_read(console, old.1, &["avio-new", "beside"]);
    assert!(!holds(host, &old.file(host)));
    assert_eq!(waiting(host), "");
}

const GOES: Disk = Disk("avio_stor:1,1,2", AVIO, "goes");
const STAYS: Disk = Disk("avio_stor:1,1,0", AVIO, "avio-new");
const LATER: [Disk; 2] =
    [Disk("avio_stor:1,1,1", AVIO, "avio-later"), Disk("scsi:1,0,1", VIO, "vio-later")];
const JOINS: Disk = Disk("scsi:1,0,2", VIO, "joins");

/// What the guest uses, or would not see, waits for its reset, is shown since when, and can be taken back. Settles 81.
pub(crate) fn until_the_reset(host: &VmHost, console: &mut Console) {
    let fixed = Disk("scsi:1,0,0", VIO, "fixed");
    change(host, "-a", &[GOES, fixed, Disk("scsi:1,0,1", VIO, "vio-before")]);
    wait_to_read(console, VIO, &["fixed", "vio-before"]);
    wait_to_read(console, AVIO, &["avio-new", "beside", "goes"]);

    let exchanged = change(host, "-m", &LATER);
    let gone = change(host, "-d", &[GOES, STAYS]);
    for told in ["1,1,1: waits for the guest's next reset: the disk had I/O", "never sees a new"] {
        assert!(exchanged.stderr.contains(told), "{exchanged}");
    }
    for place in ["1,1,2", "1,1,0"] {
        let told = format!("storage {place}: waits for the guest's next reset: the disk had I/O");
        assert!(gone.stderr.contains(&told), "{gone}");
    }
    let joins = change(host, "-a", &[STAYS, JOINS]);
    let told = "storage 1,0,2: waits for the guest's next reset: a running guest never sees";
    assert!(joins.stderr.contains(told), "{joins}");
    let shown = waiting(host);
    let since = shown.matches("waits for the guest's next reset since 20").count();
    assert_eq!(since, 4, "one that is wanted again waits no more: {shown}");
    let json = host.ok(&["hpvmstatus", "-P", "vio", "--json"]);
    assert_eq!(json.matches("\"next_reset\"").count(), 4, "{json}");
    let why = host.ok(&["hpvm", "why", "-P", "vio"]);
    assert!(why.contains("waits for the guest's next reset since 20"), "{why}");

    // What has nothing to do with it changes nothing of it, and the new stores are the guest's.
    host.ok(&["hpvmmodify", "-P", "vio", "-l", "another label"]);
    assert_eq!(waiting(host), shown);
    assert!(LATER.iter().chain([&JOINS]).all(|disk| holds(host, &disk.file(host))));
    assert_eq!(read(console, AVIO), ["avio-new", "beside", "goes"]);
    assert_eq!(read(console, VIO), ["fixed", "vio-before"]);
}

pub(crate) fn after_the_reset(host: &VmHost, console: &mut Console) {
    wait_to_read(console, AVIO, &["avio-later", "avio-new"]);
    wait_to_read(console, VIO, &["fixed", "joins", "vio-later"]);
    assert_eq!(waiting(host), "");
    for old in ["goes", "beside", "vio-before"] {
        assert!(!holds(host, &host.path(&format!("{old}.img"))), "{old}");
    }
}
