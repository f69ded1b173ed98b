//! A guest: a TCP/IP stack with a card at the hub.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::{dhcpv4, dns, tcp, udp};
use smoltcp::wire::{DnsQueryType, EthernetAddress, IpAddress, IpCidr};

use crate::hub::{Hub, Plug};

/// More than anything here takes, on a machine that is emulated and has much else to do.
const DEADLINE: Duration = Duration::from_secs(60);
const BUFFER_BYTES: usize = 64 * 1024;

/// What DHCP told a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub router: Option<Ipv4Addr>,
    pub name_servers: Vec<Ipv4Addr>,
}

pub struct Guest {
    hub: Hub,
    plug: Plug,
    interface: Interface,
    sockets: SocketSet<'static>,
    ports: u16,
}

pub fn mac(number: u8) -> EthernetAddress {
    EthernetAddress([0x56, 0xa1, 0, 0, 0, number])
}

impl Guest {
    pub fn new(hub: &Hub, number: u8) -> Guest {
        let mut plug = hub.plug_in(mac(number));
        let mut config = Config::new(mac(number).into());
        config.random_seed = u64::from(number) + 1;
        let interface = Interface::new(config, &mut plug, now());
        Guest {
            hub: hub.clone(),
            plug,
            interface,
            sockets: SocketSet::new(Vec::new()),
            ports: 50_000 + u16::from(number) * 64,
        }
    }

    /// With an address by DHCP.
    pub fn booted(hub: &Hub, number: u8) -> Guest {
        let mut guest = Guest::new(hub, number);
        guest.boot();
        guest
    }

    pub fn boot(&mut self) -> Told {
        let handle = self.sockets.add(dhcpv4::Socket::new());
        let told = self.until("an address by DHCP", |guest| {
            match guest.sockets.get_mut::<dhcpv4::Socket>(handle).poll() {
                Some(dhcpv4::Event::Configured(told)) => Some(Told {
                    address: told.address.address(),
                    prefix: told.address.prefix_len(),
                    router: told.router,
                    name_servers: told.dns_servers.to_vec(),
                }),
                _ => None,
            }
        });
        self.sockets.remove(handle);
        self.use_address(told.address, told.prefix, told.router);
        told
    }

    /// As an administrator sets it.
    pub fn use_address(&mut self, address: Ipv4Addr, prefix: u8, router: Option<Ipv4Addr>) {
        self.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            addresses.push(IpCidr::new(address.into(), prefix)).expect("room for one");
        });
        if let Some(router) = router {
            self.interface.routes_mut().add_default_ipv4_route(router).expect("room for one");
        }
    }

    /// Lets time pass for the guest until something is so.
    pub fn until<T>(&mut self, what: &str, mut look: impl FnMut(&mut Guest) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.interface.poll(now(), &mut self.plug, &mut self.sockets);
            if let Some(found) = look(self) {
                return found;
            }
            assert!(Instant::now() < deadline, "not within {} s: {what}", DEADLINE.as_secs());
            let due = self.interface.poll_delay(now(), &self.sockets);
            let due = due.map_or(Duration::from_millis(50), |due| {
                Duration::from_micros(due.total_micros()).min(Duration::from_millis(50))
            });
            self.hub.wait_for_frames(due);
        }
    }

    /// Lets the guest do what is due now.
    pub fn step(&mut self) {
        self.interface.poll(now(), &mut self.plug, &mut self.sockets);
    }

    fn port(&mut self) -> u16 {
        self.ports += 1;
        self.ports
    }

    fn tcp_socket(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    pub fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// A connection to a server, or `None` when it was refused.
    pub fn connect(&mut self, server: SocketAddrV4) -> Option<SocketHandle> {
        let handle = self.begin_connect(server);
        self.until("an answer to the first segment", |guest| match guest.tcp(handle).state() {
            tcp::State::Established => Some(Some(handle)),
            tcp::State::Closed => Some(None),
            _ => None,
        })
    }

    /// Begins a connection and does not wait for it.
    pub fn begin_connect(&mut self, server: SocketAddrV4) -> SocketHandle {
        let (handle, port) = (self.tcp_socket(), self.port());
        let context = self.interface.context();
        let socket = self.sockets.get_mut::<tcp::Socket>(handle);
        socket
            .connect(context, (IpAddress::from(*server.ip()), server.port()), port)
            .expect("begun");
        handle
    }

    pub fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.tcp_socket();
        self.tcp(handle).listen(port).expect("a port");
        handle
    }

    /// Sends bytes to a server that sends them back, and returns what came.
    pub fn echoed(&mut self, handle: SocketHandle, bytes: &[u8]) -> Vec<u8> {
        let (mut sent, mut came) = (0, Vec::new());
        self.until("the bytes come back", |guest| {
            let socket = guest.tcp(handle);
            if sent < bytes.len() && socket.can_send() {
                sent += socket.send_slice(&bytes[sent..]).expect("open");
            }
            while socket.can_recv() {
                socket
                    .recv(|piece| {
                        came.extend_from_slice(piece);
                        (piece.len(), ())
                    })
                    .expect("open");
            }
            (came.len() >= bytes.len()).then_some(())
        });
        came
    }

    pub fn resolve(&mut self, server: Ipv4Addr, name: &str) -> Vec<IpAddress> {
        let handle = self.sockets.add(dns::Socket::new(&[server.into()], vec![]));
        let context = self.interface.context();
        let socket = self.sockets.get_mut::<dns::Socket>(handle);
        let query = socket.start_query(context, name, DnsQueryType::A).expect("begun");
        self.until("the name server's answer", |guest| {
            match guest.sockets.get_mut::<dns::Socket>(handle).get_query_result(query) {
                Ok(addresses) => Some(addresses.to_vec()),
                Err(dns::GetQueryResultError::Pending) => None,
                Err(error) => panic!("{error}"),
            }
        })
    }

    /// A UDP socket at a port.
    pub fn udp_socket(&mut self, port: u16) -> SocketHandle {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 16 * 1024]);
        let handle = self.sockets.add(udp::Socket::new(buffer(), buffer()));
        self.sockets.get_mut::<udp::Socket>(handle).bind(port).expect("a port");
        handle
    }

    pub fn udp(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.sockets.get_mut(handle)
    }
}

fn now() -> smoltcp::time::Instant {
    smoltcp::time::Instant::now()
}
