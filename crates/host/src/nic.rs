//! The network interfaces of this machine: what the wire of a virtual switch can be, and whether it carries.
//!
//! Called by the commands of virtual switches, which show and choose interfaces, and by the data path's process, which
//! follows one. Everything comes from the kernel by rtnetlink: it tells bonds, VLAN interfaces, bridges and taps apart, in
//! whatever network namespace the caller is. Nothing here changes an interface.

mod message;
pub mod probe;
mod socket;
mod watch;
pub mod wire;

use std::fs;
use std::net::IpAddr;

use hpvm_model::{MacAddress, SwitchName};

use message::{Address, Link};
pub use socket::{NetlinkError, Recording};
pub use watch::{LinkNews, LinkWatch};

/// What an interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NicKind {
    /// A card, or what a hypervisor below us offers as one.
    Physical,
    Bond,
    Vlan(u16),
    Bridge,
    /// Ethernet frames to and from a process of this machine.
    Tap,
    /// One end of a pair.
    Veth,
    Loopback,
    /// Any other, by the kernel's word for it.
    Other(String),
}

/// Whether frames can pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    Up,
    /// It is set up, and there is no link.
    Down,
    /// The administrator has not set it up.
    Off,
}

/// An interface as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    pub index: u32,
    pub name: String,
    pub kind: NicKind,
    /// Ethernet's; none for what is no Ethernet.
    pub mac: Option<MacAddress>,
    /// The largest packet in a frame.
    pub mtu_bytes: u32,
    pub carrier: Carrier,
    /// The bond or bridge it is a part of.
    pub master: Option<String>,
    /// The interface that a VLAN interface stands on.
    pub lower: Option<String>,
    /// IP addresses and the lengths of their networks' prefixes.
    pub addresses: Vec<(IpAddr, u8)>,
}

/// Why an interface cannot be a switch's wire.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("{0} is no Ethernet interface")]
    NoEthernet(String),
    #[error("{0} is this machine's loopback")]
    Loopback(String),
    #[error("{0} is a part of {1}; use {1}")]
    Part(String, String),
    #[error("{0} is a tap; use --wire tap:{0}")]
    Tap(String),
    #[error("{0} is no tap; name one that is, or give an interface by -n")]
    NoTap(String),
    #[error("{0} is the wire of virtual switch '{1}', and a tap has one switch; choose another")]
    Taken(String, SwitchName),
    #[error("{0} is a name that hpvmnet would take for another; rename the interface")]
    Unnamable(String),
}

/// Every interface of this machine, in the kernel's order.
pub fn all() -> Result<Vec<Nic>, NetlinkError> {
    Recording::of_kernel().map(|recording| read(&recording))
}

/// The interface of a name, if there is one.
pub fn named(name: &str) -> Result<Option<Nic>, NetlinkError> {
    Ok(all()?.into_iter().find(|nic| nic.name == name))
}

/// How many million bits a second an interface carries, as its driver says; `None` without a link, and of what has no speed.
#[must_use]
pub fn speed_mbit(name: &str) -> Option<u32> {
    let text = fs::read_to_string(format!("/sys/class/net/{name}/speed")).ok()?;
    text.trim().parse().ok().filter(|speed| *speed != 0)
}

/// The interfaces that a kernel told of.
#[must_use]
pub fn read(recording: &Recording) -> Vec<Nic> {
    let links: Vec<Link> = message::links(&recording.links).collect();
    let addresses: Vec<Address> = message::addresses(&recording.addresses).collect();
    let name_of = |index: Option<u32>| {
        let link = links.iter().find(|link| Some(link.index) == index)?;
        Some(link.name.clone())
    };
    links
        .iter()
        .map(|link| {
            let mut nic = Nic::of(link);
            nic.master = name_of(link.master);
            nic.lower = name_of(link.lower.filter(|_| matches!(nic.kind, NicKind::Vlan(_))));
            let its = addresses.iter().filter(|address| address.index == link.index);
            nic.addresses = its.map(|address| (address.address, address.prefix)).collect();
            nic
        })
        .collect()
}

impl Nic {
    /// What a message about this interface alone tells.
    fn of(link: &Link) -> Nic {
        Nic {
            index: link.index,
            name: link.name.clone(),
            kind: kind(link),
            mac: link.mac.filter(|_| link.is_ethernet),
            mtu_bytes: link.mtu_bytes,
            carrier: match (link.is_set_up, link.carries) {
                (true, true) => Carrier::Up,
                (true, false) => Carrier::Down,
                (false, _) => Carrier::Off,
            },
            master: None,
            lower: None,
            addresses: Vec::new(),
        }
    }

    /// Why it cannot be a switch's wire, if so.
    pub fn fit_for_wire(&self) -> Result<(), Unfit> {
        let name = || self.name.clone();
        match (&self.kind, &self.master) {
            (NicKind::Loopback, _) => Err(Unfit::Loopback(name())),
            (NicKind::Tap, _) => Err(Unfit::Tap(name())),
            _ if self.mac.is_none() => Err(Unfit::NoEthernet(name())),
            (_, Some(master)) => Err(Unfit::Part(name(), master.clone())),
            _ => Ok(()),
        }
    }

    /// Why it cannot be a switch's tap, if so.
    pub fn fit_for_tap(&self) -> Result<(), Unfit> {
        match self.kind {
            NicKind::Tap => Ok(()),
            NicKind::Loopback => Err(Unfit::Loopback(self.name.clone())),
            _ => Err(Unfit::NoTap(self.name.clone())),
        }
    }
}

fn kind(link: &Link) -> NicKind {
    match link.kind.as_deref() {
        _ if link.is_loopback => NicKind::Loopback,
        None if link.is_ethernet => NicKind::Physical,
        None => NicKind::Other("unknown".to_owned()),
        Some("bond") => NicKind::Bond,
        Some("vlan") => NicKind::Vlan(link.vlan.unwrap_or_default()),
        Some("bridge") => NicKind::Bridge,
        Some("tun") if link.is_ethernet => NicKind::Tap,
        Some("veth") => NicKind::Veth,
        Some(other) => NicKind::Other(other.to_owned()),
    }
}
