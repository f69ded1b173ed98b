//! The servers that stand in the tests' network.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::thread;

pub(crate) use hpvm_netlab::FAR;

/// Enters the network, and begins to answer for names in it.
pub(crate) fn enter() {
    hpvm_netlab::enter();
    let server = UdpSocket::bind("127.0.0.1:53").expect("a name server's port");
    thread::spawn(move || answer_names(&server));
}

/// Every name is at [`FAR`].
fn answer_names(server: &UdpSocket) {
    let mut question = [0; 512];
    while let Ok((length, from)) = server.recv_from(&mut question) {
        // No head, no question.
        if length < 12 {
            continue;
        }
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
