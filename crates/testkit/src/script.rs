//! Programs that a test makes up: scripts of a shell.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Puts a script of these commands at `path`, where anybody may run it, in the place of what was there.
///
/// Another process writes it. Had this one it open for writing, so had for a moment every child that the thread of another test
/// forks meanwhile, and a program that anybody has open for writing is not run (execve(2), ETXTBSY).
///
/// # Panics
///
/// When it cannot be written.
#[track_caller]
pub fn write_script(path: &Path, commands: &str) {
    let fresh = path.with_added_extension("new");
    let mut install = Command::new("install");
    install.args(["--mode=755", "/dev/stdin"]).arg(&fresh).stdin(Stdio::piped());
    let mut writer = install.spawn().expect("install(1)");
    let mut text = writer.stdin.take().expect("a pipe");
    text.write_all(format!("#!/bin/sh\n{commands}\n").as_bytes()).expect("the script is read");
    drop(text);
    let status = writer.wait().expect("our own child");
    assert!(status.success(), "{} is not written: {status}", fresh.display());
    std::fs::rename(&fresh, path).expect("the script is in place");
}
