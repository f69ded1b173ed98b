//! Opens what the wire of a virtual switch is: a packet socket over an interface, or a tap. Root does so and hands the
//! descriptor on; the switch's process needs no rights for what it does with it, not even for another interface of the same
//! name.
//!
//! Both carry frames behind the first ten bytes of a virtio-net header (virtio 1.2, 5.1.6), so that the kernel finishes
//! checksums and segments, and tells what of it is open in what it received (packet(7), PACKET_VNET_HDR;
//! Documentation/networking/tuntap.rst, IFF_VNET_HDR).

#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use hpvm_model::MacAddress;
use nix::libc;
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::socket::delete_link;
use super::{NetlinkError, NicKind};

/// What a burst from a fast card may wait in. The kernel takes the memory only while frames wait.
const RECEIVE_BYTES: c_int = 8 * 1024 * 1024;
/// Names have 15 bytes at most, and a zero behind them (IFNAMSIZ).
const NAME_BYTES_MAX: usize = 15;

const PACKET_AUXDATA: c_int = 8;
const PACKET_VNET_HDR: c_int = 15;
const PACKET_IGNORE_OUTGOING: c_int = 23;

const TUN_OFFLOADS: libc::c_ulong =
    (libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN) as libc::c_ulong;

/// Why an interface cannot be a wire.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error(
        "'{0}' is no name of an interface; it has 1 to {NAME_BYTES_MAX} bytes, and none of / : or a blank"
    )]
    Name(String),
    #[error("frames of {nic} cannot be had; only root, or who has CAP_NET_RAW, may")]
    Packets { nic: String, source: io::Error },
    #[error(
        "the tap {name} cannot be had; root may make one, others use one that root made for them"
    )]
    Tap { name: String, source: io::Error },
    #[error("the tap {0} is in use by another program; end that, or have another tap")]
    TapInUse(String),
    #[error("the tap {name} cannot be set up")]
    SetUp { name: String, source: io::Error },
}

/// Every frame that comes in at an interface, and the way out. What the VM Host itself sends there is not among them, nor
/// does it hear what is sent so: a switch that shall talk with its VM Host has a tap.
pub fn packets(nic: &super::Nic) -> Result<OwnedFd, WireError> {
    let socket = packets_later(&nic.name)?;
    follow(socket.as_fd(), nic.index)
        .map_err(|source| WireError::Packets { nic: nic.name.clone(), source })?;
    Ok(socket)
}

/// The same for an interface that is not there yet: nothing passes until [`follow`] makes the socket that interface's.
pub fn packets_later(name: &str) -> Result<OwnedFd, WireError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // No protocol: nothing is received before everything is set.
    socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)
        .map_err(io::Error::from)
        .and_then(|socket| {
            for option in [PACKET_VNET_HDR, PACKET_AUXDATA, PACKET_IGNORE_OUTGOING] {
                set(socket.as_fd(), libc::SOL_PACKET, option, &1)?;
            }
            let forced =
                set(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &RECEIVE_BYTES);
            forced.or_else(|_| {
                set(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, &RECEIVE_BYTES)
            })?;
            Ok(socket)
        })
        .map_err(|source| WireError::Packets { nic: name.to_owned(), source })
}

/// Makes a socket of [`packets`] that of another interface, such as the card that was put in for a broken one. Needs no
/// rights.
pub fn follow(socket: BorrowedFd, index: u32) -> io::Result<()> {
    if let Some(before) = followed(socket)?.filter(|before| *before != index) {
        // It may be gone meanwhile, and its memberships with it.
        let _ = set(socket, libc::SOL_PACKET, libc::PACKET_DROP_MEMBERSHIP, &every_frame(before)?);
    }
    let address = packets_of(c_int::try_from(index).map_err(io::Error::other)?);
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads one address of this length.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    checked(bound)?;
    set(socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &every_frame(index)?)
}

/// The interface that a socket of [`packets`] has, by index; none if that is gone, or never was there.
pub fn followed(socket: BorrowedFd) -> io::Result<Option<u32>> {
    let mut address = packets_of(0);
    let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel writes no more than this length.
    let told = unsafe {
        libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut length)
    };
    checked(told)?;
    Ok(u32::try_from(address.sll_ifindex).ok().filter(|index| *index != 0))
}

fn packets_of(index: c_int) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as libc::c_ushort,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}

