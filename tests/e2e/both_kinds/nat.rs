//! NAT as the wire of a switch under guests of both kinds, whose own programs ask for addresses and names.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use hpvm_netlab::FAR;
use hpvm_testkit::vm_host::VmHost;

use super::{BOUND, BothKinds, Guest};

/// What DHCP gives to the first and to the second who asks.
const LEASED: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 2, 15), Ipv4Addr::new(10, 0, 2, 16)];
/// Of the VM Host, by which the two are reached.
const FORWARDED: [u16; 2] = [7015, 7016];
/// What udhcpc runs when it has a lease. NAT carries packets of Ethernet's own length.
const USE_LEASE: &str = r#"#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add $ip/$mask dev $interface
ip link set $interface mtu 1500
ip route replace default via $router dev $interface
echo nameserver $dns >/etc/resolv.conf
"#;

/// The switch of the second NICs gets another wire, while the guests run.
pub(super) fn guests_reach_the_world(host: &VmHost, guests: &mut BothKinds) {
    let web = serve("from the far server\n");
    let mut line: Vec<String> =
        ["hpvmnet", "-S", "sw2", "-C", "--wire", "nat"].map(str::to_owned).to_vec();
    for (port, guest) in FORWARDED.iter().zip(LEASED) {
        line.extend(["--forward".to_owned(), format!("tcp:127.0.0.1:{port}:{guest}:80")]);
    }
    host.ok(&line.iter().map(String::as_str).collect::<Vec<_>>());
    for (guest, leased) in guests.each().into_iter().zip(LEASED) {
        assert_eq!(lease(guest), leased);
    }
    for guest in guests.each() {
        for place in [FAR.to_string(), "far.example".to_owned()] {
            let page = guest.run(&format!("wget -q -O - http://{place}:{web}/ 2>&1"));
            assert_eq!(page, "from the far server", "{place}");
        }
    }
    for (guest, port) in guests.each().into_iter().zip(FORWARDED) {
        let said = format!("guest {} is here", guest.number);
        guest.run(&format!("echo {said} | nc -l -p 80 >/dev/null & echo"));
        assert_eq!(said_at(port), said);
    }
}

/// The address that the guest is given at its second NIC.
fn lease(guest: &mut Guest) -> Ipv4Addr {
    guest.run(&format!("cat >/tmp/use-lease <<'END'\n{USE_LEASE}END\nchmod +x /tmp/use-lease"));
    guest.run("ip address flush dev eth1; ip link set eth1 up");
    let said = guest.console.run_within("udhcpc -i eth1 -n -q -s /tmp/use-lease 2>&1", BOUND);
    let leased = said.lines().find_map(|line| line.split_once("lease of ")?.1.split(' ').next());
    leased.unwrap_or_else(|| panic!("{said}")).trim_end_matches(',').parse().expect("an address")
}

/// A web server in the world outside, of one page; gives its port.
fn serve(page: &'static str) -> u16 {
    let listener = TcpListener::bind((FAR, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 1024];
            // Whoever asks for anything gets the page; whoever has gone misses it.
            let _ = stream.read(&mut request);
            let _ = stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{page}").as_bytes());
        }
    });
    port
}

/// What a guest says to whoever calls it. Its program may not listen yet, and the forward ends the call then.
fn said_at(port: u16) -> String {
    let deadline = std::time::Instant::now() + BOUND;
    loop {
        let mut said = String::new();
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the NAT listens");
        stream.set_read_timeout(Some(BOUND)).expect("a bound");
        let ended = (&stream).read_to_string(&mut said);
        if ended.is_ok() && !said.is_empty() {
            return said.trim_end().to_owned();
        }
        assert!(std::time::Instant::now() < deadline, "{ended:?}");
    }
}
