//! A VIO guest's end of a port: QEMU's stream sockets (QEMU, `-netdev stream`), each frame behind its length as four bytes,
//! big endian.
//!
//! Nothing here blocks: what the peer does not read stays in a backlog of bounded length, and frames that do not fit into
//! it are discarded whole. A length that no frame has means that the peer lost its place, so it is sent away; QEMU connects
//! again by itself.
//!
//! QEMU reads up to 68 KiB at once and hands all frames in it to the NIC. Where the guest has too few buffers it keeps the
//! rest, and gives all of it to the NIC as soon as the guest adds buffers, without asking for how many: e1000 loses what is
//! too much (QEMU, `net/queue.c` and `e1000_receive_iov`). So no read may bring more than a driver adds at once. A read ends
//! behind bytes that came with a descriptor (Linux, `unix_stream_read_generic`), so the last bytes of each portion come with
//! one, which means nothing and which QEMU does not take.

#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};

use crate::FRAME_BYTES_MAX;
use crate::avio::Put;
use crate::frame::{Batch, ETHERNET_BYTES, View};
use crate::ring::Segment;

const LENGTH_BYTES: usize = 4;
/// Room for several frames of the longest kind.
const RECEIVED_BYTES_MAX: usize = 256 * 1024;
/// What a peer may leave unread before it loses frames: a thousand of the usual length, as many as a tap's queue holds.
const BACKLOG_BYTES_MAX: usize = 1536 * 1024;
/// A guest's buffer for received frames.
const BUFFER_BYTES: usize = 2048;
/// A portion is full once it fills so many buffers; a jumbo frame at its end makes it the 16 that Linux's driver adds at once.
const PORTION_BUFFERS: usize = 12;

/// Why a peer was sent away.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamFault {
    #[error("the peer closed the connection")]
    Closed,
    #[error("a frame cannot have {0} bytes")]
    Length(u32),
    #[error("the connection failed")]
    Failed(#[source] io::Error),
}

#[derive(Debug)]
pub(crate) struct StreamPeer {
    socket: UnixStream,
    /// What was received; frames up to `parsed` have been gathered.
    received: Vec<u8>,
    parsed: usize,
    /// Where the frames begin that were gathered last.
    gathered: usize,
    /// Whether frames came since somebody asked.
    talks: bool,
    /// Bytes to send; those up to `sent` are gone, and never more than those that wait may be.
    backlog: Vec<u8>,
    sent: usize,
    /// What `backlog` consists of from `sent` on. The last one is not full, and some of its frames may have been sent.
    portions: VecDeque<Portion>,
    /// What comes with the end of a portion.
    mark: OwnedFd,
}

/// Frames that one read may bring.
#[derive(Clone, Copy, Debug, Default)]
struct Portion {
    buffers: usize,
    unsent_bytes: usize,
}

impl Portion {
    fn is_full(self) -> bool {
        self.buffers >= PORTION_BUFFERS
    }
}

