//! What the VM Host does not have for a guest: memory, an accelerator, firmware and its variables.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hpvm_testkit::vm_host::Engine;

use super::{Screen, end, follow, host_with_web, more_than_there_is};
use crate::Test;
use crate::shell::typed;

pub(crate) const TESTS: &[Test] = crate::tests![
    too_little_memory_is_explained,
    an_accelerator_that_does_not_work_is_explained,
    damaged_firmware_variables_are_explained,
    firmware_variables_that_can_be_used_are_not_replaced_unasked,
    firmware_variables_that_may_not_change_are_explained,
    missing_firmware_is_explained,
];

fn too_little_memory_is_explained() {
    let host = host_with_web(Engine::Fake);
    host.ok(&["hpvmmodify", "-P", "web", "-r", &more_than_there_is()]);
    host.refused(&["hpvmstart", "-P", "web"]);
    let screen = Screen::of(&host, "no-memory");
    assert_eq!(screen.first, None);
    follow(&host, &screen.next);
}

/// Where /dev/kvm exists it is hidden from the start, so that the fault is there on every machine. Settles 29.
fn an_accelerator_that_does_not_work_is_explained() {
    let mut host = host_with_web(Engine::Fake);
    host.environment("HPVM_ACCEL", "kvm");
    let without_kvm = |line: &str| match Path::new("/dev/kvm").exists() {
        true => {
            let hidden = "mount --bind /dev/null /dev/kvm";
            typed(&host, &format!("unshare -m sh -c '{hidden} && {line}'"))
        }
        false => typed(&host, line),
    };
    let start = without_kvm("hpvmstart -P web");
    assert_eq!(start.status.code(), Some(1), "{start}");
    let screen = Screen::reading(&host, "kvm-unfit", &without_kvm("hpvm why web").stdout);
    assert_eq!(screen.first, None);
    follow(&host, &screen.next);
}

/// Settles 56.
fn damaged_firmware_variables_are_explained() {
    let host = host_with_web(Engine::Fake);
    let nvram = host.path("var/opt/hpvm/guests/web/nvram");
    host.ok(&["hpvmstart", "-P", "web"]);
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    let good = fs::read(&nvram).expect("the variables");
    let mut behind_the_head = good.clone();
    behind_the_head[100..64_000].fill(0x5a);
    for (screen, damaged) in
        [("bad-nvram", vec![0xff; good.len()]), ("bad-variables", behind_the_head)]
    {
        fs::write(&nvram, damaged).expect("the variables are damaged");
        host.refused(&["hpvmstart", "-P", "web"]);
        let screen = Screen::of(&host, screen);
        assert_eq!(screen.first, None);
        follow(&host, &screen.next);
        assert!(fs::read(&nvram).expect("the variables") == good, "the last good ones are back");
        end(&host);
    }
}

fn firmware_variables_that_can_be_used_are_not_replaced_unasked() {
    let host = host_with_web(Engine::Fake);
    let nvram = host.path("var/opt/hpvm/guests/web/nvram");
    let pristine = fs::read(&nvram).expect("the variables");
    let mut booted = pristine.clone();
    // Behind the variables that are there.
    *booted.last_mut().expect("a byte") ^= 1;
    fs::write(&nvram, &booted).expect("the firmware writes");
    let is_kept = || fs::read(&nvram).expect("the variables") == booted;
    let asked = |option: &str, input: &[u8]| {
        host.run_with_input(&["hpvm", "nvram", "-P", "web", option], input)
    };
    for (option, input) in [("--reset", &b""[..]), ("--restore", b""), ("--reset", b"n\n")] {
        let outcome = asked(option, input);
        assert_eq!(outcome.status.code(), Some(1), "{outcome}");
        assert!(outcome.stderr.contains("its boot entries are lost"), "{outcome}");
        assert!(outcome.stderr.contains("nothing was changed") && is_kept(), "{outcome}");
    }
    host.ok(&["hpvmstart", "-P", "web"]);
    let outcome = asked("--reset", b"y\n");
    assert!(!outcome.stderr.contains("[n/y]") && is_kept(), "refused, and not asked: {outcome}");
    host.ok(&["hpvmstop", "-P", "web", "-F"]);
    fs::write(&nvram, &pristine).expect("the firmware writes");
    let outcome = asked("--restore", b"y\n");
    assert!(outcome.stderr.contains("Bring back those of that start?") && is_kept(), "{outcome}");
    host.ok(&["hpvm", "nvram", "-P", "web", "--reset", "-F"]);
    assert!(!is_kept(), "they are pristine");
}

fn firmware_variables_that_may_not_change_are_explained() {
    let host = host_with_web(Engine::Fake);
    let nvram = host.path("var/opt/hpvm/guests/web/nvram");
    let _mark = Immutable::marked(nvram);
    host.refused(&["hpvmstart", "-P", "web"]);
    let text = host.ok(&["hpvm", "why", "web"]);
    assert!(text.contains("is immutable or may only grow"), "{text}");
    let lift = text.split('`').nth(1).expect("a command");
    assert!(typed(&host, lift).status.success(), "{lift}");
    follow(&host, "hpvmstart -P web");
}

/// A file that nobody can write or remove, until this is dropped.
struct Immutable(PathBuf);

impl Immutable {
    fn marked(path: PathBuf) -> Immutable {
        let marked = Command::new("chattr").arg("+i").arg(&path).status().expect("chattr");
        assert!(marked.success(), "{} is marked", path.display());
        Immutable(path)
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        let _ = Command::new("chattr").arg("-i").arg(&self.0).status();
    }
}

fn missing_firmware_is_explained() {
    let mut host = host_with_web(Engine::Fake);
    host.set("HPVMFIRMWARE", &host.path("OVMF_CODE.fd").to_string_lossy());
    host.refused(&["hpvmstart", "-P", "web"]);
    let screen = Screen::of(&host, "missing-firmware");
    assert!(screen.first.is_some_and(|ask| ask.contains("HPVMFIRMWARE")));
    fs::copy("/usr/share/OVMF/OVMF_CODE_4M.fd", host.path("OVMF_CODE.fd")).expect("the firmware");
    follow(&host, &screen.next);
}
