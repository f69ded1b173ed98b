//! libslirp behind a safe type: frames in, frames out, and one wait for all its connections.
//!
//! The one place of this crate that holds `unsafe`. Called by the service, which owns it; it knows neither switch nor
//! control socket. libslirp is C and reads what guests send: it does so in this process, which has nothing to lose.

#![allow(unsafe_code)]

mod ffi;

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_void};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{NonNull, null, null_mut};
use std::time::{Duration, Instant};

use hpvm_model::{Forward, NatSubnet, Transport};
use nix::libc;

use crate::outgoing::Outgoing;

const CONFIG_VERSION: u32 = 4;

/// What a process has to watch beside libslirp's own connections.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watched<'a> {
    pub(crate) fd: BorrowedFd<'a>,
    pub(crate) interest: Interest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    Input,
    InputAndOutput,
}

/// A stack that speaks for the guests. It calls back into [`World`] while one of its functions runs, never else.
pub(crate) struct Slirp {
    raw: NonNull<ffi::RawSlirp>,
    world: Box<World>,
}

/// What libslirp's callbacks reach. Only ever borrowed for the length of one callback.
struct World {
    began: Instant,
    outgoing: RefCell<Outgoing>,
}

impl Slirp {
    pub(crate) fn new(subnet: NatSubnet, mtu: u16, outgoing: Outgoing) -> Option<Slirp> {
        let world = Box::new(World { began: Instant::now(), outgoing: RefCell::new(outgoing) });
        let config = config(subnet, mtu);
        let opaque: *const World = &raw const *world;
        // SAFETY: the configuration is read during the call only; the callbacks are static and the world is at its place on
        // the heap until `drop` has called slirp_cleanup.
        let raw = unsafe {
            ffi::slirp_new(&raw const config, &raw const CALLBACKS, opaque.cast_mut().cast())
        };
        Some(Slirp { raw: NonNull::new(raw)?, world })
    }

    /// What is on its way to the guests.
    pub(crate) fn outgoing(&self) -> &RefCell<Outgoing> {
        &self.world.outgoing
    }

    /// A guest's frame, which the gate has let pass.
    pub(crate) fn input(&mut self, frame: &[u8]) {
        let Ok(length) = c_int::try_from(frame.len()) else { return };
        // SAFETY: the frame is copied during the call, and it has this length.
        unsafe { ffi::slirp_input(self.raw.as_ptr(), frame.as_ptr(), length) };
    }

    /// Sends what waited for a frame of a guest's, such as one that tells its address; by itself libslirp does after a wait alone.
    pub(crate) fn send_waiting(&mut self) {
        const NOBODY_WAITED: c_int = 1;
        // SAFETY: without a wait `get_revents` is not called, so it needs no vector.
        unsafe {
            ffi::slirp_pollfds_poll(self.raw.as_ptr(), NOBODY_WAITED, get_revents, null_mut());
        }
    }

