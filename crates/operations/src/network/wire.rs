//! What is behind a switch's wire: a packet socket, a tap, or the process that does NAT. Commands open them, since that
//! needs rights that the switch's process has not.

use std::error::Error;
use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hpvm_host::fingerprint;
use hpvm_host::listen::listen;
use hpvm_host::names::switch_folder;
use hpvm_host::nic::wire::WireError;
use hpvm_host::nic::{self, NetlinkError, Nic, NicKind};
use hpvm_host::paths::program;
use hpvm_host::removal;
use hpvm_host::signals::lift_limits;
use hpvm_host::users;
use hpvm_model::{InterfaceName, MacAddress, Nic as NicConfig, Problem, Vswitch, Wire, chain};
use hpvm_nat::control::{self, ControlError, Reply, Request};
use hpvm_nat::{HostAccess, Places, Settings};
use hpvm_vswitchd::wanted::WireKind;

use super::{SwitchRefused, runner};
use crate::{Refusal, VmHost};

/// hpvmnat ends within milliseconds of being asked to.
const END_BOUND: Duration = Duration::from_secs(2);

/// A wire as the switch's process gets it.
pub(super) struct Opened {
    pub(super) kind: WireKind,
    /// What it follows.
    pub(super) interface: Option<InterfaceName>,
    pub(super) descriptor: Option<OwnedFd>,
}

pub(super) const NONE: Opened = Opened { kind: WireKind::None, interface: None, descriptor: None };

impl Opened {
    /// What a switch has whose wire cannot be opened: an interface that is missing, and of the others none.
    pub(super) fn nothing_of(switch: &Vswitch) -> Opened {
        let missing =
            |kind, name: &InterfaceName| Opened { kind, interface: Some(name.clone()), ..NONE };
        match &switch.wire {
            Wire::Nic(name) => missing(WireKind::Packets, name),
            Wire::Tap(name) => missing(WireKind::Tap, name),
            Wire::None | Wire::Nat => NONE,
        }
    }
}

/// Opens what a switch is to have. An interface that is not there now is no error: the switch's process waits for it.
pub(super) fn open(host: &VmHost, switch: &Vswitch) -> Result<Opened, Refusal> {
    let failed = |source: WireError| cannot_have(switch, source);
    if switch.wire != Wire::Nat {
        end_nat(host, switch);
    }
    Ok(match &switch.wire {
        Wire::None => NONE,
        Wire::Nic(name) => {
            let socket = match interface(name) {
                Some(nic) => nic::wire::packets(&nic),
                None => nic::wire::packets_later(name.as_str()),
            };
            Opened {
                kind: WireKind::Packets,
                interface: Some(name.clone()),
                descriptor: Some(socket.map_err(failed)?),
            }
        }
        Wire::Tap(name) => {
            let tap = nic::wire::lasting_tap(name.as_str(), tap_address(host, switch));
            let descriptor = Some(tap.map_err(failed)?);
            Opened { kind: WireKind::Tap, interface: Some(name.clone()), descriptor }
        }
        Wire::Nat => {
            start_nat(host, switch)?;
            Opened { kind: WireKind::Nat, ..NONE }
        }
    })
}

/// Tells of a switch without guests whether its wire can be had. A tap is made if it is not there: so it is from the switch's boot
/// on, and not from that of the first guest.
pub(super) fn try_to_have(host: &VmHost, switch: &Vswitch) -> Result<(), Refusal> {
    match &switch.wire {
        Wire::Tap(_) => open(host, switch).map(drop),
        Wire::Nic(name) => {
            let socket = nic::wire::packets_later(name.as_str());
            socket.map(drop).map_err(|source| cannot_have(switch, source))
        }
        Wire::None | Wire::Nat => Ok(()),
    }
}

fn cannot_have(switch: &Vswitch, source: WireError) -> Refusal {
    SwitchRefused::Wire { name: switch.name.clone(), source }.into()
}

/// Why whoever runs this VM Host may not have the interface that is a switch's wire. Root may, and of who only looks on it says
/// nothing about who runs it.
pub(super) fn forbidden(host: &VmHost, switch: &Vswitch) -> Option<WireError> {
    match &switch.wire {
        Wire::Nic(name) if !users::is_root() && host.is_ours() => {
            nic::wire::packets_later(name.as_str()).err()
        }
        _ => None,
    }
}

/// Of switches to which NICs of a guest that runs now came, those whose tap could not be had.
pub(crate) fn missing_taps(
    host: &VmHost,
    before: &[NicConfig],
    after: &[NicConfig],
) -> Vec<Problem> {
    let comes = |switch: &Vswitch| {
        after.iter().any(|nic| nic.vswitch == switch.name && !before.contains(nic))
    };
    // The guest runs, and does not fail for what cannot be looked at.
    let mut switches = host.registry.vswitches().unwrap_or_default();
    switches.retain(|switch| comes(switch) && runner::lacks_tap(host, switch));
    let problem = |switch: &Vswitch| {
        let name = &switch.name;
        let text = format!(
            "virtual switch '{name}' has no wire, since its {} could not be had: its log {} tells why, and `hpvmnet -S {name} -b` tries again",
            switch.wire,
            host.root.switch_log(switch.number.get()).display()
        );
        Problem::warning(name.as_str(), text)
    };
    switches.iter().map(problem).collect()
}

/// A tap that was made for a switch. What has its name by now may be another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeTap {
    pub name: String,
    address: MacAddress,
}

/// All taps that were made for a switch: its wire, if that is one, and what is left of another that it had.
pub(super) fn made_taps(host: &VmHost, switch: &Vswitch) -> Result<Vec<MadeTap>, NetlinkError> {
    let address = tap_address(host, switch);
    let all = nic::all()?.into_iter();
    let made = all.filter(|nic| nic.kind == NicKind::Tap && nic.mac == Some(address));
    Ok(made.map(|nic| MadeTap { name: nic.name, address }).collect())
}

