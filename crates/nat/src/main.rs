//! `hpvmnat`: the wire of a virtual switch on a host without rights or a bridge. Started by whoever starts the switch, with
//! the descriptors and settings that `hpvm_nat` names; it ends when asked to, or when no switch was connected for a minute.
//!
//! ```text
//!  hpvmnetd ──frames──► gate ──► libslirp ──► sockets of the VM Host
//!      ▲                 └─► DHCP    │
//!      └──────────── frames ◄────────┘        commands ──control──► forwards, status
//! ```
//!
//! It reads what guests send, with a library in C. So it has neither files nor rights, and makes no system calls but those
//! for sockets of the Internet: a guest that takes it over gets the connections that it has anyhow.

mod answerable;
mod dhcp;
mod gate;
mod incoming;
mod leases;
mod outgoing;
mod packet;
mod reserve;
mod service;
mod slirp;
mod supervise;

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::{env, io};

use hpvm_host::confine::{ConfineError, Enforced, internet};
use hpvm_host::launch::inherited;
use hpvm_nat::{Settings, SettingsError, descriptor};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::service::{End, Service, ServiceError, Sockets};
use crate::supervise::{STARTED_WRONGLY, supervise};

/// Each connection of a guest is a descriptor, and some memory.
const DESCRIPTORS_MAX: u64 = 2048;

/// Why it did not work, by exit status.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("descriptor {0} did not come from the starter; hpvmnat is not started by hand")]
    Descriptor(i32, #[source] io::Error),
    #[error("the number of its connections cannot be bounded")]
    Bound(#[source] io::Error),
    #[error(transparent)]
    Confine(#[from] ConfineError),
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error("the worker cannot be started")]
    Supervise(#[source] io::Error),
}

/// The first argument of the process that does the work.
const WORKER: &str = "worker";
/// The worker's end of a pipe that is closed when the process outside of it is gone.
const LIFELINE: i32 = 5;

fn main() -> ExitCode {
    let mut arguments: Vec<String> = env::args().skip(1).collect();
    let is_worker = arguments.first().is_some_and(|first| first == WORKER);
    let ended = if is_worker {
        arguments.remove(0);
        work(arguments).map(|end| {
            if end == End::Alone {
                eprintln!("hpvmnat: no switch was connected for a minute");
            }
            ExitCode::SUCCESS
        })
    } else {
        watch_over(&arguments)
    };
    ended.unwrap_or_else(|failure| {
        eprintln!("hpvmnat: {}", hpvm_model::chain(&failure));
        match failure {
            Failure::Settings(_) | Failure::Descriptor(..) => ExitCode::from(STARTED_WRONGLY),
            _ => ExitCode::FAILURE,
        }
    })
}

fn watch_over(arguments: &[String]) -> Result<ExitCode, Failure> {
    let wire = descriptor(descriptor::WIRE)?;
    let control = descriptor(descriptor::CONTROL)?;
    Settings::parse(arguments.iter().cloned())?;
    supervise(&wire, &control, arguments).map_err(Failure::Supervise)
}

fn work(arguments: Vec<String>) -> Result<End, Failure> {
    // To be taken before anything else is opened, which would get their numbers.
    let wire = descriptor(descriptor::WIRE)?.into();
    let control = descriptor(descriptor::CONTROL)?.into();
    let lifeline = descriptor(LIFELINE)?;
    let settings = Settings::parse(arguments.into_iter())?;
    bound()?;
    if internet::confine(settings.ids)? == Enforced::Not {
        eprintln!("hpvmnat: the kernel has no Landlock: files are not withheld from hpvmnat");
    }
    Ok(Service::new(&settings, Sockets { wire, control, lifeline })?.run()?)
}

fn descriptor(number: i32) -> Result<OwnedFd, Failure> {
    inherited(number).map_err(|error| Failure::Descriptor(number, error))
}

fn bound() -> Result<(), Failure> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let most = maximum.map_or(DESCRIPTORS_MAX, |maximum| maximum.min(DESCRIPTORS_MAX));
    let limit = Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(Resource::Nofile, limit).map_err(|error| Failure::Bound(error.into()))
}
