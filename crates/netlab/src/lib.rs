//! A network of a test's own, and guests in it that are whole TCP/IP stacks: nothing of this machine's is touched, and nothing is left when the test program ends, however
//! it ends. For tests alone, of every crate that sends frames; it knows none of them.
//!
//! A test program calls [`enter`] first of all, while it has one thread, so it has its own main. One in which a single test
//! wants a network runs that one [`apart`].

mod card;
mod guest;
mod hub;
mod names;
mod pinger;
mod station;

pub use card::Card;
pub use guest::{Guest, Told, mac};
pub use hub::{Hub, Plug};
pub use names::{answer_names, serve as serve_names};
pub use pinger::{Echo, Pinger};
pub use smoltcp::iface::SocketHandle;
pub use station::Station;

use std::fs;
use std::net::Ipv4Addr;
use std::panic::resume_unwind;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};

/// An address of documentation (RFC 5737), which is on loopback here and stands for the world outside.
pub const FAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// Puts this process into a network namespace that has loopback and [`FAR`], and a mount namespace in which the host's name
/// server is 127.0.0.1. An ordinary user is root in it.
///
/// # Panics
///
/// When this host does not let its users have namespaces, or ip of package iproute2 is not there.
pub fn enter() {
    let (uid, gid) = (getuid(), getgid());
    let mut namespaces = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    if !uid.is_root() {
        namespaces |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(namespaces).expect("namespaces, which this host must let its users have");
    if !uid.is_root() {
        fs::write("/proc/self/setgroups", "deny").expect("setgroups");
        fs::write("/proc/self/uid_map", format!("0 {uid} 1")).expect("uid_map");
        fs::write("/proc/self/gid_map", format!("0 {gid} 1")).expect("gid_map");
    }
    names::use_loopback();
    ip("link set lo up");
    ip(&format!("address add {FAR}/32 dev lo"));
}

/// Runs a test in a network namespace that has loopback alone, and so everything it starts, while other tests of the same
/// program run elsewhere. For root: whoever is not cannot do this in a program with several threads.
///
/// # Panics
///
/// When there is no such namespace, or when the test does.
pub fn apart(test: fn()) {
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace, which root may have");
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        resume_unwind(panic);
    }
}

/// Runs ip(8) with these words.
///
/// # Panics
///
/// When it fails.
pub fn ip(words: &str) {
    let status = Command::new("ip").args(words.split_whitespace()).status();
    let status = status.expect("ip of package iproute2");
    assert!(status.success(), "ip {words}: {status}");
}

/// Whether the kernel has interfaces of a kind such as `vlan`.
///
/// # Panics
///
/// When it says something else than yes, or that it does not know the kind.
#[must_use]
pub fn kernel_has(kind: &str) -> bool {
    // What is wrong with this request is told after the kind is known.
    let words = ["link", "add", "kindtest0", "type", kind];
    let output = Command::new("ip").args(words).output().expect("ip of package iproute2");
    if output.status.success() {
        ip("link del kindtest0");
    }
    !String::from_utf8_lossy(&output.stderr).contains("Unknown device type")
}

/// A pair of Ethernet interfaces that are connected with each other, set up. IPv6 addresses are usable at once.
///
/// # Panics
///
/// When it cannot be made.
pub fn pair(one: &str, other: &str) {
    ip(&format!("link add {one} type veth peer name {other}"));
    for name in [one, other] {
        // Nobody else is there whose address it could be.
        fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0").expect("IPv6");
        ip(&format!("link set {name} up"));
    }
    wait_until_up(one);
    wait_until_up(other);
}

/// Until the kernel has seen that there is a link, it discards what is sent.
///
/// # Panics
///
/// When it does not see it within ten seconds.
pub fn wait_until_up(name: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let shown = Command::new("ip").args(["-oneline", "link", "show", name]).output();
        let shown = shown.expect("ip of package iproute2").stdout;
        if String::from_utf8_lossy(&shown).contains(" state UP ") {
            return;
        }
        assert!(Instant::now() < deadline, "{name} has no link");
    }
}