impl StreamPeer {
    pub(crate) fn new(socket: UnixStream) -> io::Result<StreamPeer> {
        Ok(StreamPeer {
            socket,
            received: Vec::new(),
            parsed: 0,
            gathered: 0,
            talks: false,
            backlog: Vec::new(),
            sent: 0,
            portions: VecDeque::from([Portion::default()]),
            mark: eventfd(0, EventfdFlags::CLOEXEC)?,
        })
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Gathers at most `limit` frames. Returns how many were taken and how many of them were none. Each frame's bytes stay
    /// where they are until the next call.
    pub(crate) fn gather(
        &mut self,
        batch: &mut Batch,
        limit: usize,
    ) -> Result<(usize, usize), StreamFault> {
        let limit = limit.min(batch.room());
        if next(&self.received[self.parsed..])?.is_none() {
            self.receive()?;
        }
        self.gathered = self.parsed;
        let (mut count, mut malformed) = (0, 0);
        while count < limit
            && let Some(bytes) = next(&self.received[self.parsed..])?
        {
            let start = self.parsed + LENGTH_BYTES;
            self.parsed = start + bytes;
            count += 1;
            let frame = &mut self.received[start..start + bytes];
            malformed += usize::from(push(batch, frame).is_err());
        }
        self.talks |= count > 0;
        Ok((count, malformed))
    }

    /// Whether frames came since this was asked last.
    pub(crate) fn talked(&mut self) -> bool {
        std::mem::take(&mut self.talks)
    }

    /// Leaves the last `frames` of those gathered where they are: they come again.
    pub(crate) fn hold_back(&mut self, frames: usize) {
        let length = |at: usize| next(&self.received[at..]).ok().flatten();
        let starts: Vec<usize> = std::iter::successors(Some(self.gathered), |at| {
            let end = at + LENGTH_BYTES + length(*at)?;
            (end < self.parsed).then_some(end)
        })
        .collect();
        if let Some(start) = starts.len().checked_sub(frames).and_then(|at| starts.get(at)) {
            self.parsed = *start;
        }
    }

    /// Whether there are frames that were read, or an end of them, and not gathered, or held back since.
    pub(crate) fn has_frames(&self) -> bool {
        !matches!(next(&self.received[self.parsed..]), Ok(None))
    }

    /// Whether little waits for the peer to read it.
    pub(crate) fn is_roomy(&self) -> bool {
        self.backlog.len() - self.sent <= BACKLOG_BYTES_MAX / 2
    }

    /// Takes what the socket has, behind the part of a frame that is there already. The memory is not cleared before: a peer
    /// that talks would pay for all of it each time it paused.
    fn receive(&mut self) -> Result<(), StreamFault> {
        self.received.drain(..std::mem::take(&mut self.parsed));
        self.received.reserve_exact(RECEIVED_BYTES_MAX - self.received.len());
        let room = spare_capacity(&mut self.received);
        match recv(&self.socket, room, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => Err(StreamFault::Closed),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(StreamFault::Failed(error.into())),
        }
    }

    /// Appends a frame to what is to be sent.
    pub(crate) fn put(&mut self, view: &View<'_>) -> Put {
        let needed = LENGTH_BYTES + view.octets as usize;
        if self.backlog.len() - self.sent + needed > BACKLOG_BYTES_MAX {
            return Put::NoRoom;
        }
        self.backlog.extend_from_slice(&view.octets.to_be_bytes());
        view.append_to(&mut self.backlog);
        if let Some(last) = self.portions.back_mut() {
            last.buffers += needed.div_ceil(BUFFER_BYTES);
            last.unsent_bytes += needed;
            if last.is_full() {
                self.portions.push_back(Portion::default());
            }
        }
        Put::Done
    }

    /// Sends what the peer takes. Returns whether something is left.
    pub(crate) fn flush(&mut self) -> Result<Backlog, StreamFault> {
        while self.sent < self.backlog.len() {
            match self.send_portion() {
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.forget_sent();
                    return Ok(Backlog::Waits);
                }
                Err(error) => return Err(StreamFault::Failed(error.into())),
            }
        }
        self.backlog.clear();
        self.sent = 0;
        Ok(Backlog::Empty)
    }

    /// Sends what is left of the first portion.
    fn send_portion(&mut self) -> Result<(), Errno> {
        let Some(portion) = self.portions.front_mut() else { return Ok(()) };
        let bytes = &self.backlog[self.sent..self.sent + portion.unsent_bytes];
        let mark = portion.is_full().then_some(self.mark.as_fd());
        let sent = match send(&self.socket, bytes, mark) {
            // Of one user so many descriptors may be under way as a process may have (Linux, `too_many_unix_fds`).
            Err(Errno::TOOMANYREFS) => send(&self.socket, bytes, None),
            sent => sent,
        }?;
        self.sent += sent;
        portion.unsent_bytes -= sent;
        if portion.is_full() && portion.unsent_bytes == 0 {
            self.portions.pop_front();
        }
        Ok(())
    }

