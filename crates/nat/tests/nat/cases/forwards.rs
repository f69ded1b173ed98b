//! Port forwards: from the host to a guest.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use hpvm_model::Forward;
use hpvm_nat::Settings;
use hpvm_nat::control::{Reply, Request};
use hpvm_netlab::{Guest, Hub};

use crate::nat::Nat;
use crate::world::free_port;

fn forward(text: &str) -> Forward {
    text.parse().expect("a forward")
}

pub(crate) fn come_and_go() {
    let (first, later, datagrams) = (free_port(), free_port(), free_port());
    let from_the_start = forward(&format!("tcp:127.0.0.1:{first}:10.0.2.15:80"));
    let added = forward(&format!("tcp:{later}:10.0.2.15:81"));
    let udp = forward(&format!("udp:127.0.0.1:{datagrams}:10.0.2.15:53"));
    let nat = Nat::start(Settings { forwards: vec![from_the_start], ..Settings::default() });
    let hub = Hub::new(nat.connect());
    let mut guest = Guest::booted(&hub, 1);
    talk(&mut guest, first, 80);
    for forward in [added, udp] {
        assert_eq!(nat.ask(&Request::Add { forward }), Reply::Done);
    }
    assert_eq!(nat.ask(&Request::Add { forward: added }), Reply::Done, "it is there already");
    assert_eq!(nat.status().forwards, [from_the_start, added, udp]);
    talk(&mut guest, later, 81);
    exchange_datagrams(&mut guest, datagrams);
    for forward in [from_the_start, added, udp] {
        assert_eq!(nat.ask(&Request::Remove { forward }), Reply::Done);
    }
    for port in [first, later] {
        let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect_err("nobody listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }
    assert!(nat.status().forwards.is_empty());
}

/// Who has spoken to nobody yet is asked for its card first, and what is for it waits so long and no longer.
pub(crate) fn first_datagram() {
    let port = free_port();
    let udp = forward(&format!("udp:127.0.0.1:{port}:10.0.2.15:53"));
    let nat = Nat::start(Settings { forwards: vec![udp], ..Settings::default() });
    exchange_datagrams(&mut Guest::booted(&Hub::new(nat.connect()), 1), port);
}

/// Somebody on the host asks, the guest answers.
fn talk(guest: &mut Guest, host_port: u16, guest_port: u16) {
    let listening = guest.listen(guest_port);
    let mut outside = TcpStream::connect((Ipv4Addr::LOCALHOST, host_port)).expect("it listens");
    outside.set_read_timeout(Some(Duration::from_secs(20))).expect("a bound");
    outside.write_all(b"ask").expect("sent");
    let asked = guest.until("the question reaches the guest", |guest| {
        let socket = guest.tcp(listening);
        socket
            .can_recv()
            .then(|| socket.recv(|bytes| (bytes.len(), bytes.to_vec())).expect("received"))
    });
    assert_eq!(asked, b"ask");
    guest.tcp(listening).send_slice(b"answer").expect("sent");
    guest.tcp(listening).close();
    guest.until("the answer is sent", |guest| {
        (guest.tcp(listening).send_queue() == 0).then_some(())
    });
    let mut answer = [0; 6];
    outside.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"answer");
}

fn exchange_datagrams(guest: &mut Guest, host_port: u16) {
    let socket = guest.udp_socket(53);
    let outside = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    outside.set_read_timeout(Some(Duration::from_secs(20))).expect("a bound");
    outside.send_to(b"ask", (Ipv4Addr::LOCALHOST, host_port)).expect("sent");
    let from = guest.until("the datagram reaches the guest", |guest| {
        let (bytes, from) = guest.udp(socket).recv().ok()?;
        assert_eq!(bytes, b"ask");
        Some(from.endpoint)
    });
    guest.udp(socket).send_slice(b"answer", from).expect("sent");
    guest.until("the answer is sent", |guest| (guest.udp(socket).send_queue() == 0).then_some(()));
    let mut answer = [0; 16];
    let count = outside.recv(&mut answer).expect("an answer");
    assert_eq!(&answer[..count], b"answer");
}

pub(crate) fn refused() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let taken = listener.local_addr().expect("bound").port();
    // One that cannot be made at the start is missing, and nothing else is.
    let impossible = forward(&format!("tcp:127.0.0.1:{taken}:10.0.2.15:80"));
    let nat = Nat::start(Settings { forwards: vec![impossible], ..Settings::default() });
    assert_eq!(nat.status().forwards, []);
    let refusal = |text: &str| match nat.ask(&Request::Add { forward: forward(text) }) {
        Reply::Refused { why } => why,
        other => panic!("{text}: {other:?}"),
    };
    let why = refusal(&format!("tcp:127.0.0.1:{taken}:10.0.2.15:80"));
    assert!(why.contains("Address already in use"), "{why}");
    drop(listener);
    let why = refusal("tcp:8080:10.0.3.15:80");
    assert_eq!(why, "10.0.3.15 is no guest's address in 10.0.2.0/24");
    let port = free_port();
    let there = forward(&format!("udp:{port}:10.0.2.15:80"));
    assert_eq!(nat.ask(&Request::Add { forward: there }), Reply::Done);
    let why = refusal(&format!("udp:127.0.0.1:{port}:10.0.2.16:80"));
    assert_eq!(why, format!("its port of the VM Host is that of {there}"));
    let absent = Request::Remove { forward: forward("tcp:1:10.0.2.15:1") };
    assert_eq!(nat.ask(&absent), Reply::Refused { why: "there is no such forward".to_owned() });
}
