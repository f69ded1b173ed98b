//! The part of libslirp 4.7's interface that is used here, as its header `libslirp.h` has it (configuration version 4).
//!
//! The library is linked by the name its package installs, so that its development package is needed by nobody: QEMU
//! depends on the same package.

use std::ffi::{c_char, c_int, c_void};

/// libslirp's state.
#[repr(C)]
pub(super) struct RawSlirp {
    _private: [u8; 0],
}

pub(super) const POLL_IN: c_int = 1;
pub(super) const POLL_OUT: c_int = 1 << 1;
pub(super) const POLL_PRI: c_int = 1 << 2;
pub(super) const POLL_ERR: c_int = 1 << 3;
pub(super) const POLL_HUP: c_int = 1 << 4;

/// `struct in_addr`: a number in the order of the network, and aligned as one.
#[repr(C, align(4))]
#[derive(Clone, Copy)]
pub(super) struct InAddr(pub(super) [u8; 4]);

/// `struct in6_addr`.
#[repr(C, align(4))]
#[derive(Clone, Copy)]
pub(super) struct In6Addr(pub(super) [u8; 16]);

#[repr(C)]
pub(super) struct Callbacks {
    pub(super) send_packet: extern "C" fn(*const c_void, usize, *mut c_void) -> isize,
    pub(super) guest_error: extern "C" fn(*const c_char, *mut c_void),
    pub(super) clock_get_ns: extern "C" fn(*mut c_void) -> i64,
    pub(super) timer_new: extern "C" fn(*const c_void, *mut c_void, *mut c_void) -> *mut c_void,
    pub(super) timer_free: extern "C" fn(*mut c_void, *mut c_void),
    pub(super) timer_mod: extern "C" fn(*mut c_void, i64, *mut c_void),
    pub(super) register_poll_fd: extern "C" fn(c_int, *mut c_void),
    pub(super) unregister_poll_fd: extern "C" fn(c_int, *mut c_void),
    pub(super) notify: extern "C" fn(*mut c_void),
    pub(super) init_completed: Option<extern "C" fn(*mut RawSlirp, *mut c_void)>,
    pub(super) timer_new_opaque:
        Option<extern "C" fn(c_int, *mut c_void, *mut c_void) -> *mut c_void>,
}

#[repr(C)]
pub(super) struct Config {
    pub(super) version: u32,
    pub(super) restricted: c_int,
    pub(super) in_enabled: bool,
    pub(super) vnetwork: InAddr,
    pub(super) vnetmask: InAddr,
    pub(super) vhost: InAddr,
    pub(super) in6_enabled: bool,
    pub(super) vprefix_addr6: In6Addr,
    pub(super) vprefix_len: u8,
    pub(super) vhost6: In6Addr,
    pub(super) vhostname: *const c_char,
    pub(super) tftp_server_name: *const c_char,
    pub(super) tftp_path: *const c_char,
    pub(super) bootfile: *const c_char,
    pub(super) vdhcp_start: InAddr,
    pub(super) vnameserver: InAddr,
    pub(super) vnameserver6: In6Addr,
    pub(super) vdnssearch: *const *const c_char,
    pub(super) vdomainname: *const c_char,
    pub(super) if_mtu: usize,
    pub(super) if_mru: usize,
    pub(super) disable_host_loopback: bool,
    pub(super) enable_emu: bool,
    pub(super) outbound_addr: *const c_void,
    pub(super) outbound_addr6: *const c_void,
    pub(super) disable_dns: bool,
    pub(super) disable_dhcp: bool,
}

pub(super) type AddPoll = extern "C" fn(c_int, c_int, *mut c_void) -> c_int;
pub(super) type GetREvents = extern "C" fn(c_int, *mut c_void) -> c_int;

#[link(name = "libslirp.so.0", kind = "dylib", modifiers = "+verbatim")]
unsafe extern "C" {
    pub(super) fn slirp_new(
        config: *const Config,
        callbacks: *const Callbacks,
        opaque: *mut c_void,
    ) -> *mut RawSlirp;
    pub(super) fn slirp_cleanup(slirp: *mut RawSlirp);
    pub(super) fn slirp_pollfds_fill(
        slirp: *mut RawSlirp,
        timeout_ms: *mut u32,
        add_poll: AddPoll,
        opaque: *mut c_void,
    );
    pub(super) fn slirp_pollfds_poll(
        slirp: *mut RawSlirp,
        poll_failed: c_int,
        get_revents: GetREvents,
        opaque: *mut c_void,
    );
    pub(super) fn slirp_input(slirp: *mut RawSlirp, frame: *const u8, length: c_int);
    pub(super) fn slirp_add_hostfwd(
        slirp: *mut RawSlirp,
        is_udp: c_int,
        host: InAddr,
        host_port: c_int,
        guest: InAddr,
        guest_port: c_int,
    ) -> c_int;
    pub(super) fn slirp_remove_hostfwd(
        slirp: *mut RawSlirp,
        is_udp: c_int,
        host: InAddr,
        host_port: c_int,
    ) -> c_int;
}
