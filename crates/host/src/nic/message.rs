//! Reads what rtnetlink says of interfaces and addresses (Linux, Documentation/netlink/specs/rt-link.yaml, rt-addr.yaml).
//!
//! A message is a head of 16 bytes (length, type, flags, sequence, sender), a fixed part for its type, and attributes. An
//! attribute is a head of 4 bytes (length, type) and its value; both begin at multiples of 4. Numbers are the machine's.
//! What is cut short is passed over: nothing here fails.

use std::net::IpAddr;

use hpvm_model::MacAddress;

pub(super) const NEW_LINK: u16 = 16;
pub(super) const DELETED_LINK: u16 = 17;
pub(super) const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
pub(super) const GET_ADDRESS: u16 = 22;
pub(super) const ERROR: u16 = 2;
pub(super) const DONE: u16 = 3;

pub(super) const HEAD_BYTES: usize = 16;
/// `struct ifinfomsg`: family, type, index, flags, change.
pub(super) const LINK_BYTES: usize = 16;
/// `struct ifaddrmsg`: family, prefix, flags, scope, index.
pub(super) const ADDRESS_BYTES: usize = 8;

const ARPHRD_ETHER: u16 = 1;
const IFF_UP: u32 = 0x1;
const IFF_LOOPBACK: u32 = 0x8;
const IFF_LOWER_UP: u32 = 0x10000;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Above these bits an attribute's type says how it is coded.
const TYPE_BITS: u16 = 0x3fff;

/// One message: its type and what is behind the head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) body: &'a [u8],
}

/// What is said of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) is_ethernet: bool,
    pub(super) is_loopback: bool,
    pub(super) is_set_up: bool,
    pub(super) carries: bool,
    pub(super) mac: Option<MacAddress>,
    pub(super) mtu_bytes: u32,
    /// The interface below it, or at its other end.
    pub(super) lower: Option<u32>,
    pub(super) master: Option<u32>,
    pub(super) kind: Option<String>,
    pub(super) vlan: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) index: u32,
    pub(super) address: IpAddr,
    pub(super) prefix: u8,
}

/// The messages in what was received, in order.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let head = bytes.first_chunk::<HEAD_BYTES>()?;
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let body = bytes.get(HEAD_BYTES..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        let word = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
        Some(Message { kind: word(4), flags: word(6), body })
    })
}

pub(super) fn links(bytes: &[u8]) -> impl Iterator<Item = Link> {
    messages(bytes)
        .filter(|message| message.kind == NEW_LINK)
        .filter_map(|message| link(message.body))
}

pub(super) fn addresses(bytes: &[u8]) -> impl Iterator<Item = Address> {
    let of_addresses = messages(bytes).filter(|message| message.kind == NEW_ADDRESS);
    of_addresses.filter_map(|message| address(message.body))
}

/// The interface that a message's body is about.
pub(super) fn link(body: &[u8]) -> Option<Link> {
    let head = body.first_chunk::<LINK_BYTES>()?;
    let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let flags = word(8);
    let mut link = Link {
        index: word(4),
        name: String::new(),
        is_ethernet: u16::from_ne_bytes([head[2], head[3]]) == ARPHRD_ETHER,
        is_loopback: flags & IFF_LOOPBACK != 0,
        is_set_up: flags & IFF_UP != 0,
        carries: flags & IFF_LOWER_UP != 0,
        mac: None,
        mtu_bytes: 0,
        lower: None,
        master: None,
        kind: None,
        vlan: None,
    };
    for (kind, value) in attributes(&body[LINK_BYTES..]) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_ADDRESS => link.mac = value.try_into().ok().map(MacAddress::new),
            IFLA_MTU => link.mtu_bytes = number(value).unwrap_or_default(),
            IFLA_LINK => link.lower = number(value),
            IFLA_MASTER => link.master = number(value),
            IFLA_LINKINFO => read_kind(&mut link, value),
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn read_kind(link: &mut Link, value: &[u8]) {
    for (kind, value) in attributes(value) {
        match kind {
            IFLA_INFO_KIND => link.kind = Some(text(value)),
            // Its attributes mean something else for each kind.
            IFLA_INFO_DATA if link.kind.as_deref() == Some("vlan") => {
                let id = attributes(value).find(|(kind, _)| *kind == IFLA_VLAN_ID);
                link.vlan =
                    id.and_then(|(_, value)| Some(u16::from_ne_bytes(*value.first_chunk()?)));
            }
            _ => {}
        }
    }
}

fn address(body: &[u8]) -> Option<Address> {
    let head = body.first_chunk::<ADDRESS_BYTES>()?;
    let find = |wanted| attributes(&body[ADDRESS_BYTES..]).find(|(kind, _)| *kind == wanted);
    // On a link between two points the other one is the address, and this one the local.
    let (_, value) = find(IFA_LOCAL).or_else(|| find(IFA_ADDRESS))?;
    let address = match *value {
        [a, b, c, d] => IpAddr::from([a, b, c, d]),
        _ => IpAddr::from(<[u8; 16]>::try_from(value).ok()?),
    };
    let index = u32::from_ne_bytes([head[4], head[5], head[6], head[7]]);
    Some(Address { index, address, prefix: head[1] })
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const HEAD_BYTES: usize = 4;
    std::iter::from_fn(move || {
        let [a, b, c, d] = *bytes.first_chunk::<HEAD_BYTES>()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(HEAD_BYTES..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & TYPE_BITS, value))
    })
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(b"\0").unwrap_or(value)).into_owned()
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(*value.first_chunk()?))
}
