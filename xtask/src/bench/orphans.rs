//! A parent for processes whose own has let them go. libvirtd does that with each QEMU, and learns of its end by asking for its
//! number now and then, which is there until a parent has taken note of the end. The first process of a machine may be slow at
//! that, and libvirt would be measured waiting for it.

use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::{Pid, WaitOptions, getpid, set_child_subreaper, wait};

/// What calls this program for it.
pub(super) const WORD: &str = "--with-orphans-of";

/// Runs a command, and takes note of every end below it until the command itself has ended.
pub(super) fn keep(command: &[String]) -> Result<()> {
    let (program, arguments) = command.split_first().context("no command is named")?;
    set_child_subreaper(Some(getpid()))?;
    let child = Command::new(program).args(arguments).spawn()?;
    let child = Pid::from_child(&child);
    while wait(WaitOptions::empty())?.is_some_and(|(ended, _)| ended != child) {}
    Ok(())
}
