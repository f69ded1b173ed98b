//! The one loop of `hpvmnat`: what the switch sends goes through the gate to libslirp, what libslirp says goes to the switch,
//! and requests on the control socket are answered in between. Nothing in it waits for any one of them.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process;
use std::time::{Duration, Instant};

use hpvm_host::lines::LINE_BYTES_MAX;
use hpvm_model::Forward;
use hpvm_nat::Settings;
use hpvm_nat::control::{Counters, Lease, Reply, Request, Status};

use crate::answerable::Answerable;
use crate::dhcp::Server;
use crate::gate::{Gate, Verdict};
use crate::incoming::{Broken, Incoming};
use crate::leases::Leases;
use crate::outgoing::Outgoing;
use crate::reserve::Reserve;
use crate::slirp::{Interest, Slirp, Watched};

/// Without a switch for so long it is nobody's any more. A switch that is started again is back within seconds.
const ALONE_MAX: Duration = Duration::from_secs(60);
/// The longest sleep: connections have time-outs of their own, which libslirp looks at when it is woken.
const NAP: Duration = Duration::from_secs(1);
const CLIENTS_MAX: usize = 8;
/// Who comes is taken before whom it replaces goes: a switch, and a client.
const NEWCOMERS: usize = 2;
/// A client that says nothing is not kept.
const CLIENT_SILENCE_MAX: Duration = Duration::from_secs(10);
const FORWARDS_MAX: usize = 256;

