//! `hpvmreserve`: keeps QEMU's reservation helper for one guest. Whoever starts the guest starts it, with the descriptors and
//! arguments that `hpvm_reserve` names.
//!
//! ```text
//!  hpvmreserve ──starts, again and again──► itself, confined ──becomes──► qemu-pr-helper ◄──socket── QEMU
//!       ▲                                                                      │
//!       └── lifeline: the guest has ended                                PERSISTENT RESERVE ──► disk
//! ```
//!
//! The outer process holds the socket, so that QEMU's connection finds the next helper after one that ended. It reads nothing
//! that a guest sent. The helper has one right of root, `CAP_SYS_RAWIO`, opens no file, and ends with the outer process.

mod supervise;

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::{env, io};

use hpvm_host::confine::{ConfineError, Enforced, reservations};
use hpvm_host::inherited::inherited;
use hpvm_host::restarts::STARTED_WRONGLY;
use hpvm_host::signals::see_children_end;
use hpvm_reserve::{Settings, SettingsError, descriptor};
use rustix::process::setsid;

use crate::supervise::{say, supervise};

/// Why it did not work.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("descriptor {0} did not come from the starter; hpvmreserve is not started by hand")]
    Descriptor(i32, #[source] io::Error),
    #[error(transparent)]
    Confine(#[from] ConfineError),
    #[error("{program} cannot be started")]
    Helper { program: String, source: io::Error },
    #[error("the helper cannot be watched")]
    Supervise(#[source] io::Error),
}

/// The first argument of the process that becomes the helper.
const HELPER: &str = "helper";

fn main() -> ExitCode {
    see_children_end();
    let mut arguments: Vec<String> = env::args().skip(1).collect();
    let is_helper = arguments.first().is_some_and(|first| first == HELPER);
    let done = if is_helper {
        arguments.remove(0);
        become_helper(arguments)
    } else {
        watch_over(&arguments)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&hpvm_model::chain(&failure));
            match failure {
                Failure::Settings(_) | Failure::Descriptor(..) => ExitCode::from(STARTED_WRONGLY),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn watch_over(arguments: &[String]) -> Result<(), Failure> {
    // No terminal of the starter's ends it. It fails for who leads a session already.
    let _ = setsid();
    let socket = taken(descriptor::SOCKET)?;
    let lifeline = taken(descriptor::LIFELINE)?;
    Settings::parse(arguments.iter().cloned())?;
    supervise(&socket, &lifeline, arguments).map_err(Failure::Supervise)
}

/// Returns only if it fails.
fn become_helper(arguments: Vec<String>) -> Result<(), Failure> {
    drop(taken(descriptor::SOCKET)?);
    let Settings { helper, ids } = Settings::parse(arguments.into_iter())?;
    if reservations::confine(ids, &helper)? == Enforced::Not {
        say("the kernel has no Landlock: files are not withheld from the reservation helper");
    }
    let mut command = Command::new(&helper);
    if let Some(ids) = ids {
        // It gives up what it does not need, for which it wants to know as whom it goes on.
        command.args(["-u", &ids.uid.to_string(), "-g", &ids.gid.to_string()]);
    }
    // The socket is handed over as sd_listen_fds(3) says.
    command.env_clear();
    command.env("LISTEN_FDS", "1").env("LISTEN_PID", std::process::id().to_string());
    let source = command.exec();
    Err(Failure::Helper { program: helper.display().to_string(), source })
}

fn taken(number: i32) -> Result<OwnedFd, Failure> {
    inherited(number).map_err(|error| Failure::Descriptor(number, error))
}
