//! An AVIO card: a driver of two rings (virtio 1.2, 2.7 and 5.1) behind the hypervisor's end of vhost-user, as bare as a driver
//! can be: no feature but what today's rings need, one buffer a frame.
//!
//! Its memory is a file that it reads and writes, and nobody's pointer. A caller that means harm claims what is not there.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Of vhost-user: there are features of the protocol to agree on.
const PROTOCOL_FEATURES: u64 = 1 << 30;
const VERSION_1: u64 = 1 << 32;
const HEADER_BYTES: usize = 12;
const SIZE: u16 = 64;
const MEMORY_BYTES: u64 = 16 << 20;
/// Where the hypervisor would have mapped the memory.
const USER_BASE: u64 = 0x7000_0000_0000;
const RINGS: [u64; 2] = [0, 0x1_0000];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFERS: [u64; 2] = [0x10_0000, 0x80_0000];
/// Room for the longest frame.
const BUFFER_BYTES: u64 = 0x1_1000;
const WRITE: u16 = 2;
/// In `used`: the switch looks by itself.
const NO_NOTIFY: u16 = 1;
/// More than a switch takes to use what it was given, on a machine that has much else to do.
const DEADLINE: Duration = Duration::from_secs(20);

pub struct Card {
    place: PathBuf,
    frontend: Frontend,
    memory: File,
    rings: [Ring; 2],
    watch: Epoll,
    has_ended: bool,
}

struct Ring {
    available: u16,
    used: u16,
    kick: EventFd,
    call: EventFd,
}

impl Card {
    /// Plugs it in where a switch listens.
    ///
    /// # Errors
    ///
    /// When nobody listens there, or the switch does not agree.
    pub fn plug_in(place: &Path) -> io::Result<Card> {
        let memory = memfd_create("card", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, MEMORY_BYTES)?;
        fcntl_add_seals(&memory, SealFlags::SHRINK)?;
        let memory = File::from(memory);
        let rings = [Ring::new()?, Ring::new()?];
        let (frontend, watch) = connect(place, &memory, &rings)?;
        let (place, has_ended) = (place.to_owned(), false);
        let mut card = Card { place, frontend, memory, rings, watch, has_ended };
        card.begin()?;
        Ok(card)
    }

    /// The same card at the next process of its switch: its rings go on where they are.
    ///
    /// # Errors
    ///
    /// When nobody listens there, or the switch does not agree.
    pub fn plug_in_again(&mut self) -> io::Result<()> {
        (self.frontend, self.watch) = connect(&self.place, &self.memory, &self.rings)?;
        self.has_ended = false;
        self.start()
    }

    /// Whether the other side was seen to close the connection.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Sends a frame that is finished.
    ///
    /// # Panics
    ///
    /// When the switch does not use what was sent before.
    pub fn send(&mut self, frame: &[u8]) {
        self.send_with(&[0; 10], frame);
    }

    /// Sends a frame behind such a header (virtio 1.2, 5.1.6).
    ///
    /// # Panics
    ///
    /// When the switch does not use what was sent before.
    pub fn send_with(&mut self, header: &[u8; 10], frame: &[u8]) {
        let deadline = Instant::now() + DEADLINE;
        while self.rings[TRANSMIT].available.wrapping_sub(self.used_index(TRANSMIT)) >= SIZE {
            assert!(Instant::now() < deadline, "the switch does not use what was sent");
            self.wait(Duration::from_millis(10));
        }
        let slot = self.rings[TRANSMIT].available % SIZE;
        let mut bytes = header.to_vec();
        bytes.resize(HEADER_BYTES, 0);
        bytes.extend_from_slice(frame);
        let at = buffer(TRANSMIT, slot);
        self.write(at, &bytes);
        self.describe(TRANSMIT, slot, at, bytes.len() as u32, 0);
        self.offer(TRANSMIT, slot);
    }