/// Why the loop ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Asked,
    Alone,
    /// The process outside is gone.
    Orphaned,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ServiceError {
    #[error("libslirp did not start")]
    Slirp,
    #[error("nothing can be waited for")]
    Wait(#[source] io::Error),
    #[error("the sockets it was started with cannot be used")]
    Sockets(#[source] io::Error),
}

/// What it was started with.
pub(crate) struct Sockets {
    pub(crate) wire: UnixListener,
    pub(crate) control: UnixListener,
    /// Readable when the process outside is gone.
    pub(crate) lifeline: OwnedFd,
}

struct Client {
    stream: UnixStream,
    line: Vec<u8>,
    since: Instant,
}

pub(crate) struct Service {
    slirp: Slirp,
    gate: Gate,
    dhcp: Server,
    leases: Leases,
    forwards: Vec<Forward>,
    counters: Counters,
    wire: UnixListener,
    switch: Option<(UnixStream, Incoming)>,
    alone_since: Instant,
    control: UnixListener,
    clients: VecDeque<Client>,
    /// For clients and a switch that are not there.
    reserve: Reserve,
    lifeline: OwnedFd,
}

impl Service {
    pub(crate) fn new(
        settings: &Settings,
        Sockets { wire, control, lifeline }: Sockets,
    ) -> Result<Service, ServiceError> {
        for socket in [&wire, &control] {
            socket.set_nonblocking(true).map_err(ServiceError::Sockets)?;
        }
        let Settings { subnet, mtu, host_access, .. } = *settings;
        let outgoing = Outgoing::new(Answerable::new(subnet.gateway()));
        let slirp = Slirp::new(subnet, mtu, outgoing);
        let mut service = Service {
            slirp: slirp.ok_or(ServiceError::Slirp)?,
            gate: Gate { subnet, mtu, host_access },
            dhcp: Server { subnet, mtu },
            leases: Leases::new(subnet),
            forwards: Vec::new(),
            counters: Counters::default(),
            wire,
            switch: None,
            alone_since: Instant::now(),
            control,
            clients: VecDeque::new(),
            reserve: Reserve::default(),
            lifeline,
        };
        for forward in &settings.forwards {
            // The others, and the network, are worth having without it.
            if let Err(why) = service.add(*forward) {
                eprintln!("hpvmnat: the forward {forward} cannot be made: {why}");
            }
        }
        Ok(service)
    }

    /// Works until it is asked to end, or nobody needs it.
    pub(crate) fn run(mut self) -> Result<End, ServiceError> {
        loop {
            let ready = self.wait().map_err(ServiceError::Wait)?;
            if ready.lifeline {
                return Ok(End::Orphaned);
            }
            if ready.switch {
                self.read_switch();
            }
            if ready.wire {
                self.accept_switch();
            }
            self.write_switch();
            if ready.control {
                self.accept_client();
            }
            if let Some(end) = self.serve_clients() {
                return Ok(end);
            }
            if self.switch.is_none() && self.alone_since.elapsed() >= ALONE_MAX {
                return Ok(End::Alone);
            }
        }
    }

    fn wait(&mut self) -> io::Result<Ready> {
        let absent = CLIENTS_MAX - self.clients.len() + usize::from(self.switch.is_none());
        self.reserve.hold(absent + NEWCOMERS, self.lifeline.as_fd());
        let input = |fd| Watched { fd, interest: Interest::Input };
        let mut watched = vec![
            input(self.wire.as_fd()),
            input(self.control.as_fd()),
            input(self.lifeline.as_fd()),
        ];
        if let Some((stream, _)) = &self.switch {
            let interest = match self.slirp.outgoing().borrow().waiting() {
                0 => Interest::Input,
                _ => Interest::InputAndOutput,
            };
            watched.push(Watched { fd: stream.as_fd(), interest });
        }
        let connected = self.switch.is_some();
        watched.extend(self.clients.iter().map(|client| input(client.stream.as_fd())));
        let ready = self.slirp.wait(&watched, NAP)?;
        Ok(Ready {
            wire: ready[0],
            control: ready[1],
            lifeline: ready[2],
            switch: connected && ready[3],
        })
    }

    fn accept_switch(&mut self) {
        self.reserve.give_up_one();
        let Ok((stream, _)) = self.wire.accept() else { return };
        if stream.set_nonblocking(true).is_ok() {
            self.slirp.outgoing().borrow_mut().forget();
            self.switch = Some((stream, Incoming::default()));
        }
    }

    fn read_switch(&mut self) {
        let Some((mut stream, mut incoming)) = self.switch.take() else { return };
        let read = incoming.read_from(&mut stream, |frame| self.guest_sent(frame));
        self.slirp.send_waiting();
        match read {
            Ok(()) => self.switch = Some((stream, incoming)),
            Err(broken) => self.lose_switch(&broken),
        }
    }

    fn lose_switch(&mut self, why: &Broken) {
        if !matches!(why, Broken::Closed) {
            eprintln!(
                "hpvmnat: the connection to the switch is given up: {}",
                hpvm_model::chain(why)
            );
        }
        self.switch = None;
        self.alone_since = Instant::now();
    }

    fn guest_sent(&mut self, frame: &[u8]) {
        self.counters.frames_out += 1;
        let verdict = self.gate.judge(frame, &self.slirp.outgoing().borrow().answerable);
        match verdict {
            Verdict::Pass(seen) => {
                if let Some(seen) = seen {
                    self.leases.seen(seen.mac, seen.address, Instant::now());
                }
                self.slirp.input(frame);
            }
            Verdict::Dhcp => {
                if let Some(answer) = self.dhcp.answer(frame, &mut self.leases, Instant::now()) {
                    self.slirp.outgoing().borrow_mut().push(&answer);
                }
            }
            Verdict::Unfit => self.counters.frames_out_unfit += 1,
            Verdict::Refused => self.counters.frames_out_refused += 1,
        }
    }

    fn write_switch(&mut self) {
        let mut outgoing = self.slirp.outgoing().borrow_mut();
        let written = match &mut self.switch {
            Some((stream, _)) => outgoing.write_to(stream),
            // Nobody is there to hear it.
            None => {
                outgoing.forget();
                Ok(())
            }
        };
        drop(outgoing);
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.lose_switch(&Broken::Closed);
            }
            Err(error) => self.lose_switch(&error.into()),
        }
    }

    fn accept_client(&mut self) {
        self.reserve.give_up_one();
        let Ok((stream, _)) = self.control.accept() else { return };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        if self.clients.len() == CLIENTS_MAX {
            self.clients.pop_front();
        }
        self.clients.push_back(Client { stream, line: Vec::new(), since: Instant::now() });
    }

    fn serve_clients(&mut self) -> Option<End> {
        let mut end = None;
        for mut client in std::mem::take(&mut self.clients) {
            match client.read_request() {
                Asked::Nothing if client.since.elapsed() < CLIENT_SILENCE_MAX => {
                    self.clients.push_back(client);
                }
                Asked::Nothing | Asked::Gone => {}
                Asked::Request(request) => {
                    let (reply, then) = self.answer(&request);
                    end = end.or(then);
                    client.write_reply(&reply);
                    client.since = Instant::now();
                    self.clients.push_back(client);
                }
                Asked::Nonsense(why) => client.write_reply(&Reply::Refused { why }),
            }
        }
        end
    }

    fn answer(&mut self, request: &Request) -> (Reply, Option<End>) {
        let outcome = match request {
            Request::Add { forward } => self.add(*forward),
            Request::Remove { forward } => self.remove(forward),
            Request::Status => return (Reply::Status(self.status()), None),
            Request::End => return (Reply::Done, Some(End::Asked)),
        };
        match outcome {
            Ok(()) => (Reply::Done, None),
            Err(why) => (Reply::Refused { why }, None),
        }
    }

    fn add(&mut self, forward: Forward) -> Result<(), String> {
        let subnet = self.gate.subnet;
        if self.forwards.contains(&forward) {
            return Ok(());
        }
        if let Some(other) = self.forwards.iter().find(|other| other.collides_with(&forward)) {
            return Err(format!("its port of the VM Host is that of {other}"));
        }
        if self.forwards.len() >= FORWARDS_MAX {
            return Err(format!("there are {FORWARDS_MAX} forwards, and no more are possible"));
        }
        let guest = *forward.guest.ip();
        if !subnet.contains(guest)
            || [subnet.gateway(), subnet.name_server(), subnet.first(), subnet.broadcast()]
                .contains(&guest)
        {
            return Err(format!("{guest} is no guest's address in {subnet}"));
        }
        self.slirp
            .forward(&forward)
            .map_err(|error| format!("the VM Host does not listen at {}: {error}", forward.host))?;
        self.forwards.push(forward);
        Ok(())
    }

    fn remove(&mut self, forward: &Forward) -> Result<(), String> {
        let Some(at) = self.forwards.iter().position(|one| one == forward) else {
            return Err("there is no such forward".to_owned());
        };
        self.slirp.stop_forward(forward).map_err(|error| error.to_string())?;
        self.forwards.remove(at);
        Ok(())
    }

    fn status(&self) -> Status {
        let outgoing = self.slirp.outgoing().borrow();
        let mut leases: Vec<Lease> =
            self.leases.all().map(|(mac, address)| Lease { mac, address }).collect();
        leases.sort_unstable_by_key(|lease| lease.address);
        Status {
            pid: process::id(),
            connected: self.switch.is_some(),
            forwards: self.forwards.clone(),
            leases,
            counters: Counters {
                frames_in: outgoing.taken,
                frames_in_dropped: outgoing.dropped,
                ..self.counters
            },
        }
    }
}

struct Ready {
    wire: bool,
    control: bool,
    lifeline: bool,
    switch: bool,
}

enum Asked {
    Nothing,
    Request(Request),
    Nonsense(String),
    Gone,
}

impl Client {
    fn read_request(&mut self) -> Asked {
        let mut piece = [0; 4096];
        match self.stream.read(&mut piece) {
            Ok(0) => return Asked::Gone,
            Ok(count) => self.line.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return Asked::Gone,
        }
        let Some(end) = self.line.iter().position(|&byte| byte == b'\n') else {
            return match self.line.len() > LINE_BYTES_MAX {
                true => Asked::Nonsense("the request is too long".to_owned()),
                false => Asked::Nothing,
            };
        };
        let line: Vec<u8> = self.line.drain(..=end).collect();
        match serde_json::from_slice(&line) {
            Ok(request) => Asked::Request(request),
            Err(error) => Asked::Nonsense(error.to_string()),
        }
    }

    /// A client that does not read its answer loses it.
    fn write_reply(&mut self, reply: &Reply) {
        if let Ok(mut line) = serde_json::to_vec(reply) {
            line.push(b'\n');
            let _ = self.stream.write(&line);
        }
    }
}
