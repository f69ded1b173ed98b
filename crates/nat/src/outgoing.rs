//! Frames on their way to the switch: each behind its length in 4 bytes, big endian, as QEMU's stream sockets have it.
//!
//! The queue is bounded. A switch that does not read in time loses frames, as on any wire.

use std::io::{self, ErrorKind, Write};

use crate::answerable::Answerable;

/// Some dozen connections' worth of windows.
const WAITING_BYTES_MAX: usize = 2 * 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Whom the guests may answer.
    pub(crate) answerable: Answerable,
    bytes: Vec<u8>,
    /// How many of them are written.
    written: usize,
    pub(crate) taken: u64,
    pub(crate) dropped: u64,
}

impl Outgoing {
    pub(crate) fn new(answerable: Answerable) -> Outgoing {
        Outgoing { answerable, bytes: Vec::new(), written: 0, taken: 0, dropped: 0 }
    }

    pub(crate) fn push(&mut self, frame: &[u8]) {
        let Ok(length) = u32::try_from(frame.len()) else { return };
        if self.waiting() + frame.len() > WAITING_BYTES_MAX {
            self.dropped += 1;
            return;
        }
        self.taken += 1;
        self.answerable.note(frame);
        self.bytes.extend_from_slice(&length.to_be_bytes());
        self.bytes.extend_from_slice(frame);
    }

    pub(crate) fn waiting(&self) -> usize {
        self.bytes.len() - self.written
    }

    /// Writes what the other side takes now.
    pub(crate) fn write_to(&mut self, stream: &mut impl Write) -> io::Result<()> {
        while self.waiting() > 0 {
            match stream.write(&self.bytes[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        // What was written is let go of once it is the larger part, so that bytes are moved seldom.
        if self.written >= self.waiting() {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }

    /// A new connection begins with a whole frame.
    pub(crate) fn forget(&mut self) {
        self.bytes.clear();
        self.written = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing() -> Outgoing {
        Outgoing::new(Answerable::new(std::net::Ipv4Addr::new(10, 0, 2, 2)))
    }

    /// Takes so many bytes, then none.
    struct Narrow(Vec<u8>, usize);

    impl Write for Narrow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.1);
            if count == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            self.1 -= count;
            self.0.extend_from_slice(&bytes[..count]);
            Ok(count)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_written_in_pieces_is_whole_in_the_end() {
        let mut outgoing = outgoing();
        outgoing.push(b"first");
        outgoing.push(b"second");
        let mut stream = Narrow(Vec::new(), 0);
        for _ in 0..40 {
            stream.1 = 1;
            outgoing.write_to(&mut stream).expect("written");
        }
        assert_eq!(stream.0, b"\0\0\0\x05first\0\0\0\x06second");
        assert_eq!((outgoing.waiting(), outgoing.taken), (0, 2));
    }

    #[test]
    fn a_switch_that_does_not_read_loses_frames_and_costs_no_more_memory() {
        let mut outgoing = outgoing();
        let frame = [0; 1500];
        for _ in 0..3000 {
            outgoing.push(&frame);
        }
        assert!(outgoing.waiting() <= WAITING_BYTES_MAX + 4 * 3000);
        assert!(outgoing.dropped > 0);
        assert_eq!(outgoing.taken + outgoing.dropped, 3000);
    }
}