    /// Listens on the VM Host for a guest.
    pub(crate) fn forward(&mut self, forward: &Forward) -> io::Result<()> {
        let Forward { transport, host, guest } = forward;
        // SAFETY: all arguments are values.
        let result = unsafe {
            ffi::slirp_add_hostfwd(
                self.raw.as_ptr(),
                is_udp(*transport),
                in_addr(*host.ip()),
                c_int::from(host.port()),
                in_addr(*guest.ip()),
                c_int::from(guest.port()),
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Stops listening; what is connected through it stays.
    pub(crate) fn stop_forward(&mut self, forward: &Forward) -> io::Result<()> {
        let Forward { transport, host, .. } = forward;
        // SAFETY: all arguments are values.
        let result = unsafe {
            ffi::slirp_remove_hostfwd(
                self.raw.as_ptr(),
                is_udp(*transport),
                in_addr(*host.ip()),
                c_int::from(host.port()),
            )
        };
        if result < 0 { Err(io::ErrorKind::NotFound.into()) } else { Ok(()) }
    }

    /// Waits until something happens on a connection or on what is watched, does what the connections ask for, and tells
    /// which of the watched are ready.
    pub(crate) fn wait(&mut self, watched: &[Watched], at_most: Duration) -> io::Result<Vec<bool>> {
        let mut polled: Vec<libc::pollfd> = watched.iter().map(polled_for).collect();
        let mut timeout_ms = u32::try_from(at_most.as_millis()).unwrap_or(u32::MAX);
        // SAFETY: `add_poll` is called during this call only, with the vector that lives behind it.
        unsafe {
            ffi::slirp_pollfds_fill(
                self.raw.as_ptr(),
                &raw mut timeout_ms,
                add_poll,
                (&raw mut polled).cast(),
            );
        };
        let failure = poll(&mut polled, timeout_ms).err();
        // SAFETY: as above, for `get_revents`, which only reads.
        unsafe {
            ffi::slirp_pollfds_poll(
                self.raw.as_ptr(),
                c_int::from(failure.is_some()),
                get_revents,
                (&raw mut polled).cast(),
            );
        }
        match failure {
            Some(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            Some(_) => Ok(vec![false; watched.len()]),
            None => Ok(polled.iter().take(watched.len()).map(|one| one.revents != 0).collect()),
        }
    }
}

impl Drop for Slirp {
    fn drop(&mut self) {
        // SAFETY: it came from slirp_new and is not used again; the world is still there for its last callbacks.
        unsafe { ffi::slirp_cleanup(self.raw.as_ptr()) };
    }
}

fn config(subnet: NatSubnet, mtu: u16) -> ffi::Config {
    ffi::Config {
        version: CONFIG_VERSION,
        restricted: 0,
        in_enabled: true,
        vnetwork: in_addr(subnet.first()),
        vnetmask: in_addr(subnet.mask()),
        vhost: in_addr(subnet.gateway()),
        // Few VM Hosts that need this wire have IPv6 outside, and a guest that is offered it waits for it in vain.
        in6_enabled: false,
        vprefix_addr6: ffi::In6Addr([0; 16]),
        vprefix_len: 64,
        vhost6: ffi::In6Addr([0; 16]),
        vhostname: null(),
        tftp_server_name: null(),
        tftp_path: null(),
        bootfile: null(),
        vdhcp_start: in_addr(subnet.guest(0).unwrap_or(subnet.broadcast())),
        vnameserver: in_addr(subnet.name_server()),
        vnameserver6: ffi::In6Addr([0; 16]),
        vdnssearch: null(),
        vdomainname: null(),
        if_mtu: usize::from(mtu),
        if_mru: usize::from(mtu),
        // The gate hides it. libslirp would hide it from answers to those who came in by a forward too.
        disable_host_loopback: false,
        enable_emu: false,
        outbound_addr: null(),
        outbound_addr6: null(),
        disable_dns: false,
        // It would know 16 guests, and forget them when it ends.
        disable_dhcp: true,
    }
}

fn in_addr(address: Ipv4Addr) -> ffi::InAddr {
    ffi::InAddr(address.octets())
}

fn is_udp(transport: Transport) -> c_int {
    c_int::from(transport == Transport::Udp)
}

fn polled_for(watched: &Watched) -> libc::pollfd {
    let events = match watched.interest {
        Interest::Input => libc::POLLIN,
        Interest::InputAndOutput => libc::POLLIN | libc::POLLOUT,
    };
    libc::pollfd { fd: watched.fd.as_raw_fd(), events, revents: 0 }
}

fn poll(polled: &mut [libc::pollfd], timeout_ms: u32) -> io::Result<()> {
    let count = libc::nfds_t::try_from(polled.len()).map_err(io::Error::other)?;
    let timeout_ms = c_int::try_from(timeout_ms).unwrap_or(c_int::MAX);
    // SAFETY: the kernel writes the answers of `count` entries, which the slice has.
    match unsafe { libc::poll(polled.as_mut_ptr(), count, timeout_ms) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

static CALLBACKS: ffi::Callbacks = ffi::Callbacks {
    send_packet,
    guest_error,
    clock_get_ns,
    timer_new,
    timer_free,
    timer_mod,
    register_poll_fd,
    unregister_poll_fd,
    notify,
    init_completed: None,
    timer_new_opaque: None,
};

/// # Safety
///
/// `opaque` is what `slirp_new` was given, and libslirp is not cleaned up yet.
unsafe fn world<'a>(opaque: *mut c_void) -> &'a World {
    // SAFETY: the caller's; a world is only ever borrowed shared.
    unsafe { &*opaque.cast::<World>() }
}

extern "C" fn send_packet(frame: *const c_void, length: usize, opaque: *mut c_void) -> isize {
    // SAFETY: libslirp passes a frame of this length, and what it was given at its making.
    let (frame, world) =
        unsafe { (std::slice::from_raw_parts(frame.cast::<u8>(), length), world(opaque)) };
    world.outgoing.borrow_mut().push(frame);
    isize::try_from(length).unwrap_or(isize::MAX)
}

extern "C" fn clock_get_ns(opaque: *mut c_void) -> i64 {
    // SAFETY: libslirp passes what it was given at its making.
    let world = unsafe { world(opaque) };
    i64::try_from(world.began.elapsed().as_nanos()).unwrap_or(i64::MAX)
}

/// A guest that misbehaves is no news.
extern "C" fn guest_error(_message: *const c_char, _opaque: *mut c_void) {}

/// Timers are for the advertisements of IPv6 alone, which are off. The answer must not be null.
extern "C" fn timer_new(_call: *const c_void, _with: *mut c_void, _: *mut c_void) -> *mut c_void {
    NonNull::<c_int>::dangling().as_ptr().cast()
}

extern "C" fn timer_free(_timer: *mut c_void, _opaque: *mut c_void) {}
extern "C" fn timer_mod(_timer: *mut c_void, _expires_ms: i64, _opaque: *mut c_void) {}

/// Which descriptors there are is asked before each wait.
extern "C" fn register_poll_fd(_fd: c_int, _opaque: *mut c_void) {}
extern "C" fn unregister_poll_fd(_fd: c_int, _opaque: *mut c_void) {}
/// There is no other thread that would have to be woken.
extern "C" fn notify(_opaque: *mut c_void) {}

/// The bits of libslirp's events and of poll's.
const EVENTS: [(c_int, i16); 5] = [
    (ffi::POLL_IN, libc::POLLIN),
    (ffi::POLL_OUT, libc::POLLOUT),
    (ffi::POLL_PRI, libc::POLLPRI),
    (ffi::POLL_ERR, libc::POLLERR),
    (ffi::POLL_HUP, libc::POLLHUP),
];

extern "C" fn add_poll(fd: c_int, events: c_int, opaque: *mut c_void) -> c_int {
    // SAFETY: `wait` passes its vector, which nothing else touches meanwhile.
    let polled = unsafe { &mut *opaque.cast::<Vec<libc::pollfd>>() };
    let wanted = EVENTS.iter().filter(|(theirs, _)| events & theirs != 0);
    let events = wanted.fold(0, |events, (_, ours)| events | ours);
    polled.push(libc::pollfd { fd, events, revents: 0 });
    c_int::try_from(polled.len() - 1).unwrap_or(-1)
}

extern "C" fn get_revents(index: c_int, opaque: *mut c_void) -> c_int {
    // SAFETY: `wait` passes its vector, which nothing else touches meanwhile.
    let polled = unsafe { &*opaque.cast::<Vec<libc::pollfd>>() };
    let Some(one) = usize::try_from(index).ok().and_then(|index| polled.get(index)) else {
        return 0;
    };
    let happened = EVENTS.iter().filter(|(_, ours)| one.revents & ours != 0);
    happened.fold(0, |events, (theirs, _)| events | theirs)
}
