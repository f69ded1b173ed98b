//! Asks an installed QEMU for its whole schema.

use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::Context;
use hpvm_qmp::blocking::Client;
use hpvm_qmp::command::{QuerySchema, Quit};
use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::Value;

pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// The answer of `query-qmp-schema` of a QEMU without a machine.
pub(crate) fn schema(program: &str) -> anyhow::Result<Value> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new(program);
    command.args(["-machine", "none", "-nodefaults", "-display", "none", "-S"]);
    command.args(["-chardev", "socket,id=q,fd=0", "-mon", "chardev=q,mode=control"]);
    command.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs))).process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    drop(command);
    fcntl_setfd(&ours, FdFlags::CLOEXEC)?;
    let answer = ask(ours);
    if answer.is_err() {
        child.kill()?;
    }
    child.wait()?;
    answer
}

fn ask(monitor: UnixStream) -> anyhow::Result<Value> {
    let mut client = Client::from_stream(monitor)?;
    let schema = client.execute(&QuerySchema {})?;
    client.execute(&Quit {})?;
    Ok(schema)
}
