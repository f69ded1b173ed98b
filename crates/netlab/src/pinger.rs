//! Asks a station for an echo again and again (ICMP, RFC 792), and tells what was answered when: how tests measure for how long
//! nothing passes.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket};

/// Between two questions.
pub(crate) const APART: Duration = Duration::from_millis(5);
const PAYLOAD_BYTES: usize = 56;
const REQUEST: u8 = 8;
const REPLY: u8 = 0;
/// Marks questions as ours.
const MARK: [u8; 2] = [0x48, 0x50];

/// One question, and when its answer came.
#[derive(Clone, Copy, Debug)]
pub struct Echo {
    pub asked: Instant,
    pub answered: Option<Instant>,
}

/// Asks from its start until it is dropped, in the network namespace of whoever started it.
pub struct Pinger {
    echoes: Arc<Mutex<Vec<Echo>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pinger {
    /// # Panics
    ///
    /// When this process may have no such socket.
    #[must_use]
    pub fn start(station: Ipv4Addr) -> Pinger {
        let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP));
        let socket = socket.expect("a raw socket, which root may have");
        let (echoes, ended) = (Arc::default(), Arc::default());
        let thread = std::thread::spawn({
            let (echoes, ended) = (Arc::clone(&echoes), Arc::clone(&ended));
            move || ask(&socket, station, &echoes, &ended)
        });
        Pinger { echoes, ended, thread: Some(thread) }
    }

    /// What was asked so far, in order.
    #[must_use]
    pub fn echoes(&self) -> Vec<Echo> {
        locked(&self.echoes).clone()
    }

    /// When the first answer came to something that was asked after this moment.
    #[must_use]
    pub fn answered_since(&self, moment: Instant) -> Option<Instant> {
        let echoes = locked(&self.echoes);
        echoes.iter().filter(|echo| echo.asked >= moment).find_map(|echo| echo.answered)
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ask(socket: &OwnedFd, station: Ipv4Addr, echoes: &Mutex<Vec<Echo>>, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let number = {
            let mut echoes = locked(echoes);
            echoes.push(Echo { asked, answered: None });
            echoes.len() - 1
        };
        // One that cannot be sent is one that is not answered.
        let _ = sendto(
            socket,
            &request(number as u16),
            SendFlags::DONTWAIT,
            &SocketAddrV4::new(station, 0),
        );
        let mut left = APART;
        while !left.is_zero() {
            let wait = Timespec::try_from(left).expect("a short time");
            let _ = poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&wait));
            let mut packet = [0; 2048];
            if let Ok((bytes, _)) = recv(socket, &mut packet, RecvFlags::DONTWAIT) {
                note(&packet[..bytes], station, echoes);
            }
            left = APART.saturating_sub(asked.elapsed());
        }
    }
}

fn request(number: u16) -> Vec<u8> {
    let mut message = vec![0; 8 + PAYLOAD_BYTES];
    message[0] = REQUEST;
    message[4..6].copy_from_slice(&MARK);
    message[6..8].copy_from_slice(&number.to_be_bytes());
    let words = message.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    message[2..4].copy_from_slice(&(!(sum + (sum >> 16)) as u16).to_be_bytes());
    message
}

/// A raw socket gives the IPv4 header too (raw(7)), and whatever comes from any station.
fn note(packet: &[u8], station: Ipv4Addr, echoes: &Mutex<Vec<Echo>>) {
    if packet.get(12..16) != Some(&station.octets()) {
        return;
    }
    let header = packet.first().map_or(0, |first| usize::from(first & 0xf) * 4);
    let Some(message) = packet.get(header..).filter(|message| message.len() >= 8) else { return };
    if message[0] != REPLY || message[4..6] != MARK {
        return;
    }
    let low = u16::from_be_bytes([message[6], message[7]]);
    let mut echoes = locked(echoes);
    // Only the lower half of a number travels, and no answer is so late that it could be another's.
    let newest = echoes.len().saturating_sub(1);
    let number = newest.checked_sub(usize::from((newest as u16).wrapping_sub(low)));
    if let Some(echo) = number.and_then(|number| echoes.get_mut(number)) {
        echo.answered.get_or_insert_with(Instant::now);
    }
}

/// What a thread that panicked left is whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