    /// Until the switch has taken all that was sent.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub fn wait_until_sent(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        while self.rings[TRANSMIT].available != self.used_index(TRANSMIT) {
            assert!(Instant::now() < deadline, "the switch does not use what was sent");
            self.wait(Duration::from_millis(10));
        }
    }

    /// The next frame, if there is one.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        let used = self.rings[RECEIVE].used;
        if self.used_index(RECEIVE) == used {
            return None;
        }
        let element = self.read(RINGS[RECEIVE] + USED + 4 + 8 * u64::from(used % SIZE), 8);
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|more| element[at + more]));
        self.rings[RECEIVE].used = used.wrapping_add(1);
        let slot = word(0) as u16;
        let mut bytes = self.read(buffer(RECEIVE, slot), word(4) as usize);
        self.offer(RECEIVE, slot);
        Some(bytes.split_off(HEADER_BYTES))
    }

    /// Waits until the switch says something, but not for long.
    ///
    /// # Panics
    ///
    /// When the kernel does not let it.
    pub fn wait(&mut self, at_most: Duration) {
        let mut events = [EpollEvent::default(); 3];
        let at_most = i32::try_from(at_most.as_millis()).unwrap_or(i32::MAX);
        let count = match self.watch.wait(at_most, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            told => told.expect("a wait"),
        };
        self.has_ended |= events[..count].iter().any(|event| event.data() == 2);
        for ring in &self.rings {
            let _ = ring.call.read();
        }
    }

    /// Does harm: claims to have so many buffers more for the switch to read.
    pub fn claim(&mut self, buffers: u16) {
        let claimed = self.rings[TRANSMIT].available.wrapping_add(buffers);
        self.write(RINGS[TRANSMIT] + AVAILABLE + 2, &claimed.to_le_bytes());
        self.rings[TRANSMIT].kick.write(1).expect("a kick");
    }

    /// Begins anew with empty rings, as a driver does after a reset.
    ///
    /// # Errors
    ///
    /// When the switch does not agree.
    pub fn reset(&mut self) -> io::Result<()> {
        for (index, at) in RINGS.into_iter().enumerate() {
            self.frontend.get_vring_base(index).map_err(io::Error::other)?;
            self.write(at, &[0; 0x4000]);
            (self.rings[index].available, self.rings[index].used) = (0, 0);
        }
        self.begin()
    }

    fn begin(&mut self) -> io::Result<()> {
        for slot in 0..SIZE {
            self.describe(RECEIVE, slot, buffer(RECEIVE, slot), BUFFER_BYTES as u32, WRITE);
            self.offer(RECEIVE, slot);
        }
        self.start()
    }

    /// Makes both rings known, where they are.
    fn start(&mut self) -> io::Result<()> {
        (0..self.rings.len()).try_for_each(|ring| self.start_ring(ring)).map_err(io::Error::other)
    }

    fn start_ring(&mut self, index: usize) -> vhost::Result<()> {
        let base = self.used_index(index);
        let Card { frontend, rings, .. } = self;
        let at = USER_BASE + RINGS[index];
        let place = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: at,
            used_ring_addr: at + USED,
            avail_ring_addr: at + AVAILABLE,
            log_addr: None,
        };
        frontend.set_vring_num(index, SIZE)?;
        frontend.set_vring_addr(index, &place)?;
        frontend.set_vring_base(index, base)?;
        frontend.set_vring_call(index, &rings[index].call)?;
        frontend.set_vring_kick(index, &rings[index].kick)?;
        frontend.set_vring_enable(index, true)
    }

    fn describe(&self, ring: usize, slot: u16, address: u64, bytes: u32, flags: u16) {
        let mut entry = address.to_le_bytes().to_vec();
        entry.extend(bytes.to_le_bytes());
        entry.extend(flags.to_le_bytes());
        entry.extend([0, 0]);
        self.write(RINGS[ring] + 16 * u64::from(slot), &entry);
    }

    /// Gives a buffer to the switch, and tells it if it wants to be told.
    fn offer(&mut self, ring: usize, slot: u16) {
        let index = self.rings[ring].available;
        let available = RINGS[ring] + AVAILABLE;
        self.write(available + 4 + 2 * u64::from(index % SIZE), &slot.to_le_bytes());
        self.rings[ring].available = index.wrapping_add(1);
        self.write(available + 2, &self.rings[ring].available.to_le_bytes());
        if self.word(RINGS[ring] + USED) & NO_NOTIFY == 0 {
            self.rings[ring].kick.write(1).expect("a kick");
        }
    }

    fn used_index(&self, ring: usize) -> u16 {
        self.word(RINGS[ring] + USED + 2)
    }

    fn word(&self, at: u64) -> u16 {
        let bytes = self.read(at, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    fn read(&self, at: u64, bytes: usize) -> Vec<u8> {
        let mut read = vec![0; bytes];
        self.memory.read_exact_at(&mut read, at).expect("it is there");
        read
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, at).expect("there is room");
    }
}

impl Ring {
    fn new() -> io::Result<Ring> {
        let eventfd = || EventFd::new(EFD_NONBLOCK);
        Ok(Ring { available: 0, used: 0, kick: eventfd()?, call: eventfd()? })
    }
}

fn buffer(ring: usize, slot: u16) -> u64 {
    BUFFERS[ring] + u64::from(slot) * BUFFER_BYTES
}

/// Agrees with a switch, and watches what it says: of the rings, and that it ends.
fn connect(place: &Path, memory: &File, rings: &[Ring; 2]) -> io::Result<(Frontend, Epoll)> {
    let mut frontend = Frontend::from_stream(UnixStream::connect(place)?, 2);
    agree(&mut frontend, memory).map_err(io::Error::other)?;
    let watch = Epoll::new()?;
    let told = rings.iter().map(|ring| (ring.call.as_raw_fd(), EventSet::IN));
    let ends = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
    for (data, (descriptor, events)) in (0..).zip(told.chain([(frontend.as_raw_fd(), ends)])) {
        watch.ctl(ControlOperation::Add, descriptor, EpollEvent::new(events, data))?;
    }
    Ok((frontend, watch))
}

fn agree(frontend: &mut Frontend, memory: &File) -> vhost::Result<()> {
    frontend.set_owner()?;
    let offered = frontend.get_features()?;
    frontend.set_features(offered & (PROTOCOL_FEATURES | VERSION_1))?;
    let features = frontend.get_protocol_features()?;
    frontend.set_protocol_features(features & !VhostUserProtocolFeatures::MQ)?;
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_mem_table(&[VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: MEMORY_BYTES,
        userspace_addr: USER_BASE,
        mmap_offset: 0,
        mmap_handle: memory.as_raw_fd(),
    }])?;
    Ok(())
}
