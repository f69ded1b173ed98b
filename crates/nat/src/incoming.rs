//! Cuts what the switch sends into frames.
//!
//! A length that no frame has ends the connection: there is no telling where the next frame begins.

use std::io::{self, ErrorKind, Read};

/// What is read at once.
const READ_BYTES: usize = 128 * 1024;
/// The longest frame that a switch may send: 64 KiB of IP, and heads.
const FRAME_BYTES_MAX: usize = 65_536 + 64;
const LENGTH_BYTES: usize = 4;

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the switch closed it")]
    Closed,
    #[error("a frame of {0} bytes was announced, and no frame is longer than {FRAME_BYTES_MAX}")]
    Length(usize),
    #[error("it cannot be read")]
    Read(#[from] io::Error),
}

#[derive(Debug, Default)]
pub(crate) struct Incoming {
    bytes: Vec<u8>,
}

impl Incoming {
    /// Reads once, and hands each whole frame on.
    pub(crate) fn read_from(
        &mut self,
        stream: &mut impl Read,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Broken> {
        let kept = self.bytes.len();
        self.bytes.resize(kept + READ_BYTES, 0);
        let result = stream.read(&mut self.bytes[kept..]);
        self.bytes.truncate(kept + *result.as_ref().unwrap_or(&0));
        match result {
            Ok(0) => return Err(Broken::Closed),
            Ok(_) => {}
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        let mut at = 0;
        while let Some((length, rest)) = self.bytes[at..].split_first_chunk::<LENGTH_BYTES>() {
            let length = u32::from_be_bytes(*length) as usize;
            if length > FRAME_BYTES_MAX {
                return Err(Broken::Length(length));
            }
            let Some(frame) = rest.get(..length) else { break };
            each(frame);
            at += LENGTH_BYTES + length;
        }
        self.bytes.drain(..at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Gives so many bytes at a time.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(self.0.len()).min(buffer.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    proptest! {
        #[test]
        fn frames_are_whole_however_they_arrive(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..20),
            piece in 1usize..64,
        ) {
            let mut sent = Vec::new();
            for frame in &frames {
                sent.extend_from_slice(&u32::try_from(frame.len()).expect("short").to_be_bytes());
                sent.extend_from_slice(frame);
            }
            let mut stream = Pieces(&sent, piece);
            let mut incoming = Incoming::default();
            let mut received: Vec<Vec<u8>> = Vec::new();
            while !stream.0.is_empty() {
                incoming
                    .read_from(&mut stream, |frame| received.push(frame.to_vec()))
                    .expect("whole");
            }
            prop_assert_eq!(received, frames);
            prop_assert!(incoming.bytes.is_empty());
        }

        #[test]
        fn no_bytes_make_it_panic_or_keep_more_than_a_frame(
            bytes in prop::collection::vec(any::<u8>(), 0..4096),
        ) {
            let mut incoming = Incoming::default();
            let mut stream = Pieces(&bytes, 4096);
            let _ = incoming.read_from(&mut stream, |_| ());
            prop_assert!(incoming.bytes.len() <= FRAME_BYTES_MAX + LENGTH_BYTES);
        }
    }

    #[test]
    fn an_absurd_length_breaks_the_connection() {
        let mut stream = Pieces(&[0xff; 8], 8);
        let broken = Incoming::default().read_from(&mut stream, |_| ());
        assert!(matches!(broken, Err(Broken::Length(_))));
    }
}
