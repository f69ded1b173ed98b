//! Virtual switches and guests' NICs: what is known of them for decisions, the processes that run switches, and what an
//! administrator does to them.

pub mod capture;
mod facts;
pub(crate) mod forwards;
pub mod interfaces;
pub(crate) mod lan;
pub mod links;
pub(crate) mod mtu;
pub mod nat;
pub mod ports;
pub mod rules;
pub(crate) mod runner;
pub(crate) mod silence;
pub mod switches;
pub(crate) mod text;
pub mod view;
pub(crate) mod wire;

pub(crate) use self::runner::status;
use hpvm_model::{Forward, NatSubnet, SwitchName};
use hpvm_vswitchd::client::ClientError;

/// Why a virtual switch could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SwitchRefused {
    #[error("no virtual switch by that name or number: '{0}'; `hpvmnet` lists them")]
    Unknown(String),
    #[error("virtual switch '{0}' always exists; it cannot be {1}")]
    Localnet(SwitchName, &'static str),
    #[error(
        "ports of virtual switch '{name}' are in use by {guests}; move them to another switch with `hpvmmodify -m network:…` or delete them, or force it with -F"
    )]
    InUse { name: SwitchName, guests: String },
    #[error(
        "guests run on virtual switch '{0}', see `hpvmnet -S {0}`; stop them or move them to another switch with `hpvmmodify -m network:…`"
    )]
    Running(SwitchName),
    #[error(
        "virtual switch '{name}' did not answer within {seconds} s; `hpvm doctor` and its log {log} tell more"
    )]
    NotUp { name: SwitchName, seconds: u64, log: String },
    #[error("the keeper of virtual switch '{name}' could not be started")]
    Keeper { name: SwitchName, source: hpvm_host::launch::LaunchError },
    #[error("virtual switch '{name}' cannot do that")]
    Asked { name: SwitchName, source: ClientError },
    #[error(
        "virtual switch '{name}' is changed, and its process and its guests could not be told all of it; `hpvmnet -S {name} -{letter}` tells them"
    )]
    Untold { name: SwitchName, letter: char, source: Box<crate::Refusal> },
    #[error("the network interfaces of this VM Host cannot be read")]
    Interfaces(#[source] hpvm_host::nic::NetlinkError),
    #[error("the tap {name} cannot be removed; root may")]
    Tap { name: String, source: hpvm_host::nic::NetlinkError },
    #[error("virtual switch '{name}' cannot have that wire")]
    Wire { name: SwitchName, source: hpvm_host::nic::wire::WireError },
    #[error("virtual switch '{name}' cannot have that wire: {source}")]
    Unfit { name: SwitchName, source: hpvm_host::nic::Unfit },
    #[error("the NAT of virtual switch '{name}' fails: {why}")]
    Nat { name: SwitchName, why: String },
    #[error(
        "virtual switch '{0}' has no NAT wire, and only NAT has port forwards; give --wire nat"
    )]
    NoNat(SwitchName),
    #[error(
        "port forwards {one} and {other} of virtual switch '{name}' want the same port of the VM Host; choose another for one of them"
    )]
    Collision { name: SwitchName, one: Forward, other: Forward },
    #[error(
        "port forward {forward} of virtual switch '{name}' leads to no guest: guests behind NAT have addresses of {subnet}, from {} on, and {}, {} and {} are not theirs",
        subnet.guest(0).unwrap_or(subnet.first()),
        subnet.gateway(), subnet.name_server(), subnet.broadcast()
    )]
    NoGuest { name: SwitchName, forward: Forward, subnet: NatSubnet },
    #[error("the capture of port {port} of virtual switch '{name}' has ended: {why}")]
    Capture { name: SwitchName, port: hpvm_model::PortNumber, why: String },
    #[error("no guest that runs has port {port} of virtual switch '{name}'")]
    NoPort { name: SwitchName, port: hpvm_model::PortNumber },
    #[error(
        "port {port} of virtual switch '{name}' is not in use; `hpvmnet -S {name}` lists those that are"
    )]
    UnusedPort { name: SwitchName, port: hpvm_model::PortNumber },
    #[error(
        "{what} of port {port} of virtual switch '{name}' is given more than once; give it once"
    )]
    AskedTwice { name: SwitchName, port: hpvm_model::PortNumber, what: &'static str },
    #[error("virtual switch '{0}' has no guest that runs on it, so there is nothing to show")]
    NotRunning(SwitchName),
    #[error(
        "the process of virtual switch '{0}' was killed, and guests run on it; `hpvmnet -S {0} -b` starts it again"
    )]
    Killed(SwitchName),
}
