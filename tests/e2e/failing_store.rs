//! Requests of a guest that fail: the guest hears of each and runs on, and hpvm gvsdmgr counts them. The store is an export of
//! qemu-storage-daemon by FUSE that fails what it is told to fail.

use hpvm_testkit::vm_host::VmHost;
use hpvm_testkit::wait::wait_until;
use serde_json::Value;

use crate::Test;
use crate::devices::{SEEN_BOUND, wait_for, wait_gone};
use crate::pool::Leased;
use crate::served::Served;
use crate::statements::disk_at;

pub(crate) const TESTS: &[Test] = crate::tests![requests_that_fail_are_counted];

const BYTES: u64 = 8 << 20;

/// Of the disk at 0,5,0: how many reads, writes and flushes failed.
fn failed(host: &VmHost) -> [u64; 3] {
    let told = host.ok(&["hpvm", "gvsdmgr", "get_stat", "-P", "pool", "-D", "0,5", "--json"]);
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let statistics = &told["adapters"][0]["luns"][0]["statistics"];
    ["failed_reads", "failed_writes", "failed_flushes"]
        .map(|name| statistics[name].as_u64().unwrap_or_else(|| panic!("no {name}: {told}")))
}

/// Reads of the MiB at 1, writes of that at 3 and all flushes come back as errors of the medium.
fn requests_that_fail_are_counted() {
    let mut guest = Leased::take();
    let content = guest.host().disk("content.img", BYTES);
    let mut node = format!(
        "driver=blkdebug,node-name=failing,image.driver=file,image.filename={}",
        content.display()
    );
    let pages = |first: u64| (first..first + 8).map(|page| page * 8);
    let rules = pages(256)
        .map(|sector| format!("iotype=read,sector={sector}"))
        .chain(pages(768).map(|sector| format!("iotype=write,sector={sector}")))
        .chain(["iotype=flush".to_owned()]);
    for (number, rule) in rules.enumerate() {
        for property in format!("event=none,errno=5,{rule}").split(',') {
            node += &format!(",inject-error.{number}.{property}");
        }
    }
    let served = Served::new(guest.host(), &[(vec![node], "failing", BYTES)]);
    let disk = disk_at("0,5,0", &served.paths[0]);
    guest.host().ok(&["hpvmmodify", "-P", "pool", "-a", &disk]);
    wait_for(guest.console(), "sdb");
    assert_eq!(failed(guest.host()), [0; 3]);

    let mut try_in_guest = |command: &str| {
        guest.console().run(&format!("{command} 2>/dev/null; true"));
        failed(guest.host())
    };
    let reads = try_in_guest("dd if=/dev/sdb of=/dev/null bs=4096 skip=256 count=1");
    assert!(reads[0] > 0 && reads[1..] == [0; 2], "{reads:?}");
    let flushes = try_in_guest("echo 1 | dd of=/dev/sdb bs=4096 seek=1024 conv=sync,fsync");
    assert!(flushes[..2] == reads[..2] && flushes[2] > 0, "{flushes:?}");
    let writes = try_in_guest("echo 1 | dd of=/dev/sdb bs=4096 seek=768 conv=sync,fsync");
    assert!(writes[0] == reads[0] && writes[1] > 0, "{writes:?}");

    let host = guest.host();
    assert_eq!(host.state("pool"), "On (OS)", "it is the guest's to make something of it");
    let told = host.ok(&["hpvm", "gvsdmgr", "get_stat", "-P", "pool", "-q", "lun=0,5,0"]);
    let line = |what: &str, count: u64| format!("{what:<38}: {count}\n");
    assert!(told.contains(&line("Failed reads", writes[0])), "{told}");
    host.ok(&["hpvm", "gvsdmgr", "clear_stat", "-P", "pool", "-D", "0,5"]);
    assert_eq!(failed(host), [0; 3]);
    host.ok(&["hpvmmodify", "-P", "pool", "-d", &disk, "-F"]);
    wait_gone(guest.console(), "sdb");
    let is_shown = || guest.host().ok(&["hpvmstatus", "-P", "pool", "-d"]).contains(&disk);
    wait_until(SEEN_BOUND, "QEMU has let it go", || !is_shown());
}
