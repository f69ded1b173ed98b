//! A guest that a test plays: a driver of two rings (virtio 1.2, 2.7 and 5.1) behind the hypervisor's end of vhost-user.
//!
//! It keeps to what the device asks for: it kicks only when kicks are wanted and sleeps until it is called, so a
//! notification that the switch forgets makes a test fail.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::memory::{Memory, Seals};

pub(crate) const MRG_RXBUF: u64 = 1 << 15;
pub(crate) const INDIRECT_DESC: u64 = 1 << 28;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;
pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const LOG_ALL: u64 = 1 << 26;
/// What Linux's driver takes of it all.
pub(crate) const LINUX: u64 = hpvm_vswitch::FEATURES & !LOG_ALL;

/// Nothing a switch does takes so long on a machine that works, however busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const SIZE: u16 = 256;
pub(crate) const RECEIVE: usize = 0x0;
pub(crate) const TRANSMIT: usize = 0x4000;
pub(crate) const AVAILABLE: usize = 0x2000;
pub(crate) const USED: usize = 0x3000;
const INDIRECT: usize = 0x1_0000;
const RECEIVE_BUFFERS: usize = 0x10_0000;
pub(crate) const TRANSMIT_BUFFERS: usize = 0x200_0000;
const TRANSMIT_BUFFER_BYTES: usize = 0x1_1000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// How a guest drives its card.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Driver {
    pub(crate) features: u64,
    pub(crate) receive_buffer_bytes: usize,
    pub(crate) receive_buffers: u16,
    pub(crate) shape: Shape,
}

/// How a frame to send lies in descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    One,
    HeaderApart,
    /// Pieces of so many bytes.
    Pieces(usize),
    /// The same in a table of their own.
    Indirect(usize),
}

impl Driver {
    pub(crate) const LINUX: Driver = Driver {
        features: LINUX,
        receive_buffer_bytes: 1536,
        receive_buffers: SIZE,
        shape: Shape::One,
    };
}

/// A frame as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) header: [u8; 10],
    pub(crate) buffers: u16,
    pub(crate) frame: Vec<u8>,
}

pub(crate) struct Guest {
    pub(crate) frontend: Frontend,
    pub(crate) memory: Memory,
    pub(crate) driver: Driver,
    pub(crate) receive: Ring,
    pub(crate) transmit: Ring,
}

/// One ring from the driver's side.
pub(crate) struct Ring {
    at: usize,
    available: u16,
    used: u16,
    event_index: bool,
    kick: EventFd,
    call: EventFd,
}

impl Guest {
    /// Connects and begins to drive.
    pub(crate) fn connect(path: &Path, driver: Driver) -> Guest {
        Guest::begin(path, driver, Memory::new(Seals::Shrink), [0, 0]).expect("the switch agrees")
    }

    /// The same with a memory that is there, where rings stand at `bases`.
    pub(crate) fn begin(
        path: &Path,
        driver: Driver,
        memory: Memory,
        bases: [u16; 2],
    ) -> vhost::Result<Guest> {
        let frontend = Guest::agree(path, &driver, &memory)?;
        let event_index = driver.features & EVENT_IDX != 0;
        let ring = |at, base| Ring::new(at, base, event_index);
        let [receive, transmit] = [ring(RECEIVE, bases[0]), ring(TRANSMIT, bases[1])];
        let mut guest = Guest { frontend, memory, driver, receive, transmit };
        guest.post_receive_buffers();
        guest.start()?;
        Ok(guest)
    }

