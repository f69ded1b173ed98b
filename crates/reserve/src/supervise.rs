//! The outer `hpvmreserve`: starts the helper, starts it again when it ends, and ends it with the guest.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use hpvm_host::process::PidFd;
use hpvm_host::restarts::{QuickEnds, STARTED_WRONGLY};
use hpvm_reserve::descriptor;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::HELPER;

/// A line of the guest's log.
pub(crate) fn say(sentence: &str) {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
    eprintln!("{now} hpvmreserve: {sentence}");
}

/// Runs until the guest has ended.
pub(crate) fn supervise(
    socket: &OwnedFd,
    lifeline: &OwnedFd,
    settings: &[String],
) -> io::Result<()> {
    let mut quick_ends = QuickEnds::default();
    loop {
        let began = Instant::now();
        let mut helper = start(socket, settings)?;
        let Some(how) = end_of(&mut helper, lifeline)? else { return Ok(()) };
        if how.code() == Some(i32::from(STARTED_WRONGLY)) {
            say("the reservation helper was started wrongly, and is not started again");
            return Ok(());
        }
        let pause = quick_ends.pause_after(began.elapsed());
        say(&format!("the reservation helper ended by itself ({how}); it is started again"));
        if is_readable(lifeline, pause)? {
            return Ok(());
        }
    }
}

/// How the helper ended; `None`: the guest did, and the helper with it.
fn end_of(helper: &mut Child, lifeline: &OwnedFd) -> io::Result<Option<std::process::ExitStatus>> {
    let pid = i32::try_from(helper.id()).map_err(io::Error::other)?;
    // Not collected yet, so the number is its own.
    let held = PidFd::open_number(pid)?.ok_or(io::ErrorKind::NotFound)?;
    loop {
        let mut ends = [
            PollFd::new(lifeline, PollFlags::IN),
            PollFd::from_borrowed_fd(held.as_fd(), PollFlags::IN),
        ];
        match poll(&mut ends, None) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        if !ends[0].revents().is_empty() {
            helper.kill()?;
            helper.wait()?;
            return Ok(None);
        }
        if let Some(how) = helper.try_wait()? {
            return Ok(Some(how));
        }
    }
}

fn is_readable(lifeline: &OwnedFd, bound: Duration) -> io::Result<bool> {
    let bound = Timespec::try_from(bound).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(lifeline, PollFlags::IN)], Some(&bound)) {
        Err(Errno::INTR) => Ok(false),
        other => Ok(other? > 0),
    }
}

fn start(socket: &OwnedFd, settings: &[String]) -> io::Result<Child> {
    let mapping = FdMapping { parent_fd: socket.try_clone()?, child_fd: descriptor::SOCKET };
    // Not by its path, which an upgrade may have given to another program.
    Command::new("/proc/self/exe")
        .arg(HELPER)
        .args(settings)
        .fd_mappings(vec![mapping])
        .map_err(io::Error::other)?
        .spawn()
}
