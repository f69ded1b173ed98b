//! Faults, one screen each. The test does what `hpvm why` asks ("First: …"), types the command it names ("Next: …") and
//! nothing else, and the guest must run with all its devices. The screens are kept in golden/why; SNAPSHOTS=overwrite writes
//! them anew.

pub(crate) mod disks;
pub(crate) mod engines;
pub(crate) mod provisions;

use std::fs;
use std::time::Duration;

use hpvm_testkit::vm_host::{Engine, VmHost};
use hpvm_testkit::wait::wait_until;

use crate::shell::typed;
use crate::statements::disk_at;
use crate::{Test, golden};

pub(crate) const TESTS: &[Test] = crate::tests![
    what_a_running_guest_could_not_start_with_again_is_explained,
    several_faults_have_one_way_out,
    what_keeps_no_guest_from_starting_is_noted,
    what_failed_last_with_a_guest_that_runs_is_explained,
];

/// Four times what an engine and its worker need on a quiet machine.
const BOUND: Duration = Duration::from_secs(20);

/// The guest is well, and what keeps it from starting is told while there is time to mend it.
fn what_a_running_guest_could_not_start_with_again_is_explained() {
    let mut host = host_with_web(Engine::Fake);
    host.ok(&["hpvmstart", "-P", "web"]);
    host.ok(&["hpvmmodify", "-P", "web", "-x", "runnable_status=disabled"]);
    let screen = Screen::of(&host, "runs-and-is-disabled");
    assert_eq!(screen.first, None);
    follow(&host, &screen.next);
    let nvram = host.path("var/opt/hpvm/guests/web/nvram");
    let good = fs::read(&nvram).expect("the variables");
    fs::write(&nvram, "damaged").expect("the variables are damaged");
    host.set("HPVMFIRMWARE", &host.path("OVMF_CODE.fd").to_string_lossy());
    let screen = Screen::of(&host, "runs-and-lacks-firmware");
    assert!(screen.first.is_some_and(|ask| ask.contains("HPVMFIRMWARE")));
    fs::rename(host.path("web.img"), host.path("elsewhere")).expect("the disk is moved");
    let told = host.ok(&["hpvm", "why", "web"]);
    assert!(told.contains("because") && told.contains("web.img is not there any more"), "{told}");
    assert!(told.contains("note: it could not start again: the firmware '"), "{told}");
    assert_eq!(told.matches("web.img").count(), 2, "it is told once, and its way out: {told}");
    fs::rename(host.path("elsewhere"), host.path("web.img")).expect("the disk is back");
    fs::write(&nvram, good).expect("the variables");
    fs::copy("/usr/share/OVMF/OVMF_CODE_4M.fd", host.path("OVMF_CODE.fd")).expect("the firmware");
    follow(&host, &screen.next);
}

/// Each is named, and one line still leads to a running guest.
fn several_faults_have_one_way_out() {
    let host = host_with_web(Engine::Fake);
    fs::rename(host.path("web.img"), host.path("elsewhere")).expect("the disk is moved");
    fs::write(host.path("var/opt/hpvm/guests/web/nvram"), "damaged").expect("the variables");
    host.ok(&["hpvmmodify", "-P", "web", "-r", &more_than_there_is()]);
    host.ok(&["hpvmmodify", "-P", "web", "-x", "runnable_status=disabled"]);
    host.refused(&["hpvmstart", "-P", "web"]);
    let screen = Screen::of(&host, "several");
    fs::rename(host.path("elsewhere"), host.path("web.img")).expect("the disk is back");
    follow(&host, &screen.next);
}

fn what_keeps_no_guest_from_starting_is_noted() {
    let host = VmHost::new(Engine::Fake);
    let empty = disk_at("0,0,0", &host.disk("empty.img", 0));
    host.ok(&["hpvmcreate", "-P", "web", "-a", &empty]);
    Screen::of(&host, "noted");
}

/// Until something of the kind goes well, or the guest runs anew.
fn what_failed_last_with_a_guest_that_runs_is_explained() {
    let mut host = host_with_web(Engine::Fake);
    host.engine_behaves("powerdown=ignore");
    host.set("HPVMSTOP", "1");
    host.ok(&["hpvmstart", "-P", "web"]);
    host.wait_for_state("web", "On (OS)", BOUND);
    let why = || host.ok(&["hpvm", "why", "web"]);
    let missing = disk_at("0,0,4", &host.path("missing.img"));
    host.refused(&["hpvmmodify", "-P", "web", "-a", &missing]);
    let told = why();
    assert!(told.contains("; what failed last, at "), "{told}");
    assert!(told.contains(&format!("`hpvmmodify -P web -a {missing}`\n  because ")), "{told}");
    assert!(told.ends_with("\nNext:  hpvmstatus -P web\n"), "{told}");
    host.ok(&["hpvmmodify", "-P", "web", "-l", "now it goes well"]);
    assert!(why().contains("nothing is wrong with it"));
    host.refused(&["hpvmstop", "-P", "web", "-g", "-F"]);
    let told = why();
    assert!(told.contains("`hpvmstop -P web -g -F`\n  because "), "{told}");
    assert!(
        told.contains("did not react") && told.ends_with("\nNext:  hpvmstop -P web -g\n"),
        "{told}"
    );
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    host.ok(&["hpvmstart", "-P", "web"]);
    assert!(why().contains("nothing is wrong with it"));
}

