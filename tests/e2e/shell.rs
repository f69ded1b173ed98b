//! Lines typed at a shell of a VM Host, with the commands under the names that administrators know.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use hpvm_testkit::vm_host::{Outcome, VmHost, program};

const COMMANDS: [&str; 10] = [
    "hpvm",
    "hpvmcreate",
    "hpvmdevmgmt",
    "hpvmnet",
    "hpvmmodify",
    "hpvmremove",
    "hpvmstart",
    "hpvmstop",
    "hpvmstatus",
    "hpvmconsole",
];

/// Runs the line to its end; its standard input is empty.
pub(crate) fn typed(host: &VmHost, line: &str) -> Outcome {
    let bin = host.path("bin");
    if !bin.exists() {
        fs::create_dir(&bin).expect("a folder");
        for command in COMMANDS {
            symlink(program("hpvm"), bin.join(command)).expect("a link");
        }
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = Command::new("/bin/sh");
    // As the commands themselves would find it.
    for (name, value) in host.command(&["hpvm"]).get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.args(["-c", line]).env("PATH", format!("{}:{path}", bin.display()));
    shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Outcome::of(line, shell, b"")
}
