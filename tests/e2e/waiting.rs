//! What a running guest has not taken yet: shown beside what it has, since when, and done at the latest when it starts anew.

use std::time::Duration;

use hpvm_model::PciSlot;
use hpvm_plan::placement::SPARE_PORTS;
use hpvm_testkit::guest::Console;
use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::Test;
use crate::statements::disk_at;

pub(crate) const TESTS: &[Test] = crate::tests![
    what_firmware_keeps_leaves_at_its_reset,
    what_was_asked_of_the_guest_is_told_by_why,
    a_changed_adapter_waits_beside_what_runs,
    what_finds_no_spare_port_waits_and_is_told,
    ; long:
    the_shell_is_back_after_its_entry_was_removed,
];

/// Until firmware has come up or a reset has gone through it.
const FIRMWARE_BOUND: Duration = Duration::from_secs(60);
const SHELL: &str = "Shell>";

/// The part of a guest's status about what waits.
fn waiting(host: &VmHost, name: &str) -> Option<String> {
    let shown = host.ok(&["hpvmstatus", "-P", name]);
    Some(shown.split_once("[Waiting for Next ")?.1.to_owned())
}

/// Firmware takes the request and does nothing about it; the device is shown as asked for since when, asking again is no
/// error, and it is gone with the reset. Settles 81, 137.
fn what_firmware_keeps_leaves_at_its_reset() {
    let host = VmHost::new(Engine::Real);
    let disk = host.disk("data.img", 1 << 20);
    let statement = disk_at("0,1,0", &disk);
    host.ok(&["hpvmcreate", "-P", "box", "-r", "128M", "-a", &statement]);
    host.ok(&["hpvmstart", "-P", "box"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.expect(SHELL, FIRMWARE_BOUND);

    let removed = host.run(&["hpvmmodify", "-P", "box", "-d", "disk:avio_stor:0,1,0"]);
    assert!(removed.status.success(), "{removed}");
    assert!(removed.stderr.contains("was asked to let the adapter at 0,1 go"), "{removed}");
    let shown = waiting(&host, "box").expect("it is shown");
    assert!(shown.contains("data.img") && shown.contains("since 20"), "{shown}");
    let again = host.run(&["hpvmmodify", "-P", "box", "-l", "asked again"]);
    assert!(again.status.success(), "{again}");
    assert_eq!(waiting(&host, "box").as_ref(), Some(&shown), "since when it was asked first");

    console.type_in("reset\r");
    wait_until(FIRMWARE_BOUND, "the adapter has left", || waiting(&host, "box").is_none());
    console.expect(SHELL, FIRMWARE_BOUND);
    host.ok(&["hpvmmodify", "-P", "box", "-a", &statement]);
    assert_eq!(waiting(&host, "box"), None, "its place is free at once");
}

/// What only waits for the next start is nothing that the guest would do, and `hpvm why` leaves it out.
fn what_was_asked_of_the_guest_is_told_by_why() {
    let mut host = VmHost::new(Engine::Fake);
    host.engine_behaves("boot=os,delete=never");
    let disk = host.disk("data.img", 1 << 20);
    let statement = disk_at("0,5,0", &disk);
    let nic = "network:avio_lan:0,6:vswitch:localnet";
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &statement, "-a", nic]);
    host.ok(&["hpvmstart", "-P", "web"]);
    let why = || host.ok(&["hpvm", "why", "web"]);
    let told = |why: &str| why.matches("asked of the guest since 20").count();
    host.ok(&["hpvmmodify", "-P", "web", "-c", "2"]);
    assert!(waiting(&host, "web").is_some_and(|shown| shown.contains("vcpus")));
    assert_eq!(told(&why()), 0);

    host.ok(&["hpvmmodify", "-P", "web", "-F", "-d", "disk:avio_stor:0,5,0"]);
    let said = why();
    let asked = format!("storage 0,5,0, {statement} to -, asked of the guest since 20");
    assert!(said.contains(&asked) && said.contains("which has not done so yet"), "{said}");
    assert!(!said.contains("vcpus"), "{said}");
    host.ok(&["hpvmmodify", "-P", "web", "-d", "network:avio_lan:0,6"]);
    assert_eq!(told(&why()), 2, "{}", why());
    let shown = host.ok(&["hpvmstatus", "-P", "web", "--json"]);
    let counted = |when: &str| shown.matches(&format!("\"{when}\"")).count();
    assert_eq!((counted("next_start"), counted("next_reset")), (1, 2), "{shown}");

    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    assert_eq!(told(&why()), 0);
}