/// `web`, number 1, off, with two disks and a dvd.
fn host_with_web(engine: Engine) -> VmHost {
    let host = VmHost::new(engine);
    let mut create =
        ["hpvmcreate", "-P", "web", "-O", "linux", "-r", "512M"].map(str::to_owned).to_vec();
    for device in [
        disk_at("0,0,0", &host.disk("web.img", 1 << 20)),
        disk_at("0,0,1", &host.disk("more.img", 1 << 20)),
        format!("dvd:avio_stor:0,1,0:file:{}", host.disk("web.iso", 1 << 20).display()),
    ] {
        create.extend(["-a".to_owned(), device]);
    }
    host.ok(&create.iter().map(String::as_str).collect::<Vec<_>>());
    host
}

/// A memory size beyond this machine's.
fn more_than_there_is() -> String {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let kib =
        text.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    format!("{}G", kib.expect("MemTotal comes first") / (1 << 20) + 2)
}

/// What `hpvm why` printed.
struct Screen {
    first: Option<String>,
    next: String,
}

impl Screen {
    /// Of the guest `web`, compared with the kept one.
    #[track_caller]
    fn of(host: &VmHost, name: &str) -> Screen {
        Screen::reading(host, name, &host.ok(&["hpvm", "why", "web"]))
    }

    /// Whose next command costs nobody anything.
    #[track_caller]
    fn reading(host: &VmHost, name: &str, text: &str) -> Screen {
        let screen = Screen::read(host, name, text);
        let next = &screen.next;
        for word in ["hpvmstop", "hpvmremove", "kill", " -d ", " -F"] {
            assert!(!next.contains(word), "'{next}' costs something");
        }
        let is_about_web = |command: &str| format!("{command} ").contains(" -P web ");
        assert!(next.split(" && ").all(is_about_web), "'{next}' is about 'web' alone");
        screen
    }

    #[track_caller]
    fn read(host: &VmHost, name: &str, text: &str) -> Screen {
        let line = |start: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(start))
                .map(|line| line.trim().to_owned())
        };
        assert!(text.lines().count() < 24, "one screen: {text}");
        let shown = golden::without_numbers(&golden::redacted(host, text));
        golden::assert_kept(&format!("why/{name}"), &without_reason(&shown));
        let next = line("Next: ").unwrap_or_else(|| panic!("a next command: {text}"));
        Screen { first: line("First: "), next }
    }
}

/// Why KVM does not work differs from machine to machine.
fn without_reason(text: &str) -> String {
    match text.split_once("KVM does not work here: ") {
        Some((before, after)) => {
            let (_, rest) = after.split_once("; unset").unwrap_or(("", after));
            format!("{before}KVM does not work here: [REASON]; unset{rest}")
        }
        None => text.to_owned(),
    }
}

/// Types the command as the screen shows it, and looks at the guest.
#[track_caller]
fn follow(host: &VmHost, next: &str) {
    let devices = host.ok(&["hpvmstatus", "-P", "web", "-d"]);
    let outcome = typed(host, next);
    assert!(outcome.status.success(), "{outcome}");
    wait_until(BOUND, &format!("'web' runs after {outcome}"), || {
        host.state("web").starts_with("On (") && host.state("web") != "On (ATTN)"
    });
    assert_eq!(host.ok(&["hpvmstatus", "-P", "web", "-d"]), devices, "no device is lost");
    for device in ["0,0,0:file:", "0,0,1:file:", "0,1,0:file:"] {
        assert!(devices.contains(device), "{devices}");
    }
    let details = host.ok(&["hpvmstatus", "-P", "web"]);
    assert!(!details.contains("[Waiting for Next "), "{details}");
    assert!(host.ok(&["hpvm", "why", "web"]).contains("nothing is wrong with it"));
}

/// Before its folders go from under it.
fn end(host: &VmHost) {
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    wait_until(BOUND, "no process is left", || host.processes().is_empty());
}
