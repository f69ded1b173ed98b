//! hpvm gvsdmgr: what a guest's adapters and LUNs are, what they have done, counted from zero, and no reset from outside.

use std::time::Duration;

use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;
use serde_json::Value;

use crate::Test;
use crate::guest_processes::process;
use crate::pool::image;
use crate::statements::disk_at;

pub(crate) const TESTS: &[Test] = crate::tests![
    what_luns_have_done_is_counted_and_counted_anew,
    adapters_and_luns_are_told_of_whether_the_guest_runs_or_not,
];

const BOUND: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

fn gvsdmgr(host: &VmHost, verb: &str, more: &[&str]) -> String {
    let line: Vec<&str> =
        ["hpvm", "gvsdmgr", verb, "-P", "web"].into_iter().chain(more.iter().copied()).collect();
    host.ok(&line)
}

fn json(host: &VmHost, verb: &str) -> Value {
    serde_json::from_str(&gvsdmgr(host, verb, &["--json"])).expect("JSON")
}

/// One counter of the disk at 0,1,TARGET.
fn counter(host: &VmHost, target: u64, name: &str) -> u64 {
    let told = json(host, "get_stat");
    let luns = told["adapters"][0]["luns"].as_array().expect("LUNs");
    let lun = luns.iter().find(|lun| lun["target"] == target).expect("the disk");
    lun["statistics"][name].as_u64().unwrap_or_else(|| panic!("no {name}: {told}"))
}

/// The value behind a key, in a text with one block.
#[track_caller]
fn value(text: &str, key: &str) -> String {
    let of_key = |line: &&str| line.split(':').next().is_some_and(|found| found.trim() == key);
    let line = text.lines().find(of_key);
    let line = line.unwrap_or_else(|| panic!("no {key}: {text}"));
    line.split_once(": ").expect("a value").1.to_owned()
}