/// Each adapter that comes takes a port, and there are as many to spare as were promised.
fn what_finds_no_spare_port_waits_and_is_told() {
    let host = VmHost::new(Engine::Real);
    host.ok(&["hpvmcreate", "-P", "box", "-r", "64M"]);
    host.ok(&["hpvmstart", "-P", "box"]);
    let mut slots = PciSlot::all();
    let mut add = |adapter: &str| {
        let slot = slots.next().expect("more addresses than spares");
        let drive = format!("dvd:{adapter}:{slot},0:null:/srv");
        let outcome = host.run(&["hpvmmodify", "-P", "box", "-a", &drive]);
        assert!(outcome.status.success(), "{outcome}");
        (drive, outcome)
    };
    for _ in 0..SPARE_PORTS {
        let (_, outcome) = add("avio_stor");
        assert!(!outcome.stderr.contains("waits"), "it is there now: {outcome}");
    }
    assert_eq!(waiting(&host, "box"), None);
    // With an address of its own, and with the next free one.
    let (given, outcome) = add("avio_stor");
    let automatic = host.run(&["hpvmmodify", "-P", "box", "-a", "dvd:scsi::null:/srv"]);
    for outcome in [outcome, automatic] {
        assert!(outcome.status.success(), "{outcome}");
        assert_eq!(outcome.stderr.matches("next start").count(), 1, "{outcome}");
    }
    let shown = waiting(&host, "box").expect("it is shown");
    assert!(shown.contains(&given) && shown.contains("dvd:scsi:"), "{shown}");
    host.ok(&["hpvmstop", "-P", "box", "-F"]);
    host.ok(&["hpvmstart", "-P", "box"]);
    assert_eq!(waiting(&host, "box"), None, "the next start brings them");
    let devices = host.ok(&["hpvmstatus", "-P", "box", "-d"]);
    assert_eq!(devices.matches("dvd:").count(), SPARE_PORTS + 2, "{devices}");
}

/// Settles 131.
fn a_changed_adapter_waits_beside_what_runs() {
    let host = VmHost::new(Engine::Fake);
    let disk = host.disk("boot.img", 1 << 20);
    let backing = format!("file:{}", disk.display());
    let on = |adapter: &str| format!("disk:{adapter}:0,0,0:{backing}");
    host.ok(&["hpvmcreate", "-P", "web", "-r", "64M", "-a", &on("scsi")]);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.ok(&["hpvmmodify", "-P", "web", "-m", &on("avio_stor")]);
    let shown = host.ok(&["hpvmstatus", "-P", "web"]);
    let (now, later) = shown.split_once("[Waiting for Next ").expect("it waits");
    assert!(now.contains("disk    scsi "), "what runs: {shown}");
    assert!(!now.contains("avio_stor"), "what waits is not shown as what runs: {shown}");
    assert!(later.contains(&on("scsi")) && later.contains(&on("avio_stor")), "{shown}");
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    let shown = host.ok(&["hpvmstatus", "-P", "web"]);
    assert!(shown.contains("disk    avio_stor "), "{shown}");
    assert_eq!(waiting(&host, "web"), None);
}

/// Settles 54: a firmware whose entries were all removed offers its shell at the next start, without a step by hand; and one
/// command puts the variables back as a new guest has them.
fn the_shell_is_back_after_its_entry_was_removed() {
    let host = VmHost::new(Engine::Real);
    host.ok(&["hpvmcreate", "-P", "box", "-r", "128M"]);
    host.ok(&["hpvmstart", "-P", "box"]);
    let mut console = Console::attach(&host.run_dir(1));
    console.expect(SHELL, FIRMWARE_BOUND);
    console.type_in("bcfg boot dump\r");
    let entries = console.expect(SHELL, FIRMWARE_BOUND).matches("Option: ").count();
    assert!(entries > 0, "there are entries to remove");
    for _ in 0..entries {
        console.type_in("bcfg boot rm 0\r");
        console.expect(SHELL, FIRMWARE_BOUND);
    }
    console.type_in("bcfg boot dump\r");
    let left = console.expect(SHELL, FIRMWARE_BOUND);
    assert!(!left.contains("Option: "), "{left}");
    host.ok(&["hpvmstop", "-P", "box", "-F"]);
    host.ok(&["hpvmstart", "-P", "box"]);
    Console::attach_from_now(&host.run_dir(1)).expect(SHELL, FIRMWARE_BOUND);
    host.ok(&["hpvmstop", "-P", "box", "-F"]);
    host.ok(&["hpvm", "nvram", "-P", "box", "--reset", "-F"]);
    host.ok(&["hpvmstart", "-P", "box"]);
    Console::attach_from_now(&host.run_dir(1)).expect(SHELL, FIRMWARE_BOUND);
}
