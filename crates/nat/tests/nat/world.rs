//! The network the tests run in, and the servers that stand in it.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};

/// An address of documentation (RFC 5737), which stands for the world outside.
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// Puts this process into namespaces of its own. To be called while it has one thread.
pub(crate) fn enter() {
    let (uid, gid) = (getuid(), getgid());
    if uid.is_root() {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("namespaces");
    } else {
        let flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
        unshare(flags).expect("namespaces, which this host must let users have");
        fs::write("/proc/self/setgroups", "deny").expect("setgroups");
        fs::write("/proc/self/uid_map", format!("0 {uid} 1")).expect("uid_map");
        fs::write("/proc/self/gid_map", format!("0 {gid} 1")).expect("gid_map");
    }
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("mounts of our own");
    let resolver = tempfile::NamedTempFile::new().expect("a file");
    fs::write(resolver.path(), "nameserver 127.0.0.1\n").expect("written");
    fs::set_permissions(resolver.path(), PermissionsExt::from_mode(0o644)).expect("readable");
    let place = fs::canonicalize("/etc/resolv.conf").expect("a list of name servers");
    mount(Some(resolver.path()), &place, none, MsFlags::MS_BIND, none).expect("a list of our own");
    use_ip(&["link", "set", "lo", "up"]);
    use_ip(&["address", "add", &format!("{FAR}/32"), "dev", "lo"]);
    let server = UdpSocket::bind("127.0.0.1:53").expect("a name server's port");
    thread::spawn(move || answer_names(&server));
}

fn use_ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("ip of package iproute2");
    assert!(status.success(), "ip {arguments:?}: {status}");
}

/// Every name is at [`FAR`].
fn answer_names(server: &UdpSocket) {
    let mut question = [0; 512];
    while let Ok((length, from)) = server.recv_from(&mut question) {
        // The question again, as an answer of one record that points back to the name (RFC 1035, section 4.1).
        let mut answer = question[..length].to_vec();
        answer[2..4].copy_from_slice(&[0x81, 0x80]);
        answer[6..8].copy_from_slice(&[0, 1]);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(FAR.octets());
        server.send_to(&answer, from).expect("answered");
    }
}

/// A server that sends back what it gets, until the test ends.
pub(crate) fn echo_server(address: Ipv4Addr) -> SocketAddrV4 {
    let listener = TcpListener::bind((address, 0)).expect("a port");
    let place = match listener.local_addr().expect("bound") {
        std::net::SocketAddr::V4(place) => place,
        std::net::SocketAddr::V6(_) => unreachable!("bound to IPv4"),
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || echo(stream));
        }
    });
    place
}

fn echo(mut stream: TcpStream) {
    let mut piece = [0; 16 * 1024];
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        if stream.write_all(&piece[..count]).is_err() {
            return;
        }
    }
}

/// A port of loopback that nobody has.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("bound").port()
}
