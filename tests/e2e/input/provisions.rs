//! What hpvm itself needs, and does not have: programs, firmware, hpvmconf, a root.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;

use hpvm_testkit::vm_host::{Engine, Outcome, VmHost, program};

use super::inhabited;
use crate::Test;
use crate::refusals::{State, refused, refused_by, start_refused};

pub(crate) const TESTS: &[Test] =
    crate::tests![provisions_that_are_missing, an_hpvmconf_that_is_none, roots_that_are_none];

/// What hpvm itself needs is not there.
fn provisions_that_are_missing() {
    let mut host = inhabited();
    let before = State::of(&host);
    host.set("HPVMNVRAM", "/nowhere/vars.fd");
    let said = refused(&host, &["hpvmcreate", "-P", "new"]);
    assert!(said.contains("/nowhere/vars.fd"), "{said}");
    before.assert_unchanged(&host, "a creation without firmware variables");
    host.set("HPVMNVRAM", "");
    for (name, path) in [
        ("HPVMQEMU", "/nowhere/qemu"),
        ("HPVMQEMU", "/etc/passwd"),
        ("HPVMQEMU", "/"),
        ("HPVMQEMU", "/bin/false"),
        ("HPVMFIRMWARE", "/nowhere/code.fd"),
        ("HPVMFIRMWARE", "/"),
    ] {
        let usual = match name {
            "HPVMQEMU" => program("fake-qemu").to_string_lossy().into_owned(),
            _ => String::new(),
        };
        host.set(name, path);
        start_refused(&host, "web");
        before.assert_unchanged(&host, &format!("{name}={path}"));
        host.set(name, &usual);
    }
    host.ok(&["hpvmstart", "-P", "web"]);
}

fn an_hpvmconf_that_is_none() {
    let mut host = inhabited();
    let before = State::of(&host);
    for (name, value, line) in [
        ("HPVMKEEPREMOVED", "soon", &["hpvmremove", "-P", "web", "-F"][..]),
        ("HPVMKEEPREMOVED", "-1", &["hpvmremove", "-P", "web", "-F"]),
        ("HPVMAUTOSTOP", "3601", &["hpvm", "autostop"]),
        ("HPVMSTOP", "0", &["hpvmstop", "-P", "other", "-g", "-F"]),
        ("HPVMLIMITS", "A.99", &["hpvmcreate", "-P", "new"]),
        ("HPVMUIDBASE", "0", &["hpvmstart", "-P", "web"]),
        ("HPVMUIDBASE", "\x1b[2J", &["hpvmstart", "-P", "web"]),
    ] {
        host.set(name, value);
        let said = refused(&host, line);
        assert!(said.contains(name) && said.contains("line "), "{said}");
        before.assert_unchanged(&host, name);
        host.set(name, "");
    }
    let conf = host.path("etc/opt/hpvm/hpvmconf");
    let good = fs::read(&conf).expect("hpvmconf");
    fs::remove_file(&conf).expect("it goes");
    fs::create_dir(&conf).expect("a folder");
    refused(&host, &["hpvmstatus"]);
    refused(&host, &["hpvmcreate", "-P", "new"]);
    fs::remove_dir(&conf).expect("it is empty");
    let huge = fs::File::create(&conf).and_then(|file| file.set_len(1 << 40));
    huge.expect("a sparse file");
    refused(&host, &["hpvmcreate", "-P", "new"]);
    // Lines that are none are the shell's business.
    fs::write(&conf, [&good[..], b"\xff\xfe\0 if then fi\n"].concat()).expect("hpvmconf");
    host.ok(&["hpvmstatus"]);
    before.assert_unchanged(&host, "an hpvmconf that is none");
    // They are told of, each by the doctor, and once by a start.
    let more = [&good[..], b"if then fi\nHPVMSTPO=30\n"].concat();
    fs::write(&conf, more).expect("hpvmconf");
    let told = host.run(&["hpvm", "doctor"]);
    for fault in ["'if then fi' is no NAME=value", "HPVMSTPO is no tunable"] {
        assert!(told.stdout.contains(fault), "{told}");
    }
    let started = host.run(&["hpvmstart", "-P", "web"]);
    assert!(started.status.success(), "{started}");
    assert_eq!(started.stderr.matches("if then fi").count(), 1, "{started}");
    assert!(started.stderr.contains("1 more: `hpvm doctor`"), "{started}");
}

fn roots_that_are_none() {
    let host = VmHost::new(Engine::Fake);
    let file = host.disk("file", 10);
    let long = format!("/{}", "r".repeat(5000));
    let odd: OsString = OsStr::from_bytes(b"/proc/\xff\x1b[2J").to_owned();
    for root in [OsStr::new(""), file.as_os_str(), OsStr::new("/dev/null"), OsStr::new(&long), &odd]
    {
        for line in [&["hpvmcreate", "-P", "new"][..], &["hpvmstart", "-P", "new"]] {
            refused_by(|| {
                let mut command = host.command(line);
                command.env("HPVM_ROOT", root);
                Outcome::of(&format!("HPVM_ROOT={root:?} {}", line.join(" ")), command, b"")
            });
        }
    }
}