    /// Moves what waits to the front once it is the smaller part, so that no byte is moved more than once on the average,
    /// however little a peer takes at a time.
    fn forget_sent(&mut self) {
        if self.sent >= self.backlog.len() - self.sent {
            self.backlog.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Gives back memory that only a burst needed.
    pub(crate) fn rest(&mut self) {
        if self.parsed == self.received.len() {
            self.received = Vec::new();
            self.parsed = 0;
        }
        if self.backlog.is_empty() {
            self.backlog = Vec::new();
        }
    }
}

/// Whether frames wait for the peer to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backlog {
    Empty,
    Waits,
}

/// Sends bytes, and with them a descriptor.
fn send(
    socket: &UnixStream,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}

/// How long the frame at the front is, if it is whole.
fn next(bytes: &[u8]) -> Result<Option<usize>, StreamFault> {
    let Some(length) = bytes.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length);
    if length == 0 || length as usize > FRAME_BYTES_MAX {
        return Err(StreamFault::Length(length));
    }
    let whole = bytes.len() - LENGTH_BYTES >= length as usize;
    Ok(whole.then_some(length as usize))
}

/// Adds a frame that has no header before it.
fn push(batch: &mut Batch, frame: &mut [u8]) -> Result<(), crate::frame::Malformed> {
    if frame.len() < ETHERNET_BYTES {
        return Err(crate::frame::Malformed);
    }
    // A frame without a header has nothing left to do, which is a header of zeroes.
    let segment = Segment { host: frame.as_mut_ptr(), guest: 0, bytes: frame.len() as u32 };
    batch.push_bare(segment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Read, Write};

    /// Every kind of end that a stream of frames can come to, at each boundary.
    #[test]
    fn absurd_lengths_are_refused_and_others_wait() {
        let framed = |length: u32, bytes: usize| {
            let mut all = length.to_be_bytes().to_vec();
            all.resize(4 + bytes, 0);
            all
        };
        let max = FRAME_BYTES_MAX;
        assert!(matches!(next(&[]), Ok(None)));
        assert!(matches!(next(&[0, 0, 0]), Ok(None)));
        assert!(matches!(next(&framed(0, 0)), Err(StreamFault::Length(0))));
        assert!(matches!(next(&framed(1, 0)), Ok(None)));
        assert!(matches!(next(&framed(1, 1)), Ok(Some(1))));
        assert!(matches!(next(&framed(max as u32, max - 1)), Ok(None)));
        assert!(matches!(next(&framed(max as u32, max)), Ok(Some(_))));
        assert!(matches!(next(&framed(max as u32 + 1, max)), Err(StreamFault::Length(_))));
        assert!(matches!(next(&[0xff; 4]), Err(StreamFault::Length(_))));
    }

    #[test]
    fn a_peer_that_reads_little_at_a_time_gets_all_in_order_and_costs_bounded_memory() {
        let (near, mut far) = UnixStream::pair().expect("a pair of sockets");
        far.set_read_timeout(Some(std::time::Duration::from_secs(10))).expect("a bound");
        let mut peer = StreamPeer::new(near).expect("a descriptor");
        let (mut batch, mut expected, mut arrived) = (Batch::new(), Vec::new(), Vec::new());
        let mut part = vec![0; 5_000];
        for number in 0u32.. {
            if expected.len() > 6 * BACKLOG_BYTES_MAX {
                break;
            }
            let mut frame = number.to_be_bytes().repeat(300);
            batch.clear();
            push(&mut batch, &mut frame).expect("a frame");
            let mut scratch = [0; 132];
            let view = batch.view(0, crate::vlan::Edit::Keep, &mut scratch);
            while peer.put(&view) == Put::NoRoom {
                peer.flush().expect("the peer is there");
                let bytes = far.read(&mut part).expect("something waits");
                arrived.extend_from_slice(&part[..bytes]);
            }
            expected.extend((frame.len() as u32).to_be_bytes());
            expected.extend(&frame);
            assert!(peer.backlog.len() <= 2 * BACKLOG_BYTES_MAX);
        }
        while arrived.len() < expected.len() {
            peer.flush().expect("the peer is there");
            let bytes = far.read(&mut part).expect("something waits");
            arrived.extend_from_slice(&part[..bytes]);
        }
        assert!(arrived == expected, "the bytes differ");
    }

    /// Puts a frame of so many bytes to a peer.
    fn put(peer: &mut StreamPeer, bytes: usize) -> Put {
        let (mut batch, mut frame) = (Batch::new(), vec![0x40; bytes]);
        push(&mut batch, &mut frame).expect("a frame");
        peer.put(&batch.view(0, crate::vlan::Edit::Keep, &mut [0; 132]))
    }

    #[test]
    fn no_read_brings_more_than_a_driver_adds_buffers_at_once() {
        for bytes in [60, 1514, 9014] {
            let (near, far) = UnixStream::pair().expect("a pair of sockets");
            far.set_nonblocking(true).expect("a socket");
            let mut peer = StreamPeer::new(near).expect("a descriptor");
            // Now and then the peer is shown what there is, as it is while there is little to do.
            for number in 0..100 {
                assert_eq!(put(&mut peer, bytes), Put::Done);
                if number % 7 == 0 {
                    peer.flush().expect("the peer is there");
                }
            }
            let (mut room, mut frames) = (vec![0; 68 * 1024], 0);
            let each = LENGTH_BYTES + bytes;
            let (mut most, mut pending) = (0, 0);
            while frames < 100 {
                peer.flush().expect("the peer is there");
                let read = (&far).read(&mut room).expect("something waits");
                let whole = (pending + read) / each;
                pending = (pending + read) % each;
                frames += whole;
                most = most.max(whole);
            }
            let most_buffers = most * each.div_ceil(BUFFER_BYTES);
            assert!(most_buffers <= 16, "{most} frames of {bytes} bytes at once");
            assert!(most_buffers >= 5, "{most} frames of {bytes} bytes are few");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// However the bytes are cut, the same frames come out.
        #[test]
        fn cuts_do_not_matter(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 1..100),
            cuts in prop::collection::vec(1usize..4000, 1..20),
        ) {
            let (near, mut far) = UnixStream::pair().expect("a pair of sockets");
            let mut peer = StreamPeer::new(near).expect("a descriptor");
            let mut bytes = Vec::new();
            for frame in &frames {
                bytes.extend((frame.len() as u32).to_be_bytes());
                bytes.extend(frame);
            }
            let (mut gathered, mut malformed, mut cuts) = (Vec::new(), 0, cuts.iter().cycle());
            let mut rest = &bytes[..];
            let mut batch = Batch::new();
            while !rest.is_empty() {
                let cut = rest.len().min(*cuts.next().expect("a cycle"));
                far.write_all(&rest[..cut]).expect("room in the socket");
                rest = &rest[cut..];
                loop {
                    batch.clear();
                    let (count, none) = peer.gather(&mut batch, 7).expect("good lengths");
                    malformed += none;
                    for index in 0..batch.len() {
                        let mut frame = Vec::new();
                        batch.view(index, crate::vlan::Edit::Keep, &mut [0; 132]).append_to(&mut frame);
                        gathered.push(frame);
                    }
                    if count == 0 {
                        break;
                    }
                }
            }
            let is_frame = |frame: &&Vec<u8>| {
                frame.len() >= 18 || frame.len() >= 14 && frame[12..14] != [0x81, 0]
            };
            let expected: Vec<_> = frames.iter().filter(is_frame).cloned().collect();
            prop_assert_eq!(malformed, frames.len() - expected.len());
            prop_assert_eq!(gathered, expected);
        }
    }
}
