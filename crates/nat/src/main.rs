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
mod service;
mod slirp;

use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::{env, io};

use hpvm_host::confine::{ConfineError, Enforced, internet};
use hpvm_host::launch::inherited;
use hpvm_nat::{Settings, SettingsError, descriptor};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::service::{End, Service, ServiceError};

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
}

fn main() -> ExitCode {
    match work() {
        Ok(End::Asked) => ExitCode::SUCCESS,
        Ok(End::Alone) => {
            eprintln!("hpvmnat: no switch was connected for a minute");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("hpvmnat: {}", hpvm_model::chain(&failure));
            match failure {
                Failure::Settings(_) | Failure::Descriptor(..) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn work() -> Result<End, Failure> {
    // To be taken before anything else is opened, which would get their numbers.
    let wire = listener(descriptor::WIRE)?;
    let control = listener(descriptor::CONTROL)?;
    let settings = Settings::parse(env::args().skip(1))?;
    bound()?;
    if internet::confine(settings.ids)? == Enforced::Not {
        eprintln!("hpvmnat: the kernel has no Landlock: files are not withheld from hpvmnat");
    }
    Ok(Service::new(&settings, wire, control)?.run()?)
}

fn listener(number: i32) -> Result<UnixListener, Failure> {
    inherited(number).map(UnixListener::from).map_err(|error| Failure::Descriptor(number, error))
}

fn bound() -> Result<(), Failure> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let most = maximum.map_or(DESCRIPTORS_MAX, |maximum| maximum.min(DESCRIPTORS_MAX));
    let limit = Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(Resource::Nofile, limit).map_err(|error| Failure::Bound(error.into()))
}
