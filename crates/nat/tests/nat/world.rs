//! The servers that stand in the tests' network.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::thread;

pub(crate) use hpvm_netlab::FAR;

/// Enters the network, and begins to answer for names in it.
pub(crate) fn enter() {
    hpvm_netlab::enter();
    hpvm_netlab::serve_names();
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