/// Frames for the guests' addresses pass the card's filter too.
fn every_frame(index: u32) -> io::Result<libc::packet_mreq> {
    Ok(libc::packet_mreq {
        mr_ifindex: c_int::try_from(index).map_err(io::Error::other)?,
        mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
        mr_alen: 0,
        mr_address: [0; 8],
    })
}

/// A tap, made if there is none of this name, and set up. It is gone with its last descriptor, unless somebody made it to
/// stay (`ip tuntap`).
pub fn tap(name: &str) -> Result<OwnedFd, WireError> {
    made_tap(name, |_| Ok(()))
}

/// The same, but one that it makes has this address and stays until [`remove_tap`]: what else the administrator gives it, such
/// as an IP address, outlives whoever has it open. One that is there is taken as it is.
pub fn lasting_tap(name: &str, address: MacAddress) -> Result<OwnedFd, WireError> {
    let is_there = super::named(name).map_or(true, |found| found.is_some());
    made_tap(name, |tap| if is_there { Ok(()) } else { make_last(tap, address) })
}

/// Removes a tap of [`lasting_tap`]. Whatever else has the name by now, or another address, is somebody's.
pub fn remove_tap(name: &str, address: MacAddress) -> Result<(), NetlinkError> {
    match super::named(name)? {
        Some(nic) if nic.kind == NicKind::Tap && nic.mac == Some(address) => delete_link(nic.index),
        _ => Ok(()),
    }
}

/// What is to be done to it before it is set up may be nothing.
fn made_tap(
    name: &str,
    before_it_is_up: impl FnOnce(&OwnedFd) -> io::Result<()>,
) -> Result<OwnedFd, WireError> {
    let request = request_for(name)?;
    let tap = open_tap(request).map_err(|source| match source.kind() {
        io::ErrorKind::ResourceBusy => WireError::TapInUse(name.to_owned()),
        _ => WireError::Tap { name: name.to_owned(), source },
    })?;
    before_it_is_up(&tap)
        .and_then(|()| set_up(request))
        .map_err(|source| WireError::SetUp { name: name.to_owned(), source })?;
    Ok(tap)
}

fn make_last(tap: &OwnedFd, address: MacAddress) -> io::Result<()> {
    let mut data = [0; 14];
    for (place, byte) in data.iter_mut().zip(address.bytes()) {
        *place = byte.cast_signed();
    }
    let hardware = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: data };
    let request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_hwaddr: hardware },
    };
    // SAFETY: the kernel reads one request; the descriptor says which tap is meant.
    checked(unsafe { libc::ioctl(tap.as_raw_fd(), libc::SIOCSIFHWADDR, &raw const request) })?;
    let stays: libc::c_ulong = 1;
    // SAFETY: the argument is a number.
    checked(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST, stays) })
}

fn open_tap(mut request: libc::ifreq) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tap = open("/dev/net/tun", flags, Mode::empty())?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    // SAFETY: the kernel reads and writes one request.
    checked(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let header_bytes: c_int = 10;
    // SAFETY: the kernel reads one number.
    checked(unsafe {
        libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header_bytes)
    })?;
    // SAFETY: the argument is a number.
    checked(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, TUN_OFFLOADS) })?;
    Ok(tap)
}

/// Nothing is changed when it is set up already, so that nobody needs rights for that.
fn set_up(mut request: libc::ifreq) -> io::Result<()> {
    let any = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: the kernel reads and writes one request.
    checked(unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    // SAFETY: this is what the kernel has just written.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    if flags & libc::IFF_UP as i16 != 0 {
        return Ok(());
    }
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as i16;
    // SAFETY: the kernel reads one request.
    checked(unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
}

fn request_for(name: &str) -> Result<libc::ifreq, WireError> {
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        // The kernel would put a number in for it.
        && !name.contains(['/', ':', '%'])
        && !name.contains(|letter: char| letter.is_whitespace() || letter.is_control());
    if !fits {
        return Err(WireError::Name(name.to_owned()));
    }
    let mut letters = [0; libc::IFNAMSIZ];
    for (letter, byte) in letters.iter_mut().zip(name.bytes()) {
        *letter = byte.cast_signed();
    }
    Ok(libc::ifreq { ifr_name: letters, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 } })
}

fn set<T>(socket: BorrowedFd, level: c_int, option: c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads one value of this length.
    checked(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const *value).cast(), length)
    })
}

fn checked(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
