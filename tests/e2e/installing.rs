//! What installs hpvm on a machine that cannot run it: it says what is missing, in one line, and touches nothing.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use hpvm_testkit::vm_host::{Outcome, repository};

use crate::Test;

pub(crate) const TESTS: &[Test] = crate::tests![a_machine_that_is_too_old_is_left_alone];

/// Where a shell finds the plain tools it uses.
const TOOLS: [&str; 9] = ["sh", "sed", "cut", "sort", "head", "dirname", "grep", "id", "cat"];

fn program(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a program");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it may be run");
}

/// Settles 9: neither a Rust that is not there nor one that is too old lets a package be asked for.
fn a_machine_that_is_too_old_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    for tool in TOOLS {
        let real = ["/bin", "/usr/bin"].map(|place| Path::new(place).join(tool));
        let real = real.into_iter().find(|path| path.exists()).expect("a tool of every Debian");
        symlink(real, folder.path().join(tool)).expect("linked");
    }
    let touched = folder.path().join("touched");
    for changer in ["apt-get", "sudo", "dpkg-query"] {
        program(folder.path(), changer, &format!("echo {changer} >>{}", touched.display()));
    }
    for cargo in [None, Some("cargo 1.60.0 (d1fd9fe2c 2022-03-01)")] {
        if let Some(version) = cargo {
            program(folder.path(), "cargo", &format!("echo '{version}'"));
        }
        let mut command = Command::new("/bin/sh");
        command.arg(repository().join("scripts/install-deps")).arg("demo").env_clear();
        command.env("PATH", folder.path()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let outcome = Outcome::of("install-deps", command, b"");
        assert_eq!(outcome.status.code(), Some(1), "{outcome}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{outcome}");
        assert!(outcome.stderr.contains("is needed"), "{outcome}");
        assert!(!touched.exists(), "{}", fs::read_to_string(&touched).unwrap_or_default());
    }
}
