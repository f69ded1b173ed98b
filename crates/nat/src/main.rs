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
use hpvm_host::inherited::inherited;
use hpvm_host::restarts::STARTED_WRONGLY;
use hpvm_host::signals::see_children_end;
use hpvm_nat::{Settings, SettingsError, descriptor};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::service::{End, Service, ServiceError, Sockets};
use crate::supervise::{Start, stand_by, supervise};

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
/// The first argument of the process that follows when the outer one is killed.
const STANDBY: &str = "standby";
/// The inner process's end of a pipe that is closed when those whose end it waits for are gone: of a worker the process outside of
/// it, of who stands by that process and its worker.
const LIFELINE: i32 = 5;
/// A worker's share of the other end of such a pipe: of who stands by.
const WITNESS: i32 = 6;

fn main() -> ExitCode {
    // Started as /proc/self/exe, it would be listed as `exe`.
    let _ = rustix::thread::set_name(c"hpvmnat");
    see_children_end();
    let mut arguments: Vec<String> = env::args().skip(1).collect();
    let part = arguments.first().filter(|first| [WORKER, STANDBY].contains(&first.as_str()));
    let part = part.cloned();
    if part.is_some() {
        arguments.remove(0);
    }
    let ended = match part.as_deref() {
        Some(WORKER) => work(arguments).map(|end| {
            if end == End::Alone {
                eprintln!("hpvmnat: no switch was connected for a minute");
            }
            ExitCode::SUCCESS
        }),
        Some(_) => follow(arguments),
        None => watch_over(arguments),
    };
    ended.unwrap_or_else(|failure| {
        eprintln!("hpvmnat: {}", hpvm_model::chain(&failure));
        match failure {
            Failure::Settings(_) | Failure::Descriptor(..) => ExitCode::from(STARTED_WRONGLY),
            _ => ExitCode::FAILURE,
        }
    })
}

fn watch_over(settings: Vec<String>) -> Result<ExitCode, Failure> {
    supervise(&start(settings)?).map_err(Failure::Supervise)
}

fn follow(settings: Vec<String>) -> Result<ExitCode, Failure> {
    let start = start(settings)?;
    stand_by(&start, descriptor(LIFELINE)?).map_err(Failure::Supervise)
}

fn start(settings: Vec<String>) -> Result<Start, Failure> {
    let wire = descriptor(descriptor::WIRE)?;
    let control = descriptor(descriptor::CONTROL)?;
    Settings::parse(settings.iter().cloned())?;
    Ok(Start { wire, control, settings })
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
