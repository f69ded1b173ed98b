//! `hpvm-talker`: speaks for a guest at a port of a virtual switch, where guests get no further than their firmware, and
//! is the server that it talks with. For the tests in the guest-host.
//!
//! ```text
//! hpvm-talker serve ADDRESS:PORT                      sends back what comes by UDP and by TCP; ends when it is killed
//! hpvm-talker talk SOCKET NUMBER ADDRESS SERVER:PORT  asks it, as the `lan` NIC with MAC address 56a10000000NUMBER
//! hpvm-talker avio SOCKET NUMBER ADDRESS SERVER:PORT  the same as an `avio_lan` NIC
//! ```
//!
//! The talker connects to SOCKET, the NIC's in the guest's run folder, as QEMU would, and again when the switch's process is
//! replaced. It asks the server each ten milliseconds by UDP, and prints `talking` after the first answer. It obeys lines on
//! its standard input:
//!
//! | line | what it prints, once that is so |
//! | --- | --- |
//! | `udp WORD` | `WORD MILLISECONDS`: a question that was asked after the line was answered |
//! | `tcp WORD` | `WORD MILLISECONDS`: 256 KiB came back by TCP as they went; its stack discards what has a wrong checksum |
//!
//! At the end of its input it prints `lost N of M, longest gap MILLISECONDS`.

use std::io::{BufRead, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hpvm_netlab::{Card, Guest, Hub, SocketHandle};

const ANSWER_BOUND: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);
const TCP_BYTES: u32 = 1 << 18;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", address] => serve(address.parse().context("an address and a port")?),
        ["talk", socket, number, address, server] => {
            let stream = UnixStream::connect(socket);
            let stream = stream.with_context(|| format!("connecting to {socket}"))?;
            talk(Hub::new(stream), socket, number, address, server)
        }
        ["avio", socket, number, address, server] => {
            let card = Card::plug_in(Path::new(socket));
            let card = card.with_context(|| format!("connecting to {socket}"))?;
            talk(Hub::of_card(card), socket, number, address, server)
        }
        _ => bail!("talk, avio or serve; see the source"),
    }
}

fn serve(address: SocketAddrV4) -> Result<()> {
    let datagrams = UdpSocket::bind(address).context("a UDP port")?;
    let streams = TcpListener::bind(address).context("a TCP port")?;
    thread::spawn(move || {
        let mut question = [0; 2048];
        while let Ok((count, from)) = datagrams.recv_from(&mut question) {
            // The way there may be gone.
            let _ = datagrams.send_to(&question[..count], from);
        }
    });
    for stream in streams.incoming() {
        let mut stream = stream.context("a connection")?;
        thread::spawn(move || {
            // Much at once, so that segments grow long.
            let mut piece = vec![0; 256 * 1024];
            while let Ok(count @ 1..) = stream.read(&mut piece) {
                if stream.write_all(&piece[..count]).is_err() {
                    return;
                }
            }
        });
    }
    Ok(())
}

fn talk(hub: Hub, socket: &str, number: &str, address: &str, server: &str) -> Result<()> {
    let mut guest = Guest::new(&hub, number.parse().context("a number")?);
    guest.use_address(address.parse::<Ipv4Addr>().context("an address")?, 24, None);
    let server = server.parse().context("an address and a port")?;
    Talker::new(hub, guest, socket.into(), server).obey(&lines())
}

/// Standard input, read beside the talk.
fn lines() -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

struct Talker {
    hub: Hub,
    guest: Guest,
    place: PathBuf,
    server: SocketAddrV4,
    socket: SocketHandle,
    asked: u32,
    answered: u32,
    /// The last question that was answered.
    newest: u32,
    asked_at: Instant,
    answered_at: Option<Instant>,
    longest_gap: Duration,
}

impl Talker {
    fn new(hub: Hub, mut guest: Guest, place: PathBuf, server: SocketAddrV4) -> Talker {
        let socket = guest.udp_socket(50_000);
        Talker {
            hub,
            guest,
            place,
            server,
            socket,
            asked: 0,
            answered: 0,
            newest: 0,
            asked_at: Instant::now(),
            answered_at: None,
            longest_gap: Duration::ZERO,
        }
    }

    fn obey(&mut self, lines: &Receiver<String>) -> Result<()> {
        self.until_answered()?;
        println!("talking");
        loop {
            match lines.try_recv() {
                Ok(line) => {
                    let (how, word) = line.split_once(' ').context("a line is two words")?;
                    let began = Instant::now();
                    match how {
                        "udp" => self.until_answered()?,
                        "tcp" => self.exchange_by_tcp()?,
                        _ => bail!("{how} is no way to talk"),
                    }
                    println!("{word} {}", began.elapsed().as_millis());
                }
                Err(TryRecvError::Empty) => self.step(),
                Err(TryRecvError::Disconnected) => break,
            }
        }
        let (lost, gap) = (self.asked - self.answered, self.longest_gap.as_millis());
        println!("lost {lost} of {}, longest gap {gap}", self.asked);
        Ok(())
    }

    fn step(&mut self) {
        // The keeper holds the listening socket while the switch's process is replaced.
        if self.hub.has_ended() {
            // Soon, if not yet.
            let _ = self.hub.reconnect_at(&self.place);
        }
        if self.asked_at.elapsed() >= PAUSE {
            (self.asked, self.asked_at) = (self.asked + 1, Instant::now());
            // A queue that is full has asked often enough.
            let server = (*self.server.ip(), self.server.port());
            let _ = self.guest.udp(self.socket).send_slice(&self.asked.to_be_bytes(), server);
        }
        self.guest.step();
        self.hub.wait_for_frames(PAUSE);
        self.guest.step();
        while let Ok((answer, _)) = self.guest.udp(self.socket).recv() {
            let Ok(number) = answer.try_into().map(u32::from_be_bytes) else { continue };
            self.answered += 1;
            self.newest = self.newest.max(number);
            let now = Instant::now();
            if let Some(before) = self.answered_at.replace(now) {
                self.longest_gap = self.longest_gap.max(now - before);
            }
        }
    }

    fn until_answered(&mut self) -> Result<()> {
        let (began, first) = (Instant::now(), self.asked + 1);
        while self.newest < first {
            if began.elapsed() > ANSWER_BOUND {
                bail!("the server does not answer");
            }
            self.step();
        }
        Ok(())
    }

    fn exchange_by_tcp(&mut self) -> Result<()> {
        let bytes: Vec<u8> = (0..TCP_BYTES).map(|at| (at % 251) as u8).collect();
        let connection = self.guest.connect(self.server).context("the server refuses")?;
        if self.guest.echoed(connection, &bytes) != bytes {
            bail!("other bytes came back than went");
        }
        // Nothing was asked meanwhile.
        self.answered_at = None;
        Ok(())
    }
}