/// Those that are its wire no more: whoever gave the switch another was ended before these were removed.
pub(crate) fn left_taps(host: &VmHost, switch: &Vswitch) -> Result<Vec<MadeTap>, NetlinkError> {
    let mut made = made_taps(host, switch)?;
    if let Wire::Tap(wire) = &switch.wire {
        made.retain(|tap| tap.name != wire.as_str());
    }
    Ok(made)
}

/// Removes the taps that were made for a switch and are its wire no more; gives what is in the way, of each.
pub(super) fn remove_left_taps(host: &VmHost, switch: &Vswitch) -> Vec<Problem> {
    // Without a look at the interfaces nothing is known to be left.
    let left = left_taps(host, switch).unwrap_or_default();
    let refused = left.iter().filter_map(|tap| tap.remove().err());
    refused.map(|refused| Problem::warning(switch.name.as_str(), chain(&refused))).collect()
}

impl MadeTap {
    pub(crate) fn remove(&self) -> Result<(), SwitchRefused> {
        let removed = nic::wire::remove_tap(&self.name, self.address);
        removed.map_err(|source| SwitchRefused::Tap { name: self.name.clone(), source })
    }
}

/// The same at each boot, so that what goes by the address knows the tap again; and no other VM Host's, which may be on the same
/// LAN by a bridge.
fn tap_address(host: &VmHost, switch: &Vswitch) -> MacAddress {
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let whose = format!("{} {} {}", machine.trim(), host.root.run_id(), switch.number);
    let [_, _, bytes @ ..] = fingerprint(whose.as_bytes()).to_be_bytes();
    MacAddress::for_a_guest(bytes)
}

/// An interface as it is now.
pub(super) fn interface(name: &InterfaceName) -> Option<Nic> {
    nic::named(name.as_str()).ok().flatten()
}

/// The longest packet that a wire carries now, in bytes; `None` without one, and while it is not there.
pub(super) fn carried(wire: &Wire) -> Option<u32> {
    match wire {
        Wire::None => None,
        Wire::Nic(name) | Wire::Tap(name) => interface(name).map(|nic| nic.mtu_bytes),
        // What hpvmnat is started with, and tells by DHCP.
        Wire::Nat => Some(Settings::default().mtu.into()),
    }
}

/// Starts the process that does NAT, or has the one that runs keep the forwards there are to be.
fn start_nat(host: &VmHost, switch: &Vswitch) -> Result<(), Refusal> {
    let asking = socket(host, switch, switch_folder::NAT_CONTROL);
    if let Some(reply) = ask(switch, &asking, &Request::Status)? {
        let Reply::Status(status) = reply else { return Ok(()) };
        for forward in status.forwards.iter().filter(|f| !switch.forwards.contains(f)) {
            ask(switch, &asking, &Request::Remove { forward: *forward })?;
        }
        for forward in switch.forwards.iter().filter(|f| !status.forwards.contains(f)) {
            ask(switch, &asking, &Request::Add { forward: *forward })?;
        }
        return Ok(());
    }
    let (base, number) = (host.conf.uid_base()?, switch.number.get());
    let wire =
        listen(&socket(host, switch, switch_folder::NAT), 0o600, users::switch_ids(base, number))?;
    let asked = listen(&asking, 0o600, None)?;
    let reachable = host.conf.nat_reachable()?.contains(&switch.name);
    let settings = Settings {
        host_access: if reachable { HostAccess::Reachable } else { HostAccess::Hidden },
        forwards: switch.forwards.clone(),
        ids: users::nat_ids(base, number),
        ..Settings::default()
    };
    let log = host.root.switch_log(number);
    let words = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(&log)
        .map_err(Refusal::file("open", &log))?;
    lift_limits();
    let places = Places { wire, control: asked, log: words };
    hpvm_nat::start(&program("hpvmnat")?, &settings, places)
        .map(drop)
        .map_err(|error| refused(switch, &error))
}

/// Ends the process that does NAT; fine when none runs.
pub(super) fn end_nat(host: &VmHost, switch: &Vswitch) {
    let asking = socket(host, switch, switch_folder::NAT_CONTROL);
    let deadline = Instant::now() + END_BOUND;
    let mut answer = control::ask(&asking, &Request::End);
    while !answer.as_ref().is_err_and(ControlError::is_absence) {
        // To one that lives its sockets still lead: the next command asks it, and it ends by itself without a switch.
        if Instant::now() >= deadline {
            return;
        }
        runner::pause();
        answer = control::ask(&asking, &Request::Status);
    }
    for name in [switch_folder::NAT_CONTROL, switch_folder::NAT] {
        let _ = removal::file(&socket(host, switch, name));
    }
}

/// What the process that does NAT answers; `None`: there is none. One that is there and silent is an error, since a second one
/// would take its place and not its ports.
fn ask(switch: &Vswitch, asking: &Path, request: &Request) -> Result<Option<Reply>, Refusal> {
    match control::ask(asking, request) {
        Ok(Reply::Refused { why }) => {
            Err(SwitchRefused::Nat { name: switch.name.clone(), why }.into())
        }
        Ok(reply) => Ok(Some(reply)),
        Err(error) if error.is_absence() => Ok(None),
        Err(error) => Err(refused(switch, &error)),
    }
}

fn refused(switch: &Vswitch, error: &dyn Error) -> Refusal {
    SwitchRefused::Nat { name: switch.name.clone(), why: chain(error) }.into()
}

fn socket(host: &VmHost, switch: &Vswitch, name: &str) -> PathBuf {
    host.root.switch_dir(switch.number.get()).join(name)
}
