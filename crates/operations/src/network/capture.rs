//! The frames of a port, in a file: begun by a command, written by the switch's process.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use hpvm_host::lines::Connection;
use hpvm_host::signals;
use hpvm_model::PortNumber;
use hpvm_registry::SwitchSelector;
use hpvm_vswitchd::client::Asked;
use hpvm_vswitchd::protocol::{Reply, Request};

use super::SwitchRefused;
use super::runner::Runner;
use super::switches::{has_running, named};
use crate::{Refusal, VmHost};

/// A capture that is over.
#[derive(Clone, Copy, Debug)]
pub struct Captured {
    /// How many frames are not in it, if the switch says so.
    pub lost: Option<u64>,
    pub ended_by: EndedBy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndedBy {
    /// Whoever runs the command.
    Asker,
    /// Another capture of the port has begun, its guest has left it, or the process has gone.
    Switch,
}

/// Bytes kept of each frame of a capture: all of it.
const SNAP_BYTES: u32 = 1 << 18;

/// The switch's process writes what it still has, which is 16 MiB at most.
const LAST_FRAMES_BOUND: Duration = Duration::from_secs(10);

/// Has the frames of a port written to a file, until whoever runs the command interrupts it or the switch ends it. A file that
/// is there is replaced, but not for a capture that is refused.
pub fn capture(
    host: &VmHost,
    selector: &SwitchSelector,
    port: PortNumber,
    path: &Path,
) -> Result<Captured, Refusal> {
    let runner = Runner::claim(host, named(host, selector)?.number)?;
    if !runner.runs() && has_running(host, &runner.switch)? {
        return Err(SwitchRefused::Killed(runner.switch.name).into());
    }
    if runner.status().is_none_or(|status| status.port(port).is_none()) {
        return Err(SwitchRefused::NoPort { name: runner.switch.name, port }.into());
    }
    // What guests say is not for everybody.
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    let file =
        file.map_err(|source| Refusal::File { action: "write", path: path.to_owned(), source })?;
    let request = Request::Capture { port, snap_bytes: SNAP_BYTES };
    let Asked { mut reply, mut connection } = runner.ask(&request, &[file.as_fd()])?;
    let name = runner.switch.name.clone();
    // Others may ask meanwhile.
    drop(runner);
    // A capture may be over before it is told to be done.
    let mut ended_by = EndedBy::Switch;
    if reply == Reply::Done {
        ended_by = wait_for_end(&connection);
        reply = connection.hear(LAST_FRAMES_BOUND).unwrap_or(reply);
    }
    match reply {
        Reply::CaptureOver { failure: Some(why), .. } => {
            Err(SwitchRefused::Capture { name, port, why }.into())
        }
        Reply::CaptureOver { lost, .. } => Ok(Captured { lost: Some(lost), ended_by }),
        // Its process has gone, or is of a version that does not say.
        _ => Ok(Captured { lost: None, ended_by }),
    }
}

/// Until the switch says that a capture is over, or whoever runs the command interrupts it; then no more is wanted of it.
fn wait_for_end(connection: &Connection) -> EndedBy {
    const LOOK: Duration = Duration::from_millis(100);
    let ended_by = loop {
        if signals::interrupted().is_some() {
            break EndedBy::Asker;
        }
        if connection.has_more(LOOK).unwrap_or(true) {
            break EndedBy::Switch;
        }
    };
    let _ = connection.say_no_more();
    ended_by
}