    fn agree(path: &Path, driver: &Driver, memory: &Memory) -> vhost::Result<Frontend> {
        let socket = UnixStream::connect(path).expect("the switch listens");
        enable_early(&socket);
        let mut frontend = Frontend::from_stream(socket, 2);
        frontend.set_owner()?;
        let offered = frontend.get_features()?;
        assert_eq!(driver.features & !offered, 0, "offered {offered:#x}");
        frontend.set_features(driver.features)?;
        if driver.features & PROTOCOL_FEATURES != 0 {
            let features = frontend.get_protocol_features()?;
            frontend.set_protocol_features(features & !VhostUserProtocolFeatures::MQ)?;
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        frontend.set_mem_table(&memory.regions())?;
        Ok(frontend)
    }

    /// The same guest with its rings as they stand, at another switch, as a hypervisor connects again.
    pub(crate) fn again(path: &Path, guest: Guest) -> Guest {
        let Guest { frontend, memory, driver, receive, transmit } = guest;
        drop(frontend);
        let frontend = Guest::agree(path, &driver, &memory).expect("the switch agrees");
        let mut guest = Guest { frontend, memory, driver, receive, transmit };
        guest.start().expect("rings");
        guest
    }

    /// Where the next frame will be written, and where its used element.
    pub(crate) fn next_receive_addresses(&self) -> [u64; 2] {
        let place = usize::from(self.receive.used % SIZE);
        let head = self.memory.word(RECEIVE + AVAILABLE + 4 + 2 * place).load(Ordering::Relaxed);
        let buffer = RECEIVE_BUFFERS + usize::from(head) * self.driver.receive_buffer_bytes;
        [buffer, RECEIVE + USED].map(Memory::guest)
    }

    /// Makes both rings known.
    pub(crate) fn start(&mut self) -> vhost::Result<()> {
        for (index, ring) in [&self.receive, &self.transmit].into_iter().enumerate() {
            self.frontend.set_vring_num(index, SIZE)?;
            self.frontend.set_vring_addr(index, &ring.config(&self.memory, None))?;
            self.frontend.set_vring_base(index, ring.used(&self.memory))?;
            self.frontend.set_vring_call(index, &ring.call)?;
            self.frontend.set_vring_kick(index, &ring.kick)?;
            if self.driver.features & PROTOCOL_FEATURES != 0 {
                self.frontend.set_vring_enable(index, true)?;
            }
        }
        Ok(())
    }

    /// Takes both rings back, as a reset does. Returns where they stood.
    pub(crate) fn stop(&mut self) -> [u16; 2] {
        [0, 1].map(|index| self.frontend.get_vring_base(index).expect("a base") as u16)
    }

    /// Gives the switch a log of so many bytes.
    pub(crate) fn set_log(&mut self, bytes: u64) -> File {
        let log = memfd_create("log", MemfdFlags::ALLOW_SEALING).expect("a memfd");
        ftruncate(&log, bytes).expect("its length");
        fcntl_add_seals(&log, SealFlags::SHRINK).expect("its seal");
        let region = VhostUserDirtyLogRegion {
            mmap_size: bytes,
            mmap_offset: 0,
            mmap_handle: log.as_raw_fd(),
        };
        self.frontend.set_log_base(0, Some(region)).expect("a log");
        log.into()
    }

    /// Asks for the rings' writes to be noted in a log.
    pub(crate) fn log_used(&mut self) {
        for (index, ring) in [&self.receive, &self.transmit].into_iter().enumerate() {
            let used = Memory::guest(ring.at + USED);
            let config = ring.config(&self.memory, Some(used));
            self.frontend.set_vring_addr(index, &config).expect("addresses");
        }
    }

    fn header_bytes(&self) -> usize {
        if self.driver.features & (VERSION_1 | MRG_RXBUF) != 0 { 12 } else { 10 }
    }

    fn post_receive_buffers(&mut self) {
        let bytes = self.driver.receive_buffer_bytes;
        for index in 0..self.driver.receive_buffers {
            let at = RECEIVE_BUFFERS + usize::from(index) * bytes;
            self.receive.describe(&self.memory, index, Memory::guest(at), bytes, WRITE, 0);
            self.receive.offer(&self.memory, index);
        }
        self.receive.show(&self.memory);
    }

    /// Sends a frame that is finished.
    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.send_with(&[0; 10], frame);
    }

    pub(crate) fn send_with(&mut self, header: &[u8; 10], frame: &[u8]) {
        self.queue(header, frame);
        self.transmit.show(&self.memory);
    }

    /// Sends frames and tells of all at once.
    pub(crate) fn send_all(&mut self, frames: &[Vec<u8>]) {
        for frame in frames {
            self.queue(&[0; 10], frame);
        }
        self.transmit.show(&self.memory);
    }