fn what_luns_have_done_is_counted_and_counted_anew() {
    let host = VmHost::new(Engine::Real);
    let boot = host.copy_of(&image("test-cloud"), "web.img");
    let other = host.disk("b.img", 8 * MIB);
    let boot = disk_at("0,1,0", &boot);
    let other = disk_at("0,1,5", &other);
    host.ok(&["hpvmcreate", "-P", "web", "-O", "linux", "-r", "512M", "-a", &boot, "-a", &other]);
    host.ok(&["hpvmstart", "-P", "web"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.wait_for_shell();
    assert!(counter(&host, 0, "reads") > 0, "it booted from there");
    // The disk without partitions is the other one.
    console.run("OTHER=/dev/sda; test -e /dev/sda1 && OTHER=/dev/sdb");
    let (reads, read) = (counter(&host, 5, "reads"), counter(&host, 5, "read_bytes"));
    console.run(
        "echo 3 >/proc/sys/vm/drop_caches; dd if=$OTHER of=/dev/null bs=65536 count=32 2>/dev/null",
    );
    let (now, now_read) = (counter(&host, 5, "reads"), counter(&host, 5, "read_bytes"));
    assert!(now > reads && now_read >= read + 2 * MIB, "{reads} {read}, then {now} {now_read}");
    let (written, flushes) = (counter(&host, 5, "written_bytes"), counter(&host, 5, "flushes"));
    console.run("dd if=/dev/zero of=$OTHER bs=65536 count=16 conv=fsync 2>/dev/null");
    assert_eq!(counter(&host, 5, "written_bytes"), written + MIB);
    assert!(counter(&host, 5, "flushes") > flushes);
    assert!(counter(&host, 5, "write_ns") > 0 && counter(&host, 5, "read_ns") > 0);
    // An adapter's are the sums of its LUNs'.
    let adapter = gvsdmgr(&host, "get_stat", &["-D", "0,1"]);
    let sum = counter(&host, 0, "written_bytes") + counter(&host, 5, "written_bytes");
    assert_eq!(value(&adapter, "Bytes written"), sum.to_string(), "{adapter}");

    // From zero, of this LUN alone.
    let others = counter(&host, 0, "reads");
    gvsdmgr(&host, "clear_stat", &["-D", "0,1", "-q", "lun=5", "--reason", "a measurement"]);
    for name in ["reads", "read_bytes", "writes", "written_bytes", "flushes", "write_ns"] {
        assert_eq!(counter(&host, 5, name), 0, "{name}");
    }
    assert!(counter(&host, 0, "reads") >= others, "the others' go on");
    console.run("dd if=/dev/zero of=$OTHER bs=65536 count=16 conv=fsync 2>/dev/null");
    assert_eq!(counter(&host, 5, "written_bytes"), MIB);
    // Also for the next worker.
    process(&host, "hpvmapp").expect("a worker").kill();
    wait_until(BOUND, "another worker is there", || process(&host, "hpvmapp").is_some());
    host.wait_for_state("web", "On (OS)", BOUND);
    assert_eq!(counter(&host, 5, "written_bytes"), MIB);
    let lun = gvsdmgr(&host, "get_stat", &["-q", "lun=0,1,5"]);
    assert!(value(&lun, "Counted since").starts_with("20"), "{lun}");
    // All of an adapter at once; what the guest did meanwhile is not lost to the next look.
    gvsdmgr(&host, "clear_stat", &[]);
    assert_eq!(counter(&host, 5, "written_bytes"), 0);
    // A disk that comes anew counts from its beginning.
    host.ok(&["hpvmmodify", "-P", "web", "-d", &other, "-F"]);
    host.ok(&["hpvmmodify", "-P", "web", "-a", &other]);
    let lun = gvsdmgr(&host, "get_stat", &["-q", "lun=5"]);
    assert_eq!(value(&lun, "Counted since"), "the guest has it", "{lun}");
    let report = host.ok(&["hpvmstatus", "-e"]);
    assert!(report.contains("clear_stat"), "who counted anew is recorded: {report}");
}

fn adapters_and_luns_are_told_of_whether_the_guest_runs_or_not() {
    let host = VmHost::new(Engine::Fake);
    let (one, two) = (host.disk("a.img", MIB), host.disk("b.img", MIB));
    let one = disk_at("0,1,0", &one);
    let two = format!("disk:scsi:0,2,9:file:{}", two.display());
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &one, "-a", &two]);
    let off = gvsdmgr(&host, "get_info", &["-D", "0,2"]);
    assert_eq!(value(&off, "State of HBA"), "OFFLINE");
    assert_eq!(value(&off, "PCI Vendor ID"), "0x1000");
    assert_eq!(value(&off, "Hardware Path"), "00:08.2/00.1", "its second adapter: {off}");
    for verb in [&["get_stat"][..], &["bdr", "-q", "lun=all"]] {
        let refused = host.refused(&[&["hpvm", "gvsdmgr", "-P", "web"], verb].concat());
        assert!(refused.contains("hpvmstart -P web"), "{refused}");
    }
    let accept = |lun| ["gvsdmgr", "replace_dsk", "-P", "web", "-q", lun, "-f"];
    for (lun, reason) in [
        ("lun=all", "say which by -q lun=BUS,DEVICE,TARGET"),
        ("lun=0,1,0", "no identity that could be accepted"),
    ] {
        let said = host.refused(&accept(lun));
        assert!(said.starts_with("gvsdmgr: ERROR (web): ") && said.contains(reason), "{said}");
    }
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", BOUND);
    let same = host.run(&["gvsdmgr", "replace_dsk", "-P", "web", "-q", "lun=0,1,0"]);
    assert!(same.status.success() && same.stderr.contains("nothing to accept"), "{same}");
    assert!(!same.stderr.contains("Accept the device"), "nobody is asked: {same}");
    let adapter = gvsdmgr(&host, "get_info", &["-D", "0,1"]);
    assert_eq!(value(&adapter, "State of HBA"), "ONLINE");
    assert_eq!(value(&adapter, "PCI Device ID"), "0x1048");
    let luns = gvsdmgr(&host, "get_info", &["-q", "lun=all"]);
    assert_eq!(luns.matches("LUN State").count(), 2, "{luns}");
    let lun = gvsdmgr(&host, "get_info", &["-D", "0,2", "-q", "lun=9"]);
    assert_eq!(value(&lun, "VSD LUN Id"), "0x9");
    assert_eq!(value(&lun, "LUN State"), "ONLINE");
    assert!(value(&lun, "Backing store").ends_with("/b.img"), "{lun}");
    assert!(value(&lun, "Lun DSF").starts_with("/dev/disk/by-id/wwn-0x3"), "{lun}");
    let told = json(&host, "get_info");
    assert_eq!(told["adapters"][1]["luns"][0]["state"], "online", "{told}");
    for (words, sentence) in [
        (&["get_info", "-D", "0,5"][..], "no storage adapter at 0,5"),
        (&["get_stat", "-q", "lun=77"], "no LUN there"),
        (&["bdr", "-D", "0,1", "-q", "lun=0", "-f"], "sg_reset --device"),
        (&["bdr", "-D", "0,1", "-f"], "-q lun=LUN"),
    ] {
        let line = ["hpvm", "gvsdmgr", words[0], "-P", "web"];
        let line: Vec<&str> = line.into_iter().chain(words[1..].iter().copied()).collect();
        let refused = host.refused(&line);
        assert!(refused.contains(sentence), "{refused}");
    }
    // By now its length is known.
    host.ok(&accept("lun=0,1,0"));
    let usage = host.run(&["hpvm", "gvsdmgr", "get_stat", "-P", "web", "-q", "disk=1"]);
    assert_eq!(usage.status.code(), Some(2), "{usage}");
}
