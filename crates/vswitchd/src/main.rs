//! `hpvmnetd`, the process of one virtual switch: frames pass through its library's thread, and one owner does what commands
//! ask and publishes what is. `hpvmkeeper` starts it, holds its ports' listening sockets, and starts it again;
//! ARCHITECTURE.md, 'The process of a switch', is all it gets.
//!
//! ```text
//!  keeper ──link──► sockets kept          ┌── Switch (its own threads): QEMU's sockets, rings, frames
//!  commands ──────► owner (one thread) ───┤
//!  switch ──events─┤                      └── files `ports`, `status` and `wire` in the run folder, log
//!  kernel ──links──┘
//! ```

mod control;
mod daemon;
mod edition;
mod folder;
mod link;
mod log;
mod pace;
mod successor;
mod uplink;

use std::process::ExitCode;
use std::time::Duration;

use hpvm_host::confine::ConfineError;
use hpvm_host::inherited::Missing;
use hpvm_host::nic::LinkNews;
use hpvm_vswitch::{Event, SwitchError};
use hpvm_vswitchd::wanted::Unreadable;

use crate::control::Asked;
use crate::daemon::Daemon;
use crate::edition::Edition;
use crate::link::FromKeeper;

/// As short as the kernel grants: what a batch of frames takes is a tenth of it, and guests' processors have the machine
/// between two of them.
const SLICE: Duration = Duration::from_micros(100);

/// What comes to the owner.
#[derive(Debug)]
enum Input {
    Asked(Box<Asked>),
    Event(Event),
    /// What became of network interfaces.
    Links(Vec<LinkNews>),
    /// The keeper is gone.
    KeeperDied,
    /// An answer was written.
    Answered,
    /// Whoever wanted this capture has gone.
    AskerGone(hpvm_model::PortNumber, hpvm_vswitch::CaptureId),
}

/// Why the process ends other than by having done its work. The keeper starts it again.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Missing(#[from] Missing),
    #[error("'{0}' is no argument of hpvmnetd")]
    Argument(String),
    #[error("another process runs this switch")]
    Locked,
    #[error("the keeper is gone before it handed over what it keeps")]
    NoKeeper,
    #[error("the switch's folder cannot be used")]
    Folder(#[source] std::io::Error),
    #[error(transparent)]
    Wanted(#[from] Unreadable),
    #[error("a thread cannot be started")]
    Thread(#[source] std::io::Error),
    #[error(transparent)]
    Confine(#[from] ConfineError),
    #[error(transparent)]
    Switch(#[from] SwitchError),
}

fn main() -> ExitCode {
    // Started through a descriptor we would be called by its number.
    let _ = rustix::thread::set_name(c"hpvmnetd");
    let _ = hpvm_host::time_slice::shorten(SLICE);
    let edition = Edition::of(std::env::args().skip(1));
    match edition.and_then(Daemon::begin).and_then(Daemon::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // The keeper lets this go into the switch's log.
            eprintln!("hpvmnetd: {}", hpvm_model::chain(&failure));
            ExitCode::FAILURE
        }
    }
}