    fn queue(&mut self, header: &[u8; 10], frame: &[u8]) {
        let mut bytes = header.to_vec();
        bytes.resize(self.header_bytes(), 0);
        let header_bytes = bytes.len();
        bytes.extend(frame);
        let pieces: Vec<usize> = match self.driver.shape {
            Shape::One => vec![bytes.len()],
            Shape::HeaderApart => vec![header_bytes, frame.len()],
            Shape::Pieces(size) | Shape::Indirect(size) => {
                bytes.chunks(size).map(<[u8]>::len).collect()
            }
        };
        // One frame's chain at a time in a table as long as any: what was sent before must be used.
        self.transmit.show(&self.memory);
        let many = pieces.len() > 1 && !matches!(self.driver.shape, Shape::Indirect(_));
        let in_flight = self.transmit.available.wrapping_sub(self.transmit.used(&self.memory));
        if many || in_flight >= SIZE {
            self.wait_until_sent();
        }
        let slot = self.transmit.available % SIZE;
        let at = TRANSMIT_BUFFERS + usize::from(slot) * TRANSMIT_BUFFER_BYTES;
        self.memory.write(at, &bytes);
        match self.driver.shape {
            Shape::Indirect(_) => {
                let table = INDIRECT + usize::from(slot) * 0x800;
                describe_all(&self.memory, table, 0, at, &pieces);
                let length = 16 * pieces.len();
                self.transmit.describe(&self.memory, slot, Memory::guest(table), length, 4, 0);
                self.transmit.offer(&self.memory, slot);
            }
            _ => {
                let first = if many { 0 } else { slot };
                describe_all(&self.memory, TRANSMIT, first, at, &pieces);
                self.transmit.offer(&self.memory, first);
            }
        }
    }

    /// Until the switch has used every chain.
    pub(crate) fn wait_until_sent(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let used = self.transmit.used(&self.memory);
            if used == self.transmit.available {
                return;
            }
            self.transmit.sleep(&self.memory, used, deadline, "what was sent is used");
        }
    }

    /// The next frame; one must come.
    pub(crate) fn receive(&mut self) -> Received {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(received) = self.try_receive() {
                return received;
            }
            let taken = self.receive.used;
            self.receive.sleep(&self.memory, taken, deadline, "a frame arrives");
        }
    }

    /// The next frame, if there is one.
    pub(crate) fn try_receive(&mut self) -> Option<Received> {
        let (first, bytes) = self.receive.take(&self.memory)?;
        let mut data = self.receive_buffer(first, bytes);
        let header_bytes = self.header_bytes();
        let header: [u8; 10] = data[..10].try_into().expect("a header");
        let buffers = match header_bytes {
            12 => u16::from_le_bytes([data[10], data[11]]),
            _ => 1,
        };
        let deadline = Instant::now() + PATIENCE;
        for _ in 1..buffers {
            let (index, bytes) = loop {
                if let Some(next) = self.receive.take(&self.memory) {
                    break next;
                }
                assert!(Instant::now() < deadline, "the buffers of a frame come together");
            };
            data.extend(self.receive_buffer(index, bytes));
        }
        Some(Received { header, buffers, frame: data.split_off(header_bytes) })
    }

    /// Reads a buffer and gives it back to be filled again.
    fn receive_buffer(&mut self, index: u16, bytes: usize) -> Vec<u8> {
        let at = RECEIVE_BUFFERS + usize::from(index) * self.driver.receive_buffer_bytes;
        assert!(bytes <= self.driver.receive_buffer_bytes);
        let data = self.memory.read(at, bytes);
        self.receive.offer(&self.memory, index);
        self.receive.show(&self.memory);
        data
    }

    /// All that has arrived when a frame that was sent last does.
    pub(crate) fn receive_until(&mut self, last: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        loop {
            let frame = self.receive().frame;
            if frame == last {
                return frames;
            }
            frames.push(frame);
        }
    }

    /// Whether a frame arrives in time; what else arrives is passed over.
    pub(crate) fn hears(&mut self, frame: &[u8], within: Duration) -> bool {
        let deadline = Instant::now() + within;
        loop {
            match self.try_receive() {
                Some(received) if received.frame == frame => return true,
                Some(_) => {}
                None => {
                    let taken = self.receive.used;
                    if !self.receive.is_called(&self.memory, taken, deadline) {
                        return false;
                    }
                }
            }
        }
    }

    pub(crate) fn kick(&self) {
        self.transmit.kick.write(1).expect("a kick");
    }

    /// Begins anew with empty rings, as a driver does after a reset.
    pub(crate) fn reset(&mut self) {
        for ring in [&mut self.receive, &mut self.transmit] {
            self.memory.write(ring.at, &[0; 0x4000]);
            ring.available = 0;
            ring.used = 0;
        }
        self.post_receive_buffers();
    }
}

/// Enables both rings before anything is agreed on and wants an answer, as QEMU does when it makes the card.
fn enable_early(mut socket: &UnixStream) {
    for ring in [0u32, 1] {
        let request: Vec<u8> =
            [18, 0x9, 8, ring, 1].into_iter().flat_map(u32::to_le_bytes).collect();
        socket.write_all(&request).expect("the switch reads");
        let mut answer = [0; 20];
        socket.read_exact(&mut answer).expect("the switch answers");
        let done: Vec<u8> = [18u32, 0x5, 8, 0, 0].into_iter().flat_map(u32::to_le_bytes).collect();
        assert_eq!(answer[..], done);
    }
}

/// A descriptor's bytes.
pub(crate) fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

/// Describes pieces that lie one behind the other, chained from `first` on.
fn describe_all(memory: &Memory, table: usize, first: u16, at: usize, pieces: &[usize]) {
    let mut at = at;
    for (index, bytes) in (first..).zip(pieces) {
        let last = usize::from(index - first) + 1 == pieces.len();
        let flags = if last { 0 } else { NEXT };
        let entry = descriptor(Memory::guest(at), *bytes as u32, flags, index + 1);
        memory.write(table + 16 * usize::from(index), &entry);
        at += bytes;
    }
}

impl Ring {
    fn new(at: usize, base: u16, event_index: bool) -> Ring {
        let eventfd = || EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        Ring { at, available: base, used: base, event_index, kick: eventfd(), call: eventfd() }
    }

    fn config(&self, memory: &Memory, log: Option<u64>) -> VringConfigData {
        VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: u32::from(log.is_some()),
            desc_table_addr: memory.user(self.at),
            used_ring_addr: memory.user(self.at + USED),
            avail_ring_addr: memory.user(self.at + AVAILABLE),
            log_addr: log,
        }
    }

    fn describe(
        &self,
        memory: &Memory,
        index: u16,
        address: u64,
        bytes: usize,
        flags: u16,
        next: u16,
    ) {
        let entry = descriptor(address, bytes as u32, flags, next);
        memory.write(self.at + 16 * usize::from(index), &entry);
    }

    /// Puts a chain's head into the ring, not yet shown.
    fn offer(&mut self, memory: &Memory, head: u16) {
        let place = self.at + AVAILABLE + 4 + 2 * usize::from(self.available % SIZE);
        memory.word(place).store(head, Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
    }

    /// Shows all that is in the ring, and kicks if that is wanted.
    pub(crate) fn show(&self, memory: &Memory) {
        let index = memory.word(self.at + AVAILABLE + 2);
        let before = index.load(Ordering::Relaxed);
        if before == self.available {
            return;
        }
        index.store(self.available, Ordering::Release);
        fence(Ordering::SeqCst);
        let wanted = if self.event_index {
            let at = self.at + USED + 4 + 8 * usize::from(SIZE);
            let event = memory.word(at).load(Ordering::Relaxed);
            self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(before)
        } else {
            memory.word(self.at + USED).load(Ordering::Relaxed) & 1 == 0
        };
        if wanted {
            self.kick.write(1).expect("a kick");
        }
    }

    fn used(&self, memory: &Memory) -> u16 {
        memory.word(self.at + USED + 2).load(Ordering::Acquire)
    }

    /// The next used chain and how much of it was written.
    fn take(&mut self, memory: &Memory) -> Option<(u16, usize)> {
        if self.used(memory) == self.used {
            return None;
        }
        let at = self.at + USED + 4 + 8 * usize::from(self.used % SIZE);
        let element = memory.read(at, 8);
        self.used = self.used.wrapping_add(1);
        let word = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().expect("a word"));
        Some((word(0) as u16, word(4) as usize))
    }

    /// Sleeps until the switch uses more than these chains; it must.
    fn sleep(&mut self, memory: &Memory, used: u16, deadline: Instant, what: &str) {
        assert!(
            self.is_called(memory, used, deadline),
            "no call within {PATIENCE:?}: {what}; used {used}, now {}",
            self.used(memory)
        );
    }

    /// Sleeps until the switch calls, having said that it should when it uses more than the chains that the caller knows to
    /// be used, or until it has. `false`: not in time.
    fn is_called(&mut self, memory: &Memory, used: u16, deadline: Instant) -> bool {
        let event = self.at + AVAILABLE + 4 + 2 * usize::from(SIZE);
        memory.word(event).store(used, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.used(memory) != used {
            return true;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        // SAFETY: the descriptor is open as long as the eventfd lives.
        let call = unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
        let mut called = [PollFd::from_borrowed_fd(call, PollFlags::IN)];
        if poll(&mut called, Some(&timeout)).expect("a wait") == 0 {
            return false;
        }
        let _ = self.call.read();
        true
    }
}
